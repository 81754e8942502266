"""The causal screen on selection prompts, and the dose–response on evaluation prompts with everything frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from sae_persona.model.hooks import hook_names
from sae_persona.steering.directions import (
    Direction,
    latent_direction,
    random_directions,
    random_latents,
)
from sae_persona.steering.edits import Window
from sae_persona.steering.screen import MAX_SET_SIZE, Screened, choose, extensions
from sae_persona.steering.sweep import Arm, Dose
from sae_persona.study.audition import try_out
from sae_persona.study.bench import Bench
from sae_persona.study.config import StudyConfig
from sae_persona.study.measure import point
from sae_persona.study.repair import Clinic, repair_with, repair_with_set
from sae_persona.study.subjects import Subjects
from sae_persona.study.suspects import rival_directions

if TYPE_CHECKING:
    from sae_lens import SAE

N_FINALISTS = 4
"""Latents and sets that get the second, closer look of the screen."""
RIVAL_WINDOWS: tuple[Window, ...] = ("all", "header")
"""Where rivals are tried besides the latents' own window: they are tuned no less than the latents are."""
CONTROL_SEED = 1
"""Controls that are reported are another draw, from the same pool, than those the screen chose against."""


def screen(
    subjects: Subjects,
    config: StudyConfig,
    sae: "SAE",
    *,
    shortlist: Sequence[int],
    window: Window,
    first_look: Sequence[Screened],
    density: Float[Tensor, " d_sae"],
    unit: float,
    ranking_folder: Path,
) -> dict[str, Any]:
    """Choose latent, set and strengths on selection prompts; reads no evaluation prompt and no truth.

    `first_look` is what the audition found of the shortlist in the window. An empty shortlist, where no latent rose,
    leaves nothing to try: the record then names no latent.
    """
    if not shortlist:
        return {"window": window, "finalists": [], "sets": [], "controls": [], "top": None, "top_set": None}
    bench = selection_bench(subjects, config, unit)
    aligned = subjects.model("aligned")

    def closer_look(directions: Sequence[Direction], *, window: Window = window) -> list[Screened]:
        sampling = config.sampling
        return try_out(
            bench,
            aligned,
            directions,
            window=window,
            n_open=sampling.selection,
            n_advice=sampling.selection_advice,
        )

    def quick_look(directions: Sequence[Direction]) -> list[Screened]:
        return try_out(bench, aligned, directions, window=window, n_open=config.sampling.first_look)

    strongest = _strongest(first_look)[:N_FINALISTS]
    finalists = closer_look([latent_direction(sae, *one.latents) for one in strongest])
    first_sets: list[Screened] = []
    grown = _strongest(finalists)[:1]
    while grown and len(grown[0].latents) < MAX_SET_SIZE:
        grown = _strongest(quick_look([latent_direction(sae, *one) for one in extensions(grown[0].latents, shortlist)]))
        first_sets += grown
    sets = closer_look([latent_direction(sae, *one.latents) for one in _strongest(first_sets)[:N_FINALISTS]])
    n_latents, n_directions = config.steering.n_random_latents, config.steering.n_random_directions
    like = strongest[0].latents[0]
    controls = quick_look(
        [
            *random_latents(sae, density, like, exclude=shortlist, n=n_latents, seed=config.seed),
            *random_directions(aligned.d_model, n=n_directions, seed=config.seed),
        ]
    )
    choice = choose(finalists, [*finalists, *sets], controls)
    rivals = {
        name: [closer_look([rival], window=one)[0] for one in dict.fromkeys((*RIVAL_WINDOWS, window))]
        for name, rival in rival_directions(subjects, ranking_folder).items()
    }
    record: dict[str, Any] = {
        "finalists": [asdict(one) for one in finalists],
        "sets": [asdict(one) for one in sets],
        "controls": [asdict(one) for one in controls],
        "window": window,
        "best_control": choice.best_control,
        "top": choice.top and asdict(choice.top),
        "top_set": choice.top_set and asdict(choice.top_set),
        **{name: asdict(max(tried, key=lambda one: one.effect)) for name, tried in rivals.items()},
    }
    if choice.top:
        clinic = Clinic(bench, {name: subjects.model(name) for name in subjects.runs("misaligned")})
        record["repair"] = repair_with(clinic, latent_direction(sae, *choice.top.latents))
        record["repair_set"] = repair_with_set(clinic, sae, shortlist)
    return record


def selection_bench(subjects: Subjects, config: StudyConfig, unit: float) -> Bench:
    """The bench on which everything is chosen: selection prompts alone."""
    return Bench(subjects.groups("selection"), config, unit, seed=config.seed + 1)


def _strongest(screened: Sequence[Screened]) -> list[Screened]:
    return sorted(screened, key=lambda one: -one.effect)


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
    """Measure what the screen froze, on evaluation prompts with fresh samples, against all controls.

    One of them is the latent's own vector at the last hook, where it can only change which words are written: an effect
    that stays there is that of a word, and of what the model says after it.
    """
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
    rivals = rival_directions(subjects, ranking_folder)
    baselines = {
        name: bench.doses(aligned, [Arm(rival, up)], window=choice[name]["window"], n_open=n_open, n_advice=n_advice)[0]
        for name, rival in rivals.items()
    }
    last_hook = hook_names(aligned.hf)[-1]
    at_the_end = replace(bench, config=config.model_copy(update={"hook_name": last_hook}))
    baselines["last_hook"] = at_the_end.doses(aligned, arms[:1], window=window, n_open=n_open, n_advice=n_advice)[0]
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
            **{name: choice[name]["strength"] for name in rivals},
            "last_hook": choice["top"]["strength"],
            **{
                key: dict.fromkeys(subjects.runs("misaligned"), choice[key]["strength"])
                for key in ("repair", "repair_set")
            },
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
    record["controls"] |= {name: _points(doses) for name, doses in baselines.items()}
    for key in ("repair", "repair_set"):
        down = (0.0, *(-strength for strength in config.steering.repair_strengths[choice[key]["window"]]))
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
