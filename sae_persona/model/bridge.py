"""The same model as TransformerLens sees it, for analyses that want its hook points."""

import copy
import itertools
from typing import TYPE_CHECKING

from sae_persona.errors import ModelError
from sae_persona.model.load import LoadedModel

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def bridge(model: LoadedModel) -> "TransformerBridge":
    """A TransformerBridge over the model's own parameters; its logits and residuals are the model's within 1e-5.

    TransformerLens rebuilds the module it is given, so it is given a copy of the structure that shares every parameter
    and buffer: no memory is doubled, and `model.hf` stays as it is. It gets a copy of the tokenizer too, as it adds
    special tokens to it. Hand the bridge token ids and an attention mask, not text: it builds a tokenizer of its own,
    which may add or lose tokens.

    Raises:
        ModelError: TransformerLens does not know the architecture.
    """
    from transformer_lens.model_bridge import TransformerBridge  # ten seconds of imports, for those who want it

    shared = itertools.chain(model.hf.parameters(), model.hf.buffers())
    structure = copy.deepcopy(model.hf, {id(tensor): tensor for tensor in shared})
    try:
        return TransformerBridge.boot_transformers(
            model.source,
            hf_model=structure,
            tokenizer=copy.deepcopy(model.tokenizer),
            device=str(model.device),
            dtype=model.hf.dtype,
        )
    except ValueError as error:
        raise ModelError(
            f"TransformerLens cannot bridge {type(model.hf).__name__}: {error}. Use residuals() and edit_residual()."
        ) from error
