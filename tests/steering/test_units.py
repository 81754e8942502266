"""The unit of strength."""

import copy
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from drawn_sae import drawn

from sae_persona.data.tokens import Part, TokenRow
from sae_persona.errors import DataError, ModelError
from sae_persona.model.load import LoadedModel
from sae_persona.steering.units import firing, median_norm

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK = "blocks.0.hook_resid_post"


def row(*ids: int) -> TokenRow:
    return TokenRow(ids, (Part.PROMPT,) * len(ids))


def test_the_unit_is_the_median_norm_over_all_tokens_but_the_first(tiny_model: LoadedModel) -> None:
    rows = [row(2, 9, 30), row(2, 8, 20, 40, 11), row(2, 7)]
    norms = []
    for one in rows:
        states = tiny_model.hf(torch.tensor([one.ids]), output_hidden_states=True).hidden_states
        norms += states[1][0, 1:].norm(dim=-1).tolist()  # the input of block 1 is the output of block 0
    assert len(norms) == 7
    assert median_norm(tiny_model, rows, hook_name=HOOK, batch_size=2) == pytest.approx(np.median(norms), rel=1e-5)


def test_prompts_of_one_token_have_no_unit(tiny_model: LoadedModel) -> None:
    with pytest.raises(DataError, match="no token of 2 prompts is beyond the first 1"):
        median_norm(tiny_model, [row(2), row(3)], hook_name=HOOK)


def test_residuals_that_are_no_numbers_are_no_unit(tiny_model: LoadedModel) -> None:
    broken = dataclasses.replace(tiny_model, hf=copy.deepcopy(tiny_model.hf))
    broken.hf.model.layers[0].mlp.down_proj.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match=r"residuals of .* at blocks\.0\.hook_resid_post are not finite numbers"):
        median_norm(broken, [row(2, 9, 30)], hook_name=HOOK)


def test_activations_that_are_no_numbers_are_no_unit(tiny_model: LoadedModel, sae: "TopKSAE") -> None:
    broken = copy.deepcopy(sae)
    broken.b_enc.data[0] = torch.nan
    with pytest.raises(ModelError, match=r"the SAE's activations on .* are not finite numbers"):
        firing(broken, tiny_model, [row(2, 9, 30)], hook_name=HOOK)


def test_a_latent_fires_with_either_sign(tiny_model: LoadedModel) -> None:
    sae = drawn("abstopk", d_in=32, d_sae=12, k=3)
    states = tiny_model.hf(torch.tensor([[2, 9, 30]]), output_hidden_states=True).hidden_states
    gated = sae.encode(states[1][0, 1:])
    assert (gated < 0).any()
    found = firing(sae, tiny_model, [row(2, 9, 30)], hook_name=HOOK)
    torch.testing.assert_close(found.density, (gated != 0).float().mean(0))
