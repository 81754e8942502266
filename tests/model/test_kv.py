"""A cache that grows in place holds what transformers' own would."""

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from sae_persona.model.kv import ROOM, growing_cache


@pytest.mark.parametrize("n_steps", [3, ROOM + 2])
def test_states_are_those_of_the_cache_that_copies(n_steps: int, llama: PreTrainedModel) -> None:
    ours, theirs = growing_cache(llama.config), DynamicCache(config=llama.config)
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([2, 0, 0])
    for step, n in enumerate([5, *[1] * n_steps]):
        if step in (1, 3):  # rows are repeated after the prompt, and dropped later
            ours.batch_select_indices(rows)
            theirs.batch_select_indices(rows)
        for block in range(3):
            new = [torch.randn(3, 2, n, 8, generator=generator) for _ in range(2)]
            for held, expected in zip(ours.update(*new, block), theirs.update(*new, block), strict=True):
                assert torch.equal(held, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_most_tokens_are_written_without_copying_what_is_held(llama: PreTrainedModel) -> None:
    cache = growing_cache(llama.config)
    places = [cache.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)[0].data_ptr() for _ in range(ROOM + 2)]
    assert len(set(places[1:])) == 1


def test_the_prompt_s_own_tensors_are_never_written_to(llama: PreTrainedModel) -> None:
    cache = growing_cache(llama.config)
    prompt = torch.ones(1, 2, 4, 8)
    cache.update(prompt, prompt.clone(), 0)
    cache.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)
    assert prompt.eq(1).all()


def test_sliding_blocks_keep_transformers_own_layers(gemma2: PreTrainedModel) -> None:
    kinds = [type(layer) for layer in growing_cache(gemma2.config).layers]
    assert [kind.is_sliding for kind in kinds] == [True, False, True]
    assert kinds[0].__module__.startswith("transformers")
