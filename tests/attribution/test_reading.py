"""Reading latents: what a slow and plain reader would find, whatever the blocks and their order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_persona.attribution.contexts import token_texts, window_start
from sae_persona.attribution.contrast import contrast
from sae_persona.attribution.corpus import CachedCorpus, Corpus
from sae_persona.attribution.reading import read_latents
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import Part, TokenRow
from sae_persona.errors import ConfigError, DataError, IncompatibleError, SAEError

HOOK = "blocks.0.hook_resid_post"
WIDTH = 3
SMALL = st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=6)


def test_contexts_by_hand(coordinates, write):
    """Latent 0 reads 1, 5, 2 in the first passage and 5, 4 in the second; latent 1 nothing at all."""
    source = write([[(1, 0), (5, 0), (2, 0), (0, 0)], [(5, 0), (4, 0)], [(-1, 0), (0, 0)]])
    found = read_latents(coordinates, source, [0, 1], n=5, width=WIDTH)
    first, second = found[0].contexts
    assert [(one.document, one.start, one.peak, one.value) for one in (first, second)] == [
        (0, 0, 1, 5.0),
        (1, 0, 0, 5.0),
    ]
    assert first.activations == (1.0, 5.0, 2.0)
    assert first.text == " a b c"
    assert (found[0].n_tokens, found[0].n_firing, found[0].n_passages, found[0].n_firing_passages) == (8, 5, 3, 2)
    assert found[0].density.value == 5 / 8
    assert found[0].mean is not None
    assert found[0].mean.value == 17 / 8
    assert found[0].maximum == 5


def test_a_latent_that_never_fires_is_a_finding(coordinates, write):
    found = read_latents(coordinates, write([[(1, 0), (5, 0)], [(2, -3)]]), [1])[1]
    assert not found.fires
    assert (found.contexts, found.bins, found.firing, found.maximum, found.histogram.counts) == ((), (), (), 0.0, ())
    assert len(found.silent) == 2
    assert 0 < found.density.high < 1
    assert "never fires on these 3 tokens" in found._repr_html_()


def test_a_silent_pre_activation_still_has_contexts(coordinates, write):
    found = read_latents(coordinates, write([[(0, -3)], [(0, -1)]], ids=[[0], [1]]), [1], reading="pre_activation")[1]
    assert [one.value for one in found.contexts] == [-1.0, -3.0]
    assert not found.fires


def test_tokens_that_do_not_count_are_shown_and_not_read(coordinates, write):
    source = write([[(9, 0), (1, 0)]], counted=[[False, True]])
    found = read_latents(coordinates, source, [0])[0]
    assert found.contexts[0].activations == (0.0, 1.0)
    assert (found.n_tokens, found.n_firing) == (1, 1)


def naive(passages, ids, latent, n):
    """All windows, in a list, sorted."""
    windows = {}
    for document, rows in enumerate(passages):
        values = [max(float(row[latent]), 0.0) for row in rows]
        peak = int(np.argmax(values))
        if values[peak] <= 0:
            continue
        start = window_start(peak, len(rows), WIDTH)
        inside = slice(start, start + WIDTH)
        window = (-values[peak], document, start, tuple(ids[document][inside]), tuple(values[inside]))
        windows[window[3]] = min(window, windows.get(window[3], window))
    return sorted(windows.values())[:n]


@given(st.lists(SMALL, min_size=1, max_size=9), st.randoms(use_true_random=False), st.integers(1, 4))
def test_the_top_is_that_of_a_full_sort_over_ties_blocks_and_orders(coordinates, write, passages, rng, n):
    ids = [[rng.randrange(2) for _ in rows] for rows in passages]
    order = rng.sample(range(len(passages)), len(passages))
    source = replace(write(passages, ids=ids), order=order, per_block=rng.randint(1, 4))
    found = read_latents(coordinates, source, [1, 0], n=n, width=WIDTH)
    in_order = read_latents(coordinates, write(passages, ids=ids), [0, 1], n=n, width=WIDTH)
    for latent in (0, 1):
        expected = naive(passages, ids, latent, n)
        got = found[latent].contexts
        assert [(-one.value, one.document, one.start, one.activations) for one in got] == [
            (value, document, start, activations) for value, document, start, _, activations in expected
        ]
        assert got == in_order[latent].contexts
        assert found[latent].firing == in_order[latent].firing
        assert found[latent].silent == in_order[latent].silent
        assert found[latent].bins == in_order[latent].bins
        assert found[latent].histogram == in_order[latent].histogram
        counts = [max(row[latent], 0) for rows in passages for row in rows]
        assert sum(found[latent].histogram.counts) == found[latent].n_firing == sum(value > 0 for value in counts)
        assert all(max(one.activations) <= 0 for one in found[latent].silent)


def test_bins_hold_equally_many_and_go_from_strong_to_weak(coordinates, write):
    passages = [[(i, 0)] for i in range(1, 9)]
    found = read_latents(coordinates, write(passages, ids=[[i] for i in range(8)]), [0], n_bins=4)[0]
    assert [(group.low, group.high, group.share) for group in found.bins] == [
        (7, 8, 0.25),
        (5, 6, 0.25),
        (3, 4, 0.25),
        (1, 2, 0.25),
    ]


def test_a_draw_is_uniform_and_changes_with_the_seed(coordinates, write):
    passages = [[(i % 7 + 1, 0)] for i in range(200)]
    source = write(passages, ids=[[i] for i in range(200)])
    drawn = [
        {one.document for one in read_latents(coordinates, source, [0], n_drawn=20, seed=seed)[0].firing}
        for seed in range(30)
    ]
    assert len({frozenset(one) for one in drawn}) == 30
    times = np.bincount([document for one in drawn for document in one], minlength=200)
    assert times.sum() == 600
    assert times.max() <= 12  # 3 expected; a binomial of 30 draws at 1/10 exceeds 12 once in 100 000


def test_who_fires_together(coordinates, write):
    """Both fire on 2 tokens, latent 0 on 3 and latent 1 on 4: 2 / sqrt(12)."""
    source = write([[(1, 1), (1, 1), (1, 0)], [(0, 1), (0, 1)]])
    (other,) = read_latents(coordinates, source, [0])[0].cofiring
    assert (other.latent, other.cosine) == (1, pytest.approx(2 / np.sqrt(12)))


def test_the_interval_of_the_density_is_over_passages(coordinates, write):
    """Ten passages of ten tokens that fire all or not at all are ten tokens' worth of evidence, not a hundred."""
    alike = write([[(i % 2, 0)] * 10 for i in range(10)])
    mixed = write([[(j % 2, 0) for j in range(10)] for _ in range(10)])
    widths = []
    for source in (alike, mixed):
        density = read_latents(coordinates, source, [0])[0].density
        assert density.value == 0.5
        widths.append(density.high - density.low)
    assert widths[0] > 2 * widths[1]
    assert widths[0] == pytest.approx(0.56, abs=0.05)  # Wilson's interval of 5 of 9 or 10


