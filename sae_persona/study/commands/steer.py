"""Steer a model along latents' directions, at several strengths, beside controls, and judge what it says."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from sae_persona.artifacts import fingerprint, is_done, new_manifest, write_file, write_folder, write_json
from sae_persona.data.files import read_jsonl, write_jsonl
from sae_persona.data.questions import questions_path, read_questions
from sae_persona.data.tokens import prompt_row
from sae_persona.errors import ConfigError
from sae_persona.evaluation.compare import compare
from sae_persona.evaluation.model_judge import ModelJudge, Plan, no_plan
from sae_persona.model.load import load_model
from sae_persona.report.doses import render_doses
from sae_persona.sae.load import check_fits, hook_name_of, load_sae
from sae_persona.steering.directions import DirectionKind, latent_direction
from sae_persona.steering.edits import AddDirection, check_strengths
from sae_persona.steering.export import export_direction
from sae_persona.steering.logits import DirectEffect
from sae_persona.steering.price import Price
from sae_persona.steering.record import (
    CONTROLS,
    NO_CARRY_OVER,
    ArmFinding,
    ControlFinding,
    SteeredDose,
    SteeringFindings,
)
from sae_persona.steering.screen import is_coherent
from sae_persona.steering.sweep import Arm, Dose, SweepConfig, doses_of, draw_answers, n_conditions
from sae_persona.study.commands.dosage import Company, Dosage, Lab, check_reach, check_same_sae, groups_of
from sae_persona.study.commands.panel import Panel, kept_answers, of_categories
from sae_persona.study.commands.shared import (
    Progress,
    Sampling,
    counting,
    fingerprint_of,
    no_progress,
    read_record,
    write_csv,
)
from sae_persona.study.commands.side_effects import SideEffects, benign_rows, direct_effects, prices_of
from sae_persona.study.judges import JudgeOptions, build_judge
from sae_persona.types import LABELS, Estimate, Judgement

VERSION = 5
"""Raised when the same inputs would give another folder."""
ANSWERS, DOSES, TABLE, FINDINGS, PAGE = "answers.jsonl", "doses.jsonl", "doses.csv", "steering.json", "steering.html"
EXPORT = "export"


def steer_model(
    source: str,
    *,
    sae_source: str,
    latents: Sequence[int],
    dosage: Dosage,
    prompts_file: Path,
    judge: str,
    sampling: Sampling,
    out: Path,
    company: Company | None = None,
    options: JudgeOptions | None = None,
    side_effects: SideEffects | None = None,
    categories: Sequence[str] = (),
    hook_name: str | None = None,
    export: float | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress = no_progress,
    on_plan: Callable[[Plan], None] = no_plan,
) -> tuple[list[SteeredDose], SteeringFindings]:
    """Write the dose–response of each latent alone, then of all together, and of what they are compared with.

    Files: `doses.jsonl` and `doses.csv`, one dose a row; `answers.jsonl`, every judged answer with its dose;
    `steering.json`, what it comes to; `steering.html`, a page that needs no network. With `export`, one of the
    strengths, that dose of every latent arm is written for other tools into `export/LATENTS`. With `side_effects`,
    doses have their price on benign text, and arms their direct effect on the logits of words.

    Strength 0 is always among the doses. The hook is the one that the SAE was trained on unless another is named.
    Answers that wait for a model judge are kept in a folder `OUT.samples`, so that what was interrupted goes on.

    Raises:
        ConfigError: a strength or a unit that cannot be meant, a window that selects nothing of the benign text, or the
            device is not there.
        DataError: the prompts or the benign text cannot be read, the prompts are not ones the judge knows, or the
            tokenizer knows no word of a group.
        SAEError, ModelError, JudgeError: the SAE, one of its latents, the model or the judge is not there.
        HookError, IncompatibleError: the SAE does not fit the model.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    check_strengths(dosage.strengths)
    if dosage.edit != "clamp" and not any(dosage.strengths):
        raise ConfigError(
            "every strength is 0, and so steers nothing. Give others, such as 0.5,1,1.5; 0 is added to them."
        )
    _check_export(export, dosage)
    company, side_effects = company or Company(), side_effects or SideEffects()
    prompts_file = questions_path(prompts_file)
    prompts = of_categories(read_questions(prompts_file), categories)
    asked = build_judge(
        judge,
        options=options,
        device=device,
        on_plan=on_plan,
        progress=lambda done, whole: progress("judging", done, whole),
    )
    panel = Panel(asked, prompts)
    sae = load_sae(sae_source, device=device)
    groups = groups_of(latents)
    for group in groups:
        latent_direction(sae, *group)  # a latent that is none is found out before the model is loaded
    hook_name = hook_name_of(sae, asked=hook_name)
    if company.ranking is not None:
        check_same_sae(company.ranking, sae_source, hook_name)
    model = load_model(source, device=device)
    check_fits(sae, model, hook_name)
    rows = [prompt_row(prompt, model.tokenizer) for prompt in prompts]
    check_reach(dosage.from_token, dosage.window, rows, sampling.max_new_tokens)
    lab = Lab(model, sae, hook_name, prompts, sampling, dosage, company, batch_size)
    arms = [*lab.latent_arms(groups), *lab.rival_arms(latents), *lab.control_arms(latents)]
    config = SweepConfig(
        hook_name=hook_name,
        unit=lab.unit or 1.0,
        window=dosage.window,
        from_token=dosage.from_token,
        **asdict(sampling),
    )
    direct = direct_effects(model, arms, side_effects.words)
    benign = benign_rows(model, side_effects.price_data, config) if side_effects.price_data else []
    inputs = {
        "model": model.fingerprint,
        "sae": fingerprint_of(sae_source),
        "prompts": fingerprint(prompts_file),
        "arms": fingerprint([[arm.direction.vector.tolist(), arm.strengths, arm.edit, arm.unit] for arm in arms]),
    }
    swept: dict[str, object] = {
        "model": source,
        "sae": sae_source,
        "latents": list(latents),
        "dosage": asdict(dosage),
        "controls": company.n_controls,
        "categories": list(categories),
        **asdict(config),
    }
    manifest = new_manifest(
        "steering", config={**swept, "judge": judge, "judged_by": asked.name},
        inputs=inputs | side_effects.inputs, seed=sampling.seed, version=VERSION,
    )  # fmt: skip
    if not is_done(out, manifest):
        waiting = out.with_name(f"{out.name}.samples") if isinstance(asked, ModelJudge) else None
        whole = n_conditions(arms) * len(prompts) * sampling.n_samples
        with write_folder(out, manifest) as folder:
            prices = (
                prices_of(model, arms, benign, config, sae=sae, batch_size=batch_size, progress=progress)
                if benign
                else None
            )
            answers = kept_answers(
                waiting, swept, inputs, seed=sampling.seed, draw=lambda: draw_answers(
                    model, arms, prompts, config, sae=sae, batch_size=batch_size,
                    progress=counting(progress, "steering", whole),
                ),
            )  # fmt: skip
            judged = panel.judged(answers)
            found = _Found(panel, arms, judged, prices, direct)
            findings = found.findings(lab.unit_in_words, company)
            write_jsonl(folder / DOSES, found.doses())
            write_csv(folder / TABLE, map(_flat, found.doses()))
            write_jsonl(folder / ANSWERS, found.answers())
            write_json(folder / FINDINGS, findings)
            with write_file(folder / PAGE) as partial:
                page = render_doses(found.doses(), findings, manifest=manifest, answers=list(found.answers()))
                partial.write_text(page, encoding="utf-8")
        if waiting:
            shutil.rmtree(waiting, ignore_errors=True)
    if export is not None:
        for arm in arms[: len(groups)]:
            push = AddDirection(arm.direction, export, arm.unit or 1.0, dosage.window, dosage.from_token)
            export_direction(model, hook_name, push, out / EXPORT / arm.direction.name)
    return read_jsonl(out / DOSES, SteeredDose), read_record(out / FINDINGS, SteeringFindings)


