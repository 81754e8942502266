"""The front door: everything by name, nothing paid for before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sae_persona

HEAVY = ["torch", "numpy", "pandas", "transformers", "sae_lens", "transformer_lens", "wandb", "h5py", "plotly"]


def test_importing_the_package_loads_nothing_heavy_and_takes_less_than_a_second() -> None:
    script = (
        "import sys, time; start = time.process_time(); import sae_persona; spent = time.process_time() - start\n"
        f"print([name for name in {HEAVY} if name in sys.modules], spent < 1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"


@pytest.mark.parametrize("name", sae_persona.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(sae_persona)
    assert getattr(sae_persona, name).__name__ == name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(sae_persona.__file__).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module
        for block in blocks
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"sae_persona.{module}" for name, module in sae_persona._MODULES.items()}


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'feature'"):
        sae_persona.feature  # noqa: B018
