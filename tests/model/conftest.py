"""Tiny models of the families we support."""

import pytest
from families import FAMILIES, build, build_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sae_persona.model.load import LoadedModel, load_model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def loaded(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    """The tiny Llama, saved and loaded again: 3 blocks, width 32, context 64."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One tiny model of each family."""
    return build(request.param)


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    return build("llama")


@pytest.fixture(scope="session")
def gpt2() -> PreTrainedModel:
    return build("gpt2")


@pytest.fixture(scope="session")
def gemma2() -> PreTrainedModel:
    return build("gemma2")
