"""Several processes that train one SAE: each takes a share of the tokens, or a share of the latents.

Every process makes the same calls in the same order, on the default process group of `torch.distributed`. With the
tokens split, weights are everywhere the same and gradients are summed. With the latents split, every process sees all
tokens and holds `d_sae / n` latents with their optimiser state; the processes agree which latents fire, and sum their
parts of the reconstruction.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from sae_persona.errors import ConfigError

Split = Literal["tokens", "latents"]


@dataclass(frozen=True)
class Ranks:
    """The processes, and what is split between them; without a split, this process alone."""

    split: Split | None = None

    @property
    def n(self) -> int:
        """Number of processes."""
        return dist.get_world_size() if self.split else 1

    @property
    def rank(self) -> int:
        """This process, counted from 0."""
        return dist.get_rank() if self.split else 0

    def check(self, *, batch_size: int, d_sae: int) -> None:
        """Raise unless the split comes out even.

        Raises:
            ConfigError: it does not.
        """
        name, size = ("batch_size", batch_size) if self.split == "tokens" else ("d_sae", d_sae)
        if size % self.n:
            raise ConfigError(f"{name}={size} cannot be split over {self.n} processes; choose a multiple of {self.n}.")

    def meet(self) -> None:
        """Wait until every process is here."""
        if self.split:
            dist.barrier()

    def hear(self, refusal: Exception | None) -> None:
        """Wait for the first process, and raise in every process what it refuses, if it refuses anything."""
        said = [refusal]
        if self.split:
            dist.broadcast_object_list(said)
        if said[0] is not None:
            raise said[0]

    def own_tokens(self, batch: Float[Tensor, "batch d_in"]) -> Float[Tensor, "share d_in"]:
        """This process's tokens: every `n`-th, so that the first tokens of all shares are the first of the batch."""
        return batch[self.rank :: self.n] if self.split == "tokens" else batch

    def own_latents(self, tensor: Tensor) -> Tensor:
        """This process's rows of a tensor with one row per latent."""
        return tensor.chunk(self.n)[self.rank] if self.split == "latents" else tensor

    def all_latents(self, tensor: Tensor) -> Tensor:
        """The rows of every process, put together again."""
        return torch.cat(self._gather(tensor)) if self.split == "latents" else tensor

    def latents_for_first(self, tensor: Tensor) -> Tensor:
        """The rows of every process, put together in the first one's memory beside its device; no rows in the others.

        A dictionary that is split need not fit the device of one process.
        """
        if self.split != "latents":
            return tensor
        own = tensor.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.n)] if self.rank == 0 else None
        dist.gather(own, parts, dst=0)
        return torch.cat([part.cpu() for part in parts]) if parts else own[:0].cpu()

    def sum(self, tensor: Tensor, *, over: Split) -> Tensor:
        """The sum over the processes' shares of `over`, in place; where that is not split, the tensor as it is."""
        if self.split == over:
            dist.all_reduce(tensor)
        return tensor

    def smallest(self, tensor: Tensor) -> Tensor:
        """The least of all processes' values, in place."""
        if self.split:
            dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return tensor

    def among_largest(self, values: Float[Tensor, "*rows own"], k: int) -> Bool[Tensor, "*rows own"]:
        """True = among the `k` largest of its row, where a row goes on over all processes."""
        everyone = torch.cat(self._gather(values), dim=-1)
        chosen = torch.zeros_like(everyone, dtype=torch.bool)
        chosen.scatter_(-1, everyone.topk(min(k, everyone.shape[-1]), sorted=False).indices, True)
        return chosen.chunk(self.n, dim=-1)[self.rank]

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.n)]
        dist.all_gather(parts, tensor.contiguous())
        return parts


ALONE = Ranks()
"""No other process."""


@contextmanager
def torchrun_ranks(split: Split) -> Iterator[Ranks]:
    """The processes that `torchrun` started; what is on a GPU goes over NCCL, and all else over gloo.

    On a machine with GPUs, each process has its own one as the current one.

    Raises:
        ConfigError: the process was not started by `torchrun`.
    """
    if "WORLD_SIZE" not in os.environ:
        raise ConfigError("this process has no WORLD_SIZE. Start it with `torchrun --nproc-per-node N SCRIPT`.")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo")
    try:
        yield Ranks(split)
    finally:
        dist.destroy_process_group()
