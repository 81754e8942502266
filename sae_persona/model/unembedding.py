"""What a direction in the last residual stream does to the logits: the unembedding with the final norm folded in.

Axes: `vocab` rows of the unembedding, `d_model` width of the residual stream, `n` directions.
"""

import contextlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sae_persona.errors import ModelError
from sae_persona.model.load import LoadedModel

_NORMS = (
    "model.norm",  # Llama, Qwen, Gemma, Mistral
    "gpt_neox.final_layer_norm",  # NeoX, Pythia
    "transformer.ln_f",  # GPT-2
    "model.decoder.final_layer_norm",  # OPT
    "model.language_model.norm",  # multimodal wrappers
)
"""Where the families keep the norm before the unembedding; the families are those of `model.hooks`."""
_LARGE = 1e4
"""Length of a probe's coordinates: the norms' epsilon is as nothing beside it."""
_TOLERANCE = 1e-2
"""Largest error at which a norm still is what it was measured to be; bfloat16 norms round to 4e-3."""
_NOTHING = 1e-5
"""Share of a direction's length that counts as none: what float32 leaves of a direction that a norm takes out."""


@torch.no_grad()
def folded_unembedding(model: LoadedModel) -> Float[Tensor, "vocab d_model"]:
    """Rows whose product with a small change of the last residual is the change of the logits, up to one factor.

    The final norm maps x to `gain * (x - mean(x)) / std(x) + bias` (LayerNorm) or `gain * x / rms(x)` (RMSNorm), so a
    token's row is `gain * W_U[token]`, for LayerNorm less its own mean; the factor `1 / std(x)` is the same for every
    token. The gain is measured by calling the norm, so that it is right whatever is stored (Gemma stores the gain less
    one). A cap on the logits keeps their order. Rows without a token in the tokenizer are left out.

    Raises:
        ModelError: there is no unembedding, it reads another width, or the final norm is of another kind.
    """
    return _folded(model)[0]


@torch.no_grad()
def token_cosines(model: LoadedModel, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """Cosine of each direction with each token's row of `folded_unembedding`, whose errors are raised.

    A LayerNorm takes a direction's own mean out, so the mean is no part of its length either; a direction that is
    nothing but mean writes nothing, and its cosines are 0.
    """
    rows, centres = _folded(model)
    directions = directions.to(rows)
    seen = directions - directions.mean(-1, keepdim=True) if centres else directions
    seen = torch.where(seen.norm(dim=-1, keepdim=True) > _NOTHING * directions.norm(dim=-1, keepdim=True), seen, 0)
    return functional.normalize(seen, dim=-1) @ functional.normalize(rows, dim=-1).T


def _folded(model: LoadedModel) -> tuple[Float[Tensor, "vocab d_model"], bool]:
    """The rows, and whether the final norm takes the mean out."""
    rows = model.unembedding[: len(model.tokenizer)]
    if rows.shape[1] != model.d_model:
        raise ModelError(
            f"the unembedding of {model.source} reads {rows.shape[1]} numbers and the residual stream has "
            f"{model.d_model}: there is a projection between them. Logit lenses and direct effects need a model "
            "without one."
        )
    norm = _final_norm(model.hf)
    if norm is None:
        return rows, False
    gain, centres = _measured(norm, model)
    folded = rows * gain
    return (folded - folded.mean(-1, keepdim=True) if centres else folded), centres


def _final_norm(hf: Any) -> nn.Module | None:
    """The norm before the unembedding; None for an OPT that has none."""
    base = hf.get_base_model() if hasattr(hf, "peft_config") and hasattr(hf, "get_base_model") else hf
    for path in _NORMS:
        with contextlib.suppress(AttributeError):
            parent, _, name = path.rpartition(".")
            return getattr(base.get_submodule(parent), name)
    raise ModelError(
        f"{type(base).__name__} keeps its final norm in none of the known places ({', '.join(_NORMS)}). "
        "Logit lenses and direct effects need a Llama, Qwen, Gemma, Mistral, NeoX, GPT-2 or OPT."
    )


def _measured(norm: nn.Module, model: LoadedModel) -> tuple[Float[Tensor, " d_model"], bool]:
    """The gain of each coordinate, and whether the norm takes the mean out first."""
    width, like = model.d_model, next(norm.parameters(), model.unembedding)

    def of(x: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        return norm(x.to(like)[None, None])[0, 0].float()

    signs = torch.ones(width, device=like.device)
    signs[1::2] = -1
    bias = of(torch.zeros(width, device=like.device))
    # Two opposite probes differ by twice the gain, whatever the bias; those of an odd width have a mean of 1 / width.
    half = (of(_LARGE * signs) - of(-_LARGE * signs)) / 2
    # Ones, not a large number, whose mean rounds to something else and leaves a rest to be blown up.
    centres = bool(torch.allclose(of(torch.ones(width, device=like.device)), bias, atol=_TOLERANCE))
    probe = signs - signs.mean() if centres else signs
    gain = half / (probe / probe.square().mean().sqrt())
    # The same on numbers that were not used to measure it.
    x = torch.randn(width, generator=torch.Generator().manual_seed(0)).to(like.device) * _LARGE
    centred = x - x.mean() if centres else x
    expected = gain * centred / centred.square().mean().sqrt() + bias
    if not torch.allclose(of(x), expected, atol=_TOLERANCE * float(expected.abs().max().clamp(min=1)), rtol=_TOLERANCE):
        raise ModelError(
            f"the final norm of {model.source} ({type(norm).__name__}) is neither an RMS nor a layer norm with a gain "
            "for each coordinate. Logit lenses and direct effects cannot see through it."
        )
    return gain, centres
