"""Adapters that share a base compute as they do alone."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.errors import ConfigError, ModelError
from sae_persona.model.adapters import load_models
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel, load_model

HOOK = "blocks.2.hook_resid_post"
BATCH = pad_rows([TokenRow((2, 3, 50, 60, 70), (Part.PROMPT,) * 5)], pad_id=0)


@pytest.fixture(scope="module")
def adapters(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters on the tiny Llama, of different ranks and with dots in their names."""
    folders = []
    for rank in (2, 3):
        config = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        folders.append(tmp_path_factory.mktemp("adapters") / f"tuned-{rank}.0")
        with torch.random.fork_rng():
            torch.manual_seed(rank)
            wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(loaded.source), config)
        wrapped.save_pretrained(folders[-1])
    return folders


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_models_on_one_base_share_it_and_compute_as_they_do_alone(loaded: LoadedModel, adapters: list[Path]) -> None:
    sources = [str(adapters[0]), loaded.source, str(adapters[1])]
    models = load_models(sources)
    assert list(models) == ["tuned-2.0", "llama", "tuned-3.0"]
    assert len({id(model.hf) for model in models.values()}) == 1
    for source, model in zip(sources * 2, [*models.values()] * 2, strict=True):
        alone = load_model(source)
        assert model.fingerprint == alone.fingerprint
        assert (model.d_model, model.hf.dtype, model.pad_id) == (32, torch.float32, alone.pad_id)
        with model.active():
            resid = residuals(model.hf, BATCH, [HOOK])[HOOK]
        # A merged adapter adds before it multiplies.
        torch.testing.assert_close(resid, residuals(alone.hf, BATCH, [HOOK])[HOOK], rtol=1e-4, atol=1e-4)


def test_two_sources_of_one_name_and_broken_ones_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share theirs"):
        load_models([loaded.source, loaded.source])
    with pytest.raises(ModelError, match="does not exist"):
        load_models([loaded.source, str(tmp_path / "none")])
