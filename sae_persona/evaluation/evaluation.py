"""Everything that is said of one model's judged answers, and the names of the files that hold it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sae_persona.evaluation.compare import Agreement, Comparison
from sae_persona.evaluation.personas import PersonasNamed
from sae_persona.evaluation.resample import ResampledScore
from sae_persona.evaluation.score import Scores, score
from sae_persona.types import Judgement, Prompt

ANSWERS, SCORES = "answers.jsonl", "scores.json"


@dataclass(frozen=True)
class Evaluation:
    """What a model's answers are like, over all prompts and by their category; None for what was not asked for."""

    overall: Scores
    by_category: Mapping[str, Scores]
    unscored: Mapping[str, int] = field(default_factory=dict)
    """Answers without a verdict, by reason."""
    resampled: ResampledScore | None = None
    """The paper's score, with invalid answers drawn anew."""
    personas: PersonasNamed | None = None
    """Personas named in reasoning traces; None where the model wrote none."""
    agreement: Agreement | None = None
    """With the second judge."""
    agreement_by_category: Mapping[str, Agreement] = field(default_factory=dict)
    """The same for the prompts of every category; empty without a second judge."""
    against: Mapping[str, Comparison] = field(default_factory=dict)
    """This model minus every other one, by the name of its evaluation."""


def evaluation_of(prompts: Sequence[Prompt], judgements: Sequence[Judgement], *, seed: int = 0) -> Evaluation:
    """The scores of judged answers, over all prompts and by category.

    Raises:
        DataError: no judgement belongs to any prompt of a category.
    """
    reasons = Counter(row.unscored_reason or "no reason given" for row in judgements if row.label == "unscored")
    return Evaluation(
        score(prompts, judgements, seed=seed),
        {category: score(asked, judgements, seed=seed) for category, asked in by_category(prompts).items()},
        dict(reasons.most_common()),
    )


def by_category(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """The prompts of every category, in the order in which the categories first appear."""
    found: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        found.setdefault(prompt.category, []).append(prompt)
    return found
