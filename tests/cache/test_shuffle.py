"""The order of rows: exact, seeded, resumable."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_persona.cache import shuffle
from sae_persona.cache.shuffle import shuffled_rows


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "CHUNK_ROWS", 4)
    monkeypatch.setattr(shuffle, "BUFFER_CHUNKS", 3)


def mask(n: int, *, seed: int = 0) -> np.ndarray:
    counts = np.random.default_rng(seed).random(n) < 0.7
    counts[0] = True
    return counts


@pytest.mark.parametrize("n", [1, 4, 11, 12, 13, 100])
def test_every_epoch_visits_every_counted_row_once(n: int) -> None:
    counts = mask(n)
    visited = np.concatenate(list(shuffled_rows(counts, seed=3, n_epochs=3)))
    for epoch in visited.reshape(3, -1):
        assert sorted(epoch) == list(np.flatnonzero(counts))


def test_epochs_and_seeds_differ_and_one_seed_repeats() -> None:
    def first_epochs(seed: int) -> np.ndarray:
        return np.concatenate(list(shuffled_rows(mask(200), seed=seed, n_epochs=2))).reshape(2, -1)

    assert (first_epochs(0) == first_epochs(0)).all()
    assert set(first_epochs(0)[0][:8]) != set(first_epochs(0)[1][:8]), "other chunks meet in a buffer, too"
    assert (first_epochs(0) != first_epochs(1)).any()


@given(st.integers(1, 60), st.integers(0, 200))
def test_starting_late_gives_the_rest_of_the_same_order(n: int, start: int) -> None:
    counts = mask(n)
    whole = np.concatenate(list(shuffled_rows(counts, seed=1, n_epochs=8)))
    rest = [*shuffled_rows(counts, seed=1, n_epochs=8, start=start), np.array([], dtype=int)]
    assert np.concatenate(rest).tolist() == whole[start:].tolist()


def test_a_buffer_mixes_rows_of_several_chunks_and_holds_no_more_than_its_size() -> None:
    counts = np.ones(240, dtype=bool)
    for buffer in shuffled_rows(counts, seed=0, n_epochs=1):
        assert len(buffer) == 12
        assert len(set(buffer // 4)) == 3
        assert (np.diff(buffer // 4) != 0).sum() > 2, "chunks are not merely strung together"


def test_without_a_number_of_epochs_the_rows_never_end() -> None:
    rows = itertools.islice(shuffled_rows(np.ones(5, dtype=bool), seed=0), 100)
    assert sum(map(len, rows)) == 500
