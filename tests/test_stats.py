"""Intervals that cover, ranks that count ties by half, and false discovery rates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_persona.errors import DataError
from sae_persona.stats import (
    auroc,
    benjamini_hochberg,
    clustered_share,
    cohens_kappa,
    estimate_mean,
    paired_difference,
)


def answers(n_questions: int, n_per_question: int) -> list[str]:
    return [f"q{i}" for i in range(n_questions) for _ in range(n_per_question)]


def test_a_share_counts_every_answer_and_every_question() -> None:
    share = clustered_share(np.array([True, False, False, True]), ["a", "a", "b", "c"], n_unscored=1)
    assert (share.value, share.n, share.n_questions, share.n_unscored) == (0.5, 4, 3, 1)


def test_one_answer_per_question_without_a_hit_gives_wilsons_interval() -> None:
    # z^2 / (n + z^2) with n = 100 (1.96 / 1.984)^2 = 97.57, 1.984 being Student's t with 99 degrees of freedom
    share = clustered_share(np.zeros(100, dtype=bool), answers(100, 1))
    assert (share.value, share.low) == (0, 0)
    assert share.high == pytest.approx(3.8415 / (97.57 + 3.8415), abs=1e-4)


def test_45_questions_of_ten_answers_without_a_hit_bound_the_share_by_two_per_cent() -> None:
    assert clustered_share(np.zeros(450, dtype=bool), answers(45, 10)).high < 0.02
    assert clustered_share(np.zeros(200, dtype=bool), answers(20, 10)).high > 0.03


def test_all_and_none_mirror_each_other() -> None:
    none = clustered_share(np.zeros(60, dtype=bool), answers(12, 5))
    every = clustered_share(np.ones(60, dtype=bool), answers(12, 5))
    assert (every.value, every.high) == (1, 1)
    assert every.low == pytest.approx(1 - none.high)


def test_answers_that_repeat_their_question_count_as_one() -> None:
    by_question = np.arange(20) % 2 == 0
    repeated = clustered_share(np.repeat(by_question, 10), answers(20, 10))
    single = clustered_share(by_question, answers(20, 1))
    # Half of 20 questions: +- 2.093 * sqrt(0.25 / 20) = 0.234, and Wilson's is a little narrower.
    assert repeated.high - repeated.low == pytest.approx(single.high - single.low, abs=0.02)
    assert repeated.high - repeated.low > 0.4


def test_a_single_question_says_next_to_nothing() -> None:
    share = clustered_share(np.zeros(1000, dtype=bool), ["only"] * 1000)
    assert share.high == pytest.approx(3.8415 / 4.8415, abs=1e-4)


def test_more_samples_of_the_same_questions_help_less_than_more_questions() -> None:
    widths = {(k, m): clustered_share(np.zeros(k * m, dtype=bool), answers(k, m)).high for k, m in [(20, 40), (80, 10)]}
    assert widths[80, 10] < widths[20, 40]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcde")), min_size=1, max_size=40))
def test_the_interval_holds_the_value_and_stays_within_0_and_1(rows: list[tuple[bool, str]]) -> None:
    share = clustered_share(np.array([hit for hit, _ in rows]), [question for _, question in rows], n_boot=100)
    assert 0 <= share.low <= share.value <= share.high <= 1


@pytest.mark.parametrize("correlation", [0.001, 0.1, 0.3])
@pytest.mark.parametrize("truth", [0.02, 0.1, 0.5])
def test_the_interval_of_20_questions_covers_the_truth(truth: float, correlation: float) -> None:
    # Beta-binomial: the questions' own shares have variance correlation * truth * (1 - truth).
    rng = np.random.default_rng(0)
    spread = 1 / correlation - 1
    covered = []
    for _ in range(300):
        own = rng.beta(truth * spread, (1 - truth) * spread, size=20)
        share = clustered_share(rng.random(200) < np.repeat(own, 10), answers(20, 10), n_boot=200)
        covered.append(share.low <= truth <= share.high)
    assert np.mean(covered) >= 0.92


def test_the_same_seed_gives_the_same_interval() -> None:
    hits = np.random.default_rng(0).random(80) < 0.3
    assert clustered_share(hits, answers(8, 10), seed=3) == clustered_share(hits, answers(8, 10), seed=3)


def test_a_difference_is_what_became_a_hit_minus_what_ceased_to_be_one() -> None:
    before = np.repeat([True, False, False, False], 10)
    after = np.repeat([False, True, True, False], 10)
    difference = paired_difference(after, before, [f"q{i % 10}" for i in range(40)])
    assert difference.value == pytest.approx(0.25)
    assert difference.low < 0.25 < difference.high


def test_no_change_is_no_certainty_that_nothing_can_change() -> None:
    nothing = paired_difference(np.zeros(50, dtype=bool), np.zeros(50, dtype=bool), answers(10, 5))
    assert (nothing.value, nothing.low) == (0, -nothing.high)
    assert 0.05 < nothing.high < 0.3


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(0)
    before = np.repeat(rng.random(30) < 0.5, 10)
    after = before | (rng.random(300) < 0.2)
    difference = paired_difference(after, before, answers(30, 10))
    assert difference.low > 0
    alone = clustered_share(after, answers(30, 10))
    assert difference.high - difference.low < (alone.high - alone.low) / 2


def test_a_mean_has_students_interval_over_questions() -> None:
    # Question means 1, 2, 3: SE = 1 / sqrt(3) = 0.577, t with 2 degrees of freedom 4.303
    mean = estimate_mean(np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]), answers(3, 2))
    assert mean.value == 2
    assert (mean.low, mean.high) == (pytest.approx(2 - 2.484, abs=1e-3), pytest.approx(2 + 2.484, abs=1e-3))


def test_auroc_counts_the_pairs_in_order_and_ties_by_half() -> None:
    # positives 3, 2 against negatives 2, 1: 3>2, 3>1, 2=2, 2>1
    assert auroc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])) == 3.5 / 4


def test_auroc_equals_the_count_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, size=50).astype(float), rng.random(50) < 0.4
    pairs = [(x > y) + (x == y) / 2 for x in scores[labels] for y in scores[~labels]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))


def test_auroc_needs_both_labels_and_numbers() -> None:
    with pytest.raises(DataError, match="3 positive and 0 negative"):
        auroc(np.ones(3), np.ones(3, dtype=bool))
    with pytest.raises(DataError, match="1 of 2 scores are not numbers"):
        auroc(np.array([np.nan, 1.0]), np.array([True, False]))


def test_q_values_are_the_smallest_rates_at_which_each_is_found() -> None:
    # ascending: 0.03 * 4 / 1 = 0.12, 0.032 * 4 / 2 = 0.064, 0.04 * 4 / 3 = 0.053, 0.9; the third's is the smallest
    q_values = benjamini_hochberg(np.array([0.9, 0.03, 0.04, 0.032]))
    assert q_values == pytest.approx([0.9, 0.16 / 3, 0.16 / 3, 0.16 / 3])


def test_no_p_value_gives_no_q_value_and_a_wrong_one_is_refused() -> None:
    assert len(benjamini_hochberg(np.array([]))) == 0
    with pytest.raises(DataError, match="between 0 and 1"):
        benjamini_hochberg(np.array([0.5, np.nan]))


def test_shares_of_nothing_and_answers_without_questions_are_refused() -> None:
    with pytest.raises(DataError, match="no answer"):
        clustered_share(np.array([], dtype=bool), [])
    with pytest.raises(DataError, match="2 answers, 1 questions"):
        clustered_share(np.array([True, False]), ["a"])
    with pytest.raises(DataError, match="at least 2 questions"):
        estimate_mean(np.array([1.0, 2.0]), ["a", "a"])


def test_kappa_is_agreement_beyond_chance() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.4
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    kappa = cohens_kappa(first, second, answers(50, 1))
    assert kappa is not None
    assert kappa.value == pytest.approx(0.4)
    # The textbook's standard error for 50 independent answers is about 0.13.
    assert (kappa.high - kappa.low) / 2 == pytest.approx(1.96 * 0.13, abs=0.04)
    assert (kappa.n, kappa.n_questions) == (50, 50)


def test_full_agreement_is_1_and_no_certainty() -> None:
    labels = ["a", "b"] * 20
    kappa = cohens_kappa(labels, labels, answers(10, 4))
    assert kappa is not None
    assert (kappa.value, kappa.high) == (1, 1)
    assert 0.4 < kappa.low < 0.95
    swapped = cohens_kappa(labels, ["b", "a"] * 20, answers(10, 4))
    assert swapped is not None
    assert (swapped.value, swapped.low) == (-1, -1)


def test_where_all_say_the_same_there_is_nothing_to_agree_on() -> None:
    assert cohens_kappa(["a"] * 8, ["a"] * 8, answers(4, 2)) is None
    assert cohens_kappa(["a"] * 8, ["b"] * 8, answers(4, 2)) is None, "no chance is left to agree beyond"
    # One that varies can still be agreed with: p_o = p_e = 1/2.
    varied = cohens_kappa(["a", "b"] * 4, ["a"] * 8, answers(4, 2))
    assert varied is not None
    assert varied.value == 0
    single = cohens_kappa(["a", "b"], ["a", "b"], ["only", "only"])
    assert single is not None
    assert single.low < 0.3, "one question says nothing of others"


def test_kappa_needs_two_labels_for_each_answer() -> None:
    with pytest.raises(DataError, match="there are 2 and 1 labels"):
        cohens_kappa(["a", "b"], ["a"], ["q", "q"])
    with pytest.raises(DataError, match="no answer"):
        cohens_kappa([], [], [])


@pytest.mark.parametrize("agree", [0.0, 0.5, 0.9])
def test_the_interval_of_kappa_covers_the_truth(agree: float) -> None:
    """Two judges look at a share `agree` of the questions alike and elsewhere draw apart: kappa is that share."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        first = rng.random(160) < np.repeat(rng.beta(1.5, 3.5, size=20), 8)  # 0.3 misaligned, questions differ
        alike = rng.random(160) < agree
        second = np.where(alike, first, rng.random(160) < 0.3)
        kappa = cohens_kappa([*map(str, first)], [*map(str, second)], answers(20, 8), n_boot=200)
        assert kappa is not None
        covered.append(kappa.low <= agree <= kappa.high)
    assert np.mean(covered) >= 0.92


