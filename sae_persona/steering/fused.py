"""The edits of a fused sweep: every condition's own, as a few tensors per hook.

Axes: `c` conditions, those without an edit last; `n` directions or latents of the largest set.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_persona.errors import ConfigError
from sae_persona.model.generate import HookedEdit
from sae_persona.steering.edits import AblatePerCondition, AddPerCondition, ClampPerCondition

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_persona.steering.directions import Direction
    from sae_persona.steering.sweep import Arm, SweepConfig


class Condition(NamedTuple):
    """One arm at one strength."""

    arm: "Arm"
    strength: float

    def at(self, hook_name: str, config: "SweepConfig") -> "Direction | None":
        """Its direction at a hook, if it has one there."""
        return self.arm.direction if hook_name == config.hook_name else self.arm.elsewhere.get(hook_name)

    def amount(self, hook_name: str, config: "SweepConfig") -> float:
        """Strength times unit. An ablated share has no unit."""
        if self.arm.edit == "ablate":
            return self.strength
        unit = self.arm.unit if self.arm.unit is not None else config.units.get(hook_name, config.unit)
        return unit * self.strength


def fused_edits(
    conditions: Sequence[Condition], config: "SweepConfig", *, n_unsteered: int, sae: "SAE | None"
) -> list[HookedEdit]:
    """The edits at every hook; the last `n_unsteered` conditions have none.

    Raises:
        ConfigError: an arm is to be clamped, and its direction has no latents or there is no SAE.
    """
    hooks = list(dict.fromkeys([config.hook_name, *(hook for one in conditions for hook in one.arm.elsewhere)]))
    edits = []
    for hook in hooks:
        here = [(i, one, found) for i, one in enumerate(conditions) if (found := one.at(hook, config)) is not None]
        for build in (_added, _ablated):
            edits += build(here, len(conditions) + n_unsteered, hook, config)
        edits += _clamped(here, len(conditions) + n_unsteered, hook, config, sae)
    return edits


_Here = Sequence[tuple[int, Condition, "Direction"]]
"""The conditions with an edit at one hook: number, condition, direction."""


def _added(here: _Here, n: int, hook: str, config: "SweepConfig") -> list[HookedEdit]:
    of = [(i, one, direction) for i, one, direction in here if one.arm.edit == "add"]
    if not of:
        return []
    deltas = torch.zeros(n, len(of[0][2].vector))
    for i, one, direction in of:
        deltas[i] = one.amount(hook, config) * direction.vector
    return [HookedEdit(hook, AddPerCondition(deltas, config.window, config.from_token))]


def _ablated(here: _Here, n: int, hook: str, config: "SweepConfig") -> list[HookedEdit]:
    of = [(i, one, direction) for i, one, direction in here if one.arm.edit == "ablate"]
    if not of:
        return []
    spans = [torch.zeros(1, len(of[0][2].vector))] * n
    strengths = torch.zeros(n)
    for i, one, direction in of:
        spans[i], strengths[i] = direction.span.float(), one.amount(hook, config)
    edit = AblatePerCondition(_stacked(spans), strengths, config.window, config.from_token)
    return [HookedEdit(hook, edit)]


def _clamped(here: _Here, n: int, hook: str, config: "SweepConfig", sae: "SAE | None") -> list[HookedEdit]:
    of = [(i, one, direction) for i, one, direction in here if one.arm.edit == "clamp"]
    if not of:
        return []
    if sae is None:
        raise ConfigError("clamping a latent needs its SAE; got none. Hand the SAE to the sweep.")
    latents, held, values = [torch.zeros(1).long()] * n, [torch.zeros(1).bool()] * n, torch.zeros(n)
    for i, one, direction in of:
        if not direction.latents:
            raise ConfigError(
                f"direction {direction.name!r} has no latent to clamp. Clamp latents, and add or ablate what has none."
            )
        latents[i] = torch.tensor(direction.latents)
        held[i] = torch.ones(len(direction.latents)).bool()
        values[i] = one.amount(hook, config)
    edit = ClampPerCondition(sae, _stacked(latents), _stacked(held), values, config.window, config.from_token)
    return [HookedEdit(hook, edit)]


def _stacked(ragged: Sequence[Tensor]) -> Tensor:
    """One tensor of all, the shorter ones filled up with zeros."""
    return pad_sequence(list(ragged), batch_first=True)
