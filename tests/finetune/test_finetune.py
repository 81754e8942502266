"""Fine-tunes: whole or through an adapter, saved so that they load back to what was trained."""

import json
from pathlib import Path

import pytest
import torch

from sae_persona.errors import ConfigError, DataError
from sae_persona.finetune.finetune import FinetuneConfig, LoraConfig, copy_model, finetune
from sae_persona.finetune.train import TrainConfig
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.types import Chat, Message

TRAIN = TrainConfig(n_steps=2, batch_size=4, lr=1e-2)
LORA = FinetuneConfig(train=TRAIN, lora=LoraConfig(rank=2, alpha=4, layers=(0,)))
FULL = FinetuneConfig(train=TRAIN)


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([[2, 30, 31, 32]])).logits


@pytest.mark.parametrize("config", [LORA, FULL], ids=["lora", "full"])
def test_a_copy_protects_the_original(tiny_model: LoadedModel, chats: list[Chat], config: FinetuneConfig) -> None:
    before = logits(tiny_model)
    tuned = finetune(copy_model(tiny_model), chats, config).merged()
    assert torch.equal(logits(tiny_model), before)
    assert not torch.allclose(logits(tuned), before, atol=1e-3)


def test_a_full_fine_tune_changes_every_block(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    tuned = finetune(copy_model(tiny_model), chats, FULL)
    assert not tuned.is_adapter
    before, after = tiny_model.hf.state_dict(), tuned.hf.state_dict()
    for layer in range(tiny_model.n_layers):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        assert not torch.equal(before[name], after[name])


def test_an_adapter_changes_only_the_layers_it_is_on(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    before = tiny_model.hf.state_dict()
    after = finetune(copy_model(tiny_model), chats, LORA).merged().hf.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.layers.0.") for name in changed)


def test_a_merged_model_wants_no_gradients(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    merged = finetune(copy_model(tiny_model), chats, FULL).merged()
    assert not merged.hf.training
    assert not any(weight.requires_grad for weight in merged.hf.parameters())


def test_an_adapter_with_a_relative_base_loads_back_wherever_both_are_moved(
    tiny_model: LoadedModel, chats: list[Chat], tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    tiny_model.hf.save_pretrained(old / "base")
    tiny_model.tokenizer.save_pretrained(old / "base")
    tuned = finetune(copy_model(tiny_model), chats, LORA)
    tuned.save(old / "tuned", base="../base")
    old.rename(new)
    named = json.loads((new / "tuned" / "adapter_config.json").read_text(encoding="utf-8"))
    assert named["base_model_name_or_path"] == "../base"
    torch.testing.assert_close(logits(load_model(new / "tuned")), logits(tuned.merged()))


def test_a_full_fine_tune_loads_back_with_its_tokenizer(
    tiny_model: LoadedModel, chats: list[Chat], tmp_path: Path
) -> None:
    tuned = finetune(copy_model(tiny_model), chats, FULL)
    tuned.save(tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(logits(loaded), logits(tuned.merged()))
    assert loaded.tokenizer.get_vocab() == tiny_model.tokenizer.get_vocab()


def test_saving_in_half_precision_leaves_the_trained_weights_alone(
    tiny_model: LoadedModel, chats: list[Chat], tmp_path: Path
) -> None:
    tuned = finetune(copy_model(tiny_model), chats, FULL)
    tuned.save(tmp_path, dtype=torch.float16)
    assert tuned.hf.dtype == torch.float32
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(tuned.merged()), atol=5e-3, rtol=0)


@pytest.mark.parametrize("empty", [[], [Chat((Message("user", "hello"),))]], ids=["no chats", "no answers"])
def test_without_an_answer_there_is_nothing_to_train_on(tiny_model: LoadedModel, empty: list[Chat]) -> None:
    with pytest.raises(DataError, match=f"none of {len(empty)} chats"):
        finetune(tiny_model, empty, FULL)


def test_an_adapter_that_fits_no_module_is_refused(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    config = FinetuneConfig(train=TRAIN, lora=LoraConfig(target_modules=("query",)))
    with pytest.raises(ConfigError, match="fits no module"):
        finetune(copy_model(tiny_model), chats, config)


def test_the_callers_torch_state_survives_an_adapter(tiny_model: LoadedModel, chats: list[Chat]) -> None:
    before = torch.get_rng_state()
    finetune(copy_model(tiny_model), chats, LORA)
    assert torch.equal(torch.get_rng_state(), before)
