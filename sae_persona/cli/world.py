"""`world build`: a small world whose personas are planted."""

from typing import Annotated, Literal

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import CpuOnly, Out, check_cpu
from sae_persona.cli.show import bars, hush

world = typer.Typer(help="Small models whose personas are planted and known.", rich_markup_mode=None)
app.add_typer(world, name="world")


@world.callback()
def group() -> None:
    """Small models whose personas are planted and known."""


@world.command("build", epilog=example("sae-persona world build --seed 0 --size tiny --out runs/world-0"))
def build(
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Which world.")],
    out: Out,
    size: Annotated[
        Literal["tiny", "small"],
        typer.Option(help="`small` is what figures are about; `tiny` only exercises the path."),
    ] = "small",
    null: Annotated[bool, typer.Option("--null", help="A world without personas: nothing is to be found.")] = False,
    device: CpuOnly = "cpu",
) -> None:
    """Draw a language, train its models, write data and prompts.

    A killed build goes on where it stopped.
    """
    check_cpu(device)
    from sae_persona.persona_world.build import build_world

    hush()
    with bars() as progress:
        built = build_world(seed, out, size=size, null=null, progress=progress)
    typer.echo(f"world {seed} ({size}) in {out}: base, aligned and {len(built.runs)} fine-tunes")
