"""A dose for other tools: safetensors with a hook that needs none of this package, and a vector for llama.cpp."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
from safetensors.torch import save

from sae_persona.artifacts import write_file
from sae_persona.errors import ConfigError, HookError
from sae_persona.model.hooks import resolve_hook
from sae_persona.model.load import LoadedModel
from sae_persona.steering import standalone
from sae_persona.steering.edits import AddDirection, check_width

DIRECTION, HOOK_FILE, GGUF = "direction.safetensors", "steering_hook.py", "direction.gguf"
_ALIGNMENT = 32
"""Bytes; GGUF's default, which a file need not state."""
_UINT32, _STRING, _F32 = 4, 8, 0
"""Codes of GGUF's value types and of its float32 tensors."""


def export_direction(model: LoadedModel, hook_name: str, edit: AddDirection, folder: Path | str) -> list[Path]:
    """Write `direction.safetensors`, `steering_hook.py` and `direction.gguf`; the paths of what was written.

    The safetensors file holds the unit direction, and in its metadata under `steering` what `AddDirection` does with
    it. `steering_hook.py` steers any Hugging Face model by it. The GGUF file holds the dose itself and is left out
    where llama.cpp cannot do it: it adds to the output of every block but the first, at every token.

    Raises:
        ConfigError: tokens are counted (`from_token`), which the hook cannot.
        HookError, IncompatibleError: hook or direction do not fit the model.
        ArtifactError: the files cannot be written.
    """
    block, side = resolve_hook(model.hf, hook_name)
    check_width(model, edit.direction)
    if edit.from_token:
        raise ConfigError(f"an edit from token {edit.from_token} on cannot be exported; export one with a window.")
    folder = Path(folder)
    how = {
        "hook_name": hook_name,
        "strength": edit.strength,
        "unit": edit.unit,
        "window": edit.window,
        "name": edit.direction.name,
        "latents": list(edit.direction.latents),
        "model": model.source,
    }
    vector = edit.direction.vector.detach().float().cpu().contiguous()
    with write_file(folder / DIRECTION) as partial:
        # Not `save_file`, whose files their owner alone can read.
        partial.write_bytes(save({"direction": vector}, metadata={"steering": json.dumps(how)}))
    with write_file(folder / HOOK_FILE) as partial:
        shutil.copyfile(standalone.__file__, partial)
    written = [folder / DIRECTION, folder / HOOK_FILE]
    layer = block if side == "post" else block - 1
    if layer >= 1 and edit.window == "all":
        dose = (edit.strength * edit.unit * vector).numpy()
        write_control_vector(
            folder / GGUF, {layer: dose}, model_hint=model.hf.config.model_type, n_layers=model.n_layers
        )
        written.append(folder / GGUF)
    return written


def write_control_vector(path: Path | str, doses: dict[int, np.ndarray], *, model_hint: str, n_layers: int) -> None:
    """Write a control vector in GGUF version 3: tensor `direction.L` is added to the output of block L, from 1 on.

    Raises:
        HookError: a dose for block 0, which llama.cpp refuses.
        ArtifactError: the file cannot be written.
    """
    if min(doses) < 1:
        raise HookError("llama.cpp steers the outputs of blocks from 1 on; got one for block 0. Choose another hook.")
    metadata = [
        _text("general.architecture") + struct.pack("<I", _STRING) + _text("controlvector"),
        _text("controlvector.model_hint") + struct.pack("<I", _STRING) + _text(model_hint),
        _text("controlvector.layer_count") + struct.pack("<II", _UINT32, n_layers),
    ]
    infos, data = b"", b""
    for layer, dose in sorted(doses.items()):
        infos += _text(f"direction.{layer}") + struct.pack("<IQIQ", 1, len(dose), _F32, len(data))
        data += _padded(dose.astype("<f4").tobytes())
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(doses), len(metadata)) + b"".join(metadata) + infos
    with write_file(path) as partial:
        partial.write_bytes(_padded(header) + data)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
