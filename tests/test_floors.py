"""Imports point down. The table that is enforced is the one in docs/architecture.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sae_persona"
SLOW = {"sae_lens", "transformer_lens", "wandb"}
"""Each takes seconds to import, and most uses of the package need none of them."""
EXTRAS = {"openai", "tenacity", "peft", "accelerate", "nbclient", "ipykernel"}
"""Installed only with an extra."""


class Import(NamedTuple):
    """One import statement of one file."""

    where: str
    module: str
    on_import: bool
    """True = runs when the file is imported; False = inside a function or for type checkers only."""


def floors() -> tuple[dict[str, int], set[tuple[str, str]]]:
    """The floor of every part of the package, and the pairs (importer, imported) allowed within one floor."""
    floor_of: dict[str, int] = {}
    allowed: set[tuple[str, str]] = set()
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| (\d) \| ([^|]*) \|", line)
        for cell in re.findall(r"`([^`]*)`", row[2]) if row else ():
            if "→" in cell:
                importers, imported = (side.split(",") for side in cell.split("→"))
                allowed |= {(one.strip(), other.strip()) for one in importers for other in imported}
            else:
                floor_of[cell] = int(row[1])  # pyright: ignore[reportOptionalSubscript]
    return floor_of, allowed


def imports(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, on_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            where = f"{path.relative_to(ROOT)}:{getattr(child, 'lineno', 0)}"
            if isinstance(child, ast.Import):
                yield from (Import(where, alias.name, on_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{where}: write the whole name of what is imported"
                if child.module == "sae_persona":
                    yield from (Import(where, f"sae_persona.{alias.name}", on_import) for alias in child.names)
                else:
                    yield Import(where, child.module or "", on_import)
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            )
            yield from walk(child, on_import and not deferred)

    return walk(ast.parse(path.read_text(encoding="utf-8")), True)


def part_of(path: Path) -> str:
    """`model` for sae_persona/model/load.py, `stats` for sae_persona/stats.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_files() -> list[Path]:
    """Every file of the package but its front door, which names things of all floors and imports them when asked."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_the_table_of_floors_is_read_whole() -> None:
    floor_of, allowed = floors()
    assert set(floor_of.values()) == set(range(9))
    assert (floor_of["types"], floor_of["cache"], floor_of["cli"]) == (0, 2, 8)
    assert ("model", "data") in allowed
    assert ("data", "model") not in allowed


def test_every_file_of_the_package_belongs_to_a_floor() -> None:
    assert {part_of(path) for path in package_files()} - set(floors()[0]) == set()


def test_imports_point_down_also_those_inside_functions() -> None:
    floor_of, allowed = floors()
    wrong = []
    for path in package_files():
        here = part_of(path)
        for found in imports(path):
            if found.module.split(".")[0] != "sae_persona":
                continue
            there = found.module.split(".")[1]
            if there != here and (here, there) not in allowed and floor_of.get(there, 99) >= floor_of[here]:
                wrong.append(f"{found.where}: {here} (floor {floor_of[here]}) imports {found.module}")
    assert wrong == []


def test_what_is_slow_or_optional_is_imported_where_it_is_used() -> None:
    wrong = [
        f"{found.where}: {found.module}"
        for path in package_files()
        for found in imports(path)
        if found.on_import and found.module.split(".")[0] in SLOW | EXTRAS
    ]
    assert wrong == []


def test_the_package_knows_nothing_of_experiments_notebooks_benchmarks_and_tests() -> None:
    outside = {"experiments", "notebooks", "benchmarks", "tests"}
    wrong = [found for path in package_files() for found in imports(path) if found.module.split(".")[0] in outside]
    assert wrong == []


def test_no_experiment_imports_another() -> None:
    experiments = sorted((ROOT / "experiments").rglob("*.py"))
    names = {path.stem for path in experiments} | {"experiments"}
    wrong = [found for path in experiments for found in imports(path) if found.module.split(".")[0] in names]
    assert wrong == []
