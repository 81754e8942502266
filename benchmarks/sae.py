"""Training steps against SAELens's trainer and the encoder's product alone, and what both have learned after as many.

Speed is of whole optimiser steps at d_in 512, d_sae 8192, k 32, batch 4096, all trainers in turn, round after round;
`ratio` is the median over rounds of a trainer's tokens per second over those of SAELens's dense step in the same round,
`low` and `high` its extremes. In the half-dead case every other latent is silent and counted as dead, so that the
auxiliary loss is at work. Quality is on planted data after the same tokens, over three seeds, ours at the default
learning rate, SAELens's at the best that the section `recovery` found for it; once more from a start at which half of
the latents are silent.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.sae.config import TrainConfig
from sae_persona.sae.learner import Centring, Learner

D_IN, D_SAE, K, BATCH = 512, 8192, 32, 4096
N_ROUNDS = 3
SEEDS = (0, 1, 2)
N_PLANTED, PLANTED_WIDTH, N_STEPS = 512, 64, 300
BASELINE = "SAELens dense"
THEIR_RATE = 1e-2
"""The best of four in the section `recovery`; ours have their default."""
CPU = torch.device("cpu")
Step = Callable[[], object]


def run() -> Iterator[Mapping[str, object]]:
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
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in SEEDS:
            for name, measures in learned(seed, half_dead=half_dead).items():
                found.setdefault(name, []).append(measures)
        for i, measure in enumerate(("FVE", "dead fraction")):
            theirs = [measures[i] for measures in found[BASELINE]]
            for name, of_name in found.items():
                values = [measures[i] for measures in of_name]
                ratios = [value / base if base else math.nan for value, base in zip(values, theirs, strict=True)]
                yield row(f"{start}{measure}", name, statistics.mean(values), ratios)


def learned(seed: int, *, half_dead: bool) -> dict[str, tuple[float, float]]:
    """FVE and share of silent latents on fresh tokens, by trainer."""
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
    ours_at, theirs_at = TrainConfig(**size), TrainConfig(lr=THEIR_RATE, **size)
    ours = {
        "sae_persona topk": Learner.begin(PLANTED_WIDTH, ours_at, CPU),
        "sae_persona topk, aux_tokens 128": Learner.begin(
            PLANTED_WIDTH, ours_at.model_copy(update={"aux_tokens": 128}), CPU
        ),
        "sae_persona topk, no auxiliary loss": Learner.begin(
            PLANTED_WIDTH, ours_at.model_copy(update={"aux_coefficient": 0.0}), CPU
        ),
    }
    torch.manual_seed(seed)
    theirs = saelens_topk(PLANTED_WIDTH, size, {})
    if half_dead:
        # Two standard deviations of a pre-activation, which is a tenth with the decoder that SAELens draws.
        for learner in ours.values():
            learner.weights.b_enc[::2] = -2.0
        theirs.sae.b_enc.data[::2] = -0.2
    for step in range(N_STEPS):
        z = centring.apply(draw(1024))
        for learner in ours.values():
            learner.advance(z)
        for group in theirs.optimizer.param_groups:
            group["lr"] = theirs_at.lr_at(step)
        theirs.step(z)
        theirs.n_training_steps += 1
    z = centring.apply(fresh)
    results = {}
    for name, learner in ours.items():
        sae = learner.folded(Centring(torch.zeros(PLANTED_WIDTH, dtype=torch.float64), 1.0), {})
        results[name] = measured(z, sae(z), sae.encode(z))
    with torch.no_grad():
        results[BASELINE] = measured(z, theirs.sae(z), theirs.sae.encode(z))
    return results


def measured(
    z: Float[Tensor, "n d_in"], z_hat: Float[Tensor, "n d_in"], gated: Float[Tensor, "n d_sae"]
) -> tuple[float, float]:
    fve = 1 - (z_hat - z).square().sum() / (z - z.mean(0)).square().sum()
    return float(fve), float((gated <= 0).all(0).float().mean())


def row(case: str, trainer: str, value: float, ratios: list[float]) -> dict[str, object]:
    ratio = statistics.median(ratios)
    return {"case": case, "trainer": trainer, "value": value, "ratio": ratio, "low": min(ratios), "high": max(ratios)}
