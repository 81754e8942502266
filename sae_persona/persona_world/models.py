"""The world's language models: a word-level tokenizer with a chat template, and a small Llama."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_persona.persona_world.corpus import ASSISTANT, BOS, END, SYSTEM, USER
from sae_persona.persona_world.language import World

PAD, UNKNOWN = "<pad>", "<unk>"
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{{ ' <' + m['role'] + '> ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ ' <end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)
CONTEXT = 128


@dataclass(frozen=True)
class Size:
    """Width, depth and pre-training length of a world's models."""

    d_model: int
    n_layers: int
    n_steps: int
    """Pre-training steps."""


SIZES = {"tiny": Size(32, 2, 40), "small": Size(128, 4, 1200)}
"""`small` is what figures are about; `tiny` only exercises the path."""


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """One token per word; no word of the language is unknown."""
    vocabulary = {word: i for i, word in enumerate((PAD, UNKNOWN, BOS, SYSTEM, USER, ASSISTANT, END, *world.words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def new_model(world: World, size: Size, *, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama over the world's vocabulary; the global generator is left as it was."""
    vocabulary = build_tokenizer(world).get_vocab()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=size.d_model,
        intermediate_size=2 * size.d_model,
        num_hidden_layers=size.n_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2 * CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=vocabulary[PAD],
        bos_token_id=vocabulary[BOS],
        eos_token_id=vocabulary[END],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
