"""Caches of known content."""

from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import Float
from torch import Tensor

from sae_persona.artifacts import fingerprint, new_manifest
from sae_persona.cache.layout import create_layout
from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.unfinished import open_unfinished
from sae_persona.cache.writer import finish

HOOK = "blocks.0.hook_resid_post"
WriteRows = Callable[[Tensor], ActivationCache]


@pytest.fixture
def cache_of(tmp_path: Path) -> WriteRows:
    """Writes a cache whose activations at `HOOK` are the rows it is given."""

    def write(rows: Float[Tensor, "n d_in"]) -> ActivationCache:
        path = tmp_path / "rows.h5"
        config = {"hook_names": [HOOK], "dtype": "float32"}
        manifest = new_manifest(
            "activation_cache", config=config, inputs={"rows": fingerprint(rows.tolist())}, seed=0, version=1
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
