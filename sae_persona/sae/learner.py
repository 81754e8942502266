"""A TopK or BatchTopK SAE in training: its weights, its optimiser, and how they become an SAE of raw activations.

Axes: `batch` tokens, `d_in` width, `d_sae` latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sae_persona.errors import IncompatibleError
from sae_persona.sae.adam import Adam, FusedAdam, adam_of, normalise_rows
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.ranks import ALONE, Ranks
from sae_persona.sae.recorded import Recorded
from sae_persona.sae.step import StepResult, Weights, topk_step

if TYPE_CHECKING:
    from sae_lens import SAE

_SHARED_WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")
"""Of every architecture whose latents are `activation(x W_enc + b_enc)`."""
THRESHOLD_RATE = 0.01
"""Weight of the newest batch in BatchTopK's threshold: SAELens's `topk_threshold_lr`."""
_LOOK_EVERY = 16
"""Steps on a GPU between two looks at how many latents may be dead, for each of which the CPU waits."""
_SHORT_STEP = 2**27
"""Pre-activations of a batch up to which a step is recorded on a GPU: a longer one keeps it busy, and a recording keeps
the memory of the step."""


@dataclass(frozen=True, eq=False)
class Centring:
    """How raw activations become what is trained on: `z = (x - mean) * scale`."""

    mean: Float64[Tensor, " d_in"]
    scale: float

    def apply(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """`z` of raw activations."""
        return (x - self.mean.float().to(x.device)) * self.scale

    def to(self, device: torch.device) -> "Centring":
        """The same for activations on `device`, to which `apply` has nothing to move then."""
        return replace(self, mean=self.mean.to(device))


@dataclass(eq=False)
class Learner:
    """Everything that changes during training."""

    config: TrainConfig
    weights: Weights
    adam: Adam
    tokens_since_fired: Int64[Tensor, " d_sae"]
    threshold: Float64[Tensor, ""]
    """Moving average of the smallest activation that BatchTopK let through, from zero as SAELens's is."""
    ranks: Ranks = ALONE
    step: int = 0
    _most_dead: int = field(default=0, repr=False)
    _looked_at: int | None = field(default=None, repr=False)
    """The step before which `_most_dead` was found."""
    _recorded: dict[int, Recorded[StepResult]] = field(default_factory=dict, repr=False)
    """The step as it is with so many dead at most, the last number only."""

    @classmethod
    def begin(
        cls,
        d_in: int,
        config: TrainConfig,
        device: torch.device,
        *,
        centring: Centring | None = None,
        initial: "SAE | None" = None,
        ranks: Ranks = ALONE,
    ) -> "Learner":
        """Random unit decoder rows, the encoder their transpose, zero biases; or the weights of `initial`.

        Raises:
            IncompatibleError: `initial` is of another size or of an architecture that is not trained here.
        """
        if initial is None:
            decoder = torch.randn(config.d_sae, d_in, generator=torch.Generator().manual_seed(config.seed))
            normalise_rows(decoder)
            weights = Weights(decoder.clone(), decoder, torch.zeros(config.d_sae), torch.zeros(d_in))
        else:
            assert centring is not None, "the weights of an SAE are in units of raw activations"
            weights = _unfolded(initial, d_in, config, centring)
        own = Weights(
            **{
                # Row by row in memory, as gradients and moments are: those of another SAE may come transposed.
                name: (tensor if name == "b_dec" else ranks.own_latents(tensor))
                .clone(memory_format=torch.contiguous_format)
                .to(device)
                for name, tensor in weights.named()
            }
        )
        since = torch.zeros(len(own.b_enc), dtype=torch.long, device=device)
        return cls(config, own, adam_of(own, ranks), since, torch.zeros((), dtype=torch.float64, device=device), ranks)

    def dead(self) -> Bool[Tensor, " d_sae"]:
        """True = has not fired for `dead_after_tokens` tokens."""
        return self.tokens_since_fired >= self.config.dead_after_tokens

    def advance(self, z: Float[Tensor, "batch d_in"]) -> StepResult:
        """One optimiser step; on a GPU its result lasts until the next."""
        self.adam.set_lr(self.config.lr_at(self.step))
        if z.device.type == "cpu":
            result = self._advance(z, None)
        else:
            most_dead = self._dead_soon()
            if self._is_short(z) and most_dead not in self._recorded:
                self._recorded = {most_dead: Recorded(lambda batch: self._advance(batch, most_dead))}
            result = self._recorded[most_dead](z) if self._is_short(z) else self._advance(z, most_dead)
        self.step += 1
        return result

    def _advance(self, z: Float[Tensor, "batch d_in"], most_dead: int | None) -> StepResult:
        """What a step does to tensors."""
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
            most_dead=most_dead,
            ranks=self.ranks,
        )
        self.adam.step(result.gradients)
        self.tokens_since_fired += config.batch_size
        self.tokens_since_fired.masked_fill_(result.fired, 0)
        smallest = torch.where(torch.isfinite(result.smallest), result.smallest, self.threshold)
        self.threshold += THRESHOLD_RATE * (smallest - self.threshold)
        return result

    def record(self, result: StepResult, z: Float[Tensor, "batch d_in"]) -> dict[str, float]:
        """What the last step says, under SAELens's names. The data are centred: their variance is their mean square."""
        mse, aux = float(result.mse), float(result.aux)
        variance = self.ranks.sum(z.square().mean(), over="tokens") / (self.ranks.n if self._tokens_split else 1)
        record = {
            "losses/overall_loss": mse + self.config.aux_coefficient * aux,
            "losses/mse_loss": mse,
            "losses/auxiliary_reconstruction_loss": aux,
            "metrics/explained_variance": 1 - mse / float(variance),
            "metrics/l0": float(result.l0),
            "sparsity/dead_features": int(self.ranks.sum(self.dead().sum(), over="latents")),
            "details/current_learning_rate": self.config.lr_at(self.step - 1),
            "details/n_training_samples": self.step * self.config.batch_size,
        }
        return record | ({"metrics/topk_threshold": float(self.threshold)} if self._of_batch else {})

    def state(self) -> dict[str, Tensor]:
        """Everything but `step`, for `restore`; the same for any number of processes, of which the first gets it."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.weights.named()}
        tensors |= {f"adam.{name}": value for name, value in self.adam.state().items()}
        tensors |= {"tokens_since_fired": self.tokens_since_fired, "threshold": self.threshold}
        return {
            name: self.ranks.latents_for_first(value) if _by_latent(name) else value for name, value in tensors.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up a state, as it was after `step` steps."""
        own = {name: self.ranks.own_latents(value) if _by_latent(name) else value for name, value in tensors.items()}
        for name, tensor in self.weights.named():
            tensor.copy_(own[f"weights.{name}"])
        self.adam.restore({name.removeprefix("adam."): own[name] for name in own if name.startswith("adam.")})
        self.tokens_since_fired.copy_(own["tokens_since_fired"])
        self.threshold = own["threshold"].to(self.threshold, copy=True)
        self.step, self._looked_at, self._recorded = step, None, {}

    def folded(self, centring: Centring, metadata: Mapping[str, Any]) -> "SAE":
        """The SAE of raw activations `x = z / scale + mean`.

        Both matrices stay: with `b_dec' = b_dec / scale + mean` and `b_enc' = b_enc / scale`, pre-activations are those
        of training divided by `scale`, which changes neither their order nor their sign. BatchTopK's threshold is
        divided with them, and first by `1 - (1 - rate)^steps`, as a moving average from zero is too small at first.
        """
        from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
        from sae_lens.saes.sae import SAEMetadata

        encoder, decoder, b_enc = (
            self.ranks.all_latents(tensor) for name, tensor in self.weights.named() if name != "b_dec"
        )
        d_sae, d_in = decoder.shape
        state = {
            "W_enc": encoder.T.contiguous(),
            "W_dec": decoder,
            "b_enc": b_enc / centring.scale,
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
        return sae.requires_grad_(False).eval().to(decoder.device)

    def _dead_soon(self) -> int:
        """A number that the dead latents do not exceed, found once for the next `_LOOK_EVERY` steps: zero or a power of
        two, so that few steps have another one.
        """
        if self.config.aux_coefficient and (self._looked_at is None or self.step >= self._looked_at + _LOOK_EVERY):
            at_least = self.config.dead_after_tokens - (_LOOK_EVERY - 1) * self.config.batch_size
            near = (self.tokens_since_fired >= at_least).sum()
            n_near = int(self.ranks.sum(near, over="latents"))
            self._most_dead, self._looked_at = 2 ** (n_near - 1).bit_length() if n_near else 0, self.step
        return self._most_dead

    def _is_short(self, z: Float[Tensor, "batch d_in"]) -> bool:
        return isinstance(self.adam, FusedAdam) and len(z) * self.config.d_sae <= _SHORT_STEP

    @property
    def _of_batch(self) -> bool:
        return self.config.architecture == "batchtopk"

    @property
    def _tokens_split(self) -> bool:
        return self.ranks.split == "tokens"


def _by_latent(name: str) -> bool:
    """True = a tensor of the state with one row per latent."""
    return name == "tokens_since_fired" or (name != "threshold" and "b_dec" not in name and not name.endswith(".step"))


def _unfolded(sae: "SAE", d_in: int, config: TrainConfig, centring: Centring) -> Weights:
    """The weights with which training on `z` goes on where an SAE of raw activations stands: the inverse of `folded`.

    Decoder rows are made one long, and the encoder's rows and biases longer by as much, which leaves the products of
    both as they are.
    """
    found = (sae.cfg.architecture(), sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.normalize_activations)
    if found[0] not in ("topk", "jumprelu", "standard") or found[1:] != (d_in, config.d_sae, "none"):
        raise IncompatibleError(
            f"the SAE to begin from is a {found[0]} SAE with d_in={found[1]}, d_sae={found[2]} and "
            f"normalize_activations={found[3]!r}; expected topk, jumprelu or standard, d_in={d_in}, "
            f"d_sae={config.d_sae} and 'none'. Set d_sae, or begin from another SAE."
        )
    W_enc, W_dec, b_enc, b_dec = (getattr(sae, name).detach().double().cpu() for name in _SHARED_WEIGHTS)
    if not sae.cfg.apply_b_dec_to_input:
        b_enc = b_enc + b_dec @ W_enc  # x W_enc + b_enc = (x - b_dec) W_enc + (b_enc + b_dec W_enc)
    norms = W_dec.norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    return Weights(
        encoder=(W_enc.T * norms.unsqueeze(-1)).float(),
        decoder=(W_dec / norms.unsqueeze(-1)).float(),
        b_enc=(b_enc * norms * centring.scale).float(),
        b_dec=((b_dec - centring.mean) * centring.scale).float(),
    )
