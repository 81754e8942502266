"""What training needs of activations, wherever they come from. Axes: `d_in` width at a hook."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float64
from torch import Tensor

from sae_persona.artifacts import Manifest


@runtime_checkable
class ActivationSource(Protocol):
    """Activations of one model by hook, such as an `ActivationCache` or an `ActivationStream`."""

    @property
    def manifest(self) -> Manifest:
        """What the activations are of; its fingerprint tells one source from another."""
        ...

    @property
    def model(self) -> str:
        """What the activations are taken from, as it was loaded."""
        ...

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks there are."""
        ...

    @property
    def context_size(self) -> int:
        """Tokens of the longest document, as the model read it."""
        ...

    def d_in(self, hook_name: str) -> int:
        """Width of the activations at a hook."""
        ...

    def mean(self, hook_name: str) -> Float64[Tensor, " d_in"]:
        """Mean activation over counted tokens."""
        ...

    def variance(self, hook_name: str) -> Float64[Tensor, " d_in"]:
        """Variance of each coordinate over counted tokens."""
        ...

    def batches(
        self, hook_name: str, *, batch_size: int, seed: int, n_epochs: int | None = None, skip: int = 0
    ) -> Iterator[Float[Tensor, "batch_size d_in"]]:
        """Counted rows in a random order given by `seed`, endlessly or for `n_epochs`, without the first batches."""
        ...
