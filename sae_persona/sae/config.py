"""What changes the numbers of an SAE in training."""

import math
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sae_persona.errors import ConfigError


class TrainConfig(BaseModel):
    """What changes the numbers of an SAE."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    architecture: Literal[
        "topk",
        "batchtopk",
        "standard",
        "jumprelu",
        "gated",
        "matryoshka_batchtopk",
        "matching_pursuit",
        "abstopk",
    ] = "topk"
    """`topk`: the `k` highest latents of each token fire. `batchtopk` (Bussmann et al. 2024): the `k * batch_size`
    highest of a batch, so that hard tokens get more; saved, as SAELens does, as a JumpReLU SAE with one threshold.
    These two have a fast step of ours; every other one is trained by SAELens's own trainer."""
    d_sae: PositiveInt = 1024
    """Number of latents."""
    k: PositiveInt = 8
    """Latents that may fire on one token; for `batchtopk` their mean. `standard`, `jumprelu`, `gated` and
    `matching_pursuit` fire as many as their `options` let, whatever `k` is."""
    n_tokens: PositiveInt = 2_000_000
    """Tokens to train on; the cache is gone through as often as that takes."""
    batch_size: PositiveInt = 1024
    """Tokens per step."""
    lr: PositiveFloat | None = None
    """Peak learning rate of Adam; None: `4e-4 / sqrt(d_sae / 2**14)`. That is twice what EleutherAI's sparsify fits to
    Gao et al. 2024: it trains on billions of tokens, and on millions the higher rate recovers more planted latents."""
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the steps over which the learning rate rises from zero."""
    decay: float = Field(0.2, ge=0, le=1)
    """Share of the steps, at the end, over which it falls to zero."""
    aux_coefficient: NonNegativeFloat = 1 / 32
    """Weight of the auxiliary loss that revives dead latents (Gao et al. 2024)."""
    aux_tokens: PositiveInt | None = None
    """Tokens of each batch on which the auxiliary loss is measured; None: all. It costs `d_in / 2` latents a token, a
    multiple of the main loss, and a few hundred tokens revive as many latents (`make bench ARGS=sae`)."""
    dead_after_tokens: PositiveInt = 1_000_000
    """A latent is dead when it has not fired on this many tokens."""
    select_in: Literal["float32", "bfloat16"] = "float32"
    """Precision of the encoder's dense product. In bfloat16 it only selects latents, whose activations are then
    computed in float32. That pays on GPUs and on processors that multiply bfloat16 (AVX512-BF16, AMX) and is several
    times slower on all others; it does not choose itself, because the numbers depend on it."""
    options: dict[str, bool | int | float | str | list[int] | None] = {}
    """Of an architecture that SAELens trains: fields of its training config, such as `l1_coefficient`."""
    seed: NonNegativeInt = 0
    """Seeds the initial weights and the order of the data."""

    @model_validator(mode="after")
    def _k_fits(self) -> "TrainConfig":
        if self.k > self.d_sae:
            raise ConfigError(f"k={self.k} latents cannot fire where d_sae={self.d_sae}; choose k <= d_sae.")
        return self

    @model_validator(mode="after")
    def _belongs_to_the_architecture(self) -> "TrainConfig":
        ours = ("aux_coefficient", "aux_tokens", "select_in")
        if self.is_fast and self.options:
            raise ConfigError(f"options are for SAELens's trainer, and architecture={self.architecture!r} is not its.")
        for name in () if self.is_fast else ours:
            if getattr(self, name) != TrainConfig.model_fields[name].default:
                raise ConfigError(
                    f"{name} is not used for architecture={self.architecture!r}; give SAELens's fields as options."
                )
        return self

    @property
    def is_fast(self) -> bool:
        """True = trained by the step of this package, not by SAELens's trainer."""
        return self.architecture in ("topk", "batchtopk")

    @property
    def n_steps(self) -> int:
        """Optimiser steps: the smallest number that reaches `n_tokens`."""
        return math.ceil(self.n_tokens / self.batch_size)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        peak = self.lr or 4e-4 / math.sqrt(self.d_sae / 2**14)
        rise = (step + 1) / max(self.warmup * self.n_steps, 1)
        fall = (self.n_steps - step) / max(self.decay * self.n_steps, 1)
        return peak * min(rise, fall, 1.0)
