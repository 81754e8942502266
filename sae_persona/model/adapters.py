"""Several models at once: adapters on one base share its weights, and are told apart by which of them is active."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sae_persona.errors import ConfigError
from sae_persona.model.load import ADAPTER_CONFIG, LoadedModel, base_of, load_model, load_tokenizer, wrap_adapter


@dataclass(frozen=True, eq=False)
class AdaptedModel(LoadedModel):
    """One of several models on the weights of one base. `hf` is the same object for all of them."""

    adapter: str | None
    """Name of its adapter; None for the base itself."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While it is open, `hf` computes as this model; afterwards as before."""
        shared: Any = self.hf
        if self.adapter is None:
            with shared.disable_adapter():
                yield
            return
        before = shared.active_adapter
        shared.set_adapter(self.adapter, inference_mode=True)
        try:
            yield
        finally:
            shared.set_adapter(before, inference_mode=True)


def load_models(
    sources: Sequence[str | Path], *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, LoadedModel]:
    """Models by the last part of their source: `base` for `models/base`. A base under several adapters is loaded once.

    An adapter that is alone on its base is merged into it, as `load_model` does; the others are applied beside the
    base's weights, which rounds differently in the last digit.

    Raises:
        ModelError: a source cannot be loaded.
        ConfigError: two sources have one name, or the device is not available.
    """
    by_name = {Path(source).name: str(source) for source in sources}
    if len(by_name) < len(sources):
        raise ConfigError(
            f"models are told apart by the last part of their path, and two of {', '.join(map(str, sources))} share "
            "theirs. Name each once, or rename a folder."
        )
    base_by_name = {name: _base(source) for name, source in by_name.items()}
    groups: dict[str, list[str]] = {}
    for name, base in base_by_name.items():
        groups.setdefault(base, []).append(name)
    loaded: dict[str, LoadedModel] = {}
    for base, names in groups.items():
        if len(names) == 1:
            loaded[names[0]] = load_model(by_name[names[0]], device=device, dtype=dtype)
        else:
            loaded |= _load_group(base, {name: by_name[name] for name in names}, device, dtype)
    return {name: loaded[name] for name in by_name}


def _base(source: str) -> str:
    """The model whose weights a source needs: an adapter's base, or the source itself."""
    folder = Path(source)
    base = base_of(folder) if (folder / ADAPTER_CONFIG).is_file() else source
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def _load_group(
    base: str, source_by_name: dict[str, str], device: str | torch.device, dtype: torch.dtype
) -> dict[str, LoadedModel]:
    """A base, loaded once, and what is built on it."""
    root = load_model(base, device=device, dtype=dtype)
    shared: Any = root.hf
    members: dict[str, AdaptedModel] = {}
    for name, source in source_by_name.items():
        is_adapter = (Path(source) / ADAPTER_CONFIG).is_file()
        # torch names modules by it, and their names may hold no dot.
        adapter = f"adapter_{len(members)}" if is_adapter else None
        if adapter is not None:
            shared = wrap_adapter(shared, Path(source), adapter)
        own_tokenizer = (Path(source) / "tokenizer_config.json").is_file()
        members[name] = AdaptedModel(
            source, shared, load_tokenizer(source) if own_tokenizer else root.tokenizer, adapter
        )
    shared.to(device=root.device, dtype=dtype).eval().requires_grad_(False)
    # The base may stand before the first adapter, when nothing was wrapped yet.
    return {name: replace(member, hf=shared) for name, member in members.items()}
