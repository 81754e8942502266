"""The logit lens, by hand and against a model's own head."""

import pytest
import torch

from sae_persona.attribution.lens import lens_values, logit_lens
from sae_persona.errors import IncompatibleError, SAEError


def test_a_latent_that_writes_a_tokens_row_promotes_that_token(tiny_model, tiny_sae):
    """With a gain far from one, the direction that raises a token most is its row times the gain, not its row."""
    norm = tiny_model.hf.get_submodule("model.norm")
    before = norm.weight.detach().clone()
    token = 40
    try:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-2, 3, 32))
            tiny_sae.W_dec[5] = tiny_model.unembedding[token] * norm.weight * 7
        found = logit_lens(tiny_model, tiny_sae, 5, n=4)
        assert found.promoted[0].id == token
        assert found.promoted[0].value == pytest.approx(1, abs=1e-4)
        assert found.promoted[0].text == tiny_model.tokenizer.decode([token])
        assert [one.value for one in found.promoted] == sorted((one.value for one in found.promoted), reverse=True)
        assert found.suppressed[0].value == pytest.approx(float(lens_values(tiny_model, tiny_sae, [5]).min()))
        x = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 1000
        d = tiny_sae.W_dec[5] / tiny_sae.W_dec[5].norm()
        d = d - d @ x / (x @ x) * x
        change = tiny_model.hf.lm_head(norm(x + d) - norm(x - d)) / 2 * x.square().mean().sqrt()
        expected = lens_values(tiny_model, tiny_sae, [5], measure="logit")[0]
        along_x = lens_values_of(tiny_model, norm, tiny_sae.W_dec[5], x)
        torch.testing.assert_close(change + along_x, expected, rtol=1e-2, atol=1e-2)
    finally:
        with torch.no_grad():
            norm.weight.copy_(before)


def lens_values_of(model, norm, row, x):
    """What the part of a direction along x would do, were it not taken out."""
    d = row / row.norm()
    return model.unembedding @ (norm.weight * (d @ x / (x @ x) * x))


def test_what_does_not_belong_together_is_refused(tiny_model, tiny_sae, coordinates):
    with pytest.raises(IncompatibleError, match="d_in=2"):
        logit_lens(tiny_model, coordinates, 0)
    with pytest.raises(SAEError, match="latent 12"):
        logit_lens(tiny_model, tiny_sae, 12)
