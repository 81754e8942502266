"""Models load whole, quiet and exactly, or say in one line why not."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from sae_persona.errors import ConfigError, ModelError
from sae_persona.model.load import LoadedModel, check_device, load_model

WEIGHTS = "model.safetensors"
IDS = torch.tensor([[2, 3, 50, 60, 70, 4]])


def logits(hf: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return hf(input_ids=IDS).logits


@pytest.fixture
def folder(loaded: LoadedModel, tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return Path(shutil.copytree(loaded.source, tmp_path / "model"))


@pytest.fixture
def adapter(folder: Path) -> Path:
    """A PEFT adapter beside its base, with weights that are not zero."""
    with pytest.warns(FutureWarning):
        wrapped = get_peft_model(
            AutoModelForCausalLM.from_pretrained(folder),
            LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
        )
    wrapped.save_pretrained(folder.parent / "adapter")
    return folder.parent / "adapter"


def set_base(adapter: Path, base: str | None) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (adapter / "adapter_config.json").write_text(json.dumps(config))


# --- what is loaded --------------------------------------------------------------------------------------------------


def test_a_loaded_model_only_evaluates(loaded: LoadedModel) -> None:
    assert not loaded.hf.training
    assert not any(parameter.requires_grad for parameter in loaded.hf.parameters())
    assert (loaded.d_model, loaded.n_layers, loaded.context) == (32, 3, 64)
    assert loaded.device == torch.device("cpu")
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.pad_id) == "<pad>"


def test_half_precision_weights_load_as_the_same_numbers_in_float32(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    saved = load_file(folder / WEIGHTS)
    loaded = load_model(folder).hf.state_dict()
    assert all(tensor.dtype == torch.float16 for tensor in saved.values())
    for name, tensor in saved.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.float())


def test_dtype_is_obeyed_whatever_was_saved(folder: Path) -> None:
    assert {p.dtype for p in load_model(folder, dtype=torch.bfloat16).hf.parameters()} == {torch.bfloat16}


def test_models_that_know_no_sdpa_load_too(gemma2: PreTrainedModel, tmp_path: Path, loaded: LoadedModel) -> None:
    gemma2.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path).n_layers == 3


def test_a_tokenizer_that_its_class_would_spoil_is_loaded_as_it_was_saved(loaded: LoadedModel, tmp_path: Path) -> None:
    """Transformers reads any tokenizer beside a Qwen2 config with Qwen2's pre-tokenizer: words encode to nothing."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Qwen2Config(vocab_size=len(loaded.tokenizer), **sizes, num_key_value_heads=1)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    text = "<user> w6 w300 w77"
    tokenizer = load_model(tmp_path).tokenizer
    assert tokenizer(text)["input_ids"] == [3, 6, 300, 77]
    assert tokenizer.chat_template == loaded.tokenizer.chat_template


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token(folder: Path, loaded: LoadedModel) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_model(folder).pad_id == loaded.tokenizer.eos_token_id


def test_the_fingerprint_follows_the_weights(folder: Path, loaded: LoadedModel) -> None:
    assert load_model(folder).fingerprint == loaded.fingerprint
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert load_model(folder).fingerprint != loaded.fingerprint


def test_loading_prints_nothing_and_leaves_the_libraries_as_talkative_as_before(
    adapter: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        load_model(adapter)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(verbosity)
    assert capfd.readouterr() == ("", "")


# --- adapters --------------------------------------------------------------------------------------------------------


def test_an_adapter_is_merged_into_its_base(adapter: Path, folder: Path) -> None:
    merged = load_model(adapter)
    with pytest.warns(FutureWarning):
        reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter))
    # Merging sums the weights once instead of the products at every token: float32 rounding, on logits up to ten.
    assert (logits(merged.hf) - logits(reference)).abs().max() < 2e-5
    assert (logits(merged.hf) - logits(load_model(folder).hf)).abs().max() > 0.01
    assert type(merged.hf).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in merged.hf.named_parameters())
    assert merged.tokenizer.chat_template


@pytest.mark.parametrize("named", ["../model", "/another/machine/runs/model"])
def test_the_base_is_found_from_the_adapter_folder(adapter: Path, named: str) -> None:
    expected = logits(load_model(adapter).hf)
    set_base(adapter, named)
    assert torch.equal(logits(load_model(adapter).hf), expected)


