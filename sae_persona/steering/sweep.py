"""Dose–response: many arms at many strengths in the same few full batches, measured by whoever is handed in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sae_persona.errors import ConfigError
from sae_persona.model.generate import HookedEdit, sample
from sae_persona.model.hooks import resolve_hook
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction
from sae_persona.steering.edits import Window, check_dosing, check_strengths, check_width
from sae_persona.steering.fused import Condition, fused_edits
from sae_persona.types import Completion, Estimate, Prompt

if TYPE_CHECKING:
    from sae_lens import SAE

Measure = Callable[[list[Completion]], Mapping[str, Estimate]]
EditKind = Literal["add", "ablate", "clamp"]


@dataclass(frozen=True)
class Arm:
    """One direction and the strengths at which it is tried."""

    direction: Direction
    strengths: tuple[float, ...]
    edit: EditKind = "add"
    """`add` strength * unit along the direction; `ablate` that share of the residual along it (1 = all of it); `clamp`
    its latents to strength * unit."""
    unit: float | None = None
    """What a strength of one means for this arm, such as its latent's maximum; None: the sweep's unit."""
    elsewhere: Mapping[str, Direction] = field(default_factory=dict)
    """Other hooks that are edited at the same time, with the same strength, each along its own direction."""


@dataclass(frozen=True)
class Dose:
    """What the model did with one direction at one strength."""

    direction: Direction
    strength: float
    measures: Mapping[str, Estimate]
    edit: EditKind | Literal["none"] = "add"
    """`none`: the unsteered model."""

    @property
    def is_unsteered(self) -> bool:
        """Nothing was done: a strength of zero, unless a latent is clamped to it."""
        return self.edit == "none" or (self.strength == 0 and self.edit != "clamp")


@dataclass(frozen=True)
class SweepConfig:
    """What changes the numbers of a sweep."""

    hook_name: str
    unit: float
    """What a strength of one adds: the median norm of the unsteered residual, in the paper's convention."""
    window: Window
    """Which tokens are steered."""
    n_samples: int
    """Answers per prompt, direction and strength."""
    max_new_tokens: int
    seed: int
    """The same seed gives every arm the same sampling noise."""
    temperature: float = 1.0
    from_token: int = 0
    """Tokens before this one of their row are left alone, whatever the window."""
    units: Mapping[str, float] = field(default_factory=dict)
    """Units of other hooks than `hook_name`; those that are not named share its own."""


def sweep(
    model: LoadedModel,
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    measure: Measure,
    config: SweepConfig,
    *,
    sae: "SAE | None" = None,
    batch_size: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> list[list[Dose]]:
    """Sample every arm at every strength and measure the answers; one list of doses per arm, in the order given.

    Strength 0 is sampled once, whatever the number of arms, and shared by all that ask for it. A clamped arm, whose 0
    is a dose like any other, begins with the unsteered model instead. Rows of one batch carry different edits; with the
    shared noise an arm's answers equal those of a run of its own. `sae` is whose latents clamped arms hold.

    Raises:
        ConfigError: no arm, a strength that is not a finite number, or an arm to be clamped without latents or SAE.
        HookError, IncompatibleError: the hook or a direction does not fit the model.
    """
    answers = draw_answers(model, arms, prompts, config, sae=sae, batch_size=batch_size, progress=progress)
    return doses_of(arms, [measure(completions) for completions in answers])


def draw_answers(
    model: LoadedModel,
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    config: SweepConfig,
    *,
    sae: "SAE | None" = None,
    batch_size: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """The answers of a sweep before they are measured, one list per condition.

    Conditions are the edits of all arms in order and, where an arm asks for it, the unsteered model last.

    Raises:
        ConfigError, HookError, IncompatibleError: as `sweep`.
    """
    if not arms:
        raise ConfigError("a sweep needs at least one arm; got none.")
    check_dosing(config.window, config.from_token, config.unit, *config.units.values())
    for name in config.units:
        resolve_hook(model.hf, name)
    for arm in arms:
        check_strengths([*arm.strengths, *([] if arm.unit is None else [arm.unit])])
        check_width(model, arm.direction, *arm.elsewhere.values())
    conditions = _conditions(arms)
    n_unsteered = int(_has_unsteered(arms))
    return sample(
        model,
        prompts,
        n_samples=config.n_samples,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        n_conditions=len(conditions) + n_unsteered,
        edits=fused_edits(conditions, config, n_unsteered=n_unsteered, sae=sae),
        batch_size=batch_size,
        progress=progress,
    )


def edits_alone(arms: Sequence[Arm], config: SweepConfig, *, sae: "SAE | None" = None) -> list[list[HookedEdit]]:
    """The edits of every condition of `draw_answers`, in its order, each for batches that all its rows share.

    Raises:
        ConfigError: an arm is to be clamped, and its direction has no latents or there is no SAE.
    """
    alone = [fused_edits([one], config, n_unsteered=0, sae=sae) for one in _conditions(arms)]
    return [*alone, *([[]] if _has_unsteered(arms) else [])]


def n_conditions(arms: Sequence[Arm]) -> int:
    """How many lists `draw_answers` returns: every edit of every arm, and the unsteered model once."""
    return len(_conditions(arms)) + _has_unsteered(arms)


def doses_of(arms: Sequence[Arm], measured: Sequence[Mapping[str, Estimate]]) -> list[list[Dose]]:
    """What was measured in every condition of `draw_answers`, arm by arm."""
    steered = iter(measured[: len(_conditions(arms))])

    def doses(arm: Arm) -> list[Dose]:
        first = [Dose(arm.direction, 0.0, measured[-1], "none")] if arm.edit == "clamp" else []
        return first + [
            Dose(arm.direction, strength, next(steered), arm.edit)
            if _is_edit(arm, strength)
            else Dose(arm.direction, strength, measured[-1], "none")
            for strength in arm.strengths
        ]

    return [doses(arm) for arm in arms]


def _conditions(arms: Sequence[Arm]) -> list[Condition]:
    return [Condition(arm, strength) for arm in arms for strength in arm.strengths if _is_edit(arm, strength)]


def _has_unsteered(arms: Sequence[Arm]) -> bool:
    return any(arm.edit == "clamp" or 0 in arm.strengths for arm in arms)


def _is_edit(arm: Arm, strength: float) -> bool:
    return strength != 0 or arm.edit == "clamp"
