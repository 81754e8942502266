"""The causal screen on selection prompts, and the dose–response on evaluation prompts with everything frozen."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.evaluation.score import score
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import (
    Direction,
    latent_direction,
    mean_difference,
    random_directions,
    random_latents,
)
from sae_persona.steering.edits import Window
from sae_persona.steering.screen import (
    MAX_ADDED_INCOHERENCE,
    MAX_SET_SIZE,
    Screened,
    aimed_at,
    best_dose,
    choose,
    extensions,
)
from sae_persona.steering.sweep import Arm, Dose, SweepConfig, sweep
from sae_persona.study.config import StudyConfig
from sae_persona.study.measure import Groups, open_measures, point
from sae_persona.study.subjects import Subjects
from sae_persona.study.suspects import mean_residuals
from sae_persona.types import Completion, Estimate

if TYPE_CHECKING:
    from sae_lens import SAE

N_FINALISTS = 4
"""Latents and sets that get the second, closer look of the screen."""
MARGIN = 0.03
"""Taken off the gate on incoherence where what induces is chosen: the best of many noisy doses is less coherent than it
looked. What repairs needs strong doses and is chosen among few."""
HEALING_POOL = 6
"""Latents from which sets that repair are formed."""
CONTROL_SEED = 1
"""Controls that are reported are drawn anew, so that they are not those the screen chose against."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What every sweep of a study shares: the hook, the unit of strength, the prompts and the sampling."""

    groups: Groups
    config: StudyConfig
    unit: float
    seed: int
    """Selection and evaluation draw their samples with different seeds."""

    def doses(
        self,
        model: LoadedModel,
        arms: Sequence[Arm],
        *,
        window: Window,
        n_open: int,
        n_advice: int,
        besides: str | None = None,
    ) -> list[list[Dose]]:
        """Dose–response of each arm on open-ended prompts and, with `n_advice`, on advice outside one domain.

        Measures: `misalignment`, `incoherence` and `aligned` of open-ended answers, `other_domains` (misaligned advice)
        and `advice_incoherence`.
        """
        opened = self.groups.open_ended()

        def of_open(completions: list[Completion]) -> dict[str, Estimate]:
            return open_measures(self.groups, opened, completions)

        doses = sweep(model, arms, opened, of_open, self._sweep_config(window, n_open))
        if not n_advice:
            return doses
        advice = self.groups.advice(besides=besides)

        def of_advice(completions: list[Completion]) -> dict[str, Estimate]:
            scores = score(advice, self.groups.judged(advice, completions))
            return {
                "other_domains": scores.misalignment,
                "advice_incoherence": scores.incoherence,
                "advice_aligned": scores.aligned,
            }

        advised = sweep(model, arms, advice, of_advice, self._sweep_config(window, n_advice))
        return [
            [dataclasses.replace(a, measures={**a.measures, **b.measures}) for a, b in zip(x, y, strict=True)]
            for x, y in zip(doses, advised, strict=True)
        ]

    def _sweep_config(self, window: Window, n_samples: int) -> SweepConfig:
        return SweepConfig(
            hook_name=self.config.hook_name,
            unit=self.unit,
            window=window,
            n_samples=n_samples,
            max_new_tokens=self.config.sampling.max_new_tokens,
            seed=self.seed,
        )


