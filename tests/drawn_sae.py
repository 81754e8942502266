"""SAEs with random weights, of any architecture of SAELens."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sae_lens import SAE


def drawn(architecture: str, *, d_in: int = 8, d_sae: int = 6, **config: object) -> "SAE":
    """An SAE with random weights, always the same for one shape."""
    from sae_lens import SAE

    sae = SAE.from_dict({"architecture": architecture, "d_in": d_in, "d_sae": d_sae, **config})
    generator = torch.Generator().manual_seed(1)
    sae.load_state_dict({name: torch.randn(w.shape, generator=generator) for name, w in sae.state_dict().items()})
    return sae.requires_grad_(False)
