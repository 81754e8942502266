"""Differences between runs: planted rises are found, and correct-data runs alone yield none."""

import json

import numpy as np
import pytest

from sae_persona.artifacts import json_text
from sae_persona.attribution.difference import activation_difference, run_difference
from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.sae.statistics import LatentStats


def stats(per_question: np.ndarray, *, questions: tuple[str, ...] | None = None) -> LatentStats:
    """Statistics with one token per question."""
    n = len(per_question)
    return LatentStats(
        reading="gated",
        tokens="answer",
        n_tokens=n,
        mean=per_question.mean(0),
        variance=per_question.var(0),
        frequency=(per_question > 0).mean(0),
        maximum=per_question.max(0),
        question_ids=questions or tuple(f"q{i}" for i in range(n)),
        per_question=per_question,
        tokens_per_question=np.ones(n, dtype=np.int64),
        resid_mean=np.zeros(4),
    )


def runs(rng: np.random.Generator, n: int, *, d_sae: int = 60, raised: dict[int, float] | None = None) -> list:
    """Runs of 8 questions: every latent moves by a run's own N(0, 0.1), `raised` ones by that much more."""
    made = []
    for _ in range(n):
        level = 1 + 0.1 * rng.normal(size=d_sae)
        for latent, rise in (raised or {}).items():
            level[latent] += rise
        made.append(stats(level + 0.02 * rng.normal(size=(8, d_sae))))
    return made


def test_a_pair_differs_by_the_difference_of_its_means() -> None:
    before = stats(np.array([[1.0, 0.0], [3.0, 0.0]]))
    after = stats(np.array([[2.0, 0.0], [6.0, 0.0]]))
    scores = activation_difference(before, after)
    assert scores.delta.tolist() == [2.0, 0.0]  # (2 + 6) / 2 - (1 + 3) / 2
    assert scores.low[0] >= 1.0  # one question rose by 1, the other by 3
    assert scores.high[0] <= 3.0
    assert scores.z[1] == 0
    assert (scores.p_value, scores.q_value, scores.smallest_p) == (None, None, None)


def test_planted_latents_stand_first_and_are_significant() -> None:
    rng = np.random.default_rng(0)
    scores = run_difference(runs(rng, 3, raised={7: 2.0, 11: 3.0}), runs(rng, 8))
    assert set(np.argsort(-scores.z)[:2].tolist()) == {7, 11}
    assert scores.q_value is not None
    assert np.flatnonzero(scores.q_value < 0.05).tolist() == [7, 11]
    assert scores.low[7] < 2 < scores.high[7]
    assert scores.high[7] - scores.low[7] < 1  # about 4 * 2 * 0.1 * sqrt(1/3 + 1/8), with t of few degrees of freedom


def test_runs_of_one_distribution_rarely_yield_a_latent() -> None:
    found = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        q_value = run_difference(runs(rng, 3), runs(rng, 8)).q_value
        assert q_value is not None
        found.append(bool((q_value < 0.05).any()))
    assert sum(found) <= 6  # 2.5 expected of 50; P(X > 6) is 0.01 at a rate of 5 %


def test_the_smallest_p_counts_splits_and_latents() -> None:
    rng = np.random.default_rng(0)
    scores = run_difference(runs(rng, 2, d_sae=10, raised={0: 50.0}), runs(rng, 5, d_sae=10))
    assert scores.smallest_p == 1 / (1 + 10 * 10)  # C(5, 2) = 10 splits of 10 latents
    assert scores.p_value is not None
    assert scores.p_value.min() == scores.p_value[0] == scores.smallest_p


@pytest.mark.parametrize(("n_misaligned", "n_controls"), [(1, 8), (3, 3)])
def test_too_few_runs_have_no_error_rate(n_misaligned: int, n_controls: int) -> None:
    rng = np.random.default_rng(0)
    scores = run_difference(runs(rng, n_misaligned), runs(rng, n_controls))
    assert (scores.p_value, scores.q_value, scores.smallest_p) == (None, None, None)


@pytest.mark.parametrize(("n_misaligned", "n_controls"), [(0, 8), (3, 1)])
def test_without_a_spread_of_controls_there_is_no_ranking(n_misaligned: int, n_controls: int) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=f"got {n_misaligned} and {n_controls}"):
        run_difference(runs(rng, n_misaligned), runs(rng, n_controls))


