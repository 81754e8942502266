"""Train a TopK SAE on cached activations.

Training sees `z = (x - mean) * scale`, where `mean` is the data's and `scale` makes the mean of `||z||^2` equal to
d_in, so that one learning rate fits every layer of every model. At the end both are folded into the biases: the SAE
that is returned reads raw activations, its decoder rows are one long, and a latent's activation is a length in the
residual stream.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Float64, Int64
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_persona.artifacts import write_file
from sae_persona.cache.reader import ActivationCache
from sae_persona.errors import ConfigError, SAEError
from sae_persona.logs import Log, no_log
from sae_persona.sae.step import StepResult, Weights, normalise_rows, remove_parallel, topk_step

if TYPE_CHECKING:
    from sae_lens import TopKSAE

VERSION = 1
"""Raised when the same configuration and data would give another SAE."""
LOG_EVERY = 50
"""Steps between two records."""


class TrainConfig(BaseModel):
    """What changes the numbers of an SAE."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["topk"] = "topk"
    d_sae: PositiveInt = 1024
    """Number of latents."""
    k: PositiveInt = 8
    """Latents that may fire on one token."""
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
    dead_after_tokens: PositiveInt = 1_000_000
    """A latent is dead when it has not fired on this many tokens."""
    seed: NonNegativeInt = 0
    """Seeds the initial weights and the order of the data."""

    @model_validator(mode="after")
    def _k_fits(self) -> "TrainConfig":
        if self.k > self.d_sae:
            raise ConfigError(f"k={self.k} latents cannot fire where d_sae={self.d_sae}; choose k <= d_sae.")
        return self

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


def train_sae(
    cache: ActivationCache,
    hook_name: str,
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    log: Log = no_log,
    progress: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
) -> "TopKSAE":
    """An SAE of the residual stream at `hook_name`, trained on the tokens of `cache` that count.

    With `checkpoint`, the state is written to that file every `checkpoint_every` steps and at the end, and a run that
    finds its own state there goes on from it, bit for bit as if it had not been stopped. `log` gets records under
    SAELens's keys, `progress` the number of tokens just finished.

    Raises:
        SAEError: the loss is not finite, the activations do not vary, or `checkpoint` belongs to another run.
        HookError: the cache does not hold that hook.
    """
    identity = json.dumps(
        {
            "version": VERSION,
            "cache": cache.manifest.fingerprint,
            "hook_name": hook_name,
            "config": config.model_dump(),
        },
        sort_keys=True,
    )
    mean, scale = _centre_and_scale(cache, hook_name)
    run = _Run.begin(cache.d_in(hook_name), config, torch.device(device))
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint, identity)
    shift, factor = mean.float().to(device), float(scale)
    batches = cache.batches(hook_name, batch_size=config.batch_size, seed=config.seed, skip=run.step)
    while run.step < config.n_steps:
        z = (next(batches).to(device) - shift) * factor
        result = run.advance(z, config)
        if run.step % LOG_EVERY == 0 or run.step == config.n_steps:
            record = _record(run, result, z, config)
            if not math.isfinite(record["losses/overall_loss"]):
                raise SAEError(
                    f"the loss is not finite after {run.step} steps at learning rate {config.lr_at(run.step - 1):.2g}. "
                    "Train with a smaller lr."
                )
            log(record)
        if checkpoint is not None and (run.step % checkpoint_every == 0 or run.step == config.n_steps):
            run.save(checkpoint, identity)
        if progress:
            progress(config.batch_size)
    made_of = {"config": config.model_dump(), "cache": cache.manifest.fingerprint}
    metadata = {"model_name": cache.model, "hook_name": hook_name, "prepend_bos": False, "sae_persona": made_of}
    return _folded(run.weights, mean, scale, config.k, metadata)


