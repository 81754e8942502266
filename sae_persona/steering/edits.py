"""What can be done to the residual stream: add a direction, project one out, or hold a latent at a value.

Each edit is a frozen callable for `edit_residual`; `steer` opens the context. Contexts nest and leave no trace.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.model.hooks import Edit, Position, Resid, edit_residual
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction

if TYPE_CHECKING:
    from sae_lens import SAE

Window = Literal["all", "prompt", "header", "answer", "newest"]
WINDOWS: tuple[Window, ...] = get_args(Window)


def window_mask(window: Window, position: Position) -> Bool[Tensor, "batch seq 1"]:
    """The tokens that a window selects.

    `all` tokens, those of the `prompt`, those of the `answer`, each pass's `newest`, or the `header`: the prompt's last
    token, from which the first word of the answer is predicted.
    """
    selected = {
        "all": position.mask,
        "prompt": position.mask & ~position.answer,
        "header": position.mask & position.newest & ~position.answer,
        "answer": position.mask & position.answer,
        "newest": position.mask & position.newest,
    }[window]
    return selected.unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class AddDirection:
    """`h <- h + strength * unit * d` at every token of the window (Wang et al. 2025, section 3.2).

    `unit` is what strength is counted in, e.g. the median norm of the unsteered residual.
    """

    direction: Direction
    strength: float
    unit: float = 1.0
    window: Window = "all"

    def __post_init__(self) -> None:
        check_strengths([self.strength])

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual, pushed where the window says."""
        delta = (self.strength * self.unit * self.direction.vector).to(resid)
        return torch.where(window_mask(self.window, position), resid + delta, resid)


@dataclass(frozen=True, eq=False)
class AblateDirection:
    """`h <- h - (h · d) d`: nothing is left of the residual along the direction."""

    direction: Direction
    window: Window = "all"

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual without the direction, where the window says."""
        d = self.direction.vector.to(resid)
        return torch.where(window_mask(self.window, position), resid - (resid @ d).unsqueeze(-1) * d, resid)


@dataclass(frozen=True, eq=False)
class ClampLatent:
    """Set one latent's activation to `value` and keep what the SAE does not explain.

    `h <- h + (value - f(h)) W_dec[latent]`: the error term is the unedited residual's, so it does not undo the edit.
    """

    sae: "SAE"
    latent: int
    value: float
    window: Window = "all"

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual with the latent held, where the window says."""
        activation = self.sae.encode(resid)[..., self.latent].unsqueeze(-1)
        edited = resid + (self.value - activation) * self.sae.W_dec[self.latent].to(resid)
        return torch.where(window_mask(self.window, position), edited, resid)


@dataclass(frozen=True, eq=False)
class AddPerCondition:
    """Rows of one batch pushed differently: condition `c` gets `deltas[c]`. What a fused sweep is made of."""

    deltas: Float[Tensor, "n_conditions d_model"]
    window: Window = "all"

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual, each row pushed by its own condition's delta."""
        delta = self.deltas.to(resid)[position.condition].unsqueeze(1)
        return torch.where(window_mask(self.window, position), resid + delta, resid)


@contextlib.contextmanager
def steer(model: LoadedModel, hook_name: str, edit: Edit) -> Iterator[None]:
    """Steer everything the model computes inside the context; leaving restores its logits bit for bit.

    Raises:
        HookError: the model has no such hook.
        IncompatibleError: the direction has another width than the model.
    """
    if isinstance(edit, AddDirection | AblateDirection):
        check_width(model, edit.direction)
    with edit_residual(model.hf, hook_name, edit):
        yield


def check_width(model: LoadedModel, *directions: Direction) -> None:
    """Raise `IncompatibleError` for a direction of another width than the model's residual stream."""
    for direction in directions:
        if len(direction.vector) != model.d_model:
            raise IncompatibleError(
                f"direction {direction.name!r} has width {len(direction.vector)}; the model has "
                f"d_model={model.d_model}. Use a direction from an SAE trained on this model."
            )


def check_strengths(strengths: Sequence[float]) -> None:
    """Raise `ConfigError` for a strength that is not a finite number."""
    for strength in strengths:
        if not math.isfinite(strength):
            raise ConfigError(f"strength {strength!r} is not a finite number; use values such as -0.4,0,0.4.")