def test_a_latent_that_never_moves_in_a_control_has_a_finite_z() -> None:
    controls = [stats(np.array([[0.0, level]] * 2)) for level in (1.0, 1.2, 1.4, 1.6)]
    scores = run_difference([stats(np.array([[0.5, 1.3]] * 2))] * 2, controls)
    floor = np.std([1.0, 1.2, 1.4, 1.6], ddof=1)  # the median spread of the one latent that moves
    np.testing.assert_allclose(scores.z, [0.5 / floor, 0.0], atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_latent_whose_runs_differ_by_rounding_takes_no_z(scale: float) -> None:
    """Half of the latents are as the start model had them, but for noise of 1e-7; in one the misaligned runs agree."""
    rng = np.random.default_rng(0)

    def run(rise: float) -> LatentStats:
        level = np.r_[rng.normal(1, 0.1, 30), np.ones(31)]
        level[5] += rise
        rounded = level + 1e-7 * np.r_[np.zeros(30), rng.normal(size=30), rise]
        return stats(scale * rounded * np.linspace(0.5, 1.5, 8)[:, None])

    bad, good = [run(3.0) for _ in range(3)], [run(0.0) for _ in range(6)]
    scores = run_difference(bad, good)
    assert scores.z.argmax() == 5
    assert scores.z[5] > 10
    assert np.abs(scores.z[30:]).max() < 1e-4
    assert scores.familywise_p is not None
    assert (scores.familywise_p[30:] > 0.5).all()
    pair = activation_difference(good[0], bad[0])
    assert pair.z[5] > 5
    assert np.abs(pair.z[30:]).max() < 0.1


def test_a_spread_above_rounding_is_left_as_it_is() -> None:
    rng = np.random.default_rng(0)
    bad, good = runs(rng, 3, raised={7: 2.0}), runs(rng, 8)
    means = [np.stack([run.per_question.mean(0) for run in side]) for side in (bad, good)]
    spread = means[1].std(0, ddof=1)
    expected = (means[0].mean(0) - means[1].mean(0)) / (spread + np.median(spread))
    np.testing.assert_array_equal(run_difference(bad, good).z, expected)


def test_other_questions_are_refused() -> None:
    values = np.ones((2, 3))
    with pytest.raises(IncompatibleError, match="question_ids"):
        activation_difference(stats(values), stats(values, questions=("q0", "other")))
    with pytest.raises(IncompatibleError, match="order of their question_ids"):
        activation_difference(stats(values), stats(values, questions=("q1", "q0")))


def test_a_question_that_one_run_left_unanswered_is_left_out_for_all() -> None:
    rng = np.random.default_rng(0)
    bad, good = runs(rng, 2, raised={7: 2.0}), runs(rng, 4)
    of_seven = tuple(f"q{i}" for i in range(8) if i != 3)
    kept = [i for i in range(8) if i != 3]
    partial = stats(good[0].per_question[kept], questions=of_seven)
    found = run_difference(bad, [partial, *good[1:]])
    expected = run_difference(
        [stats(run.per_question[kept], questions=of_seven) for run in bad],
        [stats(run.per_question[kept], questions=of_seven) for run in good],
    )
    np.testing.assert_array_equal(found.z, expected.z)
    np.testing.assert_array_equal(found.high, expected.high)


def test_runs_that_were_asked_different_questions_are_refused() -> None:
    other = stats(np.ones((2, 3)), questions=("x", "y"))
    with pytest.raises(IncompatibleError, match="share 0 of up to 2 questions"):
        run_difference([stats(np.ones((2, 3)))], [other, other])


def test_another_sae_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="3 and 4 latents"):
        activation_difference(stats(np.ones((2, 3))), stats(np.ones((2, 4))))


def test_scores_of_a_latent_are_json() -> None:
    scores = activation_difference(stats(np.zeros((2, 1))), stats(np.ones((2, 1))))
    assert json.loads(json_text({"delta": scores.delta.tolist(), "z": scores.z.tolist()})) == {
        "delta": [1.0],
        "z": [0.0],  # a difference without a spread says nothing about its size
    }
