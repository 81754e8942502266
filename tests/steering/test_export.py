"""Exports: read back as their formats say, and used by a process that lacks this package."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sae_persona.errors import ConfigError, HookError
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import random_directions
from sae_persona.steering.edits import AddDirection, Window, steer
from sae_persona.steering.export import export_direction, write_control_vector

HOOK = "blocks.1.hook_resid_post"
IDS = [[2, 30, 31, 32, 40]]
D = random_directions(32, n=1, seed=0)[0]


def test_the_file_holds_the_direction_and_what_to_do_with_it(tiny_model: LoadedModel, tmp_path: Path) -> None:
    written = export_direction(tiny_model, HOOK, AddDirection(D, 0.4, 5.0), tmp_path / "x")
    assert [path.name for path in written] == ["direction.safetensors", "steering_hook.py", "direction.gguf"]
    assert torch.equal(load_file(written[0])["direction"], D.vector)
    with safe_open(written[0], framework="pt") as file:
        how = json.loads(file.metadata()["steering"])
    assert (how["hook_name"], how["strength"], how["unit"], how["window"]) == (HOOK, 0.4, 5.0, "all")


def test_a_control_vector_reads_back_by_the_specification(tmp_path: Path) -> None:
    doses = {3: np.arange(5, dtype=np.float32), 1: -np.arange(5, dtype=np.float32)}
    write_control_vector(tmp_path / "x.gguf", doses, model_hint="llama", n_layers=4)
    metadata, tensors = read_gguf(tmp_path / "x.gguf")
    assert metadata == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 4,
    }
    assert {name: values.tolist() for name, values in tensors.items()} == {
        "direction.1": doses[1].tolist(),
        "direction.3": doses[3].tolist(),
    }


def read_gguf(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Version 3, with string and uint32 values and one-dimensional float32 tensors."""
    data, at = path.read_bytes(), 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size : at].decode()

    assert (data[:4], struct.unpack_from("<I", data, 4)[0]) == (b"GGUF", 3)
    at = 8
    n_tensors, n_values = take("Q"), take("Q")
    metadata = {text(): {8: text, 4: lambda: take("I")}[take("I")]() for _ in range(n_values)}
    infos = []
    for _ in range(n_tensors):
        name, n_axes, size, kind, offset = text(), take("I"), take("Q"), take("I"), take("Q")
        assert (n_axes, kind, offset % 32) == (1, 0, 0)
        infos.append((name, size, offset))
    start = -(-at // 32) * 32
    return metadata, {name: np.frombuffer(data, "<f4", size, start + offset) for name, size, offset in infos}


def test_what_llama_cpp_cannot_do_is_left_out_or_refused(tiny_model: LoadedModel, tmp_path: Path) -> None:
    first = export_direction(tiny_model, "blocks.0.hook_resid_post", AddDirection(D, 1.0), tmp_path / "first")
    header = export_direction(tiny_model, HOOK, AddDirection(D, 1.0, window="header"), tmp_path / "header")
    assert [len(first), len(header)] == [2, 2]
    with pytest.raises(HookError, match="from 1 on"):
        write_control_vector(tmp_path / "x.gguf", {0: np.zeros(4)}, model_hint="llama", n_layers=2)
    with pytest.raises(ConfigError, match="from token 3 on cannot be exported"):
        export_direction(tiny_model, HOOK, AddDirection(D, 1.0, from_token=3), tmp_path / "x")


SCRIPT = """
import sys
sys.modules["sae_persona"] = None  # importing it is an error
sys.path.insert(0, sys.argv[1])
import torch
from transformers import AutoModelForCausalLM
from steering_hook import steering
model = AutoModelForCausalLM.from_pretrained(sys.argv[2])
ids = torch.tensor(%r)
with torch.no_grad():
    clean = model(ids).logits
    with steering(model):
        torch.save(model(ids).logits, sys.argv[3])
    assert torch.equal(model(ids).logits, clean)
"""


@pytest.mark.parametrize(("hook", "window"), [(HOOK, "all"), ("blocks.1.hook_resid_pre", "header")])
def test_the_hook_steers_a_plain_model_without_this_package(
    tiny_model: LoadedModel, tmp_path: Path, hook: str, window: Window
) -> None:
    edit = AddDirection(D, -0.4, 5.0, window=window)
    export_direction(tiny_model, hook, edit, tmp_path)
    arguments = [sys.executable, "-c", SCRIPT % IDS, tmp_path, tiny_model.source, tmp_path / "logits.pt"]
    subprocess.run(list(map(str, arguments)), check=True, cwd=tmp_path)
    with torch.no_grad(), steer(tiny_model, hook, edit):
        expected = tiny_model.hf(torch.tensor(IDS)).logits
    # Not bit for bit: another process may use another number of threads, and round in another order.
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-5, rtol=0)
