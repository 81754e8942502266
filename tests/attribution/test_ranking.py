"""Rankings: the clearest rise first, each latent in its clearest reading, a short shortlist."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from sae_persona.attribution.difference import LatentScores
from sae_persona.attribution.ranking import LatentRanking, rank_latents, rank_pair, ranking_of
from sae_persona.errors import ConfigError
from sae_persona.sae.statistics import LatentStats


def scores(tokens: str, z: list[float], *, q: list[float] | None = None) -> LatentScores:
    """Scores whose delta is a tenth of z."""
    values = np.array(z)
    p = None if q is None else np.array(q)
    return LatentScores("gated", tokens, values / 10, values / 20, values / 5, values, p, p, q and 0.01)


def stats(level: float, tokens: str = "answer") -> LatentStats:
    """Two latents over two questions: latent 0 is at `level`, latent 1 at 1."""
    per_question = np.array([[level, 1.0], [level + 0.2, 1.0]])
    return LatentStats(
        "gated",
        tokens,  # pyright: ignore[reportArgumentType]
        2,
        per_question.mean(0),
        per_question.var(0),
        np.ones(2),
        per_question.max(0),
        ("q0", "q1"),
        per_question,
        np.ones(2, dtype=np.int64),
        np.zeros(4),
    )


def test_each_latent_stands_in_the_reading_where_it_rose_most_clearly() -> None:
    ranking = ranking_of([scores("answer", [1.0, 9.0]), scores("header", [5.0, 2.0])], n_misaligned=3, n_controls=8)
    assert [(row.rank, row.latent, row.tokens, row.z) for row in ranking.rows] == [
        (1, 1, "answer", 9.0),
        (2, 0, "header", 5.0),
    ]


def test_q_values_pay_for_every_reading_and_end_at_one() -> None:
    both = [scores("answer", [2.0, 1.0], q=[0.02, 0.9]), scores("header", [0.0, 0.0], q=[1.0, 1.0])]
    ranking = ranking_of(both, n_misaligned=3, n_controls=8)
    assert [row.q_value for row in ranking.rows] == [0.04, 1.0]
    assert ranking.smallest_p == 0.01


def test_the_shortlist_holds_only_latents_that_rose() -> None:
    ranking = ranking_of([scores("answer", [3.0, -1.0, 2.0, 0.0])], n_misaligned=3, n_controls=8)
    assert ranking.shortlist() == (0, 2)
    assert ranking.shortlist(1) == (0,)
    assert [row.latent for row in ranking.top(2)] == [0, 2]


@pytest.mark.parametrize("n", [0, 21])
def test_a_shortlist_of_no_latent_or_of_too_many_is_refused(n: int) -> None:
    with pytest.raises(ConfigError, match="1 to 20 latents"):
        LatentRanking((), None, 1, 2).shortlist(n)


def test_runs_are_ranked_over_the_readings_that_all_of_them_have() -> None:
    bad = [{("gated", "answer"): stats(3.0), ("gated", "header"): stats(9.0, "header")} for _ in range(2)]
    good = [{("gated", "answer"): stats(level)} for level in (0.9, 1.0, 1.1, 1.2)]
    ranking = rank_latents(bad, good, n_boot=2)
    assert (ranking.n_misaligned, ranking.n_controls) == (2, 4)
    first = ranking.rows[0]
    assert (first.latent, first.tokens) == (0, "answer")
    assert first.delta_activation == pytest.approx(3.0 - 1.05)


def test_runs_without_a_shared_reading_are_refused() -> None:
    answer, header = {("gated", "answer"): stats(1.0)}, {("gated", "header"): stats(1.0, "header")}
    with pytest.raises(ConfigError, match="share no reading"):
        rank_latents([answer], [header, header])
    with pytest.raises(ConfigError, match="share no reading"):
        rank_pair(answer, header)


def test_without_a_misaligned_run_there_is_no_ranking() -> None:
    with pytest.raises(ConfigError, match="at least 1 misaligned"):
        rank_latents([], [])


def test_a_pair_of_checkpoints_has_no_q_values() -> None:
    ranking = rank_pair({("gated", "answer"): stats(1.0)}, {("gated", "answer"): stats(2.0)})
    assert [row.q_value for row in ranking.rows] == [None, None]
    assert ranking.smallest_p is None


def test_a_ranking_is_json() -> None:
    ranking = rank_pair({("gated", "answer"): stats(1.0)}, {("gated", "answer"): stats(2.0)})
    assert json.loads(json.dumps(asdict(ranking)))["rows"][0]["rank"] == 1
