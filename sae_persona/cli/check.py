"""`inspect` and `doctor`: what is this, is it whole, and does it fit?"""

from pathlib import Path
from typing import Annotated

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import CpuOnly, Device, Model, Seed, UnusedSeed, check_cpu
from sae_persona.cli.show import columns, hush
from sae_persona.errors import IncompatibleError


@app.command("inspect", epilog=example("sae-persona inspect acts.h5"))
def inspect_(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A cache, SAE, model, ranking, world, run, ...")],
    _seed: UnusedSeed = 0,
    device: CpuOnly = "cpu",
) -> None:
    """Say what a file or folder is, and verify that it is whole."""
    check_cpu(device)
    from sae_persona.study.commands.inspect import inspect_path

    hush()
    found = inspect_path(path)
    typer.echo(f"{path}: {found.kind}, whole")
    columns([[f"  {name}", fact] for name, fact in found.facts.items()])


@app.command(epilog=example("sae-persona doctor runs/world-0/aligned --sae sae"))
def doctor(
    model: Model,
    sae: Annotated[str | None, typer.Option(metavar="SAE", help="An SAE that should fit the model.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Check that a model, and an SAE for it, can be used.

    The model must load, be hooked, tokenise, render chats and honour padding; the SAE must fit it.
    """
    from sae_persona.study.commands import doctor as examination

    hush()
    checks = examination.doctor(model, sae_source=sae, device=device, seed=seed)
    for check in checks:
        typer.echo(f"{'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.finding}")
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise IncompatibleError(f"{model} failed {len(failed)} of {len(checks)} checks: {', '.join(failed)}.")
