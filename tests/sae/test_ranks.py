"""Two processes train what one does, whether they split the tokens or the latents."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_persona.cache.reader import ActivationCache
from sae_persona.errors import ConfigError
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.ranks import ALONE, Ranks, torchrun_ranks
from sae_persona.sae.train import train_sae

HOOK = "blocks.0.hook_resid_post"
CONFIG = {"d_sae": 48, "k": 2, "n_tokens": 100 * 64, "batch_size": 64, "lr": 3e-3, "dead_after_tokens": 192}
VARIANTS = {
    "topk": {"aux_tokens": 40},
    "batchtopk": {"architecture": "batchtopk"},
    "bfloat16": {"select_in": "bfloat16"},
}
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from sae_persona.cache.reader import ActivationCache
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.ranks import Ranks, torchrun_ranks
from sae_persona.sae.train import train_sae

torch.set_num_threads(1)
cache, out, configs = ActivationCache.open(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
with torchrun_ranks("tokens") as ranks:
    for split in ("tokens", "latents"):
        for name, config in configs.items():
            records = []
            sae = train_sae(
                cache, "blocks.0.hook_resid_post", TrainConfig(**config), log=records.append, ranks=Ranks(split),
                checkpoint=out / f"{split}-{name}.state",
            )
            assert bool(records) == (ranks.rank == 0)
            if ranks.rank == 0:
                save_file(sae.state_dict(), out / f"{split}-{name}.safetensors")
                (out / f"{split}-{name}.json").write_text(json.dumps(records))
"""
"""Two splits of every variant in one launch, as starting a process takes longer than the training."""


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(600, 16, generator=generator) @ torch.randn(16, 16, generator=generator)


@pytest.mark.slow
def test_two_processes_follow_the_loss_curve_of_one(
    cache_of: Callable[[Tensor], ActivationCache], tmp_path: Path
) -> None:
    cache = cache_of(rows())
    configs = {name: CONFIG | change for name, change in VARIANTS.items()}
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [tmp_path / "script.py", cache.path, tmp_path, json.dumps(configs)]
    done = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, config in configs.items():
        records: list[dict] = []
        state = tmp_path / f"{name}.state"
        alone = train_sae(cache, HOOK, TrainConfig(**config), log=records.append, checkpoint=state)
        assert records[0]["losses/auxiliary_reconstruction_loss"] > 0  # some latents were dead
        # Sums in another order: roundings, which training makes larger. In bfloat16 many latents tie, and another wins.
        tolerance = 0.1 if name == "bfloat16" else 0.01
        for split in ("tokens", "latents"):
            case = f"{split}-{name}"
            found = json.loads((tmp_path / f"{case}.json").read_text())
            for key in ("losses/overall_loss", "metrics/explained_variance", "metrics/l0"):
                assert [r[key] for r in found] == pytest.approx([r[key] for r in records], rel=tolerance), (case, key)
            weights = load_file(tmp_path / f"{case}.safetensors")
            assert weights.keys() == alone.state_dict().keys()
            if name != "bfloat16":
                close = (weights["W_dec"] - alone.W_dec).abs().amax(-1) < 0.02
                assert close.float().mean() > 0.9, case
            kept = load_file(tmp_path / f"{case}.state")
            assert {key: t.shape for key, t in kept.items()} == {key: t.shape for key, t in load_file(state).items()}


def test_one_process_alone_shares_nothing() -> None:
    x = torch.arange(6.0).view(3, 2)
    assert (ALONE.n, ALONE.rank) == (1, 0)
    assert ALONE.own_tokens(x) is ALONE.own_latents(x) is ALONE.all_latents(x) is ALONE.sum(x, over="tokens") is x


def test_what_does_not_split_evenly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "n", 3)
    Ranks("tokens").check(batch_size=9, d_sae=4)
    with pytest.raises(ConfigError, match=r"batch_size=8.*3 processes"):
        Ranks("tokens").check(batch_size=8, d_sae=9)
    with pytest.raises(ConfigError, match=r"d_sae=4.*3 processes"):
        Ranks("latents").check(batch_size=9, d_sae=4)


def test_without_torchrun_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="torchrun"), torchrun_ranks("tokens"):
        pass
