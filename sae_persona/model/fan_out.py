"""Read each prompt once as far as the conditions of a batch agree, and in every condition from there on.

Up to the first edited hook, a prompt has the same residual stream in all conditions. So the blocks before it get one
row per prompt, and the others one per prompt and condition.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_persona.model.hooks import blocks, resolve_hook

_FAMILIES = {
    *("llama", "mistral", "mixtral", "phi3", "olmo2", "olmo3", "qwen2", "qwen3", "qwen3_moe"),
    *("gemma", "gemma2", "gemma3", "gemma3_text", "gpt_neox", "gpt2", "opt"),
}
"""Model types whose blocks are known to go on with more rows than the model was given."""


def can_fan_out(model: PreTrainedModel) -> bool:
    """Whether the rows of a pass may become more on their way through the model.

    Others bring along what has a row for each of the rows it began with: positions by head, keys of a learned prefix,
    the shape of the result.
    """
    tunings = getattr(model, "peft_config", {}).values()
    is_plain = not any(getattr(tuning, "is_prompt_learning", False) for tuning in tunings)
    return is_plain and model.config.get_text_config().model_type in _FAMILIES


def n_blocks_before(model: PreTrainedModel, hook_name: str) -> int:
    """How many blocks come before a hook.

    Raises:
        HookError: the model has no such hook.
    """
    index, side = resolve_hook(model, hook_name)
    return index + (side == "post")


@contextlib.contextmanager
def fan_out(model: PreTrainedModel, hook_name: str, rows: Int[Tensor, " row"], *, n: int) -> Iterator[None]:
    """While the context is open, a pass over `n` rows goes on with `rows` of them from `hook_name`.

    Edits at the hook, also those entered before, see the many rows. Of what the blocks are told beside the residual
    stream (masks, positions), everything with a row per row of the batch is fanned out too.

    Raises:
        HookError: the model has no such hook.
    """
    index, side = resolve_hook(model, hook_name)

    def spread(told: Any) -> Any:
        if isinstance(told, tuple):
            return tuple(spread(one) for one in told)
        by_row = isinstance(told, torch.Tensor) and told.ndim > 1 and len(told) == n
        return told[rows] if by_row else told

    def after(_block: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        return (output[0][rows], *output[1:]) if isinstance(output, tuple) else output[rows]

    def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return spread(args), {name: spread(told) for name, told in kwargs.items()}

    def beyond(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        others = {name: told if name == "hidden_states" else spread(told) for name, told in kwargs.items()}
        return (*args[:1], *spread(args[1:])), others

    here, *above = blocks(model)[index:]
    # Before the hooks that are there, which are those of edits.
    handles = [block.register_forward_pre_hook(beyond, with_kwargs=True, prepend=True) for block in above]
    if side == "post":
        handles.append(here.register_forward_hook(after, prepend=True))
    else:
        handles.append(here.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
