"""The unembedding with the final norm folded in, measured against the models' own heads."""

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
)
from transformers.models.auto import AutoModelForCausalLM

from sae_persona.errors import ModelError
from sae_persona.model.load import LoadedModel
from sae_persona.model.unembedding import _final_norm, folded_unembedding

WIDTH, VOCAB = 16, 24
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCAB}
CONFIGS = {
    "llama, RMS norm": LlamaConfig(**SMALL, intermediate_size=16, tie_word_embeddings=False),
    "llama, tied": LlamaConfig(**SMALL, intermediate_size=16, tie_word_embeddings=True),
    "gemma, one plus weight": Gemma2Config(**SMALL, intermediate_size=16, num_key_value_heads=2, head_dim=8),
    "neox, layer norm": GPTNeoXConfig(**SMALL, intermediate_size=16),
    "gpt2, layer norm, tied": GPT2Config(n_embd=WIDTH, n_layer=1, n_head=2, vocab_size=VOCAB),
    "opt": OPTConfig(**SMALL, ffn_dim=16, word_embed_proj_dim=WIDTH),
}


class Words:
    """As long as a vocabulary."""

    def __len__(self) -> int:
        return VOCAB - 1  # the last row is padding


def loaded(hf: PreTrainedModel) -> LoadedModel:
    return LoadedModel("made here", hf, Words())  # pyright: ignore[reportArgumentType]


@pytest.fixture(params=CONFIGS, ids=str)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    """A random model whose final norm has a gain and a bias of any size."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval().requires_grad_(False)
    norm = _final_norm(hf)
    assert norm is not None
    for parameter in norm.parameters():
        parameter.copy_(torch.randn(WIDTH))
    return loaded(hf)


def test_a_small_change_of_the_residual_changes_the_logits_by_its_product_with_the_rows(model: LoadedModel) -> None:
    norm, head = _final_norm(model.hf), model.hf.get_output_embeddings()
    assert norm is not None
    x, d = torch.randn(2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, d = x * 100, d - d @ x / (x @ x) * x  # orthogonal to x, so that the norm's scale stays what it is
    centred = x - x.mean()
    if isinstance(norm, nn.LayerNorm):
        d = d - (d - d.mean()) @ centred / (centred @ centred) * centred
        scale = centred.square().mean().sqrt()
    else:
        scale = x.square().mean().sqrt()
    norm, head = norm.double(), head.double()
    change = (head(norm((x + d)[None, None])) - head(norm((x - d)[None, None])))[0, 0] / 2
    expected = folded_unembedding(model).double() @ d / scale
    torch.testing.assert_close(change[:-1], expected, rtol=2e-3, atol=2e-4)


def test_a_norm_of_another_kind_is_refused() -> None:
    hf = AutoModelForCausalLM.from_config(CONFIGS["llama, RMS norm"])
    hf.model.norm = nn.Softmax(dim=-1)
    with pytest.raises(ModelError, match=r"Softmax.*neither an RMS nor a layer norm"):
        folded_unembedding(loaded(hf))