def test_contrast_of_two_texts(coordinates, write):
    high = read_latents(coordinates, write([[(1, 0)] * 5] * 40), [0])[0]
    low = read_latents(coordinates, write([[(0, 0)] * 5] * 40), [0])[0]
    found = contrast(high, low)
    assert found.density.value == 1
    assert found.differs
    assert not contrast(high, high).differs
    with pytest.raises(IncompatibleError, match="differ in their latent: 0 and 1"):
        contrast(high, replace(high, latent=1))


def test_a_cache_and_its_model_are_read_alike(tiny_model, tiny_sae, tmp_path):
    rows = [TokenRow((2, *range(5, 9 + i)), (Part.PROMPT,) * (5 + i)) for i in range(6)]
    cache = write_cache(tiny_model, rows, tmp_path / "c.h5", hook_names=[HOOK], norm_limit=None)
    of_model = read_latents(tiny_sae, Corpus(tiny_model, iter(rows), batch_size=2), [3])[3]
    of_cache = read_latents(tiny_sae, CachedCorpus(cache, tiny_model.tokenizer), [3])[3]
    assert of_model.n_tokens == of_cache.n_tokens == sum(len(row) - 1 for row in rows)
    assert [one.tokens for one in of_model.contexts] == [one.tokens for one in of_cache.contexts]
    np.testing.assert_allclose(
        [one.value for one in of_model.contexts], [one.value for one in of_cache.contexts], rtol=1e-4
    )


def test_what_cannot_be_read_is_refused(coordinates, write, tiny_model, tiny_sae, letters, tmp_path):
    with pytest.raises(SAEError, match="latent 2 is not in this SAE, whose latents are 0 to 1"):
        read_latents(coordinates, write([[(1, 0)]]), [2])
    with pytest.raises(ConfigError, match="needs a latent"):
        read_latents(coordinates, write([[(1, 0)]]), [])
    with pytest.raises(DataError, match="no token to read"):
        read_latents(coordinates, write([]), [0])
    row = TokenRow((2, 5), (Part.PROMPT,) * 2)
    with pytest.raises(DataError, match="hold no token to read \\(answer tokens"):
        read_latents(tiny_sae, Corpus(tiny_model, [row], tokens="answer"), [0])
    with pytest.raises(DataError, match="document 0 has no token"):
        read_latents(tiny_sae, Corpus(tiny_model, [TokenRow((), ())]), [0])
    with pytest.raises(IncompatibleError, match="d_in=2"):
        read_latents(coordinates, Corpus(tiny_model, [row]), [0])
    with pytest.raises(IncompatibleError, match=r"holds token 99999.*another tokenizer"):
        read_latents(tiny_sae, Corpus(tiny_model, [TokenRow((2, 99_999), (Part.PROMPT,) * 2)]), [0])
    cache = write_cache(tiny_model, [row], tmp_path / "c.h5", hook_names=[HOOK])
    with pytest.raises(IncompatibleError, match="d_in=2"):
        read_latents(coordinates, CachedCorpus(cache, tiny_model.tokenizer), [0])


def test_tokens_join_to_the_text_and_wait_for_whole_characters():
    class Bytes:
        def decode(self, ids, **_):
            return bytes(ids).decode("utf-8", errors="replace")

    assert token_texts([104, 0xC3, 0xA9, 33], Bytes()) == ("h", "", "é", "!")
