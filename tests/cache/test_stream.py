"""Streamed activations are those of a cache, without the file."""

from collections.abc import Callable

import pytest
import torch

from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.stream import ActivationStream
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import Part, TokenRow
from sae_persona.errors import ConfigError, HookError
from sae_persona.model.load import LoadedModel

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
ROWS = [TokenRow(tuple(range(5 + i, 9 + i + i % 4)), (Part.PROMPT,) * (4 + i % 4)) for i in range(30)]


@pytest.fixture(scope="module")
def stream(tiny_model: LoadedModel) -> ActivationStream:
    return ActivationStream.begin(tiny_model, ROWS, hook_names=HOOKS, batch_size=4, buffer_rows=40)


@pytest.fixture(scope="module")
def cache(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return write_cache(tiny_model, ROWS, tmp_path_factory.mktemp("cache") / "a.h5", hook_names=HOOKS, batch_size=4)


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows[:, 0].argsort()]


def test_an_epoch_is_every_counted_token_once_as_a_cache_has_it(
    stream: ActivationStream, cache: ActivationCache
) -> None:
    batches = list(stream.batches(HOOKS[1], batch_size=16, seed=3, n_epochs=2))
    assert {len(batch) for batch in batches[:-1]} == {16}
    rows = torch.cat(batches)
    assert len(rows) == 2 * cache.n_counted
    expected = sorted_rows(cache.read(HOOKS[1])[cache.counts])
    for epoch in rows.split(cache.n_counted):
        # Rows meet other rows than in the cache, and padding changes the order of additions.
        torch.testing.assert_close(sorted_rows(epoch), expected, rtol=1e-5, atol=1e-5)


def test_a_sample_of_everything_has_the_statistics_of_the_cache(
    stream: ActivationStream, cache: ActivationCache
) -> None:
    for hook in HOOKS:
        assert stream.d_in(hook) == cache.d_in(hook)
        torch.testing.assert_close(stream.mean(hook), cache.mean(hook), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stream.variance(hook), cache.variance(hook), rtol=1e-4, atol=1e-6)
        assert stream.median_norm(hook) == pytest.approx(cache.median_norm(hook), rel=1e-5)


def test_hooks_are_aligned_seeds_decide_and_skipping_goes_on(stream: ActivationStream) -> None:
    both = list(stream.aligned_batches(HOOKS, batch_size=16, seed=1, n_epochs=1))
    alone = list(stream.batches(HOOKS[0], batch_size=16, seed=1, n_epochs=1, skip=2))
    assert all(torch.equal(a[HOOKS[0]], b) for a, b in zip(both[2:], alone, strict=True))
    other = next(stream.batches(HOOKS[0], batch_size=16, seed=2))
    assert not torch.equal(other, both[0][HOOKS[0]])


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda stream: stream.batches("blocks.9.hook_resid_post", batch_size=4, seed=0), HookError),
        (lambda stream: stream.batches(HOOKS[0], batch_size=0, seed=0), ConfigError),
    ],
)
def test_what_it_does_not_have_is_refused_at_once(
    stream: ActivationStream, ask: Callable, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(stream)
