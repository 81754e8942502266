"""Training steps against the trainers of SAELens and sparsify, and what all have learned from the same tokens.

Speed is of whole optimiser steps at d_in 512, d_sae 8192, k 32, batch 4096, all trainers in turn, round after round;
`ratio` is the median over rounds of a trainer's tokens per second over those of SAELens's dense step in the same
round, `low` and `high` its extremes. In the half-dead case every other latent is silent and counted as dead, so that
the auxiliary loss is at work; the encoder's product alone is what no step can go below. Quality is on planted data
after the same tokens, over three seeds, ours at the default learning rate, each rival at the one of four that has the
highest mean FVE on the very tokens it is shown on; once more from a start at which half of the latents are silent.
Where the processor multiplies bfloat16 (AVX512-BF16, AMX), ours select in it as well, and SAELens runs under its
autocast as well; sparsify's autocast is for CUDA only.

With `--device cuda` the same at that size and at those of Gemma 2 2B and Qwen2.5 7B, one trainer after the other, since
they need its memory; sparsify with TF32 as its trainer sets it. Quality there is on wider planted data, from the usual
start.

EleutherAI's sparsify takes part where `eai-sparsify` is installed.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks import _sparsify
from benchmarks._sparsify import OPTIMISERS, Optimiser, SparsifyTrainer, default_rate
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.learner import Centring, Learner

N_ROUNDS = 3
SEEDS = (0, 1, 2)
BASELINE = "SAELens dense"
SAELENS_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SPARSIFY_RATES: Mapping[Optimiser, tuple[float, ...]] = {"signum": (0.1, 0.3, 1.0, 3.0), "adam": (1.0, 3.0, 10.0, 30.0)}
"""In units of the default that it chooses for the width."""
Step = Callable[[], object]
Measures = Mapping[str, float]


@dataclass(frozen=True)
class Size:
    """What is trained: the SAE, the tokens of a step, and how many steps a round times."""

    d_in: int
    d_sae: int
    k: int
    batch: int
    n_steps: int = 1

    def __str__(self) -> str:
        return f"d_in {self.d_in}, d_sae {self.d_sae}, k {self.k}, batch {self.batch}"

    def config(self, **change: Any) -> TrainConfig:
        """Of a training of a hundred such steps."""
        return TrainConfig(d_sae=self.d_sae, k=self.k, batch_size=self.batch, n_tokens=self.batch * 100, **change)


@dataclass(frozen=True)
class Planted:
    """What is learned: directions of which eight are in a token on average, and for how many steps."""

    n: int
    d_in: int
    batch: int
    n_steps: int


LAPTOP = Size(512, 8192, 32, 4096)
SIZES = {
    "cpu": (LAPTOP,),
    "cuda": (Size(512, 8192, 32, 4096, 30), Size(2304, 65536, 64, 8192, 4), Size(3584, 131072, 64, 8192, 3)),
}
PLANTED = {"cpu": Planted(512, 64, 1024, 300), "cuda": Planted(4096, 512, 4096, 500)}


def run(device: str = "cpu") -> Iterator[Mapping[str, object]]:
    if not _sparsify.is_installed():
        print(_sparsify.MISSING)
    for size in SIZES[device]:
        for case, half_dead in (("none dead", False), ("half dead", True)):
            where = f"{size}, {case}" if len(SIZES[device]) > 1 else f"tokens/s, {case}"
            yield from speed(where, size, torch.device(device), half_dead=half_dead)
    yield from quality(PLANTED[device], torch.device(device))


def speed(case: str, size: Size, device: torch.device, *, half_dead: bool) -> Iterator[dict[str, object]]:
    z = torch.randn(size.batch, size.d_in, generator=torch.Generator().manual_seed(0)).to(device)
    makers = trainers(z, size, half_dead=half_dead)
    rates: dict[str, list[float]] = {name: [] for name in makers}
    # A CPU's pace drifts, so there every trainer has its turn in every round; a GPU's memory holds one at a time.
    groups = [list(makers)] if device.type == "cpu" else [[name] for name in makers]
    for names in groups:
        steps = {name: makers[name]() for name in names}
        for step in steps.values():
            step()
            step()
        for _ in range(N_ROUNDS):
            for name, step in steps.items():
                with timed(device) as seconds:
                    for _ in range(size.n_steps):
                        step()
                rates[name].append(size.n_steps * size.batch / seconds[0])
        del steps, step
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates[BASELINE], strict=True)]
        yield row(case, name, statistics.median(values), ratios)


@contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """The seconds that the block takes, until the device is done with it."""
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - start)


def trainers(z: Float[Tensor, "batch d_in"], size: Size, *, half_dead: bool) -> dict[str, Callable[[], Step]]:
    """By name, what makes a trainer and gives its step."""
    device, has_bfloat16 = z.device, multiplies_bfloat16(z.device)

    def ours(change: Mapping[str, Any]) -> Step:
        learner = Learner.begin(size.d_in, size.config(**change), device)
        if half_dead:
            learner.weights.b_enc[::2] = -4.0
            learner.tokens_since_fired[::2] = 10**9
        return lambda: learner.advance(z)

    def saelens(options: Mapping[str, Any], *, autocast: bool) -> Step:
        theirs = saelens_topk(size.d_in, size.config(), options, device, autocast=autocast)
        if half_dead:
            theirs.sae.b_enc.data[::2] = -4.0
            theirs.n_forward_passes_since_fired[::2] = 10**9
        return lambda: theirs.step(z)

    def sparsify(optimiser: Optimiser) -> Step:
        rival = SparsifyTrainer(size.d_in, size.config(), optimiser, default_rate(optimiser, size.d_sae), device)
        if half_dead:
            rival.sae.encoder.bias.data[::2] = -4.0
            rival.tokens_since_fired[::2] = 10**9
        return lambda: rival.advance(z)

    def encoders_product(dtype: torch.dtype) -> Step:
        encoder = torch.randn(size.d_sae, size.d_in, dtype=dtype, device=device)
        bias, tokens = encoder.new_zeros(size.d_sae), z.to(dtype)
        return lambda: torch.addmm(bias, tokens, encoder.T)

    makers: dict[str, Callable[[], Step]] = {}
    for architecture in ("topk", "batchtopk"):
        for select_in in ("float32", "bfloat16") if has_bfloat16 else ("float32",):
            for aux_tokens in (None, 512) if half_dead else (None,):
                change = {"architecture": architecture, "select_in": select_in, "aux_tokens": aux_tokens}
                made_so = f", {select_in} selection" * has_bfloat16 + f", aux_tokens {aux_tokens}" * bool(aux_tokens)
                makers[f"sae_persona {architecture}{made_so}"] = partial(ours, change)
    sparse = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
    for autocast in (False, True) if has_bfloat16 else (False,):
        made_so = ", autocast" if autocast else ""
        makers[f"{BASELINE}{made_so}"] = partial(saelens, {}, autocast=autocast)
        makers[f"SAELens sparse{made_so}"] = partial(saelens, sparse, autocast=autocast)
    for optimiser in OPTIMISERS if _sparsify.is_installed() else ():
        makers[f"sparsify {optimiser}"] = partial(sparsify, optimiser)
    for dtype in (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,):
        makers[f"the encoder's product alone, {str(dtype).removeprefix('torch.')}"] = partial(encoders_product, dtype)
    return makers


def multiplies_bfloat16(device: torch.device) -> bool:
    """True = products in bfloat16 are faster than in float32."""
    if device.type == "cuda":
        return True
    known = torch.cpu.get_capabilities()
    return known.get("avx512_bf16", False) or known.get("amx_bf16", False)


def saelens_topk(
    d_in: int, config: TrainConfig, options: Mapping[str, Any], device: torch.device, *, autocast: bool = False
) -> Any:
    """SAELens's trainer of its own TopK SAE."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=config.d_sae, k=config.k, **options)).to(device)
    lr = config.lr_at(0)
    trainer_config = SAETrainerConfig(
        total_training_samples=config.n_tokens,
        train_batch_size_samples=config.batch_size,
        lr=lr,
        lr_end=lr,
        device=str(device),
        autocast=autocast,
        dead_feature_window=-(-config.dead_after_tokens // config.batch_size),
    )
    return SAETrainer(trainer_config, sae, iter(()))


def quality(planted: Planted, device: torch.device) -> Iterator[dict[str, object]]:
    starts = (("", False),) if device.type == "cuda" else (("", False), ("half dead at first, ", True))
    for start, half_dead in starts:
        found: dict[tuple[str, float | None], list[Measures]] = {}
        for seed in SEEDS:
            for key, measures in learned(planted, seed, device, half_dead=half_dead).items():
                found.setdefault(key, []).append(measures)
        best = at_best_rate(found)
        for measure in ("FVE", "L0", "dead fraction"):
            theirs = [measures[measure] for measures in best[BASELINE][1]]
            for name, (lr, of_name) in best.items():
                values = [measures[measure] for measures in of_name]
                ratios = [value / base if base else math.nan for value, base in zip(values, theirs, strict=True)]
                label = name if lr is None else f"{name}, lr {lr:.2g}"
                yield row(f"{start}{measure}", label, statistics.mean(values), ratios)


def at_best_rate(
    found: Mapping[tuple[str, float | None], list[Measures]],
) -> dict[str, tuple[float | None, list[Measures]]]:
    """Of every trainer the learning rate with the highest mean FVE; one that diverged at a seed is out."""
    best: dict[str, tuple[float | None, list[Measures]]] = {}
    scores: dict[str, float] = {}
    for (name, lr), of_seeds in found.items():
        fve = statistics.mean(measures["FVE"] for measures in of_seeds)
        score = fve if math.isfinite(fve) else -math.inf
        if name not in best or score > scores[name]:
            best[name], scores[name] = (lr, of_seeds), score
    return best


def learned(
    planted: Planted, seed: int, device: torch.device, *, half_dead: bool
) -> dict[tuple[str, float | None], Measures]:
    """What each trainer's SAE does on fresh tokens, by trainer and learning rate, where several are tried."""
    generator = torch.Generator(device).manual_seed(seed)
    n, width, batch = planted.n, planted.d_in, planted.batch
    directions = torch.randn(n, width, generator=generator, device=device)
    directions = torch.nn.functional.normalize(directions, dim=-1)

    def draw(n_tokens: int) -> Float[Tensor, "n_tokens d_in"]:
        present = torch.rand(n_tokens, n, generator=generator, device=device) < 8 / n
        strengths = present * (0.5 + torch.rand(n_tokens, n, generator=generator, device=device))
        return strengths @ directions

    fresh = draw(10_000)
    centring = Centring(fresh.double().mean(0), float((width / fresh.var(0).sum()).sqrt()))
    config = TrainConfig(
        d_sae=2 * n,
        k=8,
        batch_size=batch,
        n_tokens=batch * planted.n_steps,
        seed=seed,
        dead_after_tokens=20 * batch,
    )
    few = batch // 8
    variants = {"": {}, f", aux_tokens {few}": {"aux_tokens": few}, ", no auxiliary loss": {"aux_coefficient": 0.0}}
    if multiplies_bfloat16(device):
        variants[", bfloat16 selection"] = {"select_in": "bfloat16"}
    ours = {
        f"sae_persona topk{name}": Learner.begin(width, config.model_copy(update=change), device)
        for name, change in variants.items()
    }
    saelens: dict[float, Any] = {}
    for lr in SAELENS_RATES:
        torch.manual_seed(seed)
        saelens[lr] = saelens_topk(width, config, {}, device)
    sparsify = {
        (optimiser, lr): SparsifyTrainer(width, config, optimiser, lr, device)
        for optimiser in (OPTIMISERS if _sparsify.is_installed() else ())
        for lr in (times * default_rate(optimiser, config.d_sae) for times in SPARSIFY_RATES[optimiser])
    }
    if half_dead:
        # Two standard deviations of a pre-activation: that is the length of an encoder's row as it is drawn, 1 in ours,
        # a tenth in SAELens's and 1 / sqrt(3) in sparsify's.
        for learner in ours.values():
            learner.weights.b_enc[::2] = -2.0
        for trainer in saelens.values():
            trainer.sae.b_enc.data[::2] = -0.2
        for trainer in sparsify.values():
            trainer.sae.encoder.bias.data[::2] = -2 / math.sqrt(3)
    for step in range(planted.n_steps):
        z = centring.apply(draw(batch))
        for learner in ours.values():
            learner.advance(z)
        for lr, trainer in saelens.items():
            for group in trainer.optimizer.param_groups:
                group["lr"] = config.model_copy(update={"lr": lr}).lr_at(step)
            trainer.step(z)
            trainer.n_training_steps += 1
        for trainer in sparsify.values():
            trainer.advance(z)
    z = centring.apply(fresh)
    results: dict[tuple[str, float | None], Measures] = {}
    for name, learner in ours.items():
        sae = learner.folded(Centring(torch.zeros(width, dtype=torch.float64), 1.0), {})
        results[name, None] = measured(z, sae(z), sae.encode(z))
    with torch.no_grad():
        for lr, trainer in saelens.items():
            results[BASELINE, lr] = measured(z, trainer.sae(z), trainer.sae.encode(z))
    for (optimiser, lr), trainer in sparsify.items():
        trainer.finish()
        results[f"sparsify {optimiser}", lr] = measured(z, *trainer.readings(z))
    return results


def measured(
    z: Float[Tensor, "n d_in"], z_hat: Float[Tensor, "n d_in"], gated: Float[Tensor, "n d_sae"]
) -> dict[str, float]:
    """FVE, latents that fire on a token, and the share of those that fire on none."""
    fve = 1 - (z_hat - z).square().sum() / (z - z.mean(0)).square().sum()
    fires = gated > 0
    return {
        "FVE": float(fve),
        "L0": float(fires.sum(-1).float().mean()),
        "dead fraction": float((~fires.any(0)).float().mean()),
    }


def row(case: str, trainer: str, value: float, ratios: list[float]) -> dict[str, object]:
    ratio = statistics.median(ratios)
    return {"case": case, "trainer": trainer, "value": value, "ratio": ratio, "low": min(ratios), "high": max(ratios)}