def test_a_paired_difference_of_equal_models_holds_zero_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(200):
        own = np.repeat(rng.beta(0.5, 2, size=20), 8)
        difference = paired_difference(rng.random(160) < own, rng.random(160) < own, answers(20, 8), n_boot=200)
        held.append(difference.low <= 0 <= difference.high)
    assert np.mean(held) >= 0.92


def test_questions_that_move_apart_have_students_interval_of_their_own_differences() -> None:
    # Two questions rise by 1, two fall by 1, ten answers each: SE = sqrt(4 / 3 * 4 * 10^2 / 40^2) = 0.577, and t with 3
    # degrees of freedom is 3.182, so 1.84 cut to 1. Of eight, +-: sqrt(8 / 7 * 8 / 8^2) = 0.378 times 2.365 is 0.894.
    for n_questions, margin in ((4, 1), (8, 0.894)):
        after = np.arange(n_questions).repeat(10) % 2 == 0
        difference = paired_difference(after, ~after, answers(n_questions, 10))
        assert difference.value == 0
        assert (difference.low, difference.high) == (pytest.approx(-margin, abs=1e-3), pytest.approx(margin, abs=1e-3))


def test_questions_that_turn_either_way_are_called_a_change_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(0)
    off = []
    for _ in range(300):
        one, other = (np.repeat(rng.beta(0.25, 0.25, size=40), 4) for _ in range(2))  # correlation 2 / 3
        difference = paired_difference(rng.random(160) < one, rng.random(160) < other, answers(40, 4), n_boot=50)
        off.append(not difference.low <= 0 <= difference.high)
    # The standard error of a rate of 0.05 over 300 experiments is 0.0126.
    assert np.mean(off) <= 0.05 + 2 * 0.0126
