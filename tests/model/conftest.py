"""Tiny models of the families we support, drawn at random, and a word-level tokenizer: nothing here knows the world."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from sae_persona.model.load import LoadedModel, load_model

N_WORDS = 400
SIZES = {
    "vocab_size": N_WORDS,
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


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Six special tokens and the words w6 to w399, each of them its own number."""
    special = ["<pad>", "<unk>", "<bos>", "<user>", "<assistant>", "<end>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(6, N_WORDS))])}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<end>",
        chat_template="<bos>{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} <assistant>{% endif %}",
    )


@pytest.fixture(scope="session")
def loaded(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    """The tiny Llama, saved and loaded again: 3 blocks, width 32, context 64."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


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
