"""The bridge shows the model itself, and leaves it alone."""

import pytest
import tokenizers
import torch
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sae_persona.data.tokens import Part, TokenBatch, TokenRow, pad_rows
from sae_persona.errors import ModelError
from sae_persona.model.bridge import bridge
from sae_persona.model.hooks import edit_residual, residuals
from sae_persona.model.load import LoadedModel

PARITY = 1e-5
"""The bridge computes attention eagerly and the model with sdpa: float32 rounding over values near one."""


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    ids = torch.randint(6, 300, (3, 9), generator=torch.Generator().manual_seed(0)).tolist()
    return pad_rows([TokenRow(tuple(ids[i][:n]), (Part.PROMPT,) * n) for i, n in enumerate((4, 7, 9))], pad_id=0)


def logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_and_residuals_are_the_model_s(
    kind: str, loaded: LoadedModel, request: pytest.FixtureRequest, batch: TokenBatch
) -> None:
    hf: PreTrainedModel = request.getfixturevalue(kind)
    bridged = bridge(LoadedModel("any/name", hf, loaded.tokenizer))
    names = [f"blocks.{block}.hook_resid_{side}" for block in range(3) for side in ("pre", "post")]
    with torch.no_grad():
        found, cache = bridged.run_with_cache(batch.ids, attention_mask=batch.mask.long())
    assert (found - logits(hf, batch))[batch.mask].abs().max() < PARITY
    for name, resid in residuals(hf, batch, names).items():
        assert (cache[name] - resid)[batch.mask].abs().max() < PARITY


def test_the_model_stays_as_it_was_bit_for_bit(loaded: LoadedModel, batch: TokenBatch) -> None:
    before, modules = logits(loaded.hf, batch), list(loaded.hf.modules())
    bridged = bridge(loaded)
    bridged(batch.ids, attention_mask=batch.mask.long())
    assert torch.equal(logits(loaded.hf, batch), before)
    assert [type(module) for module in loaded.hf.modules()] == [type(module) for module in modules]
    assert loaded.hf.config._attn_implementation == "sdpa"
    assert not any(parameter.requires_grad for parameter in loaded.hf.parameters())
    assert not loaded.hf.training


def test_the_tokenizer_stays_as_it_was(gpt2: PreTrainedModel) -> None:
    words = tokenizers.Tokenizer(WordLevel({"w0": 0, "w1": 1}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
    model = LoadedModel("any/name", gpt2, tokenizer)
    for _ in range(2):
        bridge(model)
        assert tokenizer.special_tokens_map == {"pad_token": "w0"}
        assert len(tokenizer) == 2


def test_no_parameter_is_copied(loaded: LoadedModel) -> None:
    own = {parameter.data_ptr() for parameter in loaded.hf.parameters()}
    bridged = dict(bridge(loaded).named_parameters())
    # TransformerLens adds a bias of zeros to a head that has none.
    added = [name for name, parameter in bridged.items() if parameter.data_ptr() not in own]
    assert added == ["lm_head._original_component.bias"]
    assert {parameter.data_ptr() for parameter in bridged.values()} >= own


def test_edits_of_the_model_do_not_reach_the_bridge(loaded: LoadedModel, batch: TokenBatch) -> None:
    bridged = bridge(loaded)
    before = bridged(batch.ids)
    with edit_residual(loaded.hf, "blocks.0.hook_resid_post", lambda resid, _: resid + 1):
        assert torch.equal(bridged(batch.ids), before)


def test_an_architecture_without_a_bridge_is_an_error(loaded: LoadedModel) -> None:
    from transformers import XGLMConfig, XGLMForCausalLM

    config = XGLMConfig(vocab_size=8, d_model=8, ffn_dim=8, num_layers=1, attention_heads=1)
    with pytest.raises(ModelError, match="cannot bridge XGLMForCausalLM"):
        bridge(LoadedModel("any/name", XGLMForCausalLM(config), loaded.tokenizer))
