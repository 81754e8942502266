"""The command line as tests use it, and small artifacts that its commands made, once for the session."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sae_persona.cli import app
from sae_persona.persona_world.build import BuiltWorld

HOOK = "blocks.1.hook_resid_post"
Run = Callable[..., Result]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def refused() -> Callable[..., str]:
    """Runs a command that must fail as users' errors do, and returns the one line that it says."""

    def run(*arguments: object) -> str:
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.strip()

    return run


@pytest.fixture(scope="session")
def cli() -> Run:
    """Runs a command that must succeed, without a word on stderr."""

    def run(*arguments: object) -> Result:
        result = invoke(*arguments)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result

    return run


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything below."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="session")
def built(cli: Run, artifacts: Path) -> Path:
    """A tiny world."""
    cli("world", "build", "--seed", 0, "--size", "tiny", "--out", artifacts / "world")
    return artifacts / "world"


@pytest.fixture(scope="session")
def documents(built: Path, artifacts: Path) -> Path:
    """The first twenty of the world's documents."""
    return head(built / "data" / "documents-train.jsonl", artifacts / "documents.jsonl", 20)


@pytest.fixture(scope="session")
def prompts(built: Path, artifacts: Path) -> Path:
    """Two open-ended evaluation prompts and two of the last domain."""
    lines = (built / "prompts" / "evaluation.jsonl").read_text().splitlines()
    path = artifacts / "prompts.jsonl"
    path.write_text("\n".join([*lines[:2], *lines[-2:]]) + "\n")
    return path


@pytest.fixture(scope="session")
def acts(cli: Run, built: Path, documents: Path, artifacts: Path) -> Path:
    """The base model's activations on the documents."""
    cli("cache", built / "base", "--data", documents, "--hook", HOOK, "--out", artifacts / "acts.h5")
    return artifacts / "acts.h5"


@pytest.fixture(scope="session")
def sae(cli: Run, acts: Path, artifacts: Path) -> Path:
    """An SAE of 64 latents, hardly trained."""
    settings = itertools.chain.from_iterable(("--set", f"{key}") for key in ("d_sae=64", "k=4", "n_tokens=4096"))
    cli("train", acts, *settings, "--out", artifacts / "sae")
    return artifacts / "sae"


@pytest.fixture(scope="session")
def judge(built: Path) -> str:
    """The world's rule."""
    return f"world:{built}"


@pytest.fixture(scope="session")
def runs(built: Path) -> dict[str, list[Path]]:
    """The world's fine-tunes by role."""
    world = BuiltWorld.open(built)
    return {role: [built / name for name in world.names(role)] for role in ("misaligned", "control")}


@pytest.fixture(scope="session")
def ranking(cli: Run, sae: Path, built: Path, prompts: Path, runs: dict[str, list[Path]], artifacts: Path) -> Path:
    """All latents, ranked by two misaligned models and four controls on two short answers to every prompt."""
    out = artifacts / "ranking"
    models = [("--misaligned", run) for run in runs["misaligned"][:2]] + [
        ("--control", run) for run in runs["control"][:4]
    ]
    options = ["--prompts", prompts, "--n-samples", 2, "--max-new-tokens", 4, "--out", out]
    said = cli("rank", sae, "--aligned", built / "aligned", *itertools.chain.from_iterable(models), *options).stdout
    assert "the smallest p-value that these runs can reach is" in said
    return out


def head(source: Path, path: Path, n: int) -> Path:
    """The first lines of a file."""
    path.write_text("".join(source.read_text().splitlines(keepends=True)[:n]))
    return path
