"""EleutherAI's sparsify as a rival: the step of its trainer, on activations that are handed to it.

Its trainer runs a language model and trains inside forward hooks, so its step is written out here, line by line after
`sparsify.trainer.Trainer.fit` of version 1.3.3; the SAE, its fused encoder, its optimisers and their defaults are its
own. Its auxiliary loss reaches the decoder only, as its fused encoder drops that gradient.
"""

import contextlib
import importlib.util
import io
import warnings
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from sae_persona.sae.config import TrainConfig

Optimiser = Literal["signum", "adam"]
OPTIMISERS: tuple[Optimiser, ...] = ("signum", "adam")
"""Its default, SignSGD with momentum averaged by ScheduleFree, and Adam with a linear schedule."""
MISSING = "eai-sparsify is not installed, so sparsify is left out; `pip install '.[rivals]'` adds it."


def is_installed() -> bool:
    return importlib.util.find_spec("sparsify") is not None


def default_rate(optimiser: Optimiser, d_sae: int) -> float:
    """The learning rate that its trainer chooses where none is given."""
    return {"signum": 5e-3, "adam": 2e-4}[optimiser] / (d_sae / 2**14) ** 0.5


class SparsifyTrainer:
    """One of its SAEs in training; the auxiliary loss has our weight and our rule of when a latent is dead."""

    def __init__(
        self, d_in: int, config: TrainConfig, optimiser: Optimiser, lr: float, device: torch.device | str = "cpu"
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says which decoder it takes and, in a warning, that there is no CUDA
            from schedulefree import ScheduleFreeWrapper
            from sparsify import SparseCoder, SparseCoderConfig, sparse_coder
            from sparsify.sign_sgd import SignSGD
            from sparsify.utils import eager_decode
        if torch.device(device).type == "cpu":
            sparse_coder.decoder_impl = eager_decode  # it takes Triton's wherever that is installed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            size = SparseCoderConfig(num_latents=config.d_sae, k=config.k)
            self.sae = SparseCoder(d_in, size, device=device, dtype=torch.float32)
        self.config = config
        self.tokens_since_fired = torch.zeros(config.d_sae, dtype=torch.long, device=device)
        self._n_steps = 0
        self._optimiser: Any
        if optimiser == "signum":
            self._optimiser, self._schedule = (
                ScheduleFreeWrapper(SignSGD(self.sae.parameters(), lr), momentum=0.95),
                None,
            )
            self._optimiser.train()
        else:
            self._optimiser = torch.optim.Adam(self.sae.parameters(), lr)
            # Its 1000 steps of warm-up are more than all of ours: the same share as for the others instead.
            n_warmup = round(config.warmup * config.n_steps)
            self._schedule = get_linear_schedule_with_warmup(self._optimiser, n_warmup, config.n_steps)

    def advance(self, z: Float[Tensor, "batch d_in"]) -> None:
        """One optimiser step."""
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")  # as its trainer does
        try:
            self._advance(z)
        finally:
            torch.set_float32_matmul_precision(precision)

    def _advance(self, z: Float[Tensor, "batch d_in"]) -> None:
        sae = self.sae
        if self._n_steps == 0:
            sae.b_dec.data = z.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        dead = self.tokens_since_fired > self.config.dead_after_tokens if self.config.aux_coefficient else None
        out = sae(z, dead_mask=dead, total_variance=(z - z.mean(0)).pow(2).sum())
        fired = torch.zeros_like(self.tokens_since_fired, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        (out.fvu + self.config.aux_coefficient * out.auxk_loss).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        self._optimiser.step()
        self._optimiser.zero_grad()
        if self._schedule is not None:
            self._schedule.step()
        self.tokens_since_fired += len(z)
        self.tokens_since_fired[fired] = 0
        self._n_steps += 1

    def finish(self) -> None:
        """Leave the weights that its trainer saves: of ScheduleFree the average."""
        if self._schedule is None:
            self._optimiser.eval()

    @torch.no_grad()
    def readings(self, z: Float[Tensor, "n d_in"]) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_sae"]]:
        """Reconstruction and activations."""
        out = self.sae(z)
        gated = z.new_zeros(len(z), self.config.d_sae).scatter_(-1, out.latent_indices, out.latent_acts.to(z))
        return out.sae_out, gated
