"""The command line: the door, no logic. Commands import what is heavy when they run."""

# In the order in which the help lists them.
from sae_persona.cli import world as _world  # noqa: F401, I001
from sae_persona.cli import learn as _learn  # noqa: F401
from sae_persona.cli import rank as _rank  # noqa: F401
from sae_persona.cli import persona as _persona  # noqa: F401
from sae_persona.cli import trial as _trial  # noqa: F401
from sae_persona.cli import read as _read  # noqa: F401
from sae_persona.cli import study as _study  # noqa: F401
from sae_persona.cli import check as _check  # noqa: F401
from sae_persona.cli.door import app


def main() -> None:
    """Run the command that was asked for."""
    app()
