"""Ask a judge about completions and check what it says."""

from collections.abc import Sequence

from sae_persona.errors import JudgeError
from sae_persona.types import LABELS, Completion, Judge, Judgement, Prompt


def judge_completions(judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judgement]:
    """One judgement per completion, in order.

    Raises:
        JudgeError: the judge left answers out, changed their order or used a label that does not exist.
    """
    judgements = judge.judge(prompts, completions)
    asked = [(completion.prompt_id, completion.sample) for completion in completions]
    answered = [(judgement.prompt_id, judgement.sample) for judgement in judgements]
    if asked != answered:
        raise JudgeError(
            f"judge {judge.name!r} was asked about {len(asked)} answers and returned {len(answered)} judgements, or "
            "in another order. A judge returns one judgement per answer, in order, with label 'unscored' where it has "
            "none."
        )
    for judgement in judgements:
        if judgement.label not in LABELS:
            raise JudgeError(
                f"judge {judge.name!r} used the label {judgement.label!r}; expected one of: {', '.join(LABELS)}."
            )
    return judgements
