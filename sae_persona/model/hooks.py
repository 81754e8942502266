"""Read and edit the residual stream of a Hugging Face model at hooks named as in TransformerLens.

`blocks.L.hook_resid_pre` is the input of block L and `blocks.L.hook_resid_post` its output. A hook that does not exist
is an error, never a silent no-op.
"""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_persona.data.tokens import TokenBatch
from sae_persona.errors import HookError, ModelError

Resid = Float[Tensor, "batch seq d_model"]
_HOOK_NAME = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_BLOCK_LISTS = (
    "model.layers",  # Llama, Qwen, Gemma, Mistral
    "gpt_neox.layers",  # NeoX, Pythia
    "transformer.h",  # GPT-2
    "model.decoder.layers",  # OPT
    "model.language_model.layers",  # multimodal wrappers
)
"""Where the families keep their blocks."""
_BLOCK_MODULE = re.compile(rf"(?:{'|'.join(map(re.escape, _BLOCK_LISTS))})\.(\d+)")
_ELSEWHERE = re.compile(r"(?:blocks\.\d+\.)?(?:hook_(?!resid_p)\w+|(?:attn|mlp|ln\w+)\.\w+)")
"""Names of TransformerLens for what is not the residual stream between blocks."""


@dataclass(frozen=True, eq=False)
class Position:
    """What an edit may know about the tokens it is handed."""

    mask: Bool[Tensor, "batch seq"]
    """True = a real token."""
    answer: Bool[Tensor, "batch seq"]
    """True = written by the model during this generation."""
    newest: Bool[Tensor, "batch seq"]
    """True = the row's last token so far, whose logits choose the next one."""
    condition: Int[Tensor, " batch"]
    """Which condition a row belongs to, where one batch carries several."""
    index: Int[Tensor, "#batch seq"] | None = None
    """Where in its row a token stands, counted by the model from 0; None where its blocks are not told."""


Edit = Callable[[Resid, Position], Resid]


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of a model, PEFT-wrapped or not.

    Raises:
        ModelError: the architecture keeps its blocks in a place we do not know.
    """
    base: Any = model
    if hasattr(base, "peft_config") and hasattr(base, "get_base_model"):
        base = base.get_base_model()
    for path in _BLOCK_LISTS:
        with contextlib.suppress(AttributeError):
            found = base.get_submodule(path)
            if isinstance(found, nn.ModuleList):
                return found
    raise ModelError(
        f"{type(base).__name__} keeps its blocks in none of the known places ({', '.join(_BLOCK_LISTS)}). "
        "Its residual stream cannot be hooked; use a Llama, Qwen, Gemma, Mistral, NeoX, GPT-2 or OPT type of model."
    )


def hook_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Every hook name of the model, in the order of computation."""
    return tuple(f"blocks.{i}.hook_resid_{side}" for i in range(len(blocks(model))) for side in ("pre", "post"))


def as_hook_name(name: str) -> str:
    """The hook after a block that is named by its module, such as `model.layers.3`; every other name as it is.

    SAELens names hooks so when it trains on models of Hugging Face.
    """
    match = _BLOCK_MODULE.fullmatch(name)
    return f"blocks.{match[1]}.hook_resid_post" if match else name


def resolve_hook(model: PreTrainedModel, hook_name: str) -> tuple[int, str]:
    """The block's index and the side (`pre` or `post`) of a hook name.

    Raises:
        HookError: the model has no such hook; the message names the nearest.
    """
    known = hook_names(model)
    if hook_name not in known:
        match = _HOOK_NAME.fullmatch(hook_name)
        if match:
            raise HookError(
                f"hook_name {hook_name!r} asks for block {match[1]}; this model has blocks 0 to {len(known) // 2 - 1}. "
                f"The last hook is {known[-1]!r}."
            )
        if _ELSEWHERE.fullmatch(hook_name):
            raise HookError(
                f"hook_name {hook_name!r} is not in the residual stream between blocks, and nothing else is read or "
                f"edited here. Use an SAE trained at one of the hooks {known[0]!r} to {known[-1]!r}."
            )
        nearest = ", ".join(repr(name) for name in difflib.get_close_matches(hook_name, known, n=2, cutoff=0))
        raise HookError(f"hook_name {hook_name!r} is not a hook of this model; nearest: {nearest}.")
    return int(hook_name.split(".")[1]), hook_name.rsplit("_", 1)[1]


class _Stop(Exception):
    """Raised by the deepest hook: nothing above it is computed."""


@torch.no_grad()
def residuals(model: PreTrainedModel, batch: TokenBatch, hook_names: Sequence[str]) -> dict[str, Resid]:
    """The residual stream at each hook, from one forward pass that stops at the deepest of them.

    Rows at padding are meaningless and masked by `batch.mask`.
    """
    taken: dict[str, Resid] = {}

    def take(name: str) -> Edit:
        def edit(resid: Resid, _position: Position) -> Resid:
            taken[name] = resid
            if len(taken) == len(set(hook_names)):
                raise _Stop
            return resid

        return edit

    with contextlib.ExitStack() as stack:
        for name in set(hook_names):
            stack.enter_context(edit_residual(model, name, take(name)))
        with contextlib.suppress(_Stop):
            model(
                input_ids=batch.ids,
                attention_mask=batch.mask.long(),
                position_ids=batch.position_ids,
                use_cache=False,
            )
    return {name: taken[name] for name in hook_names}


@contextlib.contextmanager
def edit_residual(
    model: PreTrainedModel, hook_name: str, edit: Edit, *, position: Callable[[], Position] | None = None
) -> Iterator[None]:
    """Replace the residual stream at `hook_name` by `edit(resid, position)` while the context is open.

    Contexts nest: edits at one hook apply in the order in which they were entered. Leaving restores the model exactly,
    also after an error. `position` tells the edit about the tokens; without it (plain `model(...)` or
    `model.generate(...)`) every token counts as real, the last of each pass as newest, and passes of a single token as
    answer.
    """
    index, side = resolve_hook(model, hook_name)

    def apply(resid: Resid, told: dict[str, Any]) -> Resid:
        where = position() if position else _plain_position(resid)
        return edit(resid, where if where.index is not None else replace(where, index=told.get("position_ids")))

    def post_hook(
        _module: nn.Module, _args: object, kwargs: dict[str, Any], output: Resid | tuple[Resid, ...]
    ) -> object:
        return (apply(output[0], kwargs), *output[1:]) if isinstance(output, tuple) else apply(output, kwargs)

    def pre_hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (apply(args[0], kwargs), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": apply(kwargs["hidden_states"], kwargs)}

    block = blocks(model)[index]
    if side == "post":
        handle = block.register_forward_hook(post_hook, with_kwargs=True)
    else:
        handle = block.register_forward_pre_hook(pre_hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _plain_position(resid: Resid) -> Position:
    batch, seq, _ = resid.shape
    everything = torch.ones(batch, seq, dtype=torch.bool, device=resid.device)
    newest = torch.zeros_like(everything)
    newest[:, -1] = True
    answer = everything if seq == 1 else torch.zeros_like(everything)
    return Position(everything, answer, newest, torch.zeros(batch, dtype=torch.long, device=resid.device))
