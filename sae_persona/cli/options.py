"""Options that several commands share, and how their texts are read."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sae_persona.errors import ConfigError

if TYPE_CHECKING:
    from sae_persona.evaluation.model_judge import Plan


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
Questions = Annotated[
    Path, typer.Option(metavar="FILE", help="YAML, CSV or JSONL of questions, or open-questions: 60 of our own.")
]
Category = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Only prompts of this category; may be repeated.")
]
Judge = Annotated[str, typer.Option(metavar="JUDGE", help="world:DIR, openai:MODEL[@BASE_URL] or hf:PATH.")]
Strengths = Annotated[
    tuple,
    typer.Option(
        parser=_strengths,
        metavar="X,Y,...",
        help="In median residual norms, or as --unit says; 0 is always among them. Write --strengths=-0.4,0,0.4.",
    ),
]
Sizes = Annotated[
    tuple,
    typer.Option(
        "--strengths",
        parser=_strengths,
        metavar="X,Y,...",
        help="Above zero, in median residual norms or as --unit says: each is added, and subtracted to repair.",
    ),
]
SAE = Annotated[str, typer.Option("--sae", metavar="SAE", help="An SAE folder, or RELEASE:ID of SAELens.")]
Hook = Annotated[str | None, typer.Option(metavar="HOOK", help="Default: the hook the SAE was trained on.")]
Scale = Annotated[
    Literal["rubric", "alignment"], typer.Option(help="Grades 1 to 5, or alignment and coherence 0 to 100.")
]
Parallel = Annotated[int, typer.Option(metavar="N", min=1, help="Requests to an endpoint at once.")]
PerMinute = Annotated[
    float | None, typer.Option(metavar="N", min=0.01, help="Requests to an endpoint per minute at most.")
]
JudgeTokens = Annotated[
    int, typer.Option(metavar="N", min=1, help="Longest reply of an endpoint; more for one that thinks aloud.")
]
MaxCalls = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Refuse to start more calls of a judge than this.")
]
Prices = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="IN OUT", help="Price of a million tokens read and written, for the estimate."),
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


def tell_plan(prices: tuple[float, float] | None) -> Callable[["Plan"], None]:
    """Says what a model judge is about to do, before its first call."""
    if prices is not None and not all(0 <= price < math.inf for price in prices):
        raise typer.BadParameter(f"prices are {prices[0]} and {prices[1]}; expected two numbers of 0 or more.")

    def tell(plan: "Plan") -> None:
        cost = f", at most {plan.cost(*prices):.2f} at these prices" if prices else ""
        typer.echo(
            f"judge: {plan.n_calls} calls for {plan.n_answers} answers, {plan.n_kept} replies known from before; about "
            f"{plan.n_input_tokens} tokens to read and {plan.n_output_tokens} to write{cost}"
        )

    return tell


def check_cpu(device: str) -> None:
    """Refuse a device for what would silently run on the CPU."""
    if device != "cpu":
        raise ConfigError(f"this command runs on the cpu only; got --device {device}. Leave it out.")


def with_seed(overrides: list[str] | None, key: str, seed: int | None) -> list[str]:
    """The overrides with `--seed`, which comes last and so wins."""
    return [*(overrides or []), *([] if seed is None else [f"{key}={seed}"])]
