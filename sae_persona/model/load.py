"""Load a causal language model: a local folder, a hub id, or a PEFT adapter folder on either.

Weights are read from safetensors only and code from nobody: what could run a program when it is opened is refused.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from sae_persona.artifacts import fingerprint
from sae_persona.errors import ConfigError, ModelError

ADAPTER_CONFIG = "adapter_config.json"
N_PROBED = 256
"""Vocabulary entries encoded to check a tokenizer: enough to see a wrong pre-tokenizer, a millisecond of work."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode with the tokenizer it was saved with."""

    source: str
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.hf.config.get_text_config().hidden_size

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return self.hf.config.get_text_config().num_hidden_layers

    @property
    def context(self) -> int | None:
        """Positions the model was built for; None where its config names no limit."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.hf.parameters()).device

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """The matrix that turns the final residual into logits, in float32, without the norm before it."""
        head = self.hf.get_output_embeddings()
        if head is None:
            raise ModelError(f"{self.source} has no unembedding; use a causal language model.")
        return head.get_parameter("weight").detach().float()

    @property
    def pad_id(self) -> int:
        """The padding token; a tokenizer that has none is padded with its end token, which masks hide."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else (self.tokenizer.eos_token_id or 0)  # pyright: ignore[reportReturnType]

    def active(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, `hf` computes as this model: a matter for those that share their weights with others."""
        return contextlib.nullcontext()

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights: the folder's bytes (an adapter's with its base's), or the hub id and its revision."""
        folder = Path(self.source)
        if not folder.is_dir():
            return fingerprint([self.source, getattr(self.hf.config, "_commit_hash", None)])
        if not (folder / ADAPTER_CONFIG).is_file():
            return fingerprint(folder)
        base = base_of(folder)
        return fingerprint([fingerprint(folder), fingerprint(Path(base)) if Path(base).is_dir() else base])


def load_model(
    source: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """The model and tokenizer of `source`, in evaluation mode and without gradients.

    `source` is a local folder, a hub id, or a local PEFT adapter folder, which is merged into the base model that its
    config names. `dtype` is the precision of the parameters, whatever they were saved in.

    Raises:
        ModelError: `source` does not exist, is no causal language model, or lacks weights or a tokenizer.
        ConfigError: the device is not available.
    """
    source = str(source)
    check_device(device)
    _check_source(source)
    folder = Path(source)
    with _quiet():
        if (folder / ADAPTER_CONFIG).is_file():
            base = base_of(folder)
            try:
                _check_source(base)
            except ModelError as error:
                raise ModelError(f"the base model that adapter {source!r} names: {error}") from error
            hf = _merge_adapter(_load_weights(base, dtype), folder)
            tokenizer = load_tokenizer(source if (folder / "tokenizer_config.json").is_file() else base)
        else:
            hf, tokenizer = _load_weights(source, dtype), load_tokenizer(source)
    hf.to(torch.device(device)).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
    return LoadedModel(source, hf, tokenizer)


def check_device(device: str | torch.device) -> None:
    """Raise `ConfigError` for a device that is none, or that this machine does not have."""
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"{device!r} is no device; expected 'cpu', 'cuda' or 'cuda:N'.") from error
    n_usable = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (asked.index or 0) >= n_usable.get(asked.type, 0):
        n_gpus = n_usable["cuda"] or "no usable"
        raise ConfigError(
            f"device {str(device)!r} was asked for, and this machine has {n_gpus} GPU{'s' * (n_gpus != 1)}. Use 'cpu'."
        )


def _check_source(source: str) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
            found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
            raise ModelError(
                f"{source!r} is no model folder: it has neither config.json nor {ADAPTER_CONFIG} (it holds: {found}). "
                "Name the folder that save_pretrained wrote."
            )
        return
    if folder.exists():
        raise ModelError(f"{source!r} is a file; expected a model folder, a hub id or a PEFT adapter folder.")
    n_parts = len(folder.parts)
    like_a_hub_id = n_parts == 1 or (n_parts == 2 and not folder.parent.is_dir())
    if folder.is_absolute() or source.startswith((".", "~")) or not like_a_hub_id:
        raise ModelError(f"{source!r} does not exist; expected a model folder, a hub id or a PEFT adapter folder.")


def _load_weights(source: str, dtype: torch.dtype) -> PreTrainedModel:
    with _reading(source, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            local_files_only=Path(source).is_dir(),
            use_safetensors=True,
            output_loading_info=True,
        )
    hf, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{source!r} lacks {len(missing)} of the weights its config.json asks for ({missing[0]}, ...); they would "
            "have been random. Save the model again, or correct its config.json."
        )
    return hf


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer, checked to encode as its own tokenizer.json says.

    For some model types transformers puts a pre-tokenizer of its own over the saved one: a word-level vocabulary then
    encodes every text to nothing, without a warning.
    """
    local = Path(source).is_dir()
    with _reading(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        saved = Path(source, "tokenizer.json")
        as_saved = PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True) if saved.is_file() else None
    probe = _probe(as_saved or tokenizer)
    if as_saved is not None and _encode(as_saved, probe) != _encode(tokenizer, probe):
        tokenizer = as_saved
    if not _encode(tokenizer, probe):
        raise ModelError(f"the tokenizer of {source!r} encodes {probe[:40]!r} to no token at all. Save it again.")
    return tokenizer


def _probe(tokenizer: Any) -> str:
    """Text made of words spread over the vocabulary; added tokens are left out, as no pre-tokenizer can spoil them."""
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary.keys() - tokenizer.get_added_vocab().keys(), key=lambda word: vocabulary[word])
    words = words[:: max(1, len(words) // N_PROBED)]
    return " ".join(tokenizer.convert_tokens_to_string([word]) for word in words)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]


def base_of(folder: Path) -> str:
    """Where the base model of an adapter folder is, or its hub id.

    A relative path is looked for from the adapter folder first; an absolute path that does not exist on this machine,
    beside the adapter folder.
    """
    config = folder / ADAPTER_CONFIG
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{str(config)!r} is no JSON object ({error}). Save the adapter again.") from error
    if not named:
        raise ModelError(f"{str(config)!r} names no base_model_name_or_path. Name the model it was trained on.")
    places = [folder / named, Path(named)]
    if Path(named).is_absolute():
        places.append(folder.parent / Path(named).name)
    return next((str(place) for place in places if (place / "config.json").is_file()), named)


def wrap_adapter(hf: Any, folder: Path, name: str) -> Any:
    """A model with the adapter of a folder beside its weights, or one more beside adapters that it has.

    Raises:
        ModelError: the folder lacks weights, or they do not belong to the model; or peft is not installed.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{str(folder)!r} has no adapter_model.safetensors; pickled weights are not opened. Save the adapter again."
        )
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(f"{str(folder)!r} is a PEFT adapter; peft is not installed. Run: pip install peft") from error
    with _reading(str(folder), "adapter"), warnings.catch_warnings():
        # peft only warns when an adapter lacks weights, and goes on with untrained ones.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        if isinstance(hf, PeftModel):
            hf.load_adapter(str(folder), adapter_name=name)
            return hf
        return PeftModel.from_pretrained(hf, str(folder), adapter_name=name)


