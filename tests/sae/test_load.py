"""SAELens's folders: what we write it reads, what it writes we read, and what is broken is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from drawn_sae import drawn
from families import build_tokenizer
from safetensors.torch import load_file, save_file

from sae_persona.artifacts import Manifest, new_manifest, read_manifest
from sae_persona.cache.reader import ActivationCache
from sae_persona.errors import ConfigError, HookError, IncompatibleError, SAEError
from sae_persona.model.load import LoadedModel
from sae_persona.sae.load import check_fits, check_tokens, hook_name_of, load_sae, save_sae
from sae_persona.sae.metrics import SAEMetrics
from sae_persona.sae.train import TrainConfig, train_sae

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK = "blocks.0.hook_resid_post"
X = torch.randn(7, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def manifest() -> Manifest:
    return new_manifest("sae", config={}, inputs={}, seed=0, version=1)


@pytest.fixture
def folder(sae: "TopKSAE", tmp_path: Path, manifest: Manifest) -> Path:
    save_sae(sae, tmp_path / "sae", manifest=manifest)
    return tmp_path / "sae"


def test_saelens_loads_what_we_write_to_the_same_numbers(sae: "TopKSAE", folder: Path) -> None:
    from sae_lens import SAE

    loaded = SAE.load_from_disk(folder)
    torch.testing.assert_close(loaded(X), sae(X), rtol=0, atol=1e-5)
    assert loaded.cfg.to_dict() == sae.cfg.to_dict()


def test_a_trained_sae_says_how_it_was_trained(
    cache_of: Callable[[torch.Tensor], ActivationCache], tmp_path: Path, manifest: Manifest
) -> None:
    config = TrainConfig(d_sae=8, k=2, n_tokens=64, batch_size=32)
    cache = cache_of(torch.randn(50, 4))
    trained = train_sae(cache, HOOK, config)
    save_sae(trained, tmp_path / "sae", manifest=manifest)
    loaded = load_sae(tmp_path / "sae")
    assert torch.equal(loaded(X[:, :4]), trained(X[:, :4]))
    assert hook_name_of(loaded) == HOOK
    assert loaded.cfg.metadata.model_name == "planted"
    assert loaded.cfg.metadata.context_size == cache.positions.max() + 1
    assert TrainConfig(**loaded.cfg.metadata.sae_persona["config"]) == config
    assert loaded.cfg.metadata.sae_persona["cache"] == cache.manifest.fingerprint
    assert read_manifest(tmp_path / "sae") == manifest


def test_a_batchtopk_sae_is_saelenss_to_the_same_numbers(
    cache_of: Callable[[torch.Tensor], ActivationCache], tmp_path: Path, manifest: Manifest
) -> None:
    from sae_lens import SAE

    config = TrainConfig(architecture="batchtopk", d_sae=8, k=2, n_tokens=640, batch_size=32)
    trained = train_sae(cache_of(torch.randn(50, 4)), HOOK, config)
    save_sae(trained, tmp_path / "sae", manifest=manifest)
    for loaded in (SAE.load_from_disk(tmp_path / "sae"), load_sae(tmp_path / "sae")):
        assert type(loaded).__name__ == "JumpReLUSAE"
        assert loaded.cfg.metadata.training_architecture == "batchtopk"
        torch.testing.assert_close(loaded(X[:, :4]), trained(X[:, :4]), rtol=0, atol=1e-5)


def test_metrics_are_kept_beside_the_training_config(sae: "TopKSAE", tmp_path: Path, manifest: Manifest) -> None:
    sae.cfg.metadata.sae_persona = {"config": {"k": 3}}
    metrics = SAEMetrics(100, 3.0, 0.5, 0.1, 0.9, 0.0, (0.25,) * 12, 1.0, 1.5, 3.0, 0.75, 0.2, 0.8, 0.75)
    save_sae(sae, tmp_path / "sae", manifest=manifest, metrics=metrics)
    recorded = load_sae(tmp_path / "sae").cfg.metadata.sae_persona
    assert recorded["config"] == {"k": 3}
    assert recorded["metrics"]["fve"] == 0.5
    assert "density" not in recorded["metrics"]


def test_precision_is_chosen_on_loading(folder: Path) -> None:
    assert load_sae(folder).W_enc.dtype == torch.float32
    assert load_sae(str(folder), dtype=torch.bfloat16)(X).dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in load_sae(folder).parameters())


def test_a_file_without_saelenss_version_keeps_its_metadata(folder: Path) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"]["sae_lens_version"]
    (folder / "cfg.json").write_text(json.dumps(config))
    assert hook_name_of(load_sae(folder)) == HOOK


def edit_config(folder: Path, **change: object) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in {**config, **change}.items() if v is not None}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "cfg.json").unlink(), "cfg.json missing"),
        (lambda folder: (folder / "sae_weights.safetensors").unlink(), "sae_weights.safetensors missing"),
        (lambda folder: (folder / "cfg.json").write_text("{"), "JSONDecodeError"),
        (lambda folder: (folder / "cfg.json").write_text("[]"), "TypeError"),
        (lambda folder: (folder / "sae_weights.safetensors").write_bytes(b"weights"), "SafetensorError"),
        (lambda folder: edit_config(folder, k=None), "k"),
        (
            lambda folder: edit_config(folder, architecture="dense"),
            "architecture 'dense', which SAELens does not know; it",
        ),
        (lambda folder: edit_config(folder, d_in=33), "size mismatch"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_error(folder: Path, damage: Callable[[Path], object], named: str) -> None:
    damage(folder)
    with pytest.raises(SAEError, match=named):
        load_sae(folder)


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_no_damage_of_the_sae(folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"{device}.*(is no device|was asked for)"):
        load_sae(folder, device=device)


def test_weights_that_are_missing_are_named(folder: Path) -> None:
    weights = load_file(folder / "sae_weights.safetensors")
    save_file({"W_enc": weights["W_enc"]}, folder / "sae_weights.safetensors")
    with pytest.raises(SAEError, match="W_dec"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("no-such-folder", "neither a folder nor a release"),
        ("no-such-release/blocks.0", "no-such-release not found"),
        ("gpt2-small-res-jb:blocks.99.hook_resid_pre", "not found in release gpt2-small-res-jb"),
        ("gpt2-small-res-jb/blocks.99.hook_resid_pre", "not found in release gpt2-small-res-jb"),
    ],
)
def test_what_is_no_sae_is_refused_with_what_there_is(source: str, named: str) -> None:
    with pytest.raises(SAEError, match=named):
        load_sae(source)


def test_a_release_that_cannot_be_downloaded_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SAEError, match="cannot be downloaded"):
        load_sae("gpt2-small-res-jb:blocks.8.hook_resid_pre")


def test_an_sae_without_a_hook_name_says_so(sae: "TopKSAE") -> None:
    sae.cfg.metadata.hook_name = None
    with pytest.raises(SAEError, match="hook_name"):
        hook_name_of(sae)


def test_an_sae_of_another_width_or_an_unknown_hook_does_not_fit(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    check_fits(sae, tiny_model, HOOK)
    with pytest.raises(HookError, match="blocks 0 to 1"):
        check_fits(sae, tiny_model, "blocks.7.hook_resid_post")
    sae.cfg.d_in = 64
    with pytest.raises(IncompatibleError, match=r"d_in=64.*d_model=32"):
        check_fits(sae, tiny_model, HOOK)


@pytest.mark.parametrize(
    ("architecture", "config", "named"),
    [
        *(
            (kind, {"apply_b_dec_to_input": False, "d_out": 32}, f"this is a {kind.replace('_', ' ')}: it reads one")
            for kind in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
        ),
        ("temporal", {"d_sae": 64, "n_heads": 1, "kval_topk": 4}, "this SAE is temporal"),
        ("topk", {"k": 2, "reshape_activations": "hook_z"}, "reads the outputs of attention heads"),
        ("standard", {"normalize_activations": "expected_average_only_in"}, "'expected_average_only_in', and the"),
        ("gated", {"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
    ],
)
def test_what_does_not_read_tokens_of_the_residual_stream_is_refused(
    architecture: str, config: dict[str, object], named: str, tmp_path: Path, tiny_model: LoadedModel
) -> None:
    sae = drawn(architecture, d_in=32, **{"d_sae": 12, **config})
    with pytest.raises(SAEError, match=named):
        check_fits(sae, tiny_model, HOOK)
    sae.save_model(tmp_path)
    with pytest.raises(SAEError, match=named):
        load_sae(tmp_path)


@pytest.mark.parametrize("kind", ["cross_layer_transcoder", "clt"])
def test_a_cross_layer_transcoder_is_refused_by_its_name(folder: Path, kind: str) -> None:
    edit_config(folder, architecture=kind, metadata={"hook_name": "blocks.0.hook_mlp_in", "hook_name_out": "all"})
    with pytest.raises(SAEError, match=f"this is a {kind.replace('_', ' ')}: it reads blocks.0.hook_mlp_in and writes"):
        load_sae(folder)


def test_a_hook_of_attention_heads_is_refused_by_what_it_is(sae: "TopKSAE", tiny_model: LoadedModel) -> None:
    for hook_name in ("blocks.0.attn.hook_z", "blocks.0.hook_mlp_out", "hook_embed", "blocks.0.hook_resid_mid"):
        with pytest.raises(HookError, match="is not in the residual stream between blocks"):
            check_fits(sae, tiny_model, hook_name)


def test_a_hook_named_by_its_module_is_the_output_of_that_block(sae: "TopKSAE") -> None:
    sae.cfg.metadata.hook_name = "model.layers.11"
    assert hook_name_of(sae) == "blocks.11.hook_resid_post"


def test_an_sae_of_a_model_with_other_tokens_does_not_fit(
    sae: "TopKSAE", tiny_model: LoadedModel, tmp_path: Path
) -> None:
    sae.cfg.metadata.model_name = tiny_model.source
    check_tokens(sae, tiny_model)
    sae.cfg.metadata.model_name = "a model that is not here"
    check_tokens(sae, tiny_model)
    build_tokenizer().save_pretrained(tmp_path)
    sae.cfg.metadata.model_name = str(tmp_path)
    with pytest.raises(IncompatibleError, match=r"which the SAE was trained on, and .* have different tokenizers"):
        check_tokens(sae, tiny_model)
