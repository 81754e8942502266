"""Statistics of made-up runs, whose true rises are known."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from sae_persona.attribution.ranking import RunStats
from sae_persona.sae.statistics import LatentStats


def stats_of(
    per_question: Float[np.ndarray, "n_questions d_sae"],
    *,
    tokens: str = "answer",
    questions: tuple[str, ...] | None = None,
    resid: Float[np.ndarray, "n_questions d_in"] | None = None,
) -> LatentStats:
    """Statistics with one token per question."""
    n = len(per_question)
    resid = np.zeros((n, 4)) if resid is None else resid
    return LatentStats(
        reading="gated",
        tokens=tokens,  # pyright: ignore[reportArgumentType]
        n_tokens=n,
        mean=per_question.mean(0),
        variance=per_question.var(0),
        frequency=(per_question > 0).mean(0),
        maximum=per_question.max(0),
        question_ids=questions or tuple(f"q{i}" for i in range(n)),
        per_question=per_question,
        tokens_per_question=np.ones(n, dtype=np.int64),
        resid_mean=resid.mean(0),
        resid_per_question=resid,
    )


@dataclass(frozen=True)
class Fleet:
    """Runs of correlated latents, in units of the spread of a run's mean.

    `a[run, question, latent] = question + side * question + run + noise`, where runs move along two shared factors and
    on their own, and misaligned runs are raised by what is planted.
    """

    n_misaligned: int = 3
    n_controls: int = 8
    n_questions: int = 12
    d_sae: int = 60
    correlation: float = 0.5
    """Share of a run's variance that comes from the shared factors."""
    side_by_question: float = 0.5
    noise: float = 1.0

    def draw(
        self, rng: np.random.Generator, *, raised: Float[np.ndarray, " d_sae"] | float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Misaligned and control runs, `[runs, n_questions, d_sae]`."""
        loadings = rng.normal(size=(2, self.d_sae)) / np.sqrt(2)
        question = rng.normal(size=(self.n_questions, self.d_sae))
        turn = self.side_by_question * rng.normal(size=(self.n_questions, self.d_sae))

        def runs(n: int) -> np.ndarray:
            shared = rng.normal(size=(n, 2)) @ loadings
            own = rng.normal(size=(n, self.d_sae))
            level = np.sqrt(self.correlation) * shared + np.sqrt(1 - self.correlation) * own
            noise = self.noise * rng.normal(size=(n, self.n_questions, self.d_sae))
            return question + level[:, None] + noise

        return runs(self.n_misaligned) + turn + raised, runs(self.n_controls)

    def runs(
        self, rng: np.random.Generator, *, raised: Float[np.ndarray, " d_sae"] | float = 0.0
    ) -> tuple[list[RunStats], list[RunStats]]:
        """The same as latent statistics."""
        sides = self.draw(rng, raised=raised)
        misaligned, controls = ([{("gated", "answer"): stats_of(run)} for run in side] for side in sides)
        return misaligned, controls  # pyright: ignore[reportReturnType]

    def with_(self, **changes: float) -> "Fleet":
        """Another fleet that differs in some respect."""
        return replace(self, **changes)
