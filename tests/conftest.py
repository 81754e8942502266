"""Fixtures for every floor, and the check of all shapes in signatures that every test runs under."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read by the first import of Triton, whose kernels then run on a CPU

from jaxtyping import install_import_hook

install_import_hook("sae_persona", "shape_checks.checked")  # before the first import of the package

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from sae_persona.model.load import LoadedModel, load_model
from sae_persona.persona_world.language import World
from sae_persona.persona_world.models import SIZES, build_tokenizer, new_model

if TYPE_CHECKING:
    from sae_persona.persona_world.build import BuiltWorld

torch.set_num_threads(1)
settings.register_profile("unhurried", deadline=None)  # a busy machine is no reason to fail
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def world() -> World:
    """The world of seed 0."""
    return World.draw(0)


@pytest.fixture(scope="session")
def tiny_model(world: World, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An untrained model of the world: d_model 32, 2 blocks, saved and loaded like any other."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(world, SIZES["tiny"], seed=0).save_pretrained(folder)
    build_tokenizer(world).save_pretrained(folder)
    return load_model(folder)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> "BuiltWorld":
    """The world of seed 0 in its tiny size, built once. Its models have learned nothing much; it exercises the path."""
    from sae_persona.persona_world.build import build_world

    return build_world(0, tmp_path_factory.mktemp("worlds") / "tiny", size="tiny")
