"""What steering costs where knowledge is asked for: the share of correct advice, beside `price` on given text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from sae_persona.errors import DataError, JudgeError
from sae_persona.model.generate import HookedEdit, sample
from sae_persona.model.load import LoadedModel
from sae_persona.stats import clustered_share, paired_difference
from sae_persona.types import OPEN_ENDED, Completion, Estimate, Judge, Prompt


@dataclass(frozen=True)
class AdviceAccuracy:
    """Shares of all sampled answers that the judge calls aligned: the right remedy, given in good will."""

    unsteered: Estimate
    steered: Estimate
    difference: Estimate
    """Steered minus unsteered, paired by question; `n_unscored` counts pairs of which one or both are unscored."""


def advice_accuracy(
    model: LoadedModel,
    edits: Sequence[HookedEdit],
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    n_samples: int,
    seed: int,
    max_new_tokens: int = 64,
    batch_size: int = 512,
) -> AdviceAccuracy:
    """How much less often the edited model gives correct advice, on the prompts that are not open-ended.

    Answers with and without the edits are drawn with the same noise. Mistaken, incoherent and unscored answers are in
    the denominator, as everywhere.

    Raises:
        DataError: no prompt asks for advice.
        JudgeError: the judge did not give one judgement per answer.
        HookError: the model lacks a hook.
    """
    asked = [prompt for prompt in prompts if prompt.category != OPEN_ENDED]
    if not asked:
        raise DataError(
            f"none of {len(prompts)} prompts asks for advice: all are {OPEN_ENDED}. Give prompts of other categories."
        )

    def answers(edits: Sequence[HookedEdit]) -> list[Completion]:
        return sample(
            model,
            asked,
            n_samples=n_samples,
            seed=seed,
            max_new_tokens=max_new_tokens,
            edits=edits,
            batch_size=batch_size,
        )[0]

    questions = [prompt.question_id for prompt in asked for _ in range(n_samples)]
    before, no_verdict_before = _correct(judge, asked, answers(()))
    after, no_verdict_after = _correct(judge, asked, answers(edits))
    difference = paired_difference(after, before, questions, seed=seed)
    return AdviceAccuracy(
        unsteered=clustered_share(before, questions, n_unscored=int(no_verdict_before.sum()), seed=seed),
        steered=clustered_share(after, questions, n_unscored=int(no_verdict_after.sum()), seed=seed),
        difference=replace(difference, n_unscored=int((no_verdict_before | no_verdict_after).sum())),
    )


def _correct(
    judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Completion]
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which answers are correct, and which are unscored, in order."""
    judgements = judge.judge(prompts, answers)
    if [(one.prompt_id, one.sample) for one in judgements] != [(one.prompt_id, one.sample) for one in answers]:
        raise JudgeError(
            f"judge {judge.name!r} was asked about {len(answers)} answers and returned {len(judgements)} judgements, "
            "or in another order. A judge returns one judgement per answer, in order."
        )
    labels = np.array([one.label for one in judgements])
    return labels == "aligned", labels == "unscored"
