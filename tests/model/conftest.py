"""Tiny models of the families we support, drawn at random: three blocks, width 32, the special tokens of a world."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 5,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**SIZES, intermediate_size=64, num_key_value_heads=2),
    # A window of 6 is shorter than the texts, so that the sliding blocks are told from the full ones.
    "gemma2": lambda: Gemma2Config(**SIZES, intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=6),
    "neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=64),
    "gpt2": lambda: GPT2Config(**SIZES),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32),
}


def build(family: str) -> PreTrainedModel:
    """The family's tiny model: always the same weights, large enough for attention to matter."""
    config = FAMILIES[family]()
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One tiny model of each family."""
    return build(request.param)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    return build("llama")


@pytest.fixture(scope="session")
def gpt2() -> PreTrainedModel:
    return build("gpt2")


@pytest.fixture(scope="session")
def gemma2() -> PreTrainedModel:
    return build("gemma2")
