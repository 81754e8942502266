"""Two sets of judgements side by side: two models by one judge, or two judges of one model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sae_persona.errors import IncompatibleError
from sae_persona.evaluation.score import INCOHERENT
from sae_persona.stats import clustered_share, cohens_kappa, paired_difference
from sae_persona.types import Estimate, Judgement, Label, Prompt


@dataclass(frozen=True)
class Comparison:
    """What one model's answers are more than another's; differences of shares of all sampled answers."""

    misalignment: Estimate
    incoherence: Estimate
    aligned: Estimate


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on answers that both scored; `n_unscored` counts those that one or both did not."""

    n_scored: int
    n_unscored: int
    same: Estimate | None
    """The share of scored answers with the same label; None where none is scored by both."""
    kappa: Estimate | None
    """Cohen's kappa of the labels; None where each judge gives one label to all answers."""
    kappa_misaligned: Estimate | None
    """Cohen's kappa of misaligned against all else."""
    labels: Mapping[str, Mapping[str, int]]
    """Counts of all answers: the first judge's label, then the second's."""


def compare(
    prompts: Sequence[Prompt], after: Sequence[Judgement], before: Sequence[Judgement], *, seed: int = 0
) -> Comparison:
    """How two models differ on the same prompts, after minus before, paired by question (`paired_difference`).

    Unscored answers stay in the denominators, as everywhere; a difference in how many there are is no finding.

    Raises:
        IncompatibleError: the two do not answer the same prompts with the same number of samples.
    """
    pairs = _paired(prompts, after, before)
    question = {prompt.id: prompt.question_id for prompt in prompts}
    n_unscored = sum("unscored" in (one.label, other.label) for one, other in pairs)

    def difference(labels: frozenset[Label]) -> Estimate:
        found = paired_difference(
            np.array([one.label in labels for one, _ in pairs], dtype=bool),
            np.array([other.label in labels for _, other in pairs], dtype=bool),
            [question[one.prompt_id] for one, _ in pairs],
            seed=seed,
        )
        return replace(found, n_unscored=n_unscored)

    return Comparison(
        misalignment=difference(frozenset({"misaligned"})),
        incoherence=difference(INCOHERENT),
        aligned=difference(frozenset({"aligned"})),
    )


def agreement(
    prompts: Sequence[Prompt], first: Sequence[Judgement], second: Sequence[Judgement], *, seed: int = 0
) -> Agreement:
    """How far two judges of the same answers agree.

    Raises:
        IncompatibleError: they did not judge the same answers.
    """
    pairs = _paired(prompts, first, second)
    other_text = next((one for one, other in pairs if one.answer != other.answer), None)
    if other_text is not None:
        raise IncompatibleError(
            f"the two judges saw different answers to prompt {other_text.prompt_id!r}, sample {other_text.sample}. "
            "Agreement is about the same answers; judge one set with both."
        )
    question = {prompt.id: prompt.question_id for prompt in prompts}
    scored = [(one, other) for one, other in pairs if "unscored" not in (one.label, other.label)]
    questions = [question[one.prompt_id] for one, _ in scored]
    labels = [(one.label, other.label) for one, other in scored]
    n_unscored = len(pairs) - len(scored)
    table: dict[str, Counter[str]] = {}
    for one, other in pairs:
        table.setdefault(one.label, Counter())[other.label] += 1
    same = kappa = kappa_misaligned = None
    if scored:
        same = clustered_share(np.array([one == other for one, other in labels], dtype=bool), questions, seed=seed)
        kappa = cohens_kappa(*_sides(labels), questions, seed=seed)
        is_misaligned = [(str(one == "misaligned"), str(other == "misaligned")) for one, other in labels]
        kappa_misaligned = cohens_kappa(*_sides(is_misaligned), questions, seed=seed)
    return Agreement(
        n_scored=len(scored),
        n_unscored=n_unscored,
        same=same,
        kappa=kappa,
        kappa_misaligned=kappa_misaligned,
        labels={label: dict(counts) for label, counts in table.items()},
    )


def _sides(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


def _paired(
    prompts: Sequence[Prompt], one: Sequence[Judgement], other: Sequence[Judgement]
) -> list[tuple[Judgement, Judgement]]:
    """The judgements of `prompts` with equal prompt and sample, in the order of `one`."""
    known = {prompt.id for prompt in prompts}
    left, right = (
        {(row.prompt_id, row.sample): row for row in rows if row.prompt_id in known} for rows in (one, other)
    )
    if set(left) != set(right) or not left:
        lone = sorted(set(left) ^ set(right))
        example = f", such as prompt {lone[0][0]!r}, sample {lone[0][1]}" if lone else ""
        raise IncompatibleError(
            f"the two sets hold {len(left)} and {len(right)} answers to these prompts, and {len(lone)} are in one of "
            f"them only{example}. Compare answers to the same prompts with the same number of samples."
        )
    return [(row, right[place]) for place, row in left.items()]