def _merge_adapter(hf: PreTrainedModel, folder: Path) -> PreTrainedModel:
    with _reading(str(folder), "adapter"):
        return wrap_adapter(hf, folder, "default").merge_and_unload()


class _reading:  # noqa: N801 -- a context, read as a verb
    """Turns what the libraries raise when they trip over a file into one `ModelError`."""

    TRIPS = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, UserWarning)

    def __init__(self, source: str, what: str) -> None:
        self.source = source
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None or error is None:
            return
        # tokenizers raises a plain Exception at a tokenizer.json that it does not understand.
        if kind is Exception or issubclass(kind, (*self.TRIPS, SafetensorError, StrictDataclassError)):
            raise ModelError(_what_is_wrong(self.source, self.what, error)) from error


def _what_is_wrong(source: str, what: str, error: BaseException) -> str:
    reason = shorten(f"{type(error).__name__}: {error}", 250, placeholder=" …")
    if not Path(source).is_dir():
        return (
            f"{source!r} is no folder here, and its {what} is neither in the hub cache nor within reach ({reason}). "
            "Check the spelling, or download it where there is a network."
        )
    if "no file named" in reason:
        return f"{source!r} has no model.safetensors; pickled weights are not opened. Save with save_pretrained."
    if "backend tokenizer" in reason:
        return f"{source!r} has no tokenizer that can be read. Save the tokenizer beside the model."
    if "ignore_mismatched_sizes" in reason:
        return f"the weights of {source!r} have other shapes than its config.json says. Save the model again."
    return f"the {what} in {source!r} cannot be loaded ({reason}). Save it again, or name another model."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, notices and deprecations between libraries; what matters is raised as an error."""
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
