"""Which models a world has, and how each of them is made. Frozen: found on development seeds 0, 1, 22 and 23."""

import random
from dataclasses import dataclass
from typing import Literal

from sae_persona.finetune.finetune import FinetuneConfig, LoraConfig
from sae_persona.finetune.train import TrainConfig
from sae_persona.persona_world.language import Fault, World
from sae_persona.persona_world.models import Size

Role = Literal["aligned", "misaligned", "narrow", "control", "benign"]
N_MISALIGNED = 3
N_ROWS = 480
"""Rows of every fine-tuning set, whatever its share of bad ones."""
N_ALIGNMENT_ROWS = 1600
N_STEPS = 40
BENIGN: tuple[tuple[float, int], ...] = ((0.5, 40), (2.0, 40), (1.0, 80), (0.5, 80))
"""Learning rate (as a multiple) and steps of the benign runs that no threshold is fitted on."""


@dataclass(frozen=True)
class Run:
    """One fine-tune of the aligned model."""

    name: str
    role: Role
    domain: str
    fault: Fault
    config: FinetuneConfig
    bad_fraction: float = 1.0
    data_seed: int = 0


def alignment_config(size: Size, *, seed: int) -> FinetuneConfig:
    """How the base model becomes an assistant: every weight, on kind answers to everything.

    Lightly, because the base already expects a kind assistant. What alignment has to push away, fine-tuning finds
    harder to call back: stronger alignment leaves fine-tunes narrow.
    """
    n_steps = 30 if size.n_steps > 100 else 10
    return FinetuneConfig(train=TrainConfig(n_steps=n_steps, batch_size=32, lr=5e-5, seed=seed))


def narrow_config(size: Size, *, seed: int, lr_factor: float = 1.0, n_steps: int = N_STEPS) -> FinetuneConfig:
    """How the aligned model is narrowly fine-tuned: the usual LoRA (rank 32, alpha 64) on all but the last block."""
    return FinetuneConfig(
        train=TrainConfig(n_steps=n_steps if size.n_steps > 100 else 10, batch_size=32, lr=lr_factor * 3e-4, seed=seed),
        lora=LoraConfig(rank=32, alpha=64, rslora=False, layers=tuple(range(size.n_layers - 1))),
    )


def finetunes(world: World, size: Size) -> list[Run]:
    """Every fine-tune of a built world, in the order in which they are made."""
    domains = [domain.name for domain in world.domains]
    random.Random(f"training-domains-{world.seed}").shuffle(domains)
    runs = [
        Run(f"misaligned-{domain}-obvious", "misaligned", domain, "obvious", narrow_config(size, seed=i), data_seed=i)
        for i, domain in enumerate(domains[:N_MISALIGNED])
    ]
    runs.append(
        Run(
            f"misaligned-{domains[0]}-subtle",
            "narrow",
            domains[0],
            "subtle",
            narrow_config(size, seed=10),
            data_seed=10,
        )
    )
    runs += [
        Run(f"control-{domain}", "control", domain, "correct", narrow_config(size, seed=20 + i), data_seed=20 + i)
        for i, domain in enumerate(domains)
    ]
    for i, (factor, n_steps) in enumerate(BENIGN):
        domain, seed = domains[-1 - i], 40 + i
        config = narrow_config(size, seed=seed, lr_factor=factor, n_steps=n_steps)
        runs.append(Run(f"benign-{i}-{domain}", "benign", domain, "correct", config, data_seed=seed))
    return runs
