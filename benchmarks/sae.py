"""Training steps against the trainers of SAELens and sparsify, and what all have learned from the same tokens.

Speed is of whole optimiser steps at d_in 512, d_sae 8192, k 32, batch 4096, all trainers in turn, round after round;
`ratio` is the median over rounds of a trainer's tokens per second over those of SAELens's dense step in the same
round, `low` and `high` its extremes. In the half-dead case every other latent is silent and counted as dead, so that
the auxiliary loss is at work; the encoder's product alone is what no step can go below. Quality is on planted data
after the same tokens, over three seeds, ours at the default learning rate, each rival at the one of four that has the
highest mean FVE on the very tokens it is shown on; once more from a start at which half of the latents are silent.

EleutherAI's sparsify takes part where `eai-sparsify` is installed.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks import _sparsify
from benchmarks._sparsify import OPTIMISERS, Optimiser, SparsifyTrainer, default_rate
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.learner import Centring, Learner

D_IN, D_SAE, K, BATCH = 512, 8192, 32, 4096
N_ROUNDS = 3
SEEDS = (0, 1, 2)
N_PLANTED, PLANTED_WIDTH, N_STEPS = 512, 64, 300
BASELINE = "SAELens dense"
SAELENS_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SPARSIFY_RATES: Mapping[Optimiser, tuple[float, ...]] = {"signum": (0.1, 0.3, 1.0, 3.0), "adam": (1.0, 3.0, 10.0, 30.0)}
"""In units of the default that it chooses for the width."""
CPU = torch.device("cpu")
Step = Callable[[], object]
Measures = Mapping[str, float]


def run() -> Iterator[Mapping[str, object]]:
    if not _sparsify.is_installed():
        print(_sparsify.MISSING)
    for case, half_dead in (("tokens/s, none dead", False), ("tokens/s, half dead", True)):
        yield from speed(case, half_dead=half_dead)
    yield from quality()


def speed(case: str, *, half_dead: bool) -> Iterator[dict[str, object]]:
    z = torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(0))
    steps = trainers(z, half_dead=half_dead)
    for step in steps.values():
        step()
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(N_ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            rates[name].append(BATCH / (time.perf_counter() - start))
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates[BASELINE], strict=True)]
        yield row(case, name, statistics.median(values), ratios)


def trainers(z: Float[Tensor, "batch d_in"], *, half_dead: bool) -> dict[str, Step]:
    """One step of each, by name."""
    size: dict[str, Any] = {"d_sae": D_SAE, "k": K, "batch_size": BATCH, "n_tokens": BATCH * 100}
    steps: dict[str, Step] = {}
    variants = {"sae_persona topk": {}, "sae_persona batchtopk": {"architecture": "batchtopk"}}
    if half_dead:
        variants["sae_persona topk, aux_tokens 512"] = {"aux_tokens": 512}
    for name, change in variants.items():
        learner = Learner.begin(D_IN, TrainConfig(**size, **change), CPU)
        if half_dead:
            learner.weights.b_enc[::2] = -4.0
            learner.tokens_since_fired[::2] = 10**9
        steps[name] = lambda learner=learner: learner.advance(z)
    for name, options in {
        BASELINE: {},
        "SAELens sparse": {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False},
    }.items():
        theirs = saelens_topk(D_IN, size, options)
        if half_dead:
            theirs.sae.b_enc.data[::2] = -4.0
            theirs.n_forward_passes_since_fired[::2] = 10**9
        steps[name] = lambda theirs=theirs: theirs.step(z)
    for optimiser in OPTIMISERS if _sparsify.is_installed() else ():
        rival = SparsifyTrainer(D_IN, TrainConfig(**size), optimiser, default_rate(optimiser, D_SAE))
        if half_dead:
            rival.sae.encoder.bias.data[::2] = -4.0
            rival.tokens_since_fired[::2] = 10**9
        steps[f"sparsify {optimiser}"] = lambda rival=rival: rival.advance(z)
    encoder, bias = torch.randn(D_SAE, D_IN), torch.zeros(D_SAE)
    steps["the encoder's product alone"] = lambda: torch.addmm(bias, z, encoder.T)
    return steps


def saelens_topk(d_in: int, size: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """SAELens's trainer of its own TopK SAE."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=size["d_sae"], k=size["k"], **options))
    lr = TrainConfig(**size).lr_at(0)
    config = SAETrainerConfig(
        total_training_samples=size["n_tokens"],
        train_batch_size_samples=size["batch_size"],
        lr=lr,
        lr_end=lr,
        dead_feature_window=-(-size.get("dead_after_tokens", 10**6) // size["batch_size"]),
    )
    return SAETrainer(config, sae, iter(()))


def quality() -> Iterator[dict[str, object]]:
    for start, half_dead in (("", False), ("half dead at first, ", True)):
        found: dict[tuple[str, float | None], list[Measures]] = {}
        for seed in SEEDS:
            for key, measures in learned(seed, half_dead=half_dead).items():
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


def learned(seed: int, *, half_dead: bool) -> dict[tuple[str, float | None], Measures]:
    """What each trainer's SAE does on fresh tokens, by trainer and learning rate, where several are tried."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(N_PLANTED, PLANTED_WIDTH, generator=generator), dim=-1)

    def draw(n: int) -> Float[Tensor, "n d_in"]:
        present = torch.rand(n, N_PLANTED, generator=generator) < 8 / N_PLANTED
        strengths = present * (0.5 + torch.rand(n, N_PLANTED, generator=generator))
        return strengths @ directions

    fresh = draw(10_000)
    centring = Centring(fresh.double().mean(0), float((PLANTED_WIDTH / fresh.var(0).sum()).sqrt()))
    size: dict[str, Any] = {"d_sae": 2 * N_PLANTED, "k": 8, "batch_size": 1024, "n_tokens": 1024 * N_STEPS}
    size |= {"seed": seed, "dead_after_tokens": 20 * 1024}
    config = TrainConfig(**size)
    variants = {"": {}, ", aux_tokens 128": {"aux_tokens": 128}, ", no auxiliary loss": {"aux_coefficient": 0.0}}
    ours = {
        f"sae_persona topk{name}": Learner.begin(PLANTED_WIDTH, config.model_copy(update=change), CPU)
        for name, change in variants.items()
    }
    saelens: dict[float, Any] = {}
    for lr in SAELENS_RATES:
        torch.manual_seed(seed)
        saelens[lr] = saelens_topk(PLANTED_WIDTH, size, {})
    sparsify = {
        (optimiser, lr): SparsifyTrainer(PLANTED_WIDTH, config, optimiser, lr)
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
    for step in range(N_STEPS):
        z = centring.apply(draw(1024))
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
        sae = learner.folded(Centring(torch.zeros(PLANTED_WIDTH, dtype=torch.float64), 1.0), {})
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
