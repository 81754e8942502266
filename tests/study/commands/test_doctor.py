"""What the checklist finds wrong with a model."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from sae_persona.data.tokens import TokenBatch
from sae_persona.model.load import LoadedModel
from sae_persona.study.commands import doctor as commands
from sae_persona.study.commands.doctor import Check, doctor


@pytest.fixture
def folder(tiny_model: LoadedModel, tmp_path: Path) -> Path:
    """A copy of the tiny model to be spoilt."""
    shutil.copytree(tiny_model.source, tmp_path / "model")
    return tmp_path / "model"


def failed(folder: Path) -> list[Check]:
    return [check for check in doctor(str(folder)) if not check.passed]


def test_a_sound_model_passes(folder: Path) -> None:
    assert failed(folder) == []


def test_weights_that_are_no_numbers_are_found_at_their_hook(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    hooks, padding = failed(folder)
    assert hooks.name == "hooks"
    assert "not finite from blocks.1.hook_resid_post on" in hooks.finding
    assert padding.name == "padding"


def test_a_tokenizer_of_another_model_is_found(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra-{i}>" for i in range(3)])
    tokenizer.save_pretrained(folder)
    (check,) = failed(folder)
    assert check.name == "tokenizer"
    assert "Use the model's own tokenizer" in check.finding


def test_a_tokenizer_without_an_end_is_found(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert [check.name for check in failed(folder)] == ["tokenizer"]


def test_a_model_without_a_template_is_fit_for_plain_text(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    checks = {check.name: check for check in doctor(str(folder))}
    assert checks["chat template"] == Check("chat template", True, checks["chat template"].finding)
    assert "plain text only" in checks["chat template"].finding


def test_a_model_that_sees_the_padding_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = commands.residuals

    def careless(model: torch.nn.Module, batch: TokenBatch, names: list[str]) -> dict[str, torch.Tensor]:
        return original(model, dataclasses.replace(batch, mask=torch.ones_like(batch.mask)), names)

    monkeypatch.setattr(commands, "residuals", careless)
    assert [check.name for check in failed(folder)] == ["padding"]
