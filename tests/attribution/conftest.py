"""A source of blocks that tests write down, and an SAE whose latents are the coordinates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sae_persona.attribution.corpus import Block, TokensRead

if TYPE_CHECKING:
    from sae_lens import StandardSAE, TopKSAE

HOOK = "blocks.0.hook_resid_post"


@dataclass
class Written:
    """Passages given as lists of rows of the residual stream; token i of a passage is `ids[passage][i]`."""

    passages: Sequence[Sequence[Sequence[float]]]
    ids: Sequence[Sequence[int]]
    tokenizer: Any
    per_block: int = 2
    order: Sequence[int] | None = None
    counted: Sequence[Sequence[bool]] | None = None
    tokens: TokensRead = "all"

    def blocks(self, sae: object, hook_name: str) -> Iterator[Block]:
        order = list(self.order if self.order is not None else range(len(self.passages)))
        for start in range(0, len(order), self.per_block):
            some = order[start : start + self.per_block]
            lengths = np.array([len(self.passages[i]) for i in some])
            counts = [self.counted[i] if self.counted else [True] * len(self.passages[i]) for i in some]
            yield Block(
                resid=torch.tensor([row for i in some for row in self.passages[i]], dtype=torch.float32),
                ids=np.array([id_ for i in some for id_ in self.ids[i]]),
                counts=np.concatenate(counts).astype(bool),
                starts=np.cumsum(lengths) - lengths,
                documents=np.array(some),
            )


class Letters:
    """A tokenizer whose token 0 is ` a`, 1 is ` b`, and so on."""

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(f" {chr(97 + i)}" for i in ids)


@pytest.fixture(scope="session")
def letters() -> Letters:
    return Letters()


@pytest.fixture(scope="session")
def write(letters: Letters) -> Callable[..., Written]:
    """A source of the passages given; without `ids`, tokens are called a, b, c in every passage."""

    def source(passages: Sequence[Any], ids: Sequence[Sequence[int]] | None = None, **options: Any) -> Written:
        return Written(passages, ids or [range(len(rows)) for rows in passages], letters, **options)

    return source


@pytest.fixture(scope="session")
def tiny_sae() -> "TopKSAE":
    """Twelve random latents that fit the tiny model, of which 3 fire."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=12, k=3, metadata=SAEMetadata(model_name="tiny", hook_name=HOOK)))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(tensor.shape, generator=generator) * 0.1 for name, tensor in sae.state_dict().items()}
    sae.load_state_dict(state)
    return sae.requires_grad_(False)


@pytest.fixture(scope="session")
def coordinates() -> "StandardSAE":
    """Two latents: the ReLU of the two coordinates."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=2, metadata=SAEMetadata(hook_name=HOOK)))
    eye, zero = torch.eye(2), torch.zeros(2)
    sae.load_state_dict({"W_enc": eye, "W_dec": eye.clone(), "b_enc": zero, "b_dec": zero.clone()})
    return sae.requires_grad_(False)
