"""What the tokens of one batch are at every hook of every model.

Axes: `n` tokens of the batch without padding, `d_in` width at a hook.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_persona.cache.layout import STORED_AS
from sae_persona.cache.task import WritingTask, hook_key
from sae_persona.cache.transfer import on_host
from sae_persona.data.tokens import TokenBatch, pad_rows
from sae_persona.errors import CacheFileError
from sae_persona.model.hooks import residuals


@dataclass(frozen=True, eq=False)
class ComputedBatch:
    """The rows of one batch, as they go into a file."""

    columns: Mapping[str, Tensor]
    """Token ids, positions, document ids and parts."""
    activations: Mapping[str, Tensor]
    """`[n, d_in]` by hook, rounded to the dtype they are stored in, on the device of the model."""
    norms: Mapping[str, Tensor]
    """`[n]` by hook, of the rounded activations."""

    def on_host(self) -> "ComputedBatch":
        """The same in main memory."""
        brought = ({name: on_host(values) for name, values in of.items()} for of in (self.activations, self.norms))
        return ComputedBatch(self.columns, *brought)


def compute_batch(task: WritingTask, indices: Int[np.ndarray, " n_rows"]) -> ComputedBatch:
    """Run every model once over some rows, up to the deepest hook.

    Raises:
        CacheFileError: an activation is not finite, and such are not to be skipped.
    """
    batch = pad_rows([task.rows[int(i)] for i in indices], pad_id=next(iter(task.models.values())).pad_id)
    columns = _token_columns(task.rows.documents[indices], batch)
    activations: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    real = batch.mask.flatten().nonzero().squeeze(-1)  # found here, as a GPU would have to be waited for
    for model_name, model in task.models.items():
        moved = replace(batch, **{name: getattr(batch, name).to(model.device) for name in ("ids", "mask", "parts")})
        with model.active():
            found = residuals(model.hf, moved, task.hook_names)
        for hook_name, resid in found.items():
            hook = hook_key(model_name, hook_name)
            activations[hook] = resid.flatten(0, 1)[real.to(resid.device)].to(STORED_AS[task.dtype][0])
            norms[hook] = activations[hook].float().norm(dim=-1)
            if not task.skips_not_finite:
                _check_finite(norms[hook], columns, hook, task.dtype)
    return ComputedBatch(columns, activations, norms)


def _token_columns(documents: Int[np.ndarray, " n_rows"], batch: TokenBatch) -> dict[str, Tensor]:
    document = torch.from_numpy(documents).unsqueeze(-1).expand_as(batch.mask)
    grids = {"token_ids": batch.ids, "positions": batch.position_ids, "document_ids": document, "parts": batch.parts}
    return {name: grid[batch.mask] for name, grid in grids.items()}


def _check_finite(norms: Float[Tensor, " n"], columns: Mapping[str, Tensor], hook: str, dtype: str) -> None:
    bad = torch.nonzero(~torch.isfinite(norms)).cpu()
    if len(bad):
        document, position = (int(columns[name][bad[0]]) for name in ("document_ids", "positions"))
        raise CacheFileError(
            f"the activation at {hook} is not finite in {dtype} at document {document}, position {position}. "
            + ("float16 ends at 65504: store bfloat16" if dtype == "float16" else "Check the model and its dtype")
            + ", or delete what was begun and leave such tokens out (--not-finite skip, not_finite='skip')."
        )
