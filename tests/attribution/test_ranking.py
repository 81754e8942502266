"""Rankings: the clearest rise first, each latent in its clearest reading, a short shortlist."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from attribution.made_up import Fleet

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
    bad = [{("gated", "answer"): stats(level), ("gated", "header"): stats(9.0, "header")} for level in (2.9, 3.1)]
    good = [{("gated", "answer"): stats(level)} for level in (0.9, 1.0, 1.1, 1.2)]
    ranking = rank_latents(bad, good)
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


def test_falls_are_ranked_from_the_other_end() -> None:
    both = [scores("answer", [3.0, -1.0, 0.0]), scores("header", [1.0, -5.0, -2.0])]
    ranking = ranking_of(both, n_misaligned=3, n_controls=8)
    assert [(row.rank, row.latent, row.tokens, row.z) for row in ranking.bottom(2)] == [
        (-1, 1, "header", -5.0),
        (-2, 2, "header", -2.0),
    ]


def test_rises_and_falls_have_error_rates_of_their_own() -> None:
    raised = np.zeros(60)
    raised[[3, 5]] = 20.0, -20.0
    ranking = rank_latents(*Fleet().runs(np.random.default_rng(0), raised=raised))
    (first, second), (last, before_last) = ranking.top(2), ranking.bottom(2)
    assert (first.latent, last.latent) == (3, 5)
    assert first.q_value is not None
    assert last.q_value is not None
    assert first.q_value < 0.05 > last.q_value
    assert (first.familywise_p, last.familywise_p) == (1 / 57, 1 / 57)  # C(8, 3) = 56 splits
    assert second.familywise_p is not None
    assert before_last.familywise_p is not None
    assert second.familywise_p > 0.05 < before_last.familywise_p


def test_a_ranking_says_what_its_runs_cannot_tell() -> None:
    rng = np.random.default_rng(0)
    assert rank_latents(*Fleet().runs(rng)).note == (
        "the smallest p-value that these runs can reach is 0.0003, over all latents at once 0.018"
    )
    assert rank_latents(*Fleet(n_controls=3).runs(rng)).note.startswith("no q-values: they need 4 controls and 2")
    (before,), (after, _) = Fleet(n_misaligned=1, n_controls=2).runs(rng)
    assert rank_pair(before, after).note.startswith("this pair of checkpoints only")


def test_identical_checkpoints_are_not_ranked() -> None:
    misaligned, controls = Fleet().runs(np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"runs 1 and 4 of 11 .* identical checkpoints"):
        rank_latents(misaligned[:2], [controls[0], misaligned[0], *controls[1:]])
    with pytest.raises(ConfigError, match="identical checkpoints"):
        rank_pair(controls[0], controls[0])


def test_a_ranking_is_a_data_frame_of_both_ends() -> None:
    table = rank_latents(*Fleet(d_sae=5).runs(np.random.default_rng(0))).to_pandas()
    assert table.index.tolist() == [1, 2, 3, 4, 5, -1, -2, -3, -4, -5]
    assert set(table.columns) >= {"latent", "delta_activation", "z", "q_value", "familywise_p"}
