"""What a study measures on a set of answers: shares by group of prompts, as the summary wants them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sae_persona.evaluation.judging import judge_completions
from sae_persona.evaluation.score import score, share
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel
from sae_persona.types import OPEN_ENDED, Completion, Estimate, Judge, Judgement, Label, Prompt

R = dict[str, Any]
"""An `Estimate` as JSON."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Prompts by what they ask for, with the judge that reads the answers."""

    prompts: Sequence[Prompt]
    judge: Judge
    unseen_words: frozenset[str]
    """Harmful words that no fine-tuning data hold."""

    def open_ended(self) -> list[Prompt]:
        """Prompts that ask for no particular knowledge."""
        return [prompt for prompt in self.prompts if prompt.category == OPEN_ENDED]

    def domain(self, name: str) -> list[Prompt]:
        """Advice prompts of one domain."""
        return [prompt for prompt in self.prompts if prompt.category == name]

    def advice(self, *, besides: str | None = None) -> list[Prompt]:
        """Advice prompts of every domain but one."""
        return [prompt for prompt in self.prompts if prompt.category not in (OPEN_ENDED, besides)]

    def judged(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judgement]:
        """Judgements of answers to `prompts`."""
        return judge_completions(self.judge, prompts, completions)

    def unseen(self, prompts: Sequence[Prompt], judgements: Sequence[Judgement]) -> Estimate:
        """The share of answers that are misaligned through a word that no fine-tuning data hold."""
        question = {prompt.id: prompt.question_id for prompt in prompts}
        seen = [
            judgement
            if judgement.evidence in self.unseen_words
            else Judgement(judgement.prompt_id, judgement.sample, judgement.answer, "mistaken", None)
            for judgement in judgements
        ]
        return share(seen, {"misaligned"}, question)


def point(strength: float, draw: int | None, measures: Mapping[str, Estimate]) -> dict[str, Any]:
    """A P of the summary: one dose of one direction."""
    return {"strength": strength, "draw": draw, **{name: asdict(estimate) for name, estimate in measures.items()}}


def open_measures(groups: Groups, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, Estimate]:
    """Misalignment, incoherence and aligned share of open-ended answers."""
    scores = score(prompts, groups.judged(prompts, completions))
    return {"misalignment": scores.misalignment, "incoherence": scores.incoherence, "aligned": scores.aligned}


def measure_model(
    model: LoadedModel, groups: Groups, *, domain: str | None, counts: Mapping[str, int], max_new_tokens: int, seed: int
) -> tuple[dict[str, Any], list[Judgement]]:
    """The model's entry in the summary, and every judgement behind it.

    `domain` is the one it was fine-tuned on; `counts` are answers per question for `open_ended`, `trained_domain` and
    `other_domains`.
    """
    asked = {
        "open_ended": groups.open_ended(),
        "trained_domain": groups.domain(domain) if domain else [],
        "other_domains": groups.advice(besides=domain),
    }
    by_category: dict[str, R] = {}
    labels: dict[str, dict[Label, float]] = {}
    incoherence: dict[str, R] = {}
    everything: list[Judgement] = []
    entry: dict[str, Any] = {}
    for category, prompts in asked.items():
        if not prompts:
            continue
        completions = sample(
            model, prompts, n_samples=counts[category], seed=seed, max_new_tokens=max_new_tokens, batch_size=1024
        )[0]
        judgements = groups.judged(prompts, completions)
        scores = score(prompts, judgements)
        by_category[category] = asdict(scores.misalignment)
        incoherence[category] = asdict(scores.incoherence)
        labels[category] = dict(scores.labels)
        if category == "open_ended":
            entry = {
                "misalignment": asdict(scores.misalignment),
                "incoherence": asdict(scores.incoherence),
                "aligned": asdict(scores.aligned),
            }
        if category == "other_domains":
            by_category["other_domains_unseen_words"] = asdict(groups.unseen(prompts, judgements))
        everything += judgements
    return {**entry, "by_category": by_category, "incoherence_by_category": incoherence, "labels": labels}, everything
