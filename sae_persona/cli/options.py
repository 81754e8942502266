"""Options that several commands share, and how their texts are read."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from sae_persona.errors import ConfigError


def _strengths(text: str) -> tuple[float, ...]:
    values = []
    for part in text.split(","):
        try:
            values.append(float(part))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise typer.BadParameter(f"{part!r} is not a finite number; expected values such as -0.4,0,0.4")
    return tuple(values)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a hub id or a PEFT adapter folder.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")]
Prompts = Annotated[Path, typer.Option(metavar="FILE", help="JSONL of prompts.")]
Judge = Annotated[str, typer.Option(metavar="JUDGE", help="world:DIR, openai:MODEL[@BASE_URL] or hf:PATH.")]
Strengths = Annotated[
    tuple,
    typer.Option(
        parser=_strengths,
        metavar="X,Y,...",
        help="In units of the median residual norm; 0 is always among them. Write --strengths=-0.4,0,0.4.",
    ),
]
Window = Literal["all", "prompt", "header", "answer", "newest"]
Settings = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings; unknown keys are errors.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
]
NSamples = Annotated[int, typer.Option(metavar="N", min=1, help="Answers per prompt.")]
MaxNewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Rows at once; lower it when memory runs out.")]
Seed = Annotated[int, typer.Option(metavar="S", min=0, help="Seeds everything that is drawn.")]
SettingsSeed = Annotated[int | None, typer.Option(metavar="S", min=0, help="Overrides the seed of the settings.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N.")]
UnusedSeed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="As everywhere; nothing is drawn here.")]
CpuOnly = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="As everywhere; this command runs on cpu only.")
]


def check_cpu(device: str) -> None:
    """Refuse a device for what would silently run on the CPU."""
    if device != "cpu":
        raise ConfigError(f"this command runs on the cpu only; got --device {device}. Leave it out.")


def with_seed(overrides: list[str] | None, key: str, seed: int | None) -> list[str]:
    """The overrides with `--seed`, which comes last and so wins."""
    return [*(overrides or []), *([] if seed is None else [f"{key}={seed}"])]