@dataclass(eq=False)
class _Run:
    """Everything that changes during training."""

    weights: Weights
    adam: torch.optim.Adam
    tokens_since_fired: Int64[Tensor, " d_sae"]
    step: int = 0

    @classmethod
    def begin(cls, d_in: int, config: TrainConfig, device: torch.device) -> "_Run":
        """Random unit decoder rows, the encoder their transpose, zero biases."""
        decoder = torch.randn(config.d_sae, d_in, generator=torch.Generator().manual_seed(config.seed))
        normalise_rows(decoder)
        decoder = decoder.to(device)
        zeros = torch.zeros(config.d_sae, device=device)
        weights = Weights(decoder.clone(), decoder, zeros, torch.zeros(d_in, device=device))
        adam = torch.optim.Adam([tensor for _, tensor in weights.named()], fused=True)
        return cls(weights, adam, torch.zeros(config.d_sae, dtype=torch.long, device=device))

    def dead(self, config: TrainConfig) -> Tensor:
        """True = has not fired for `dead_after_tokens` tokens."""
        return self.tokens_since_fired >= config.dead_after_tokens

    def advance(self, z: Float[Tensor, "batch d_in"], config: TrainConfig) -> StepResult:
        """One optimiser step."""
        result = topk_step(self.weights, z, k=config.k, dead=self.dead(config), aux_coefficient=config.aux_coefficient)
        remove_parallel(result.gradients.decoder, self.weights.decoder)
        for (_, tensor), (_, gradient) in zip(self.weights.named(), result.gradients.named(), strict=True):
            tensor.grad = gradient
        self.adam.param_groups[0]["lr"] = config.lr_at(self.step)
        self.adam.step()
        normalise_rows(self.weights.decoder)
        self.tokens_since_fired += len(z)
        self.tokens_since_fired[result.fired] = 0
        self.step += 1
        return result

    def save(self, path: Path, identity: str) -> None:
        """Write the state, whole or not at all."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.weights.named()}
        for i, state in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{key}": value for key, value in state.items()}
        tensors["tokens_since_fired"] = self.tokens_since_fired
        with write_file(path) as partial:
            save_file(tensors, partial, metadata={"identity": identity, "step": str(self.step)})

    def load(self, path: Path, identity: str) -> None:
        """Take up the state that `save` wrote.

        Raises:
            SAEError: the file is no checkpoint, or one of another run.
        """
        try:
            with safe_open(path, framework="pt", device=str(self.tokens_since_fired.device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise SAEError(f"{path} is no checkpoint that can be read ({error}). Delete it to train anew.") from error
        if metadata.get("identity") != identity:
            raise SAEError(
                f"{path} is the checkpoint of another run: its data, hook or config differ. "
                "Name another file, or delete it to train anew."
            )
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "weights":
                getattr(self.weights, rest[0]).copy_(tensor)
            elif kind == "adam":
                state.setdefault(int(rest[0]), {})[rest[1]] = tensor
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})
        self.tokens_since_fired = tensors["tokens_since_fired"]
        self.step = int(metadata["step"])


def _centre_and_scale(cache: ActivationCache, hook_name: str) -> tuple[Float64[Tensor, " d_in"], float]:
    total = float(cache.variance(hook_name).sum())
    if total == 0:
        raise SAEError(f"the activations at {hook_name} are all the same; there is nothing to learn. Check the data.")
    return cache.mean(hook_name), math.sqrt(cache.d_in(hook_name) / total)


def _record(run: _Run, result: StepResult, z: Float[Tensor, "batch d_in"], config: TrainConfig) -> dict[str, float]:
    """SAELens's names. The data's variance is its mean square here, as it is centred."""
    mse, aux = float(result.mse), float(result.aux)
    return {
        "losses/overall_loss": mse + config.aux_coefficient * aux,
        "losses/mse_loss": mse,
        "losses/auxiliary_reconstruction_loss": aux,
        "metrics/explained_variance": 1 - mse / float(z.square().mean()),
        "metrics/l0": float(result.l0),
        "sparsity/dead_features": int(run.dead(config).sum()),
        "details/current_learning_rate": config.lr_at(run.step - 1),
        "details/n_training_samples": run.step * config.batch_size,
    }


def _folded(
    weights: Weights,
    mean: Float64[Tensor, " d_in"],
    scale: float,
    k: int,
    metadata: Mapping[str, Any],
) -> "TopKSAE":
    """The SAE of raw activations `x = z / scale + mean`.

    Both matrices stay: with `b_dec' = b_dec / scale + mean` and `b_enc' = b_enc / scale`, pre-activations are those of
    training divided by `scale`, which changes neither their order nor their sign.
    """
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    d_sae, d_in = weights.decoder.shape
    with torch.random.fork_rng(devices=[]):  # SAELens draws weights, which are replaced at once
        sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, metadata=SAEMetadata(**metadata)))
    sae.load_state_dict(
        {
            "W_enc": weights.encoder.T.contiguous(),
            "W_dec": weights.decoder,
            "b_enc": weights.b_enc / scale,
            "b_dec": (weights.b_dec.double().cpu() / scale + mean).float(),
        }
    )
    return sae.requires_grad_(False).eval().to(weights.decoder.device)
