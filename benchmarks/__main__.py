"""Run the benchmark sections: `python -m benchmarks [--device DEVICE] [SECTION …]`.

A section is a file `benchmarks/NAME.py`: a docstring whose first line says what is measured, and a function
`run() -> Iterable[Mapping[str, object]]` that yields one row of its table at a time; one that can measure a GPU too has
`run(device)`. Every row is told on stderr as it comes, and all so far are in `runs/bench/NAME.json`, of a GPU in
`runs/bench/NAME-cuda.json`, so that a section that is stopped leaves what it has measured.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "triton", "sae-lens", "transformer-lens", "eai-sparsify")
"""Whose versions are kept with the rows, where they are installed."""


def section_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name[0] != "_")


def as_table(rows: Iterable[Mapping[str, object]]) -> Table:
    table = Table()
    for i, row in enumerate(rows):
        if i == 0:
            for column in row:
                table.add_column(column)
        table.add_row(*as_cells(row))
    return table


def as_cells(row: Mapping[str, object]) -> list[str]:
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]


def setting(device: str) -> dict[str, object]:
    """What the rows were measured with and on."""
    import torch

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    of_gpu = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if device == "cuda" else {}
    return {"versions": versions, "threads": torch.get_num_threads(), **of_gpu}


def write_rows(name: str, rows: list[Mapping[str, object]], device: str) -> None:
    """Keep the rows with the setting; values JSON has no number for become text."""
    path = Path("runs/bench") / f"{name}{'-cuda' * (device == 'cuda')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [{key: value if value == value else "nan" for key, value in row.items()} for row in rows]
    path.write_text(json.dumps({**setting(device), "rows": kept}, indent=1))


def takes_device(section: ModuleType) -> bool:
    return "device" in inspect.signature(section.run).parameters


def main(arguments: list[str]) -> int:
    known = section_names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against named rivals.")
    parser.add_argument("sections", metavar="SECTION", nargs="*", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    options = parser.parse_args(arguments)
    if not known:
        print("There is no benchmark section yet. A section is a file benchmarks/NAME.py with a function run().")
        return 0
    unknown = [name for name in options.sections if name not in known]
    if unknown:
        print(f"error: no benchmark section is called {unknown[0]!r}; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    sections = {name: importlib.import_module(f"benchmarks.{name}") for name in options.sections or known}
    if options.device == "cuda":
        import torch

        for_cpu = [name for name, section in sections.items() if not takes_device(section)]
        if options.sections and for_cpu:
            print(f"error: section {for_cpu[0]!r} measures a CPU only; leave out --device cuda.", file=sys.stderr)
            return 2
        if not torch.cuda.is_available():
            print("error: PyTorch finds no CUDA device here; leave out --device cuda.", file=sys.stderr)
            return 2
        sections = {name: section for name, section in sections.items() if name not in for_cpu}
    for name, section in sections.items():
        print(f"{name}: {(section.__doc__ or '').partition(chr(10))[0]}")
        rows: list[Mapping[str, object]] = []
        for row in section.run(options.device) if takes_device(section) else section.run():
            rows.append(row)
            write_rows(name, rows, options.device)
            print("  ", *as_cells(row), sep=" | ", file=sys.stderr)
        Console().print(as_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