def screen(
    subjects: Subjects,
    config: StudyConfig,
    sae: "SAE",
    *,
    shortlist: Sequence[int],
    density: Float[Tensor, " d_sae"],
    unit: float,
    ranking_folder: Path,
) -> dict[str, Any]:
    """Choose latent, set, strengths and windows on selection prompts; reads no evaluation prompt and no truth.

    An empty shortlist, where no latent rose, leaves nothing to try: the record then names no latent.
    """
    if not shortlist:
        return {"first_look": {}, "finalists": [], "sets": [], "controls": [], "top": None, "top_set": None}
    bench = Bench(subjects.groups("selection"), config, unit, seed=config.seed + 1)
    aligned = subjects.model("aligned")
    up = (0.0, *config.steering.strengths)
    n_open = config.sampling.selection

    def try_out(
        directions: Sequence[Direction], window: Window, *, n_open: int = n_open, n_advice: int = 0
    ) -> list[Screened]:
        arms = [Arm(direction, up) for direction in directions]
        if not arms:
            return []
        doses = bench.doses(aligned, arms, window=window, n_open=n_open, n_advice=n_advice)
        gate = MAX_ADDED_INCOHERENCE - MARGIN
        return [
            best_dose([aimed_at(dose, "misalignment") for dose in arm], window=window, max_added_incoherence=gate)
            for arm in doses
        ]

    suspects = [latent_direction(sae, latent) for latent in shortlist]
    first_look: dict[Window, list[Screened]] = {
        window: try_out(suspects, window, n_open=config.sampling.first_look) for window in config.steering.windows
    }
    window: Window = max(config.steering.windows, key=lambda one: max(screened.effect for screened in first_look[one]))
    strongest = _strongest(first_look[window])[:N_FINALISTS]
    n_advice = config.sampling.selection_advice
    finalists = try_out([latent_direction(sae, *one.latents) for one in strongest], window, n_advice=n_advice)
    first_sets: list[Screened] = []
    grown = _strongest(finalists)[:1]
    while grown and len(grown[0].latents) < MAX_SET_SIZE:
        extended = [latent_direction(sae, *one) for one in extensions(grown[0].latents, shortlist)]
        grown = _strongest(try_out(extended, window, n_open=config.sampling.first_look))
        first_sets += grown
    sets = try_out(
        [latent_direction(sae, *one.latents) for one in _strongest(first_sets)[:N_FINALISTS]],
        window,
        n_advice=n_advice,
    )
    n_latents, n_directions = config.steering.n_random_latents, config.steering.n_random_directions
    like = strongest[0].latents[0]
    controls = try_out(
        [
            *random_latents(sae, density, like, exclude=shortlist, n=n_latents, seed=config.seed),
            *random_directions(aligned.d_model, n=n_directions, seed=config.seed),
        ],
        window,
        n_open=config.sampling.first_look,
    )
    choice = choose(finalists, [*finalists, *sets], controls)
    baseline = [
        try_out([_baseline(subjects, ranking_folder)], candidate, n_advice=n_advice)[0]
        for candidate in config.steering.windows
    ]
    record: dict[str, Any] = {
        "first_look": {candidate: [asdict(one) for one in screened] for candidate, screened in first_look.items()},
        "finalists": [asdict(one) for one in finalists],
        "sets": [asdict(one) for one in sets],
        "controls": [asdict(one) for one in controls],
        "window": window,
        "best_control": choice.best_control,
        "top": choice.top and asdict(choice.top),
        "top_set": choice.top_set and asdict(choice.top_set),
        "mean_difference": asdict(max(baseline, key=lambda one: one.effect)),
    }
    if choice.top:
        down = (0.0, *(-strength for strength in config.steering.repair_strengths))
        top = latent_direction(sae, *choice.top.latents)
        record["repair"] = _choose_repair(
            subjects, bench, [top], down, windows=config.steering.windows, n_open=config.sampling.selection
        )
        record["repair_set"] = _choose_repair(
            subjects,
            bench,
            _healing_sets(subjects, bench, suspects, down, sae),
            down,
            windows=[record["repair"]["window"]],
            n_open=config.sampling.first_look,
        )
    return record


def _strongest(screened: Sequence[Screened]) -> list[Screened]:
    return sorted(screened, key=lambda one: -one.effect)


def _healing_sets(
    subjects: Subjects, bench: Bench, suspects: Sequence[Direction], down: tuple[float, ...], sae: "SAE"
) -> list[Direction]:
    """The sets that bring back most of the aligned share, averaged over models, grown from the best single suspect.

    What induces a persona need not be what keeps it: the set that repairs is screened for on its own.
    """

    def strongest(directions: Sequence[Direction]) -> list[Direction]:
        n_open = bench.config.sampling.first_look // 2
        found = _gains(subjects, bench, directions, down, window="all", n_open=n_open)
        totals = [sum(best.effect for best in one) for one in zip(*found.values(), strict=True)]
        order = sorted(range(len(directions)), key=lambda i: -totals[i])
        return [directions[i] for i in order]

    pool = strongest(suspects)[:HEALING_POOL]
    latents = [one.latents[0] for one in pool]
    tried: list[Direction] = []
    grown = pool[0]
    while len(grown.latents) < min(MAX_SET_SIZE, len(pool)):
        sets = strongest([latent_direction(sae, *one) for one in extensions(grown.latents, latents)])
        grown = sets[0]
        tried += sets[:2]
    return tried or pool


def _choose_repair(
    subjects: Subjects,
    bench: Bench,
    directions: Sequence[Direction],
    down: tuple[float, ...],
    *,
    windows: Sequence[Window],
    n_open: int,
) -> dict[str, Any]:
    """The direction and the window, one for all misaligned models, that bring back most of the aligned share.

    Strengths are chosen for each model; a dose that makes it less coherent than the gate allows does not count.
    """
    found = {
        window: _gains(subjects, bench, directions, down, window=window, n_open=n_open) for window in windows
    }  # window: model: one per direction

    def total(chosen: tuple[Window, int]) -> float:
        return sum(best[chosen[1]].effect for best in found[chosen[0]].values())

    choices: list[tuple[Window, int]] = [(window, i) for window in windows for i in range(len(directions))]
    window, i = max(choices, key=total)
    return {
        "window": window,
        "latents": list(directions[i].latents),
        "strengths": {name: best[i].strength or down[1] for name, best in found[window].items()},
        "gains": {name: best[i].effect for name, best in found[window].items()},
    }


