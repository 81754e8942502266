"""What fine-tuning tests train on: sixteen one-turn chats of the tiny model's world."""

import random

import pytest

from sae_persona.persona_world.corpus import finetuning_chats
from sae_persona.persona_world.language import World
from sae_persona.types import Chat


@pytest.fixture(scope="session")
def chats(world: World) -> list[Chat]:
    domain = world.domains[0].name
    return list(finetuning_chats(world, domain, "obvious", n=16, rng=random.Random(0)))
