"""Readings that come in pieces are those that come whole."""

import pytest
import torch
from drawn_sae import drawn

from sae_persona.sae import chunks
from sae_persona.sae.chunks import Dense, Encoder, Sparse, largest
from sae_persona.sae.encode import readings

X = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
CASES = [
    ("topk", {"k": 2}),
    ("topk", {"k": 2, "rescale_acts_by_decoder_norm": True}),
    ("topk", {"k": 2, "normalize_activations": "layer_norm"}),
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("jumprelu", {}),
    ("gated", {}),
    ("abstopk", {"k": 2}),
]


@pytest.mark.parametrize(("architecture", "config"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_pieces_put_together_are_the_readings(
    architecture: str, config: dict[str, object], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_N_LATENTS", 4)
    sae = drawn(architecture, **config).to(getattr(torch, dtype))
    whole = {name: values.float() for name, values in readings(sae, X).items()}
    found = {name: torch.full((len(X), 6), torch.nan) for name in whole}
    for piece in Encoder(sae).pieces(X):
        if isinstance(piece, Dense):
            found[piece.reading][:, piece.latents] = piece.values
        else:
            found[piece.reading] = torch.zeros(len(X), 6).scatter_(1, piece.latents, piece.values)
    for name, values in whole.items():
        tolerance = 1e-6 if dtype == "float32" else 0.05  # bfloat16 keeps three digits
        torch.testing.assert_close(found[name], values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("d_sae", "k"), [(640, 5), (640, 40), (637, 5), (6, 6)])
def test_the_largest_of_each_token_are_found_by_their_groups(d_sae: int, k: int) -> None:
    pre = torch.randn(30, d_sae, generator=torch.Generator().manual_seed(0))
    pre[0] = -1  # nothing fires
    pre[1] = pre[1].sort().values  # all the largest in neighbouring columns
    pre[2, ::40] += 9  # and all in one group, where 40 is the number of groups
    found = largest(pre, k)
    assert isinstance(found, Sparse)
    values, latents = pre.topk(k)
    dense = torch.zeros_like(pre).scatter_(1, latents, values.relu())
    assert torch.equal(torch.zeros_like(pre).scatter_(1, found.latents, found.values), dense)
