"""`python -m benchmarks` runs the sections it is asked for, and a rival takes the steps of its own trainer."""

import importlib.util
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import nn

from sae_persona.sae.config import TrainConfig
from sae_persona.steering.record import ScreenedLatent

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
    assert {"torch", "sae-lens"} <= set(kept["versions"])


def test_an_unknown_section_is_one_line_and_status_2(tmp_path: Path) -> None:
    runner = copy_runner(tmp_path)
    (runner / "adding.py").write_text("")
    done = benchmarks(tmp_path, "multiplying")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no benchmark section is called 'multiplying'; there are: adding.\n"


def test_a_device_is_for_sections_that_take_one_and_machines_that_have_it(tmp_path: Path) -> None:
    runner = copy_runner(tmp_path)
    (runner / "adding.py").write_text("def run():\n    yield {}\n")
    (runner / "matmul.py").write_text('def run(device="cpu"):\n    yield {"on": device}\n')
    assert " cpu " in benchmarks(tmp_path, "matmul").stdout
    done = benchmarks(tmp_path, "adding", "--device", "cuda")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: section 'adding' measures a CPU only; leave out --device cuda.\n"
    if not torch.cuda.is_available():
        done = benchmarks(tmp_path, "--device", "cuda")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: PyTorch finds no CUDA device here; leave out --device cuda.\n"


def test_korn_and_graubards_interval_is_clopper_and_pearsons_of_the_effective_size() -> None:
    from benchmarks.intervals import korn_graubard

    # One answer to each of 50 questions, 20 hits: tables give 0.2641 to 0.5482.
    alone = (np.arange(50) < 20)[:, None]
    assert korn_graubard(alone) == pytest.approx((0.2641, 0.5482), abs=1e-4)
    # No hit: n_eff = 10 * (2.2622 / 2.7764)^2 = 6.639, and 1 - 0.025^(1 / n_eff) is the bound.
    assert korn_graubard(np.zeros((5, 2), dtype=bool)) == pytest.approx((0, 1 - 0.025 ** (1 / 6.639)), abs=1e-4)
    # Ten times the same answer is worth one: n_eff = 500 / (499 / 49) * (1.9647 / 2.0096)^2 = 46.93.
    assert korn_graubard(alone.repeat(10, axis=1)) == pytest.approx(clopper_pearson(0.4 * 46.93, 46.93), abs=1e-4)


def test_students_t_over_questions_tells_a_mean_from_0_by_its_margin() -> None:
    from benchmarks.intervals import student_differs

    # Mean 2, standard deviation 1, so t = 2 / (1 / sqrt(3)) = 3.46; the bound of 2 degrees of freedom is 4.30.
    assert not student_differs(np.array([1.0, 2.0, 3.0]))
    # Mean 3: t = 5.20.
    assert student_differs(np.array([2.0, 3.0, 4.0]))
    assert not student_differs(np.zeros(3))


def clopper_pearson(hits: float, n: float) -> tuple[float, float]:
    return float(beta.ppf(0.025, hits, n - hits + 1)), float(beta.ppf(0.975, hits + 1, n - hits))


class OneLayer(nn.Module):
    """What sparsify's trainer takes for a model: `blk` puts out a row of a table for each token."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.base_model = nn.Sequential()
        self.base_model.add_module("embed", nn.Embedding.from_pretrained(table))
        self.base_model.add_module("blk", nn.Identity())
        self.config, self.device = types.SimpleNamespace(num_hidden_layers=1), torch.device("cpu")
        self.dummy_inputs = {"x": torch.zeros(1, 2, dtype=torch.long)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_model(x)


@pytest.mark.skipif(importlib.util.find_spec("sparsify") is None, reason="eai-sparsify is not installed")
@pytest.mark.parametrize("optimiser", ["signum", "adam"])
def test_sparsifys_step_is_that_of_its_own_trainer(
    optimiser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from benchmarks._sparsify import SparsifyTrainer, default_rate

    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(100, 16, generator=generator)
    ids = torch.randint(0, 100, (40, 8, 8), generator=generator)  # [step, document, token]
    config = TrainConfig(d_sae=64, k=4, batch_size=64, n_tokens=ids.numel(), dead_after_tokens=192, seed=3)
    ours = SparsifyTrainer(16, config, optimiser, default_rate(optimiser, 64))
    for of_step in ids:
        ours.advance(table[of_step.flatten()])
    ours.finish()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sparsify import SparseCoderConfig, Trainer
        from sparsify import TrainConfig as TheirConfig

        settings = TheirConfig(
            SparseCoderConfig(num_latents=64, k=4),
            batch_size=8,
            optimizer=optimiser,
            lr_warmup_steps=2,
            auxk_alpha=config.aux_coefficient,
            dead_feature_threshold=192,
            hookpoints=["blk"],
            init_seeds=[3],
            log_to_wandb=False,
        )
        data = datasets.Dataset.from_dict({"input_ids": ids.flatten(0, 1).tolist()}).with_format("torch")
        trainer = Trainer(settings, data, OneLayer(table))
        trainer.fit()
    for optimizer in trainer.optimizers:
        if hasattr(optimizer, "eval"):
            optimizer.eval()
    assert (trainer.num_tokens_since_fired["blk"] > 192).any()  # the auxiliary loss was at work
    for theirs, own in zip(trainer.saes["blk"].parameters(), ours.sae.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("induced", "place"), [(0.02, 30), (0.0, "none")])
def test_a_latent_that_induces_nothing_has_no_place_in_the_screen(induced: float, place: object) -> None:
    from benchmarks.screening import as_row

    row = ScreenedLatent(30, 7, 1, "none", induced, 1.0, None, 0.1, -1.0, 0.2, 1.0)
    assert as_row(row, "villain")["place in screen"] == place
