"""What steering tests steer: a random SAE of the tiny model, and prompts of its world."""

import random
from typing import TYPE_CHECKING

import pytest
import torch

from sae_persona.persona_world.corpus import prompts
from sae_persona.persona_world.language import World
from sae_persona.types import Prompt

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="session")
def sae() -> "TopKSAE":
    """A random SAE that fits the tiny model: 12 latents of which 3 may fire, decoder rows of any length."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=12, k=3, metadata=SAEMetadata(model_name="tiny", hook_name=HOOK)))
    generator = torch.Generator().manual_seed(0)
    sae.load_state_dict({name: torch.randn(x.shape, generator=generator) for name, x in sae.state_dict().items()})
    return sae.requires_grad_(False)


@pytest.fixture(scope="session")
def few_prompts(world: World) -> list[Prompt]:
    """Three open-ended questions and one of advice, of several lengths."""
    drawn = prompts(world, "selection", n_per_domain=1, rng=random.Random(0))
    return [*drawn[:3], drawn[-1]]
