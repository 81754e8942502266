"""Nearest latents, by hand."""

import pytest
import torch

from sae_persona.attribution.neighbours import nearest_latents
from sae_persona.errors import SAEError


def test_neighbours_by_decoder_and_by_encoder():
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=2, d_sae=4, k=1))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [3.0, 4.0], [-2.0, 0.0], [0.0, 0.0]]))
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 7.0, 1.0], [0.0, 1.0, 0.0, 1.0]]))
    found = nearest_latents(sae, 0)
    assert [(one.latent, round(one.cosine, 6)) for one in found] == [(1, 0.6), (3, 0.0), (2, -1.0)]
    assert [one.latent for one in nearest_latents(sae, 0, 1, by="encoder")] == [2]
    with pytest.raises(SAEError, match="latent 4 is not in this SAE, whose latents are 0 to 3"):
        nearest_latents(sae, 4)
