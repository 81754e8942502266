"""SAELens's folders and releases, in and out. sae_lens takes seconds to import, so it is imported where it is used."""

import json
import warnings
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from sae_persona.artifacts import Manifest, fingerprint, read_json, write_folder, write_json
from sae_persona.errors import IncompatibleError, SAEError
from sae_persona.model.hooks import as_hook_name, resolve_hook
from sae_persona.model.load import LoadedModel, check_device
from sae_persona.model.tokenizers import check_same_tokens, known_tokenizer

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_persona.sae.metrics import SAEMetrics

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_FOLDED_AWAY = ("expected_average_only_in", "covariance_whitening")
"""Normalisations of SAELens that hold in training only: a finished SAE has them in its weights."""


def save_sae(sae: "SAE", folder: Path | str, *, manifest: Manifest, metrics: "SAEMetrics | None" = None) -> None:
    """Write an SAE as SAELens does (`cfg.json`, `sae_weights.safetensors`), with the manifest beside it.

    The metadata in `cfg.json` hold under `sae_persona` how it was trained and, where given, its `metrics` (all but the
    firing density of every latent).

    Raises:
        ArtifactError: the folder holds something else, cannot be written, or the disk is full.
    """
    with write_folder(folder, manifest) as partial:
        sae.save_model(partial)
        if metrics is not None:
            config = read_json(partial / CONFIG)
            numbers = {name: value for name, value in asdict(metrics).items() if name != "density"}
            config["metadata"]["sae_persona"] = {**config["metadata"].get("sae_persona", {}), "metrics": numbers}
            write_json(partial / CONFIG, config)


