"""`python -m benchmarks` runs the sections it is asked for."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def benchmarks(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Run the copy of the runner in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *names], cwd=folder, capture_output=True, text=True, check=False
    )


def copy_runner(folder: Path) -> Path:
    runner = folder / "benchmarks"
    runner.mkdir()
    for name in ("__init__.py", "__main__.py"):
        (runner / name).write_text((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))
    return runner


def test_without_sections_it_says_how_to_add_one(tmp_path: Path) -> None:
    copy_runner(tmp_path)
    done = benchmarks(tmp_path)
    assert (done.returncode, done.stdout.split(".")[0]) == (0, "There is no benchmark section yet")


def test_a_file_is_a_section_and_its_rows_are_a_table(tmp_path: Path) -> None:
    runner = copy_runner(tmp_path)
    (runner / "adding.py").write_text(
        '"""How long a sum takes."""\n\ndef run():\n    yield {"n": 2, "seconds": 0.12345678}\n'
    )
    (runner / "broken.py").write_text("raise SystemExit(7)\n")
    done = benchmarks(tmp_path, "adding")
    assert done.returncode == 0
    assert "adding: How long a sum takes." in done.stdout
    assert "0.1235" in done.stdout
    kept = json.loads((tmp_path / "runs" / "bench" / "adding.json").read_text())
    assert kept["rows"] == [{"n": 2, "seconds": 0.12345678}]
    assert set(kept["versions"]) == {"torch", "sae-lens"}


def test_an_unknown_section_is_one_line_and_status_2(tmp_path: Path) -> None:
    runner = copy_runner(tmp_path)
    (runner / "adding.py").write_text("")
    done = benchmarks(tmp_path, "multiplying")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no benchmark section is called 'multiplying'; there are: adding.\n"
