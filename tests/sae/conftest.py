"""Caches of known content."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.artifacts import fingerprint, new_manifest
from sae_persona.cache.layout import create_layout
from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.unfinished import open_unfinished
from sae_persona.cache.writer import finish

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK = "blocks.0.hook_resid_post"
WriteRows = Callable[[Tensor], ActivationCache]


@pytest.fixture
def cache_of(tmp_path: Path) -> WriteRows:
    """Writes a cache whose activations at `HOOK` are the rows it is given."""

    def write(rows: Float[Tensor, "n d_in"]) -> ActivationCache:
        path = tmp_path / "rows.h5"
        config = {"hook_names": [HOOK], "dtype": "float32"}
        manifest = new_manifest(
            "activation_cache", config=config, inputs={"rows": fingerprint(repr(rows.tolist()))}, seed=0, version=1
        )
        create_layout(
            path,
            n_tokens=len(rows),
            widths={HOOK: rows.shape[1]},
            dtype="float32",
            attributes={"manifest": manifest.to_json(), "model": "planted"},
        )
        with open_unfinished(path) as file:
            file.write(f"hooks/{HOOK}/activations", rows)
            file.write(f"hooks/{HOOK}/norms", rows.norm(dim=-1))
            finish(file, drop_first=0, norm_limit=None)
        return ActivationCache.open(path)

    return write


@pytest.fixture
def sae() -> "TopKSAE":
    """A random SAE that fits the tiny model: 12 latents of which 3 may fire, with biases and rows of any length."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(model_name="tiny", hook_name=HOOK)
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=12, k=3, metadata=metadata))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(tensor.shape, generator=generator) * 0.1 for name, tensor in sae.state_dict().items()}
    sae.load_state_dict(state)
    return sae.requires_grad_(False)
