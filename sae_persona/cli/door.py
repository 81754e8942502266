"""Where commands are registered, and where everything that the user can mend becomes one line and status 2."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from sae_persona.errors import SaePersonaError

PROGRAM = "sae-persona"


class Door(TyperGroup):
    """A group of commands that shows neither usage boxes nor tracebacks for what the user can mend."""

    def main(
        self,
        args: Sequence[str] | None = None,
        *_: Any,
        **others: Any,
    ) -> NoReturn:
        """Run one command and exit: 0 done, 2 the user's error, 130 interrupted."""
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:
                    warnings.simplefilter("ignore")  # the libraries' talk among themselves; python -W brings it back
                status = super().main(args, **{**others, "prog_name": PROGRAM, "standalone_mode": False})
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            hint = f" Try '{context.command_path} --help'." if context else ""
            fail(f"{error.format_message().rstrip('.')}.{hint}")
        except SaePersonaError as error:
            fail(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}. Check the path, its permissions and the space that is left.")
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            fail("out of memory. Lower the batch size, or run on a larger device.")
        sys.exit(status or 0)


def fail(message: str) -> NoReturn:
    """Say what is wrong on one line and exit with status 2."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def example(command: str) -> str:
    """What stands below a command's options; lines of the command are kept as they are."""
    lines = "\n".join(f"  {line}" for line in command.strip().splitlines())
    return f"\b\nExample:\n{lines}"


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


app = typer.Typer(cls=Door, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {import_module('sae_persona').__version__}")
        raise typer.Exit


@app.callback()
def everything(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find the SAE latents behind a model's personas, prove that they cause them, watch them and undo them."""
