"""`run` and `report`: a whole study from a file, and its page."""

from pathlib import Path
from typing import Annotated

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import CpuOnly, Out, Overrides, SettingsSeed, UnusedSeed, check_cpu, with_seed
from sae_persona.cli.show import hush, stages


@app.command(
    epilog=example("sae-persona run experiments/persona_world.yaml --set world=runs/world-0 --out runs/persona_world")
)
def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study; unknown keys are errors.")],
    out: Out,
    overrides: Overrides = None,
    seed: SettingsSeed = None,
    device: CpuOnly = "cpu",
) -> None:
    """Run a study from end to end, or go on with it.

    Writes summary.json and report.html; finished stages are not run again.
    """
    check_cpu(device)
    from rich.console import Console

    from sae_persona.report.html import write_report
    from sae_persona.report.summary import read_summary
    from sae_persona.report.table import terminal_table
    from sae_persona.study.config import load_config
    from sae_persona.study.run import SUMMARY, run_study

    hush()
    config = load_config(study, with_seed(overrides, "seed", seed))
    with stages() as announce:
        run_study(config, out, announce=announce)
    page = write_report(out)
    Console().print(terminal_table(read_summary(out)))
    typer.echo(f"{out / SUMMARY}\n{page}")


@app.command(epilog=example("sae-persona report runs/persona_world"))
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `sae-persona run` wrote.")],
    _seed: UnusedSeed = 0,
    device: CpuOnly = "cpu",
) -> None:
    """Write the report.html of a run anew."""
    check_cpu(device)
    from sae_persona.report.html import write_report

    typer.echo(write_report(folder))
