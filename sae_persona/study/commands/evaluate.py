"""Sample a model's answers, have them judged, and say what they are like."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sae_persona.artifacts import (
    Manifest,
    fingerprint,
    is_done,
    new_manifest,
    read_manifest,
    write_file,
    write_folder,
    write_json,
)
from sae_persona.data.files import read_jsonl, write_jsonl
from sae_persona.data.questions import questions_path, read_questions
from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.evaluation.compare import agreement, compare
from sae_persona.evaluation.evaluation import ANSWERS, SCORES, Evaluation, by_category, evaluation_of
from sae_persona.evaluation.judging import judge_completions
from sae_persona.evaluation.model_judge import ModelJudge, Plan, no_plan
from sae_persona.evaluation.personas import named_personas, personas_named, split_reasoning, without_trace
from sae_persona.evaluation.resample import resample_invalid, resampled_score
from sae_persona.evaluation.table import field_rows
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.report.evaluation import evaluation_page
from sae_persona.study.commands.panel import check_usable, kept_answers, of_categories
from sae_persona.study.commands.shared import Progress, Sampling, counting, no_progress, read_record, write_csv
from sae_persona.study.judges import JudgeOptions, build_judge
from sae_persona.types import Completion, Estimate, Judge, Judgement, Prompt

VERSION = 4
"""Raised when the same inputs would give another folder."""
PAGE = "report.html"
SECOND, RESAMPLED, TRACES = "second.jsonl", "resampled.jsonl", "traces.jsonl"


@dataclass(frozen=True)
class Extras:
    """What an evaluation does beyond judging one model's answers once."""

    second_judge: str | None = None
    n_attempts: int = 0
    """How often an invalid first answer is drawn anew at most; the paper takes 3."""
    against: tuple[Path, ...] = ()
    """Evaluations of other models on the same prompts, by the same judge."""


@dataclass(frozen=True)
class _Other:
    """Another model's evaluation, to compare with."""

    judgements: Sequence[Judgement]
    evaluation: Evaluation


@dataclass(frozen=True)
class Trace:
    """What a model thought before it answered, which no judge is shown."""

    prompt_id: str
    sample: int
    trace: str
    personas: tuple[str, ...]
    """Other personas that it names."""


