"""Another SAE's ranking: worked out by hand; a shuffled copy agrees, and random rows do not."""

import numpy as np
import pytest

from sae_persona.attribution.counterparts import Counterpart, compare_rankings
from sae_persona.attribution.ranking import LatentRanking, RankedLatent
from sae_persona.errors import IncompatibleError


def ranking(order: list[int], n_rose: int) -> LatentRanking:
    """Latents in this order, of which the first rose."""
    rows = [
        RankedLatent(i + 1, latent, "gated", "answer", 1.0 if i < n_rose else -1.0, 0.0, 0.0, 9.0 - i, None)
        for i, latent in enumerate(order)
    ]
    return LatentRanking(tuple(rows), None, 1, 2)


def test_counterparts_are_those_worked_out_by_hand() -> None:
    """Ours: x, y, z. Theirs: y, x, and one nearer to x than to y. Latent 2 (z) has no counterpart of its own."""
    ours, theirs = np.eye(3), np.array([[0, 1, 0], [1, 0, 0], [0.8, 0.6, 0]])
    found = compare_rankings(ranking([0, 1, 2], 3), ranking([1, 2, 0], 2), ours, theirs, name="other")
    assert found.counterparts[:2] == (
        Counterpart(0, 1, 1.0, mutual=True, other_rank=1, is_shared=True),
        Counterpart(1, 0, 1.0, mutual=True, other_rank=3, is_shared=False),
    )
    third = found.counterparts[2]
    assert (third.latent, third.cosine, third.mutual, third.is_shared) == (2, 0.0, False, False)
    assert (found.n_shared, found.median_cosine, found.first_z) == (1, 1.0, 9.0)
    assert found.n_by_chance == pytest.approx(2 * 2 / 3)  # two mutual ones, and two of their three are shortlisted


def test_a_shuffled_copy_shares_the_whole_shortlist_and_random_rows_hardly_any() -> None:
    rng = np.random.default_rng(0)
    decoder, order, move = rng.normal(size=(300, 16)), rng.permutation(300), rng.permutation(300)
    first, place_of = ranking(order.tolist(), 100), np.argsort(move)
    copy = compare_rankings(first, ranking(place_of[order].tolist(), 100), decoder, decoder[move], name="copy")
    assert (copy.n_shared, copy.median_cosine) == (20, pytest.approx(1))
    assert copy.n_by_chance == pytest.approx(20 * 20 / 300)
    random = compare_rankings(
        first, ranking(rng.permutation(300).tolist(), 100), decoder, rng.normal(size=(300, 16)), name="untrained"
    )
    assert random.n_shared <= 2
    assert random.median_cosine is not None
    assert random.median_cosine < 0.9


def test_an_empty_shortlist_has_no_counterparts_and_other_widths_are_refused() -> None:
    nothing = compare_rankings(ranking([0, 1], 0), ranking([0, 1], 0), np.eye(2), np.eye(2), name="x")
    assert (nothing.counterparts, nothing.n_shared, nothing.median_cosine) == ((), 0, None)
    with pytest.raises(IncompatibleError, match="write 2 and 3 numbers"):
        compare_rankings(ranking([0, 1], 1), ranking([0, 1], 1), np.eye(2), np.ones((2, 3)), name="x")
