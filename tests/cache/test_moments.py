"""Means and variances of streamed rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_persona.cache.moments import Moments


def test_two_blocks_by_hand() -> None:
    moments = Moments()
    moments.add(torch.tensor([[1.0], [3.0]]))
    moments.add(torch.tensor([[8.0]]))
    assert moments.n == 3
    assert moments.mean.item() == 4
    assert moments.variance.item() == ((1 - 4) ** 2 + (3 - 4) ** 2 + (8 - 4) ** 2) / 3


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_any_cut_into_blocks_gives_the_moments_of_the_whole(sizes: list[int]) -> None:
    rows = 1e6 + torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    for block in rows.split(sizes):
        moments.add(block)
    if len(rows):
        torch.testing.assert_close(moments.mean, rows.mean(0))
        # The mean is a million spreads away from zero: a sum of squares would keep four digits of the variance.
        torch.testing.assert_close(moments.variance, rows.var(0, correction=0), rtol=1e-6, atol=0)


def test_without_rows_there_is_no_spread() -> None:
    assert Moments().variance.numel() == 0
