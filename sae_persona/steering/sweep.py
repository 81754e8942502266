"""Dose–response: many directions at many strengths in the same few full batches, measured by whoever is handed in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sae_persona.errors import ConfigError
from sae_persona.model.generate import HookedEdit, sample
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction
from sae_persona.steering.edits import AddPerCondition, Window, check_strengths, check_width
from sae_persona.types import Completion, Estimate, Prompt

Measure = Callable[[list[Completion]], Mapping[str, Estimate]]


@dataclass(frozen=True)
class Arm:
    """One direction and the strengths at which it is tried."""

    direction: Direction
    strengths: tuple[float, ...]


@dataclass(frozen=True)
class Dose:
    """What the model did with one direction at one strength."""

    direction: Direction
    strength: float
    measures: Mapping[str, Estimate]


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


def sweep(
    model: LoadedModel,
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    measure: Measure,
    config: SweepConfig,
    *,
    batch_size: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> list[list[Dose]]:
    """Sample every arm at every strength and measure the answers; one list of doses per arm, in the order given.

    Strength 0 is sampled once, whatever the number of arms, and shared by all that ask for it. Rows of one batch carry
    different directions and strengths; with the shared noise an arm's answers equal those of a run of its own.

    Raises:
        ConfigError: no arm, or a strength that is not a finite number.
        HookError, IncompatibleError: the hook or a direction does not fit the model.
    """
    if not arms:
        raise ConfigError("a sweep needs at least one arm; got none.")
    for arm in arms:
        check_strengths(arm.strengths)
        check_width(model, arm.direction)
    conditions = [(i, strength) for i, arm in enumerate(arms) for strength in arm.strengths if strength != 0]
    shared_zero = any(0 in arm.strengths for arm in arms)
    deltas = [config.unit * strength * arms[i].direction.vector for i, strength in conditions]
    if shared_zero:
        deltas.append(torch.zeros(model.d_model))
    answers = sample(
        model,
        prompts,
        n_samples=config.n_samples,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        n_conditions=len(deltas),
        edits=[HookedEdit(config.hook_name, AddPerCondition(torch.stack(deltas), config.window))],
        batch_size=batch_size,
        progress=progress,
    )
    measured = [measure(completions) for completions in answers]
    by_condition = dict(zip(conditions, measured[: len(conditions)], strict=True))
    return [
        [
            Dose(arm.direction, strength, by_condition[i, strength] if strength != 0 else measured[-1])
            for strength in arm.strengths
        ]
        for i, arm in enumerate(arms)
    ]