class _Found:
    """Arms with what was measured of every dose, and the judgements behind it.

    `judged` and `prices` go by condition, `direct` goes by arm.
    """

    def __init__(
        self,
        panel: Panel,
        arms: Sequence[Arm],
        judged: Sequence[Sequence[Judgement]],
        prices: Sequence[Price] | None,
        direct: Sequence[Mapping[str, DirectEffect]],
    ) -> None:
        self.panel, self.arms, self.direct = panel, arms, direct
        measured = [panel.measures(judgements) for judgements in judged]
        # Doses hand their measures on as they are, so that those lead back to the judgements.
        self.judgements = {id(one): judgements for one, judgements in zip(measured, judged, strict=True)}
        self.labels = {id(one): panel.labels(judgements) for one, judgements in zip(measured, judged, strict=True)}
        self.prices = {id(one): price for one, price in zip(measured, prices, strict=True)} if prices else {}
        self.swept = doses_of(arms, measured)

    def doses(self) -> list[SteeredDose]:
        """Every dose of every arm; each begins with, or holds, the unsteered model."""
        return [self._dose(arm, dose) for arm, doses in zip(self.arms, self.swept, strict=True) for dose in doses]

    def answers(self) -> Iterator[dict[str, Any]]:
        """Every judged answer with its dose; unsteered ones, which all arms share, come once and without latents."""
        for i, (arm, doses) in enumerate(zip(self.arms, self.swept, strict=True)):
            for dose in doses:
                if dose.is_unsteered and i > 0:
                    continue
                what = ((), "unsteered", "") if dose.is_unsteered else _what(arm)
                head = dict(zip(("latents", "arm", "name"), what, strict=True))
                for judgement in self.judgements[id(dose.measures)]:
                    yield {**head, "strength": dose.strength, **asdict(judgement)}

    def findings(self, unit: str, company: Company) -> SteeringFindings:
        """The largest coherent change of every arm, and those of the controls as a whole."""
        every = [
            self._finding(arm, doses, direct)
            for arm, doses, direct in zip(self.arms, self.swept, self.direct, strict=True)
        ]
        controls: dict[DirectionKind, ControlFinding] = {}
        for kind in CONTROLS:
            moved = [abs(one.change.value) for one in every if one.arm == kind]
            if moved:
                controls[kind] = ControlFinding(len(moved), median(moved), max(moved))
        notes = [
            "The dose that moves most is chosen and measured on the same answers: measure it again on other prompts."
        ]
        if not company.n_controls:
            notes.append("No controls were drawn, so nothing says what any direction of this length does.")
        if not self.panel.others:
            notes.append(NO_CARRY_OVER)
        return SteeringFindings(unit, tuple(one for one in every if one.arm not in CONTROLS), controls, tuple(notes))

    def _finding(self, arm: Arm, doses: Sequence[Dose], direct: Mapping[str, DirectEffect]) -> ArmFinding:
        unsteered = next(dose for dose in doses if dose.is_unsteered)

        def change(dose: Dose, measure: str) -> float:
            return dose.measures[measure].value - unsteered.measures[measure].value

        coherent = [dose for dose in doses if not dose.is_unsteered and is_coherent(change(dose, "incoherence"))]
        best = max(coherent, key=lambda dose: abs(change(dose, "misalignment")), default=unsteered)
        after, before = (self.judgements[id(dose.measures)] for dose in (best, unsteered))
        latents, kind, name = _what(arm)
        return ArmFinding(
            kind,
            name,
            latents,
            best.strength if coherent else None,
            compare(self.panel.core, after, before).misalignment,
            change(best, "incoherence"),
            compare(self.panel.others, after, before).misalignment if self.panel.others else None,
            self.prices.get(id(best.measures)),
            direct,
        )

    def _dose(self, arm: Arm, dose: Dose) -> SteeredDose:
        latents, kind, name = _what(arm)
        return SteeredDose(
            latents=latents,
            strength=dose.strength,
            **dose.measures,
            labels=self.labels[id(dose.measures)],
            arm=kind,
            name=name,
            edit=dose.edit if not dose.is_unsteered else "none",
            unit=1.0 if arm.unit is None else arm.unit,
            price=self.prices.get(id(dose.measures)),
        )


