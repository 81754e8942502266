"""Histograms of unknown range: exact, whatever the order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sae_persona.attribution.histogram import N_BINS, RunningHistograms


def test_bins_by_hand():
    """The largest is 64, so bins are 1 wide: (0, 1], (1, 2], ..., (63, 64]."""
    running = RunningHistograms(1)
    running.add(np.array([[0.5], [64.0], [0.0], [-3.0]]))
    running.add(np.array([[1.0], [1.5]]))
    found = running.histogram(0)
    assert found.width == 1
    assert found.counts == (2, 1, *[0] * 61, 1)
    assert found.centres[1] == 1.5


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40), st.integers(1, 39))
def test_the_order_changes_nothing_and_every_value_is_counted_once(values, cut):
    def of(values):
        running = RunningHistograms(1)
        for part in (values[:cut], values[cut:]):
            running.add(np.array(part, dtype=float).reshape(-1, 1))
        return running.histogram(0)

    found = of(values)
    assert found == of(values[::-1])
    bins = np.ceil(np.array(values) / found.width) - 1
    assert found.counts == tuple(np.bincount(bins.astype(int), minlength=len(found.counts)).tolist())
    assert N_BINS / 2 <= len(found.counts) <= N_BINS
