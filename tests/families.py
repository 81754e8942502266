"""Tiny models of the families we support, drawn at random, and a word-level tokenizer: nothing here knows the world."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
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


def build_tokenizer(*, first: int = 6) -> PreTrainedTokenizerFast:
    """Six special tokens and the words w6 to w399, each of them its own number; `first` is that of the first word."""
    special = ["<pad>", "<unk>", "<bos>", "<user>", "<assistant>", "<end>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(first, first + N_WORDS - 6))])}
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


def save_with_adapters(family: str, folder: Path, names: Sequence[str]) -> None:
    """`folder/base` with its tokenizer, and a random LoRA adapter on it for each of the names."""
    base = folder / "base"
    build(family).save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    targets = ["query_key_value"] if family == "neox" else ["q_proj", "v_proj"]
    for seed, name in enumerate(names):
        hf = AutoModelForCausalLM.from_pretrained(base)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
            get_peft_model(hf, config).save_pretrained(folder / name)