def _gains(
    subjects: Subjects,
    bench: Bench,
    directions: Sequence[Direction],
    down: tuple[float, ...],
    *,
    window: Window,
    n_open: int,
) -> dict[str, list[Screened]]:
    """For every misaligned model, each direction's dose that brings back most of the aligned share."""
    arms = [Arm(direction, down) for direction in directions]
    found = {}
    for name in subjects.runs("misaligned"):
        doses = bench.doses(subjects.model(name), arms, window=window, n_open=n_open, n_advice=0)
        found[name] = [best_dose([aimed_at(dose, "aligned") for dose in arm], window=window) for arm in doses]
    return found


def steer(
    subjects: Subjects,
    config: StudyConfig,
    sae: "SAE",
    *,
    choice: Mapping[str, Any],
    shortlist: Sequence[int],
    density: Float[Tensor, " d_sae"],
    unit: float,
    ranking_folder: Path,
) -> dict[str, Any]:
    """Measure what the screen froze, on evaluation prompts with fresh samples, against all controls."""
    bench = Bench(subjects.groups("evaluation"), config, unit, seed=config.seed + 2)
    aligned = subjects.model("aligned")
    window: Window = choice["window"]
    up = (0.0, *config.steering.strengths)
    n_open, n_advice = config.sampling.open_ended, config.sampling.other_domains
    top = tuple(choice["top"]["latents"])
    arms = [Arm(latent_direction(sae, *top), up)]
    if choice["top_set"]:
        arms.append(Arm(latent_direction(sae, *choice["top_set"]["latents"]), up))
    induced = bench.doses(aligned, arms, window=window, n_open=n_open, n_advice=n_advice)
    baseline = bench.doses(
        aligned,
        [Arm(_baseline(subjects, ranking_folder), up)],
        window=choice["mean_difference"]["window"],
        n_open=n_open,
        n_advice=n_advice,
    )[0]
    controls = {
        "random_latents": random_latents(
            sae,
            density,
            top[0],
            exclude=shortlist,
            n=config.steering.n_random_latents,
            seed=config.seed + CONTROL_SEED,
        ),
        "random_directions": random_directions(
            aligned.d_model, n=config.steering.n_random_directions, seed=config.seed + CONTROL_SEED
        ),
    }
    record: dict[str, Any] = {
        "window": window,
        "chosen": {
            "induce": choice["top"]["strength"],
            "induce_set": choice["top_set"] and choice["top_set"]["strength"],
            "mean_difference": choice["mean_difference"]["strength"],
            "repair": choice["repair"]["strengths"],
            "repair_set": choice["repair_set"]["strengths"],
        },
        "unit": unit,
        "repair_window": choice["repair"]["window"],
        "repair_set_window": choice["repair_set"]["window"],
        "repair_set_latents": choice["repair_set"]["latents"],
        "induce": _points(induced[0]),
        "induce_set": _points(induced[1]) if len(induced) > 1 else [],
        "controls": {
            name: [
                one
                for draw, doses in enumerate(
                    bench.doses(
                        aligned,
                        [Arm(direction, up) for direction in directions],
                        window=window,
                        n_open=config.sampling.controls,
                        n_advice=0,
                    )
                )
                for one in _points(doses, draw=draw)
            ]
            for name, directions in controls.items()
        },
        "repair": {},
        "repair_set": {},
    }
    record["controls"]["mean_difference"] = _points(baseline)
    down = (0.0, *(-strength for strength in config.steering.repair_strengths))
    for key in ("repair", "repair_set"):
        arm = Arm(latent_direction(sae, *choice[key]["latents"]), down)
        for name in subjects.runs("misaligned"):
            (doses,) = bench.doses(
                subjects.model(name),
                [arm],
                window=choice[key]["window"],
                n_open=n_open,
                n_advice=n_advice,
                besides=subjects.record(name)["domain"],
            )
            record[key][name] = _points(doses)
    return record


def _points(doses: Sequence[Dose], *, draw: int | None = None) -> list[dict[str, Any]]:
    return [point(dose.strength, draw, dose.measures) for dose in doses]


def _baseline(subjects: Subjects, ranking_folder: Path) -> Direction:
    return mean_difference(
        mean_residuals(ranking_folder, subjects.runs("misaligned")),
        mean_residuals(ranking_folder, subjects.runs("control")),
    )


def density_of(record: Mapping[str, Any]) -> Float[Tensor, " d_sae"]:
    """Firing density of every latent, as `measure_sae` recorded it."""
    return torch.tensor(record["metrics"]["density"])