def _what(arm: Arm) -> tuple[tuple[int, ...], DirectionKind, str]:
    return arm.direction.latents, arm.direction.kind, arm.direction.name


def _flat(dose: SteeredDose) -> dict[str, object]:
    """A dose as a row of a table: every share with its interval, every label."""
    row: dict[str, object] = {
        "arm": dose.arm,
        "name": dose.name,
        "latents": dose.latents,
        "edit": dose.edit,
        "strength": dose.strength,
        "unit": dose.unit,
        "n": dose.misalignment.n,
        "n_questions": dose.misalignment.n_questions,
        "n_unscored": dose.misalignment.n_unscored,
    }
    shares: dict[str, Estimate | None] = {
        "misalignment": dose.misalignment,
        "incoherence": dose.incoherence,
        "other_domains": dose.other_domains,
        **{f"label_{label}": dose.labels.get(label) for label in LABELS},
    }
    for name, share in shares.items():
        is_label = name.startswith("label_")
        row[name] = share.value if share else 0.0 if is_label else ""
        row[f"{name}_low"] = share.low if share else ""
        row[f"{name}_high"] = share.high if share else ""
    for name in ("ce_unsteered", "ce_steered", "kl"):
        row[name] = getattr(dose.price, name) if dose.price else ""
    return row


def _check_export(export: float | None, dosage: Dosage) -> None:
    if export is None:
        return
    if dosage.edit != "add":
        raise ConfigError(f"only added directions can be exported, and the edit is {dosage.edit!r}.")
    if export not in dosage.strengths or export == 0:
        tried = ", ".join(f"{strength:g}" for strength in dosage.strengths if strength)
        raise ConfigError(f"strength {export:g} is to be exported, and it is not among those that are tried: {tried}.")
    if dosage.from_token:
        raise ConfigError(f"an edit from token {dosage.from_token} on cannot be exported; export one with a window.")
