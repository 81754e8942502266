"""The prompts and the judge of a sweep: everything is judged in one go, so that its price is told before the start."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sae_persona.artifacts import is_done, new_manifest, write_folder
from sae_persona.data.files import read_jsonl, write_jsonl
from sae_persona.errors import DataError, JudgeError
from sae_persona.evaluation.judging import judge_completions
from sae_persona.evaluation.personas import without_trace
from sae_persona.evaluation.score import score, share
from sae_persona.types import LABELS, OPEN_ENDED, Completion, Estimate, Judge, Judgement, Label, Prompt

VERSION = 2
"""Of the answers that wait for a judge."""
SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class _Waiting(Completion):
    """An answer that waits for its judge."""

    condition: int = 0


class Panel:
    """Judges the answers to some prompts and measures them.

    Shares are of the answers to open-ended prompts, or to all prompts where none is open-ended; `other_domains` is the
    misaligned share of the answers to all others.
    """

    def __init__(self, judge: Judge, prompts: Sequence[Prompt]) -> None:
        self.judge, self.prompts = judge, prompts
        self.core = [prompt for prompt in prompts if prompt.category == OPEN_ENDED] or list(prompts)
        self.others = [prompt for prompt in prompts if prompt not in self.core]
        judge_completions(judge, prompts, [])  # a judge that does not know these prompts says so before the long part

    def judged(self, answers: Sequence[Sequence[Completion]]) -> list[list[Judgement]]:
        """The judgements of every condition's answers, without reasoning traces.

        Raises:
            JudgeError: the judge cannot be asked, or gave a verdict on none.
        """
        every = [without_trace(one) for one in itertools.chain.from_iterable(answers)]
        judgements = judge_completions(self.judge, self.prompts, every)
        check_usable(self.judge, judgements)
        rest = iter(judgements)
        return [list(itertools.islice(rest, len(of_condition))) for of_condition in answers]

    def measures(self, judgements: Sequence[Judgement]) -> dict[str, Estimate]:
        """`misalignment`, `incoherence`, `aligned` and, where there are such prompts, `other_domains`."""
        scores = score(self.core, judgements)
        measures = {"misalignment": scores.misalignment, "incoherence": scores.incoherence, "aligned": scores.aligned}
        return {**measures, **({"other_domains": score(self.others, judgements).misalignment} if self.others else {})}

    def labels(self, judgements: Sequence[Judgement]) -> dict[Label, Estimate]:
        """The share of every label that was given."""
        question = {prompt.id: prompt.question_id for prompt in self.core}
        rows = [row for row in judgements if row.prompt_id in question]
        given = {row.label for row in rows}
        return {label: share(rows, {label}, question) for label in LABELS if label in given}


def check_usable(judge: Judge, judgements: Sequence[Judgement]) -> None:
    """A judge that answers nothing usable is no judge.

    Raises:
        JudgeError: every judgement is `unscored`.
    """
    reasons = Counter(row.unscored_reason for row in judgements if row.label == "unscored")
    if sum(reasons.values()) == len(judgements):
        reason, n = reasons.most_common(1)[0]
        raise JudgeError(
            f"judge {judge.name!r} gave a usable verdict on none of {len(judgements)} answers; {n} times: {reason}. "
            "Use another model, or let it write more tokens."
        )


def of_categories(prompts: Sequence[Prompt], categories: Sequence[str]) -> list[Prompt]:
    """The prompts of these categories; all where none is named.

    Raises:
        DataError: a category without a prompt.
    """
    found = dict.fromkeys(prompt.category for prompt in prompts)
    for category in categories:
        if category not in found:
            raise DataError(f"no prompt has the category {category!r}; found: {', '.join(found)}.")
    return [prompt for prompt in prompts if not categories or prompt.category in categories]


def kept_answers(
    folder: Path | None,
    config: Mapping[str, object],
    inputs: Mapping[str, str],
    *,
    seed: int,
    draw: Callable[[], list[list[Completion]]],
) -> list[list[Completion]]:
    """The answers that wait in a folder for their judge, of every condition; drawn and put there if they do not.

    Without a folder they are drawn and not kept.
    """
    if folder is None:
        return draw()
    manifest = new_manifest("samples", config=config, inputs=inputs, seed=seed, version=VERSION)
    if not is_done(folder, manifest):
        with write_folder(folder, manifest) as partial:
            rows = (_Waiting(**asdict(one), condition=i) for i, many in enumerate(draw()) for one in many)
            write_jsonl(partial / SAMPLES, rows)
    conditions: dict[int, list[Completion]] = {}
    for row in read_jsonl(folder / SAMPLES, _Waiting):
        conditions.setdefault(row.condition, []).append(row)
    return list(conditions.values())
