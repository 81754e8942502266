"""Run the benchmark sections: `python -m benchmarks [SECTION …]`.

A section is a file `benchmarks/NAME.py`: a docstring whose first line says what is measured, and a function
`run() -> Iterable[Mapping[str, object]]` that yields one row of its table at a time. The rows are also written to
`runs/bench/NAME.json`.
"""

import contextlib
import importlib
import importlib.metadata
import json
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table


def section_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name[0] != "_")


def as_table(rows: Iterable[Mapping[str, object]]) -> Table:
    table = Table()
    for i, row in enumerate(rows):
        if i == 0:
            for column in row:
                table.add_column(column)
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def write_rows(name: str, rows: list[Mapping[str, object]]) -> None:
    """Keep the rows with the versions that were measured; values JSON has no number for become text."""
    import torch

    versions = {package: importlib.metadata.version(package) for package in ("torch", "sae-lens")}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["eai-sparsify"] = importlib.metadata.version("eai-sparsify")
    path = Path("runs/bench") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [{key: value if value == value else "nan" for key, value in row.items()} for row in rows]
    path.write_text(json.dumps({"versions": versions, "threads": torch.get_num_threads(), "rows": kept}, indent=1))


def main(wanted: list[str]) -> int:
    known = section_names()
    if not known:
        print("There is no benchmark section yet. A section is a file benchmarks/NAME.py with a function run().")
        return 0
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"error: no benchmark section is called {unknown[0]!r}; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    for name in wanted or known:
        section = importlib.import_module(f"benchmarks.{name}")
        print(f"{name}: {(section.__doc__ or '').partition(chr(10))[0]}")
        rows = list(section.run())
        Console().print(as_table(rows))
        write_rows(name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