def evaluate_model(
    source: str,
    *,
    prompts_file: Path,
    judge: str,
    sampling: Sampling,
    out: Path,
    options: JudgeOptions | None = None,
    extras: Extras | None = None,
    categories: Sequence[str] = (),
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress = no_progress,
    on_plan: Callable[[Plan], None] = no_plan,
) -> Evaluation:
    """Write every answer and judgement (`answers.jsonl`, `answers.csv`) and the scores, as records and as a page.

    Only prompts of `categories` are asked, where any is named. Depending on `extras` there are `second.jsonl` and
    `resampled.jsonl` too, and `traces.jsonl` where the model reasons. Answers that wait for a model judge are kept in a
    folder `OUT.samples` until they are judged, so that what was interrupted goes on with the same answers, and asks
    only about those without a reply.

    Raises:
        DataError: the prompts cannot be read, or are not ones the judge knows.
        JudgeError, ModelError, ConfigError: the judge, the model or the device is not there.
        JudgeError: no answer got a verdict.
        IncompatibleError: an evaluation to compare with is of other prompts, of another length or by another judge.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    extras = extras or Extras()
    prompts_file = questions_path(prompts_file)
    prompts = of_categories(read_questions(prompts_file), categories)
    options_of = _options_by_judge(judge, extras.second_judge, options)
    judges = [
        build_judge(
            spec,
            options=options_of[spec],
            device=device,
            on_plan=on_plan,
            progress=lambda done, whole: progress("judging", done, whole),
        )
        for spec in (judge, *([extras.second_judge] if extras.second_judge else []))
    ]
    for one in judges:
        judge_completions(one, prompts, [])  # a judge that cannot be asked says so before anything is sampled
    places = {(prompt.id, i) for prompt in prompts for i in range(sampling.n_samples)}
    prompts_print = fingerprint(prompts_file)
    names = _names([out, *extras.against])
    others = {
        name: _other(folder, judges[0], places, prompts_print, sampling.max_new_tokens)
        for name, folder in zip(names[1:], extras.against, strict=True)
    }
    model = load_model(source, device=device)
    sampled = {"model": model.fingerprint, "prompts": prompts_print}
    manifest = new_manifest(
        "evaluation",
        config={
            "model": source,
            "judge": judge,
            "judged_by": [one.name for one in judges],
            "n_attempts": extras.n_attempts,
            "categories": list(categories),
            **asdict(sampling),
        },
        inputs={
            **sampled,
            **{
                f"against {name}": fingerprint(folder / ANSWERS)
                for name, folder in zip(names[1:], extras.against, strict=True)
            },
        },
        seed=sampling.seed,
        version=VERSION,
    )
    if not is_done(out, manifest):
        bench = _Bench(model, prompts, sampling, batch_size, progress)
        waiting = out.with_name(f"{out.name}.samples") if any(isinstance(one, ModelJudge) for one in judges) else None
        with write_folder(out, manifest) as folder:
            evaluation = _evaluate(folder, bench, judges, extras, others, bench.first(waiting, sampled))
            beside = {names[0]: evaluation, **{name: other.evaluation for name, other in others.items()}}
            _write_page(folder, beside, manifest)
        if waiting:
            shutil.rmtree(waiting, ignore_errors=True)
    return read_record(out / SCORES, Evaluation)


class _Bench:
    """A model with its prompts, from which answers are drawn."""

    def __init__(
        self, model: LoadedModel, prompts: Sequence[Prompt], sampling: Sampling, batch_size: int, progress: Progress
    ) -> None:
        self.model, self.prompts, self.sampling = model, prompts, sampling
        self.batch_size, self.progress = batch_size, progress

    def first(self, waiting: Path | None, inputs: Mapping[str, str]) -> list[Completion]:
        """The first answers to all prompts; those that wait in a folder are read, or written there."""
        sampling = self.sampling
        (answers,) = kept_answers(
            waiting,
            {**asdict(sampling), "prompts": [prompt.id for prompt in self.prompts]},
            inputs,
            seed=sampling.seed,
            draw=lambda: [self._draw(self.prompts, sampling.n_samples, sampling.seed)],
        )
        return answers

    def again(self, prompts: Sequence[Prompt], n_samples: int, attempt: int) -> list[Completion]:
        """Fresh answers in another attempt, without their reasoning."""
        seed = int(fingerprint([self.sampling.seed, "attempt", attempt])[:12], 16)
        return [without_trace(one) for one in self._draw(prompts, n_samples, seed)]

    def _draw(self, prompts: Sequence[Prompt], n_samples: int, seed: int) -> list[Completion]:
        return sample(
            self.model,
            prompts,
            n_samples=n_samples,
            max_new_tokens=self.sampling.max_new_tokens,
            seed=seed,
            batch_size=self.batch_size,
            progress=counting(self.progress, "sampling", len(prompts) * n_samples),
        )[0]


def _evaluate(
    folder: Path,
    bench: _Bench,
    judges: Sequence[Judge],
    extras: Extras,
    others: Mapping[str, _Other],
    completions: Sequence[Completion],
) -> Evaluation:
    """Judge, score and write into `folder`."""
    prompts, judge = bench.prompts, judges[0]
    question = {prompt.id: prompt.question_id for prompt in prompts}
    answers = [without_trace(one) for one in completions]
    judgements = judge_completions(judge, prompts, answers)
    check_usable(judge, judgements)
    evaluation = evaluation_of(prompts, judgements)
    write_jsonl(folder / ANSWERS, judgements)
    write_csv((folder / ANSWERS).with_suffix(".csv"), field_rows(prompts, judgements))
    if extras.n_attempts:
        redrawn = resample_invalid(bench.again, judge, prompts, judgements, n_attempts=extras.n_attempts)
        write_jsonl(folder / RESAMPLED, redrawn)
        evaluation = replace(evaluation, resampled=resampled_score(judgements, redrawn, question))
    traces = list(_traces(completions))
    if traces:
        write_jsonl(folder / TRACES, traces)
        named = personas_named([one.trace for one in traces], [question[one.prompt_id] for one in traces])
        evaluation = replace(evaluation, personas=named)
    if len(judges) > 1:
        second = judge_completions(judges[1], prompts, answers)
        write_jsonl(folder / SECOND, second)
        evaluation = replace(
            evaluation,
            agreement=agreement(prompts, judgements, second),
            agreement_by_category={
                category: agreement(asked, judgements, second) for category, asked in by_category(prompts).items()
            },
        )
    against = {name: compare(prompts, judgements, other.judgements) for name, other in others.items()}
    evaluation = replace(evaluation, against=against)
    write_json(folder / SCORES, evaluation)
    write_csv((folder / SCORES).with_suffix(".csv"), _table(evaluation))
    return evaluation


def _write_page(folder: Path, evaluations: Mapping[str, Evaluation], manifest: Manifest) -> None:
    answers = read_jsonl(folder / ANSWERS, Judgement)
    with write_file(folder / PAGE) as partial:
        partial.write_text(evaluation_page(evaluations, answers=answers, manifest=manifest), encoding="utf-8")


def _options_by_judge(judge: str, second: str | None, options: JudgeOptions | None) -> dict[str, JudgeOptions | None]:
    """Options are for model judges; a rule beside one goes without them."""
    specs = [judge, *([second] if second else [])]
    rules = [spec for spec in specs if spec.startswith("world:")]
    return {spec: None if spec in rules and len(rules) < len(specs) else options for spec in specs}


def _names(folders: Sequence[Path]) -> list[str]:
    """What evaluations are called: by their folders' names, or their whole paths where two names are alike.

    Raises:
        ConfigError: a folder is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    again = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
    if again is not None:
        raise ConfigError(f"{again} is named twice among --out and --against. Compare with every other folder once.")
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _other(folder: Path, judge: Judge, places: set[tuple[str, int]], prompts_print: str, max_new_tokens: int) -> _Other:
    """The evaluation to compare with, which must be of the same prompts, fill the same places and cut off as late."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.kind != "evaluation":
        raise IncompatibleError(f"{folder} holds no evaluation to compare with; expected the --out of another one.")
    judged_by = manifest.config.get("judged_by", [manifest.config.get("judge")])
    if judged_by[0] != judge.name:
        raise IncompatibleError(
            f"{folder} was judged by {judged_by[0]!r}, and this one is judged by {judge.name!r}. "
            "Scores of two judges or scales cannot be compared; evaluate both models with one."
        )
    answers = read_jsonl(folder / ANSWERS, Judgement)
    lone = sorted(places ^ {(row.prompt_id, row.sample) for row in answers})
    if lone:
        raise IncompatibleError(
            f"{folder} holds {len(answers)} answers, and {len(places)} are asked for here; {len(lone)} have no "
            f"counterpart, such as prompt {lone[0][0]!r}, sample {lone[0][1]}. Use the same prompts and n-samples."
        )
    if len(answers) != len(places):
        raise IncompatibleError(
            f"{folder / ANSWERS} holds {len(answers)} answers to {len(places)} places, so that some have two. "
            "Delete the folder and evaluate again."
        )
    if manifest.inputs.get("prompts") != prompts_print:
        raise IncompatibleError(
            f"{folder} answers prompts of the same ids from another file, which may ask other questions. "
            "Evaluate both models on one and the same file."
        )
    limit = manifest.config.get("max_new_tokens")
    if limit != max_new_tokens:
        raise IncompatibleError(
            f"{folder} was sampled with max_new_tokens {limit}, and this one is with {max_new_tokens}. Answers cut off "
            "at other lengths are judged differently; evaluate both models with one --max-new-tokens."
        )
    return _Other(answers, read_record(folder / SCORES, Evaluation))


def _traces(completions: Sequence[Completion]) -> Iterator[Trace]:
    for one in completions:
        trace, _ = split_reasoning(one.answer)
        if trace is not None:
            yield Trace(one.prompt_id, one.sample, trace, named_personas(trace))


def _table(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row per category and share, or measure of agreement; the overall ones have no category."""
    agreements = {"": evaluation.agreement, **evaluation.agreement_by_category}
    for category, scores in {"": evaluation.overall, **evaluation.by_category}.items():
        agreed = agreements.get(category)
        for measure, estimate in {**vars(scores), **(vars(agreed) if agreed else {})}.items():
            if isinstance(estimate, Estimate):
                yield {"category": category, "measure": measure, **asdict(estimate)}
