"""What a strength of one can mean: the median residual norm, or the most that a latent reads; and how often it fires.

Axes: `d_sae` latents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.data.tokens import TokenRow, batches
from sae_persona.errors import DataError, ModelError
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import blocks, counted_tokens
from sae_persona.sae.load import check_fits

if TYPE_CHECKING:
    from sae_lens import SAE

DROP_FIRST = 1
"""Tokens of every row that say nothing of the others' norms, and are left out as in caches."""


@dataclass(frozen=True, eq=False)
class Firing:
    """How every latent fires on some text."""

    density: Float[Tensor, " d_sae"]
    """Share of the tokens on which it fires: its activation is not zero."""
    maximum: Float[Tensor, " d_sae"]
    """Its highest activation, in the SAE's own units; 0 where it is never above zero."""


@torch.no_grad()
def firing(
    sae: "SAE",
    model: LoadedModel,
    rows: Sequence[TokenRow],
    *,
    hook_name: str,
    drop_first: int = DROP_FIRST,
    batch_size: int = 64,
) -> Firing:
    """Density and maximum of every latent over the rows' tokens but the first `drop_first`, in one pass.

    Raises:
        DataError: no row has a token beyond the first `drop_first`.
        ModelError: what the SAE reads is not finite.
        HookError, IncompatibleError: the SAE does not fit the model.
    """
    check_fits(sae, model, hook_name)
    d_sae, device = sae.cfg.d_sae, sae.W_dec.device
    n_fired, maximum = torch.zeros(d_sae, dtype=torch.long, device=device), torch.zeros(d_sae, device=device)
    n_tokens = 0
    for _, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        resid = residuals(model.hf, batch, [hook_name])[hook_name]
        tokens = resid[counted_tokens(batch, resid, drop_first=drop_first, max_norm=None)]
        for block in blocks(len(tokens), d_sae):
            activations = sae.encode(tokens[block].to(device))
            n_fired += (activations != 0).sum(0)
            maximum = torch.maximum(maximum, activations.float().amax(0))
        n_tokens += len(tokens)
    if not n_tokens:
        raise DataError(f"no token of {len(rows)} rows is beyond the first {drop_first}, so nothing can fire there.")
    if not bool(maximum.isfinite().all()):
        raise ModelError(
            f"the SAE's activations on {model.source!r} at {hook_name} are not finite numbers. Check both's weights."
        )
    return Firing((n_fired.double() / n_tokens).float().cpu(), maximum.cpu())


def median_norm(
    model: LoadedModel, rows: Sequence[TokenRow], *, hook_name: str, drop_first: int = DROP_FIRST, batch_size: int = 64
) -> float:
    """The median Euclidean norm of the residual stream over the rows' tokens but the first `drop_first`.

    Raises:
        DataError: no row has a token beyond the first `drop_first`.
        ModelError: the residuals are not finite.
    """
    norms: list[Tensor] = []
    for _, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        resid = residuals(model.hf, batch, [hook_name])[hook_name]
        counts = counted_tokens(batch, resid, drop_first=drop_first, max_norm=None)
        norms.append(resid.float().norm(dim=-1)[counts].cpu())
    if not sum(map(len, norms)):
        raise DataError(f"no token of {len(rows)} prompts is beyond the first {drop_first}, so strength has no unit.")
    median = float(np.median(torch.cat(norms).numpy()))
    if not math.isfinite(median):
        raise ModelError(f"the residuals of {model.source!r} at {hook_name} are not finite numbers. Check its weights.")
    return median
