"""Options that are read here and not by typer."""

from collections.abc import Callable
from typing import get_args

import pytest

from sae_persona.cli import options, world
from sae_persona.persona_world.models import SIZES
from sae_persona.steering.edits import WINDOWS


def test_choices_are_those_of_the_library() -> None:
    """They are spelt out at the door, so that its help loads nothing heavy."""
    assert get_args(options.Window) == WINDOWS
    size = world.build.__annotations__["size"]
    assert get_args(get_args(size)[0]) == tuple(SIZES)


@pytest.mark.parametrize("strengths", ["a", "0.1,,0.2", "0,nan", "inf", ""])
def test_a_strength_that_is_no_finite_number_is_refused(strengths: str, refused: Callable[..., str]) -> None:
    line = refused("steer", "m", f"--strengths={strengths}")
    assert "is not a finite number; expected values such as -0.4,0,0.4" in line


@pytest.mark.parametrize(
    "command",
    ["world build --seed 0 --out x", "run x --out y", "report x", "inspect x"],
)
def test_a_device_that_would_not_be_used_is_refused(command: str, refused: Callable[..., str]) -> None:
    line = refused(*command.split(), "--device", "cuda")
    assert line == "error: this command runs on the cpu only; got --device cuda. Leave it out."
