"""The causal ranking of many latents: which of them drive misalignment, which protect from it, beside controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sae_persona.artifacts import fingerprint, is_done, new_manifest, write_file, write_folder, write_json
from sae_persona.data.files import read_jsonl, write_jsonl
from sae_persona.data.questions import questions_path, read_questions
from sae_persona.errors import ConfigError
from sae_persona.evaluation.model_judge import Plan, no_plan
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.report.screen import render_screen
from sae_persona.report.words import counted
from sae_persona.sae.load import check_fits, hook_name_of, load_sae
from sae_persona.stats import at_most
from sae_persona.steering.directions import latent_direction
from sae_persona.steering.edits import check_strengths
from sae_persona.steering.record import MIN_EFFECT, NO_CARRY_OVER, ScreenedLatent, ScreenFindings
from sae_persona.steering.screen import Rise, Screened, aimed_at, best_for_all, rises
from sae_persona.steering.sweep import Arm, Dose, SweepConfig, doses_of, draw_answers, n_conditions
from sae_persona.study.commands.dosage import Company, Dosage, Lab, check_same_sae, ranked_latents
from sae_persona.study.commands.panel import Panel, of_categories
from sae_persona.study.commands.shared import (
    Progress,
    Sampling,
    counting,
    fingerprint_of,
    no_progress,
    read_record,
    write_csv,
)
from sae_persona.study.judges import JudgeOptions, build_judge
from sae_persona.study.stages import Stages

VERSION = 6
"""Raised when the same inputs would give another folder."""
ROWS, TABLE, FINDINGS, PAGE = "screen.jsonl", "screen.csv", "screen.json", "screen.html"
N_TOGETHER = 8
"""Arms that are steered, judged and kept at once: what a killed screen loses at most."""
Response = Literal["induced", "repaired", "protected"]
Best = dict[Response, Screened]
SIGNS: tuple[tuple[Response, int], ...] = (("repaired", -1), ("protected", 1))
"""How misaligned models are steered for a response."""


def screen_latents(
    source: str,
    *,
    sae_source: str,
    latents: Sequence[int] = (),
    n_top: int = 50,
    n_bottom: int = 0,
    misaligned: Sequence[str] = (),
    dosage: Dosage,
    prompts_file: Path,
    judge: str,
    sampling: Sampling,
    out: Path,
    company: Company,
    options: JudgeOptions | None = None,
    categories: Sequence[str] = (),
    hook_name: str | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress = no_progress,
    on_plan: Callable[[Plan], None] = no_plan,
) -> tuple[list[ScreenedLatent], ScreenFindings]:
    """Steer with every candidate and rank them by what they cause.

    Candidates are `latents`, or the first `n_top` rises and the first `n_bottom` falls of the company's ranking. Each
    is added to the model `source`, where a rise of misaligned answers makes a driver; and, subtracted and added, to
    every `misaligned` model, where a rise of aligned answers is a repair, or makes a protector. Of every latent and
    control the best dose counts that adds at most 10 points of incoherence: of several misaligned models the one
    strength whose effect is largest in their mean, where the mean of incoherence stays within that.

    Files: `screen.jsonl` and `screen.csv`, the strongest driver first; `screen.json`, what it comes to; `screen.html`,
    a page that needs no network. What was steered is kept in a folder `OUT.stages` until all is done, so that what
    was interrupted goes on.

    Raises:
        ConfigError: no candidates, or strengths that are not above zero.
        SaePersonaError: as `steer_model`.
    """
    check_strengths(dosage.strengths)
    if min(dosage.strengths) < 0 or not any(dosage.strengths):
        raise ConfigError("a screen adds and subtracts by itself: give strengths above zero, such as 0.5,1,1.5.")
    prompts_file = questions_path(prompts_file)
    prompts = of_categories(read_questions(prompts_file), categories)
    asked = build_judge(judge, options=options, device=device, on_plan=on_plan)
    panel = Panel(asked, prompts)
    places = ranked_latents(company.ranking, n_top, n_bottom) if company.ranking else {}
    candidates = list(dict.fromkeys(latents or places))
    if not candidates:
        raise ConfigError("there is nothing to screen: name latents, or a ranking with latents that moved.")
    sae = load_sae(sae_source, device=device)
    for latent in candidates:
        latent_direction(sae, latent)  # a latent that is none is found out before a model is loaded
    hook_name = hook_name_of(sae, asked=hook_name)
    if company.ranking is not None:
        check_same_sae(company.ranking, sae_source, hook_name)
    model = load_model(source, device=device)
    lab = Lab(model, sae, hook_name, prompts, sampling, dosage, company, batch_size)
    for one in (source, *misaligned):  # a wrong path costs seconds, not an hour
        check_fits(sae, load_model(one, device=device), hook_name)
    arms = [*lab.latent_arms([(latent,) for latent in candidates]), *lab.control_arms(candidates)]
    config = SweepConfig(hook_name=hook_name, unit=lab.unit or 1.0, window=dosage.window, **asdict(sampling))
    manifest = new_manifest(
        "screen",
        config={
            **{"model": source, "misaligned": list(misaligned), "sae": sae_source, "judge": judge},
            **{"candidates": candidates, "judged_by": asked.name, "categories": list(categories)},
            **{"controls": company.n_controls, "dosage": asdict(dosage), **asdict(config)},
        },
        inputs={
            "sae": fingerprint_of(sae_source),
            "prompts": fingerprint(prompts_file),
            "arms": fingerprint([[arm.direction.vector.tolist(), arm.strengths, arm.unit] for arm in arms]),
            **{f"model {one}": load_model(one, device=device).fingerprint for one in (source, *misaligned)},
        },
        seed=sampling.seed,
        version=VERSION,
    )
    if not is_done(out, manifest):
        stages = Stages(out.with_name(f"{out.name}.stages"), sampling.seed, lambda _stage, _done: None)
        bench = _Bench(panel, config, sae, stages, manifest.fingerprint, batch_size, progress)
        with write_folder(out, manifest) as folder:
            induced = bench.rises(model, "0", arms, "misalignment", 1)
            found: list[Best] = [{"induced": bench.best(arm, [one])} for arm, one in zip(arms, induced, strict=True)]
            for name, sign in SIGNS:
                of_models = [
                    bench.rises(load_model(one, device=device), str(i), arms, "aligned", sign)
                    for i, one in enumerate(misaligned, start=1)
                ]
                for i, of_arm in enumerate(zip(*of_models, strict=True)):
                    found[i][name] = bench.best(arms[i], of_arm)
            rows, findings = rank_by_effect(found[: len(candidates)], found[len(candidates) :], places)
            if not panel.others:
                findings = replace(findings, notes=(*findings.notes, NO_CARRY_OVER))
            write_jsonl(folder / ROWS, rows)
            write_csv(folder / TABLE, map(asdict, rows))
            write_json(folder / FINDINGS, findings)
            with write_file(folder / PAGE) as partial:
                partial.write_text(render_screen(rows, findings, manifest=manifest), encoding="utf-8")
        stages.remove()
    return read_jsonl(out / ROWS, ScreenedLatent), read_record(out / FINDINGS, ScreenFindings)


def rank_by_effect(
    candidates: Sequence[Best], controls: Sequence[Best], places: Mapping[int, int]
) -> tuple[list[ScreenedLatent], ScreenFindings]:
    """Rows in the order of what was induced, then protected; roles by what no control reaches.

    A latent is a driver where adding it raises misalignment, a protector where adding it to misaligned models raises
    the aligned share: in both cases by more than every control does and by more than 5 points.

    A candidate that moves as a control does is the largest of itself and n controls once in n + 1 times, so luck calls
    `candidates / (n + 1)` of them on average, for each role. Nothing is corrected for that: it is told.
    """
    responses: tuple[Response, ...] = tuple(candidates[0])
    best_control = {name: max((one[name].effect for one in controls), default=0.0) for name in responses}

    def exceeds(best: Best, name: Response) -> bool:
        return name in best and not at_most(best[name].effect, max(best_control[name], MIN_EFFECT))

    def p_value(best: Best, name: Response) -> float | None:
        if name not in best:
            return None
        return (1 + sum(at_most(best[name].effect, one[name].effect) for one in controls)) / (1 + len(controls))

    order = sorted(candidates, key=lambda one: tuple(-one[name].effect for name in ("induced", *responses[:0:-1])))
    rows = []
    for rank, best in enumerate(order, start=1):
        is_driver, is_protector = exceeds(best, "induced"), exceeds(best, "protected")
        role = "both" if is_driver and is_protector else "driver" if is_driver else "protector"
        (latent,) = best["induced"].latents
        rows.append(
            ScreenedLatent(
                rank=rank,
                latent=latent,
                place=places.get(latent),
                role=role if is_driver or is_protector else "none",
                induced=best["induced"].effect,
                induced_at=best["induced"].strength,
                carry_over=best["induced"].carry_over,
                repaired=best["repaired"].effect if "repaired" in best else None,
                repaired_at=best["repaired"].strength if "repaired" in best else None,
                protected=best["protected"].effect if "protected" in best else None,
                protected_at=best["protected"].strength if "protected" in best else None,
                induced_p=p_value(best, "induced"),
                repaired_p=p_value(best, "repaired"),
                protected_p=p_value(best, "protected"),
            )
        )
    return rows, ScreenFindings(
        drivers=tuple(row.latent for row in rows if row.role in ("driver", "both")),
        protectors=tuple(row.latent for row in rows if row.role in ("protector", "both")),
        n_controls=len(controls),
        best_control=best_control,
        notes=(_by_luck(len(candidates), len(controls), responses),),
        expected_by_luck=len(candidates) / (len(controls) + 1) if controls else None,
    )


def _by_luck(n: int, n_controls: int, responses: Sequence[Response]) -> str:
    """What luck alone would find among `n` candidates, and why effects are to be measured again."""
    maxima = "effects are maxima over doses, so measure chosen latents with steer on other prompts."
    if not n_controls:
        return maxima.capitalize()
    others = " and as many protectors" if "protected" in responses else ""
    return (
        f"Among {counted(n, 'latent')} without any effect luck would find {n / (n_controls + 1):.2f} drivers{others} "
        f"on average, {n} / ({counted(n_controls, 'control')} + 1); {maxima}"
    )


@dataclass(frozen=True, eq=False)
class _Bench:
    """What all sweeps of a screen share."""

    panel: Panel
    config: SweepConfig
    sae: Any
    stages: Stages
    screen: str
    """Fingerprint of the screen that the stages belong to."""
    batch_size: int
    progress: Progress

    def rises(self, model: LoadedModel, name: str, arms: Sequence[Arm], target: str, sign: int) -> list[list[Rise]]:
        """What every dose of every arm adds, added or subtracted by `sign`, a few arms at a time."""
        signed = [Arm(arm.direction, tuple(sign * s for s in arm.strengths), arm.edit, arm.unit) for arm in arms]
        whole = n_conditions(signed) * len(self.panel.prompts) * self.config.n_samples
        advance = counting(self.progress, f"{'add' if sign > 0 else 'subtract'}, model {name}", whole)
        found: list[list[Rise]] = []
        for start in range(0, len(signed), N_TOGETHER):
            few = signed[start : start + N_TOGETHER]
            record = self.stages.run(
                f"{name}{'+' if sign > 0 else '-'}{start}",
                lambda _, few=few: [[asdict(one) for one in arm] for arm in self._swept(model, few, target, advance)],
                config={"screen": self.screen},
            )
            found += [[Rise(**one) for one in arm] for arm in record]
        return found

    def best(self, arm: Arm, of_models: Sequence[Sequence[Rise]]) -> Screened:
        """The arm at the dose that is best for all models."""
        return best_for_all(arm.direction, of_models, window=self.config.window)

    def _swept(
        self, model: LoadedModel, arms: Sequence[Arm], target: str, advance: Callable[[int], None]
    ) -> list[list[Rise]]:
        answers = draw_answers(
            model, arms, self.panel.prompts, self.config, sae=self.sae, batch_size=self.batch_size, progress=advance
        )
        measured = [self.panel.measures(judgements) for judgements in self.panel.judged(answers)]
        swept: list[list[Dose]] = doses_of(arms, measured)
        return [rises([aimed_at(dose, target) for dose in doses]) for doses in swept]
