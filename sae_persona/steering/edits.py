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

from sae_persona.errors import ConfigError, HookError, IncompatibleError, SAEError
from sae_persona.model.hooks import Edit, Position, Resid, edit_residual
from sae_persona.model.load import LoadedModel
from sae_persona.sae.load import check_fits
from sae_persona.steering.directions import Direction

if TYPE_CHECKING:
    from sae_lens import SAE

Window = Literal["all", "prompt", "header", "answer", "newest"]
WINDOWS: tuple[Window, ...] = get_args(Window)


def window_mask(window: Window, position: Position, from_token: int = 0) -> Bool[Tensor, "batch seq 1"]:
    """The tokens that a window selects.

    `all` tokens, those of the `prompt`, those of the `answer`, each pass's `newest`, or the `header`: the prompt's last
    token, from which the first word of the answer is predicted. Of these only those from the row's token number
    `from_token` on, counted from 0.

    Raises:
        HookError: tokens are to be counted, and the model does not tell its blocks where they stand.
    """
    selected = {
        "all": position.mask,
        "prompt": position.mask & ~position.answer,
        "header": position.mask & position.newest & ~position.answer,
        "answer": position.mask & position.answer,
        "newest": position.mask & position.newest,
    }[window]
    if from_token:
        if position.index is None:
            raise HookError(
                "this model does not tell its blocks the positions of tokens, so they cannot be steered from token "
                f"{from_token} on. Use a window instead."
            )
        selected = selected & (position.index >= from_token)
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
    from_token: int = 0

    def __post_init__(self) -> None:
        check_strengths([self.strength])
        check_dosing(self.window, self.from_token, self.unit)

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual, pushed where the window says."""
        delta = (self.strength * self.unit * self.direction.vector).to(resid)
        return torch.where(window_mask(self.window, position, self.from_token), resid + delta, resid)


@dataclass(frozen=True, eq=False)
class AblateDirection:
    """`h <- h - strength * (h · d) d`: at strength 1 nothing is left of the residual along the direction.

    Of a set, nothing is left in the space of all its parts. A strength below 1 leaves a part; 2 reflects.
    """

    direction: Direction
    window: Window = "all"
    from_token: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_strengths([self.strength])
        check_dosing(self.window, self.from_token)

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual without the direction, where the window says."""
        span = self.direction.span.to(resid)
        edited = resid - self.strength * ((resid @ span.T) @ span)
        return torch.where(window_mask(self.window, position, self.from_token), edited, resid)


@dataclass(frozen=True, eq=False)
class ClampLatent:
    """Set the activation of a latent, or of each of a set, to `value` and keep what the SAE does not explain.

    `h <- h + sum_j (value - f_j(h)) W_dec[j]`: the error term is the unedited residual's, so it does not undo the edit.

    Raises:
        SAEError: a latent is not one of the SAE's.
    """

    sae: "SAE"
    latent: int | tuple[int, ...]
    value: float
    window: Window = "all"
    from_token: int = 0

    def __post_init__(self) -> None:
        check_strengths([self.value])
        check_dosing(self.window, self.from_token)
        for latent in self.latents:
            if not 0 <= latent < self.sae.cfg.d_sae:
                raise SAEError(f"latent {latent} is not in this SAE, whose latents are 0 to {self.sae.cfg.d_sae - 1}.")

    @property
    def latents(self) -> tuple[int, ...]:
        """All that are held."""
        return self.latent if isinstance(self.latent, tuple) else (self.latent,)

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual with the latents held, where the window says."""
        latents = list(self.latents)
        activations = self.sae.encode(resid)[..., latents]
        edited = resid + (self.value - activations) @ self.sae.W_dec[latents].to(resid)
        return torch.where(window_mask(self.window, position, self.from_token), edited, resid)


@dataclass(frozen=True, eq=False)
class AddPerCondition:
    """Rows of one batch pushed differently: condition `c` gets `deltas[c]`. What a fused sweep is made of."""

    deltas: Float[Tensor, "n_conditions d_model"]
    window: Window = "all"
    from_token: int = 0

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual, each row pushed by its own condition's delta."""
        delta = self.deltas.to(resid)[position.condition].unsqueeze(1)
        return torch.where(window_mask(self.window, position, self.from_token), resid + delta, resid)


@dataclass(frozen=True, eq=False)
class AblatePerCondition:
    """Rows of one batch with different directions projected out; zeros in `spans` leave a condition as it is.

    Axes: `c` conditions, `n` directions of the largest set.
    """

    spans: Float[Tensor, "c n d_model"]
    strengths: Float[Tensor, " c"]
    window: Window = "all"
    from_token: int = 0

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual, each row without its own condition's directions."""
        span = self.spans.to(resid)[position.condition]  # [batch, n, d_model]
        strength = self.strengths.to(resid)[position.condition][:, None, None]
        edited = resid - strength * ((resid @ span.transpose(1, 2)) @ span)
        return torch.where(window_mask(self.window, position, self.from_token), edited, resid)


@dataclass(frozen=True, eq=False)
class ClampPerCondition:
    """Rows of one batch with different latents held at different values; False in `held` leaves a latent as it is.

    Axes: `c` conditions, `n` latents of the largest set.
    """

    sae: "SAE"
    latents: Tensor
    """[c, n], any latent where none is held"""
    held: Bool[Tensor, "c n"]
    values: Float[Tensor, " c"]
    window: Window = "all"
    from_token: int = 0

    def __call__(self, resid: Resid, position: Position) -> Resid:
        """The residual, each row with its own condition's latents held."""
        latents, held, values = (x.to(resid.device)[position.condition] for x in (self.latents, self.held, self.values))
        every = latents[:, None, :].expand(-1, resid.shape[1], -1)  # [batch, seq, n]
        activations = self.sae.encode(resid).gather(-1, every)
        missing = (values[:, None, None] - activations) * held[:, None, :]
        edited = resid + missing.to(resid) @ self.sae.W_dec[latents].to(resid)
        selected = window_mask(self.window, position, self.from_token) & held.any(-1)[:, None, None]
        return torch.where(selected, edited, resid)


@contextlib.contextmanager
def steer(model: LoadedModel, hook_name: str, edit: Edit) -> Iterator[None]:
    """Steer everything the model computes inside the context; leaving restores its logits bit for bit.

    Raises:
        HookError: the model has no such hook.
        IncompatibleError: the direction, or the SAE, has another width than the model.
    """
    if isinstance(edit, AddDirection | AblateDirection):
        check_width(model, edit.direction)
    if isinstance(edit, ClampLatent):
        check_fits(edit.sae, model, hook_name)
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


def check_dosing(window: str, from_token: int, *units: float) -> None:
    """Raise `ConfigError` for a window that is none, a token before the first, or a unit that is no finite number."""
    if window not in WINDOWS:
        raise ConfigError(f"window {window!r} is none; expected {', '.join(map(repr, WINDOWS))}.")
    if from_token < 0:
        raise ConfigError(f"from_token is {from_token}; tokens are counted from 0.")
    for unit in units:
        if not math.isfinite(unit):
            raise ConfigError(f"unit {unit!r} is not a finite number; use a norm, such as the median of the residuals.")


def check_strengths(strengths: Sequence[float]) -> None:
    """Raise `ConfigError` for a strength that is not a finite number."""
    for strength in strengths:
        if not math.isfinite(strength):
            raise ConfigError(f"strength {strength!r} is not a finite number; use values such as -0.4,0,0.4.")
