"""Parsing, help and exits; every user error is one line on stderr and status 2."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from sae_persona.cli import app
from sae_persona.cli.door import Door
from sae_persona.errors import HookError

HEAVY = ["torch", "numpy", "transformers", "sae_lens", "h5py", "pydantic_core", "plotly", "rich.console"]


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words, groups left out."""
    waiting: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop()
        inner = getattr(command, "commands", None)
        if inner is None:
            yield words.strip(), command
        else:
            waiting += [(f"{words} {name}", one) for name, one in inner.items()]


COMMANDS = dict(commands())


def test_these_are_the_commands() -> None:
    assert sorted(COMMANDS) == [
        "cache",
        "doctor",
        "evaluate",
        "finetune",
        "inspect",
        "measure",
        "rank",
        "read",
        "report",
        "run",
        "screen",
        "signatures",
        "steer",
        "train",
        "upload",
        "world build",
    ]


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_help_with_an_example_a_seed_and_a_device(words: str) -> None:
    result = CliRunner().invoke(app, [*words.split(), "--help"])
    assert result.exit_code == 0
    assert f"Example:\n    sae-persona {words} " in result.stdout
    assert "--seed S" in result.stdout
    assert "--device DEVICE" in result.stdout


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_and_argument_is_explained(words: str) -> None:
    assert [parameter.name for parameter in COMMANDS[words].params if not parameter.help] == []


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_refuses_an_option_it_does_not_know(words: str, refused: Callable[..., str]) -> None:
    assert refused(*words.split(), "--sede", 1).startswith("error: No such option: --sede")


def test_help_loads_nothing_heavy_and_takes_less_than_a_second() -> None:
    script = (
        "import sys, time; start = time.process_time()\n"
        "from sae_persona.cli import app\n"
        "try: app(['steer', '--help'])\n"
        "except SystemExit: pass\n"
        "spent = time.process_time() - start\n"
        f"print([name for name in {HEAVY[:5]} if name in sys.modules], spent < 1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[] True\n")


def test_the_program_says_its_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("sae-persona 0.")


def test_a_user_error_of_the_installed_program_is_one_line_and_status_2() -> None:
    command = [
        sys.executable,
        "-m",
        "sae_persona",
        "cache",
        "nowhere/at/all",
        "--data",
        "x",
        "--hook",
        "y",
        "--out",
        "z",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: 'nowhere/at/all' does not exist")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing command. Try 'sae-persona --help'."),
        ("world", "Missing command. Try 'sae-persona world --help'."),
        ("stear", "No such command 'stear'. Did you mean 'steer'?"),
        ("rank", "Missing argument 'SAE'. Try 'sae-persona rank --help'."),
        ("evaluate m --prompts p --judge j", "Missing option '--out'."),
        ("cache m --data d --hook h --out o --dtype int8", "'int8' is not one of 'float32', 'float16', 'bfloat16'"),
        ("steer m --latent x", "Invalid value for '--latent': Input should be a valid integer"),
        ("evaluate m --seed -1", "Invalid value for '--seed': Input should be greater than or equal to 0"),
    ],
)
def test_what_cannot_be_parsed_is_said_in_one_line(arguments: str, message: str, refused: Callable[..., str]) -> None:
    assert message in refused(*arguments.split())


def door_to(raised: BaseException) -> typer.Typer:
    """A program whose only command raises."""
    program = typer.Typer(cls=Door, rich_markup_mode=None, pretty_exceptions_enable=False)

    @program.callback()
    def group() -> None: ...

    @program.command()
    def go() -> None:
        raise raised

    return program


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (HookError("hook 'x' is\nnone; nearest: 'y'."), "error: hook 'x' is none; nearest: 'y'.\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x"),
            "error: out/x: No space left on device. Check the path, its permissions and the space that is left.\n",
        ),
        (MemoryError(), "error: out of memory. Lower the batch size, or run on a larger device.\n"),
        (torch.OutOfMemoryError("CUDA"), "error: out of memory. Lower the batch size, or run on a larger device.\n"),
    ],
)
def test_what_the_user_can_mend_is_one_line(raised: Exception, line: str) -> None:
    result = CliRunner().invoke(door_to(raised), ["go"])
    assert (result.exit_code, result.stderr, result.stdout) == (2, line, "")


@pytest.mark.parametrize("raised", [KeyError("ours"), RuntimeError("ours"), AssertionError("ours")])
def test_our_own_mistakes_keep_their_traceback(raised: Exception) -> None:
    assert CliRunner().invoke(door_to(raised), ["go"]).exception is raised


def test_an_interrupted_command_ends_with_status_130_and_no_traceback() -> None:
    result = CliRunner().invoke(door_to(KeyboardInterrupt()), ["go"])
    assert (result.exit_code, result.output) == (130, "")