def load_sae(source: Path | str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "SAE":
    """An SAE from a folder, or from one of SAELens's releases as `release:sae_id` or `release/sae_id`.

    Raises:
        SAEError: there is no such folder or release, its files are missing or damaged, it must be downloaded and cannot
            be, or it is of a kind that is not for the residual stream (`check_kind`).
        ConfigError: the device is not available.
    """
    check_device(device)
    where: dict[str, Any] = {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    if Path(source).exists():
        sae = _load_folder(Path(source), where)
    else:
        release, _, sae_id = str(source).partition(":" if ":" in str(source) else "/")
        if not release or not sae_id:
            raise SAEError(
                f"{source} is neither a folder nor a release with an id. Check the path, or name 'release:sae_id'."
            )
        sae = _load_release(release, sae_id, where)
    check_kind(sae)
    return sae


def hook_name_of(sae: "SAE", *, asked: str | None = None) -> str:
    """The hook that is asked for, or else that whose activations the SAE was trained on, under the name it has here.

    Raises:
        SAEError: none is asked for, and the SAE does not say.
    """
    if asked is not None:
        return asked
    if not (hook_name := sae.cfg.metadata.hook_name):
        raise SAEError("this SAE's cfg.json names no hook_name in its metadata. Name the hook it was trained on.")
    return as_hook_name(hook_name)


def sae_mark(sae: "SAE", hook_name: str) -> str:
    """A short name of an SAE at a hook, the same wherever it was loaded from: tells two SAEs of one shape apart.

    Made of the hook, the biases and 64 of the decoder's rows, because hashing all of a wide SAE takes seconds.
    """
    rows = sae.W_dec[:: max(1, sae.cfg.d_sae // 64)]
    numbers = torch.cat([sae.b_dec.flatten(), rows.flatten()]).detach().float().cpu().numpy().tobytes()
    return fingerprint([hook_name, sae.cfg.architecture(), list(sae.W_dec.shape), sha256(numbers).hexdigest()])[:16]


def check_kind(sae: "SAE") -> None:
    """Raise unless the SAE reads single tokens of the residual stream as they are, and writes there.

    Raises:
        SAEError: a transcoder, an SAE of attention heads or of sequences, or one whose normalisation is not folded in.
    """
    kind, config = sae.cfg.architecture(), sae.cfg
    where = config.metadata.hook_name or "one place"
    if "transcoder" in kind:
        raise _transcoder(kind, where, config.metadata.hook_name_out or "another")
    if config.reshape_activations != "none":
        raise SAEError(
            f"this SAE reads the outputs of attention heads ({where}, "
            f"reshape_activations={config.reshape_activations!r}), whose latents are no directions of the residual "
            "stream. Use an SAE of hook_resid_pre or hook_resid_post."
        )
    if kind == "temporal":
        raise SAEError(
            "this SAE is temporal: what a token gives depends on the tokens before it, and here tokens are read one by "
            "one. Use an SAE of another architecture."
        )
    if config.normalize_activations in _FOLDED_AWAY:
        raise SAEError(
            f"this SAE says normalize_activations={config.normalize_activations!r}, and the numbers that takes are not "
            "in its files: it would read activations of the wrong size. Fold them into the weights and save it again "
            "(fold_activation_norm_scaling_factor or fold_activation_whitening of SAELens)."
        )


def check_fits(sae: "SAE", model: LoadedModel, hook_name: str) -> None:
    """Raise unless the model has the hook, and activations there are as wide as the SAE.

    Raises:
        SAEError: the SAE is not one for the residual stream.
        HookError: the model has no such hook.
        IncompatibleError: the widths differ.
    """
    check_kind(sae)
    resolve_hook(model.hf, hook_name)
    if sae.cfg.d_in != model.d_model:
        raise IncompatibleError(
            f"this SAE expects d_in={sae.cfg.d_in} ({sae.cfg.metadata.hook_name or 'hook unknown'}); {model.source} "
            f"has d_model={model.d_model}. Load an SAE trained on this model."
        )


def check_tokens(sae: "SAE", model: LoadedModel) -> None:
    """Raise where the SAE was trained on a model with other tokens, as far as that model's tokenizer is at hand.

    Raises:
        IncompatibleError: an id means one token to that model and another to this one.
    """
    trained_on = sae.cfg.metadata.model_name or ""
    if (tokenizer := known_tokenizer(trained_on)) is not None:
        check_same_tokens(f"{trained_on}, which the SAE was trained on,", tokenizer, model.source, model.tokenizer)


def _load_folder(folder: Path, where: dict[str, Any]) -> "SAE":
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise SAEError(
            f"{folder} is no SAE folder: {' and '.join(missing)} missing. Name a folder in SAELens's format."
        )
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        _check_architecture(config, folder)
        if config["architecture"] == "topk" and "k" not in config:
            raise KeyError("k")  # SAELens would take 100
        sae = SAE.load_from_disk(folder, **where)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, SafetensorError) as error:
        raise SAEError(
            f"the SAE in {folder} cannot be loaded ({type(error).__name__}: {error}). "
            f"Its {CONFIG} or {WEIGHTS} is damaged or not of SAELens's format; save or download it again."
        ) from error
    # SAELens takes a file without its version for one of before version 6, whose metadata it drops without a word.
    sae.cfg.metadata = SAEMetadata(**config.get("metadata", sae.cfg.metadata.to_dict()))
    return sae.requires_grad_(False).eval()


def _load_release(release: str, sae_id: str, where: dict[str, Any]) -> "SAE":
    from sae_lens import SAE

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are loading an SAE using the HuggingFace repo_id")
            return SAE.from_pretrained(release, sae_id, **where).requires_grad_(False).eval()
    except ValueError as error:  # SAELens's own words: which releases and ids there are
        raise SAEError(f"{error} Check the path, or name 'release:sae_id'.") from error
    except OSError as error:
        raise SAEError(
            f"{release}:{sae_id} is not on this machine and cannot be downloaded ({error}). Check the name and the "
            "network (HF_HUB_OFFLINE), or name a local folder."
        ) from error


def _check_architecture(config: dict[str, Any], folder: Path) -> None:
    """Refuse what SAELens has no class for, and transcoders before their weights are read."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    kind, told = config["architecture"], config.get("metadata", config)
    if "transcoder" in str(kind) or str(kind).startswith("clt"):
        raise _transcoder(kind, told.get("hook_name") or "one place", told.get("hook_name_out") or "another")
    if kind not in SAE_CLASS_REGISTRY and kind in SAE_TRAINING_CLASS_REGISTRY:
        raise SAEError(
            f"{folder} is a checkpoint of SAELens's training ({kind!r}), whose threshold is not folded into weights. "
            "Load it in SAELens and save it with `save_inference_model`, as SAELens's own training does at its end."
        )
    if kind not in SAE_CLASS_REGISTRY:
        usable = ", ".join(sorted(name for name in SAE_CLASS_REGISTRY if "transcoder" not in name))
        raise SAEError(f"{folder} says architecture {kind!r}, which SAELens does not know; it knows {usable}.")


def _transcoder(kind: str, hook_in: str, hook_out: str) -> SAEError:
    return SAEError(
        f"this is a {kind.replace('_', ' ')}: it reads {hook_in} and writes {hook_out}, so that its latents are no "
        "directions of the residual stream it reads. Use an SAE of hook_resid_pre or hook_resid_post."
    )
