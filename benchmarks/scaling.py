"""What two processes of a `torchrun` add to one: training steps, both ways to split them, and writing a cache.

Each process has one thread and gloo between it and the others; the batch, the dictionary and the documents are the
same for any number of processes. Only steps and batches are timed, not the start of the processes. `ratio` is the
median over rounds of the rate over that of one process in the same round, `low` and `high` its extremes; it means
something where every process has a core of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.cache import CONTEXT, HOOK, build_model, random_documents
from sae_persona.cache.shards import write_shards
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.learner import Learner
from sae_persona.sae.ranks import Ranks, torchrun_ranks

N_RANKS = (1, 2)
N_ROUNDS = 3
D_IN, D_SAE, K, BATCH, N_STEPS = 512, 8192, 32, 4096, 3
N_DOCUMENTS = 96
SIZES = "SCALING_SIZES"
"""Environment variable with other sizes, JSON by the names above, for the processes too."""
globals().update(json.loads(os.environ.get(SIZES, "{}")))


def run() -> Iterator[Mapping[str, object]]:
    rounds = [{n: launched(n) for n in N_RANKS} for _ in range(N_ROUNDS)]
    for work in rounds[0][N_RANKS[0]]:
        for n in N_RANKS:
            ratios = [one[n][work] / one[N_RANKS[0]][work] for one in rounds]
            yield {
                "what": work,
                "processes": n,
                "tokens/s": statistics.median(one[n][work] for one in rounds),
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }


def launched(n: int) -> dict[str, float]:
    """Tokens per second by work, as `n` processes do it together.

    Raises:
        RuntimeError: they failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        command = [*launch, "-m", "benchmarks.scaling", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{n} processes ended with status {done.returncode}: {done.stderr[-2000:]}")
        return json.loads((Path(folder) / "rates.json").read_text())


def work(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    with torchrun_ranks("tokens") as ranks:
        rates = {f"training, {split} split": training(Ranks(split)) for split in ("tokens", "latents")}
        rates["cache"] = caching(folder)
        if ranks.rank == 0:
            (folder / "rates.json").write_text(json.dumps(rates))


def training(ranks: Ranks) -> float:
    config = TrainConfig(d_sae=D_SAE, k=K, batch_size=BATCH, n_tokens=BATCH * 100)
    learner = Learner.begin(D_IN, config, torch.device("cpu"), ranks=ranks)
    z = ranks.own_tokens(torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0)))
    learner.advance(z)
    dist.barrier()
    started = time.perf_counter()
    for _ in range(N_STEPS):
        learner.advance(z)
    dist.barrier()
    return BATCH * N_STEPS / (time.perf_counter() - started)


def caching(folder: Path) -> float:
    model, documents = build_model(), random_documents(N_DOCUMENTS)
    dist.barrier()
    started = time.perf_counter()
    write_shards(model, documents, folder / "acts.h5", hook_names=[HOOK], batch_size=8)
    return N_DOCUMENTS * CONTEXT / (time.perf_counter() - started)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