def test_an_adapter_s_fingerprint_covers_its_base(adapter: Path, folder: Path) -> None:
    before = load_model(adapter).fingerprint
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert len({before, load_model(adapter).fingerprint, load_model(folder).fingerprint}) == 3


def test_an_adapter_that_lacks_weights_is_refused(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="Found missing adapter keys"):
        load_model(adapter)


def test_an_adapter_without_peft_says_what_to_install(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="pip install peft"):
        load_model(adapter)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "names no base_model_name_or_path"),
        ("/another/machine/gone", "the base model that adapter '.*' names: '/another/machine/gone' does not exist"),
        ("no-such/model", "is no folder here"),
    ],
)
def test_an_adapter_whose_base_is_not_to_be_had_is_an_error(adapter: Path, base: str | None, message: str) -> None:
    set_base(adapter, base)
    with pytest.raises(ModelError, match=message) as refused:
        load_model(adapter)
    assert base != "/another/machine/gone" or f"the base model that adapter {str(adapter)!r} names" in str(
        refused.value
    )


# --- what is refused -------------------------------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def one_block_more(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4, "layer_types": None}))


def wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "is no model folder: it has neither config.json nor"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "not a valid JSON"),
    "not a language model": (lambda d: (d / "config.json").write_text('{"model_type": "vit"}'), "cannot be loaded"),
    "unknown model": (lambda d: (d / "config.json").write_text('{"model_type": "zzz"}'), "cannot be loaded.*zzz"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "has no model.safetensors"),
    "pickled weights": (pickled, "has no model.safetensors; pickled weights are not opened"),
    "empty weights": (lambda d: (d / WEIGHTS).write_bytes(b""), "cannot be loaded .*header"),
    "cut weights": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:5000]), "cannot be loaded"),
    "missing weights": (one_block_more, r"lacks 9 of the weights its config.json asks for \(model.layers.3"),
    "other shapes": (wider, "have other shapes than its config.json says"),
    "no tokenizer": (lambda d: [path.unlink() for path in d.glob("tokenizer*")], "has no tokenizer that can be read"),
    "broken tokenizer": (lambda d: (d / "tokenizer.json").write_text("{"), "the tokenizer in .* cannot be loaded"),
    "tokenizer of another time": (
        lambda d: (d / "tokenizer.json").write_text('{"added_tokens": [], "model": {"type": "Zzz"}}'),
        "the tokenizer in .* cannot be loaded",
    ),
    "wrong type in the config": (
        lambda d: (d / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}'),
        "cannot be loaded .*expected int, got str",
    ),
    "unknown activation": (
        lambda d: (d / "config.json").write_text('{"model_type": "llama", "hidden_act": "zzz"}'),
        "cannot be loaded .*'zzz'",
    ),
    "broken adapter config": (lambda d: (d / "adapter_config.json").write_text("{"), "is no JSON object"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_folder_is_one_line_that_names_it(folder: Path, kind: str) -> None:
    spoil, message = SPOILT[kind]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_encodes_to_nothing_is_refused(folder: Path, loaded: LoadedModel) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    tokenizer["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="to no token at all"):
        load_model(folder)


@pytest.mark.parametrize("source", ["./gone", "/no/such/folder", "~/gone", "a/b/c", "{tmp}/gone"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(source: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist; expected a model folder"):
        load_model(source.format(tmp=tmp_path))


def test_a_name_beside_existing_folders_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="'runs/gone' does not exist"):
        load_model("runs/gone")


def test_a_hub_id_without_a_network_says_so() -> None:
    with pytest.raises(
        ModelError, match="'no-such/model' is no folder here, and its model is neither in the hub cache"
    ):
        load_model("no-such/model")


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load_model(folder / WEIGHTS)


@pytest.mark.parametrize("device", ["gpu", "cuda:x"])
def test_a_device_that_is_none_is_a_configuration_error(loaded: LoadedModel, device: str) -> None:
    with pytest.raises(ConfigError, match="is no device"):
        load_model(loaded.source, device=device)


@pytest.mark.parametrize("device", ["cuda:99", "meta"])
def test_a_device_that_this_machine_lacks_is_a_configuration_error(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' was asked for, and this machine has"):
        check_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_configuration_error(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="no usable GPU"):
        load_model(loaded.source, device="cuda")
