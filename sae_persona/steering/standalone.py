"""Steer a Hugging Face model along the direction in `direction.safetensors`. Needs torch, safetensors and transformers.

    from steering_hook import steering
    with steering(model):
        model.generate(...)

The direction is added to the residual stream of one block at every token, or only at those of the window that the file
names: `header`, the last token of the prompt; `prompt`, all of it; `answer`, what is generated. Passes of one token
count as answer. Prompts of a batch are to be padded on the left.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_BLOCKS = ("model.layers", "gpt_neox.layers", "transformer.h", "model.decoder.layers", "model.language_model.layers")


@contextlib.contextmanager
def steering(model: Any, *, strength: float = 1.0, file: str | Path | None = None) -> Iterator[None]:
    """While it is open, the model is steered; `strength` multiplies the dose that was exported, and may be negative."""
    path = Path(file) if file else Path(__file__).with_name("direction.safetensors")
    with safe_open(path, framework="pt") as stored:
        vector = stored.get_tensor("direction")
        how = json.loads(stored.metadata()["steering"])
    block, side = int(how["hook_name"].split(".")[1]), how["hook_name"].rsplit("_", 1)[1]
    delta = strength * how["strength"] * how["unit"] * vector

    def push(resid: torch.Tensor) -> torch.Tensor:
        selected = torch.ones(resid.shape[1], dtype=torch.bool, device=resid.device)
        is_answer = resid.shape[1] == 1
        if how["window"] in ("prompt", "header"):
            selected[:] = not is_answer
        if how["window"] == "answer":
            selected[:] = is_answer
        if how["window"] in ("header", "newest"):
            selected[:-1] = False
        return torch.where(selected[None, :, None], resid + delta.to(resid), resid)

    def after(_module: Any, _args: Any, output: Any) -> Any:
        return (push(output[0]), *output[1:]) if isinstance(output, tuple) else push(output)

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (push(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": push(kwargs["hidden_states"])}

    module = _block(model, block)
    if side == "post":
        handle = module.register_forward_hook(after)
    else:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _block(model: Any, index: int) -> Any:
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    for path in _BLOCKS:
        with contextlib.suppress(AttributeError):
            return base.get_submodule(path)[index]
    raise ValueError(f"{type(model).__name__} keeps its blocks in none of the known places: {', '.join(_BLOCKS)}")
