"""Readings of latents, for every kind of SAE."""

from typing import TYPE_CHECKING

import pytest
import torch
from drawn_sae import drawn

from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.sae.encode import blocks, counted_tokens, readings, unit_decoder

if TYPE_CHECKING:
    from sae_lens import TopKSAE

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("topk", {"k": 2}),
        ("standard", {}),
        ("jumprelu", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("topk", {"k": 2, "normalize_activations": "layer_norm"}),
    ],
)
def test_pre_activations_are_what_the_activation_function_gets(architecture: str, config: dict[str, object]) -> None:
    sae = drawn(architecture, **config)
    found = readings(sae, X)
    x = X
    if "normalize_activations" in config:
        x = X - X.mean(-1, keepdim=True)
        x = x / (x.std(-1, keepdim=True) + 1e-5)
    expected = (x - sae.b_dec * sae.cfg.apply_b_dec_to_input) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(found["pre_activation"], expected)
    assert torch.equal(found["gated"], sae.encode(X))
    fires = found["gated"] > 0
    torch.testing.assert_close(found["gated"][fires], found["pre_activation"][fires])


def test_an_sae_that_compares_latents_in_units_of_their_rows_is_read_in_them() -> None:
    sae = drawn("topk", k=6, rescale_acts_by_decoder_norm=True)
    found = readings(sae, X)
    torch.testing.assert_close(found["gated"], found["pre_activation"].relu())


def test_an_architecture_without_one_number_per_latent_is_only_read_gated() -> None:
    sae = drawn("gated")
    assert readings(sae, X).keys() == {"gated"}
    assert torch.equal(readings(sae, X)["gated"], sae.encode(X))


def test_reading_leaves_no_hook_behind(sae: "TopKSAE") -> None:
    readings(sae, torch.zeros(1, 32))
    assert not sae.hook_sae_acts_pre._forward_hooks
    with pytest.raises(RuntimeError):
        readings(sae, torch.zeros(1, 31))
    assert not sae.hook_sae_acts_pre._forward_hooks


def test_decoder_directions_are_one_long_and_a_zero_row_stays_zero(sae: "TopKSAE") -> None:
    sae.W_dec[3] = 0
    directions = unit_decoder(sae)
    lengths = torch.ones(12)
    lengths[3] = 0
    torch.testing.assert_close(directions.norm(dim=-1), lengths)
    torch.testing.assert_close(torch.cosine_similarity(directions, sae.W_dec, dim=-1), lengths)


@pytest.mark.parametrize("side", ["left", "right"])
def test_first_tokens_padding_and_outliers_do_not_count(side: str) -> None:
    rows = [TokenRow((5,) * n, (Part.PROMPT,) * n) for n in (2, 4)]
    batch = pad_rows(rows, pad_id=0, side=side)
    resid = torch.ones(2, 4, 1)
    resid[1, 2] = 7
    padded = [False, False]
    short = [*padded, False, True] if side == "left" else [False, True, *padded]
    counts = counted_tokens(batch, resid, drop_first=1, max_norm=5.0)
    assert counts.tolist() == [short, [False, True, False, True]]
    assert counted_tokens(batch, resid, drop_first=0, max_norm=None).sum() == 6


def test_blocks_cover_every_token_once_and_bound_the_memory() -> None:
    wide = list(blocks(1000, 2**17))
    assert [i for block in wide for i in range(1000)[block]] == list(range(1000))
    assert max(block.stop - block.start for block in wide) * 2**17 <= 2**24
    assert list(blocks(0, 8)) == []
    assert next(blocks(2, 2**30)) == slice(0, 1), "a single token is never too much"
