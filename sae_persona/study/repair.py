"""What repairs, chosen on selection prompts: one direction, window and strength for all misaligned models.

What induces a persona need not be what keeps it, so the set that repairs is searched for on its own. All models vote on
one dose: three times the answers stand behind each choice, and a user can subtract it from a model that took no part.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction, latent_direction
from sae_persona.steering.edits import Window
from sae_persona.steering.screen import MAX_SET_SIZE, extensions, is_coherent
from sae_persona.steering.sweep import Arm, Dose
from sae_persona.study.bench import Bench

if TYPE_CHECKING:
    from sae_lens import SAE

POOL = 6
"""Latents from which sets are formed."""
N_FINALISTS = 4
"""Sets that get the second, closer look."""


@dataclass(frozen=True)
class Remedy:
    """One dose of one direction, subtracted from every misaligned model."""

    latents: tuple[int, ...]
    window: Window
    strength: float
    """Below zero."""
    gains: Mapping[str, float]
    """Rise of the aligned share, by model."""
    added_incoherence: float
    """Mean over models."""

    @property
    def is_coherent(self) -> bool:
        """Whether the models stay within the gate, on average."""
        return is_coherent(self.added_incoherence)

    @property
    def mean_gain(self) -> float:
        """What it does on average; nothing where it costs coherence."""
        return fmean(self.gains.values()) if self.is_coherent else 0.0

    @property
    def least_gain(self) -> float:
        """What it does to the model that it helps least; nothing where it costs coherence."""
        return min(self.gains.values()) if self.is_coherent else 0.0


@dataclass(frozen=True, eq=False)
class Clinic:
    """The misaligned models, and the bench on which remedies are tried."""

    bench: Bench
    patients: Mapping[str, LoadedModel]

    def try_on_all(
        self, directions: Sequence[Direction], *, window: Window, n_open: int, every: int = 1
    ) -> list[list[Remedy]]:
        """Every strength (or every second one, …) of every direction, in this order, tried on every model."""
        strengths = tuple(-strength for strength in self.bench.config.steering.repair_strengths[window][::every])
        arms = [Arm(direction, (0.0, *strengths)) for direction in directions]
        doses = {
            name: self.bench.doses(model, arms, window=window, n_open=n_open) for name, model in self.patients.items()
        }
        return [
            [
                _remedy(direction, window, {name: _before_and_at(arm[i], strength) for name, arm in doses.items()})
                for strength in strengths
            ]
            for i, direction in enumerate(directions)
        ]


def repair_with(clinic: Clinic, direction: Direction) -> dict[str, Any]:
    """The window and the strength at which one direction repairs best, as a record."""
    n_open = clinic.bench.config.sampling.selection
    tried = [
        remedy
        for window in clinic.bench.config.steering.repair_strengths
        for remedy in clinic.try_on_all([direction], window=window, n_open=n_open)[0]
    ]
    return asdict(max(tried, key=lambda one: one.least_gain))


def repair_with_set(clinic: Clinic, sae: "SAE", suspects: Sequence[int]) -> dict[str, Any]:
    """The set of at most three suspects, its window and its strength that repair best, as a record.

    Sets grow by mean gain over the models, at every second strength. The strongest are seen again at every strength
    with more answers, of which the first are those seen before; of these, the set is chosen that does most for the
    model that it helps least.
    """
    sampling = clinic.bench.config.sampling
    grown: dict[tuple[tuple[int, ...], Window], float] = {}
    for window in clinic.bench.config.steering.repair_strengths:
        for latents, gain in _grown(clinic, sae, suspects, window=window, n_open=max(1, sampling.first_look // 2)):
            grown[latents, window] = gain
    finalists = sorted(grown, key=lambda one: -grown[one])[:N_FINALISTS]
    tried = [
        remedy
        for latents, window in finalists
        for remedy in clinic.try_on_all([latent_direction(sae, *latents)], window=window, n_open=sampling.selection)[0]
    ]
    return asdict(max(tried, key=lambda one: one.least_gain))


def _grown(
    clinic: Clinic, sae: "SAE", suspects: Sequence[int], *, window: Window, n_open: int
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Sets with their mean gain at their best strength, grown greedily one latent at a time."""

    def ordered(sets: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], float]]:
        directions = [latent_direction(sae, *latents) for latents in sets]
        tried = clinic.try_on_all(directions, window=window, n_open=n_open, every=2)
        found = [(latents, max(one.mean_gain for one in doses)) for latents, doses in zip(sets, tried, strict=True)]
        return sorted(found, key=lambda one: -one[1])

    singles = ordered([(latent,) for latent in suspects])
    yield singles[0]
    pool = [latents[0] for latents, _ in singles[:POOL]]
    start = singles[0][0]
    while len(start) < min(MAX_SET_SIZE, len(pool)):
        sets = ordered(extensions(start, pool))
        yield from sets[:2]
        start = sets[0][0]


def _before_and_at(arm: Sequence[Dose], strength: float) -> tuple[Dose, Dose]:
    before = next(dose for dose in arm if dose.is_unsteered)
    return before, next(dose for dose in arm if dose.strength == strength)


def _remedy(direction: Direction, window: Window, doses: Mapping[str, tuple[Dose, Dose]]) -> Remedy:
    def rise(before: Dose, after: Dose, measure: str) -> float:
        return after.measures[measure].value - before.measures[measure].value

    (_, one), *_ = doses.values()
    return Remedy(
        direction.latents,
        window,
        one.strength,
        {name: rise(*pair, "aligned") for name, pair in doses.items()},
        fmean(rise(*pair, "incoherence") for pair in doses.values()),
    )
