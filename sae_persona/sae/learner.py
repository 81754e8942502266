"""A TopK or BatchTopK SAE in training: its weights, its optimiser, and how they become an SAE of raw activations.

Axes: `batch` tokens, `d_in` width, `d_sae` latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sae_persona.sae.config import TrainConfig
from sae_persona.sae.step import StepResult, Weights, normalise_rows, remove_parallel, topk_step

if TYPE_CHECKING:
    from sae_lens import SAE

THRESHOLD_RATE = 0.01
"""Weight of the newest batch in BatchTopK's threshold: SAELens's `topk_threshold_lr`."""


@dataclass(frozen=True, eq=False)
class Centring:
    """How raw activations become what is trained on: `z = (x - mean) * scale`."""

    mean: Float64[Tensor, " d_in"]
    scale: float

    def apply(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """`z` of raw activations."""
        return (x - self.mean.float().to(x.device)) * self.scale


@dataclass(eq=False)
class Learner:
    """Everything that changes during training."""

    config: TrainConfig
    weights: Weights
    adam: torch.optim.Adam
    tokens_since_fired: Int64[Tensor, " d_sae"]
    threshold: Float64[Tensor, ""]
    """Moving average of the smallest activation that BatchTopK let through, from zero as SAELens's is."""
    step: int = 0

    @classmethod
    def begin(cls, d_in: int, config: TrainConfig, device: torch.device) -> "Learner":
        """Random unit decoder rows, the encoder their transpose, zero biases."""
        decoder = torch.randn(config.d_sae, d_in, generator=torch.Generator().manual_seed(config.seed))
        normalise_rows(decoder)
        decoder = decoder.to(device)
        zeros = torch.zeros(config.d_sae, device=device)
        weights = Weights(decoder.clone(), decoder, zeros, torch.zeros(d_in, device=device))
        adam = torch.optim.Adam([tensor for _, tensor in weights.named()], fused=True)
        since = torch.zeros(config.d_sae, dtype=torch.long, device=device)
        return cls(config, weights, adam, since, torch.zeros((), dtype=torch.float64, device=device))

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """True = has not fired for `dead_after_tokens` tokens."""
        return self.tokens_since_fired >= self.config.dead_after_tokens

    def advance(self, z: Float[Tensor, "batch d_in"]) -> StepResult:
        """One optimiser step."""
        config = self.config
        result = topk_step(
            self.weights,
            z,
            k=config.k,
            dead=self.dead(),
            aux_coefficient=config.aux_coefficient,
            among="batch" if config.architecture == "batchtopk" else "token",
            aux_tokens=config.aux_tokens,
            select_in=getattr(torch, config.select_in),
        )
        remove_parallel(result.gradients.decoder, self.weights.decoder)
        for (_, tensor), (_, gradient) in zip(self.weights.named(), result.gradients.named(), strict=True):
            tensor.grad = gradient
        self.adam.param_groups[0]["lr"] = config.lr_at(self.step)
        self.adam.step()
        normalise_rows(self.weights.decoder)
        self.tokens_since_fired += len(z)
        self.tokens_since_fired[result.fired] = 0
        if torch.isfinite(result.smallest):
            self.threshold += THRESHOLD_RATE * (result.smallest - self.threshold)
        self.step += 1
        return result

    def record(self, result: StepResult, z: Float[Tensor, "batch d_in"]) -> dict[str, float]:
        """What the last step says, under SAELens's names. The data are centred: their variance is their mean square."""
        mse, aux = float(result.mse), float(result.aux)
        record = {
            "losses/overall_loss": mse + self.config.aux_coefficient * aux,
            "losses/mse_loss": mse,
            "losses/auxiliary_reconstruction_loss": aux,
            "metrics/explained_variance": 1 - mse / float(z.square().mean()),
            "metrics/l0": float(result.l0),
            "sparsity/dead_features": int(self.dead().sum()),
            "details/current_learning_rate": self.config.lr_at(self.step - 1),
            "details/n_training_samples": self.step * self.config.batch_size,
        }
        return record | ({"metrics/topk_threshold": float(self.threshold)} if self._of_batch else {})

    def state(self) -> dict[str, Tensor]:
        """Everything but `step`, for `restore`."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.weights.named()}
        for i, state in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{key}": value for key, value in state.items()}
        return tensors | {"tokens_since_fired": self.tokens_since_fired, "threshold": self.threshold}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up a state, as it was after `step` steps."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "weights":
                getattr(self.weights, rest[0]).copy_(tensor)
            elif kind == "adam":
                state.setdefault(int(rest[0]), {})[rest[1]] = tensor
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})
        self.tokens_since_fired, self.threshold = tensors["tokens_since_fired"], tensors["threshold"]
        self.step = step

    def folded(self, centring: Centring, metadata: Mapping[str, Any]) -> "SAE":
        """The SAE of raw activations `x = z / scale + mean`.

        Both matrices stay: with `b_dec' = b_dec / scale + mean` and `b_enc' = b_enc / scale`, pre-activations are those
        of training divided by `scale`, which changes neither their order nor their sign. BatchTopK's threshold is
        divided with them, and first by `1 - (1 - rate)^steps`, as a moving average from zero is too small at first.
        """
        from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
        from sae_lens.saes.sae import SAEMetadata

        d_sae, d_in = self.weights.decoder.shape
        state = {
            "W_enc": self.weights.encoder.T.contiguous(),
            "W_dec": self.weights.decoder,
            "b_enc": self.weights.b_enc / centring.scale,
            "b_dec": (self.weights.b_dec.double().cpu() / centring.scale + centring.mean).float(),
        }
        with torch.random.fork_rng(devices=[]):  # SAELens draws weights, which are replaced at once
            if self._of_batch:
                trained_as = SAEMetadata(**metadata, training_architecture="batchtopk")
                sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, metadata=trained_as))
                threshold = self.threshold / (1 - (1 - THRESHOLD_RATE) ** self.step) / centring.scale
                state["threshold"] = threshold.float().expand(d_sae).contiguous()
            else:
                sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=self.config.k, metadata=SAEMetadata(**metadata)))
        sae.load_state_dict(state)
        return sae.requires_grad_(False).eval().to(self.weights.decoder.device)

    @property
    def _of_batch(self) -> bool:
        return self.config.architecture == "batchtopk"
