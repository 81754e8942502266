"""Sample a model's answers, have them judged, and say what they are like."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_persona.artifacts import fingerprint, is_done, new_manifest, write_folder, write_json
from sae_persona.data.files import read_prompts, write_jsonl
from sae_persona.evaluation.judging import judge_completions
from sae_persona.evaluation.score import Scores, score
from sae_persona.model.generate import sample
from sae_persona.model.load import load_model
from sae_persona.study.commands.shared import Progress, Sampling, counting, no_progress, read_record, write_csv
from sae_persona.study.judges import build_judge
from sae_persona.types import Estimate, Judgement, Prompt

VERSION = 1
"""Raised when the same inputs would give another folder."""
ANSWERS, SCORES = "answers.jsonl", "scores.json"


@dataclass(frozen=True)
class Evaluation:
    """What a model's answers are like, over all prompts and by their category."""

    overall: Scores
    by_category: Mapping[str, Scores]


def evaluate_model(
    source: str,
    *,
    prompts_file: Path,
    judge: str,
    sampling: Sampling,
    out: Path,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress = no_progress,
) -> Evaluation:
    """Write `answers.jsonl` (the judgements), `scores.json` and `scores.csv`, and return the scores.

    Raises:
        DataError: the prompts cannot be read, or are not ones the judge knows.
        JudgeError, ModelError, ConfigError: the judge, the model or the device is not there.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    prompts = read_prompts(prompts_file)
    asked = build_judge(judge)
    judge_completions(asked, prompts, [])  # a judge that does not know these prompts says so before anything is sampled
    model = load_model(source, device=device)
    manifest = new_manifest(
        "evaluation",
        config={"model": source, "judge": judge, **asdict(sampling)},
        inputs={"model": model.fingerprint, "prompts": fingerprint(prompts_file)},
        seed=sampling.seed,
        version=VERSION,
    )
    if not is_done(out, manifest):
        with write_folder(out, manifest) as folder:
            completions = sample(
                model,
                prompts,
                **asdict(sampling),
                batch_size=batch_size,
                progress=counting(progress, "sampling", len(prompts) * sampling.n_samples),
            )[0]
            judgements = judge_completions(asked, prompts, completions)
            evaluation = scored(prompts, judgements)
            write_jsonl(folder / ANSWERS, judgements)
            write_json(folder / SCORES, evaluation)
            write_csv((folder / SCORES).with_suffix(".csv"), _table(evaluation))
    return read_record(out / SCORES, Evaluation)


def scored(prompts: Sequence[Prompt], judgements: Sequence[Judgement]) -> Evaluation:
    """The scores of judged answers, over all prompts and by category."""
    categories = dict.fromkeys(prompt.category for prompt in prompts)
    return Evaluation(
        score(prompts, judgements),
        {
            category: score([prompt for prompt in prompts if prompt.category == category], judgements)
            for category in categories
        },
    )


def _table(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row per category and share; the overall one has no category."""
    for category, scores in {"": evaluation.overall, **evaluation.by_category}.items():
        for measure, estimate in vars(scores).items():
            if isinstance(estimate, Estimate):
                yield {"category": category, "measure": measure, **asdict(estimate)}
