"""Running sums of one reading over tokens, by question and latent: what means, variances and the rest are made of.

Axes: `n` tokens of one block, `groups` of tokens that are counted together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_persona.sae.chunks import Dense, Piece, Sparse

Segment = tuple[int, slice]
"""A question and where its tokens are in a block."""
_ALL: Sequence[Segment] = ((0, slice(None)),)


@dataclass(frozen=True, eq=False)
class Spread:
    """What a mean leaves out, of every latent over one or several groups of tokens."""

    variance: Float[np.ndarray, "*groups d_sae"]
    frequency: Float[np.ndarray, "*groups d_sae"]
    maximum: Float[np.ndarray, "*groups d_sae"]


class Sums:
    """Sums over the tokens seen so far: of the values by question, of the rest over all questions or by question too.

    Within a block they are taken in float32, over blocks in float64. Squares are of the distance from the first block's
    mean, so that a latent that is large and hardly varies loses nothing.
    """

    def __init__(self, n_questions: int, d_sae: int, device: torch.device, *, by_question: bool) -> None:
        self.by_question = by_question
        spread = (n_questions if by_question else 1, d_sae)
        self._sums = torch.zeros(n_questions, d_sae, dtype=torch.float64, device=device)
        self._squares = torch.zeros(spread, dtype=torch.float64, device=device)
        self._n_firing = torch.zeros(spread, dtype=torch.int32, device=device)
        self._maximum = torch.full(spread, -torch.inf, device=device)
        self._centre = torch.zeros(d_sae, device=device)
        self._n_centred = 0  # pieces of the first block come in the order of latents

    def add(self, piece: Piece, segments: Sequence[Segment]) -> None:
        """Take in one piece; the segments cover its tokens, every question once."""
        if isinstance(piece, Dense):
            self._add_dense(piece, segments)
        else:
            self._add_sparse(piece, segments)

    def _add_dense(self, piece: Dense, segments: Sequence[Segment]) -> None:
        values, latents = piece.values, piece.latents
        if latents.start >= self._n_centred:
            self._centre[latents] = values.mean(0)
            self._n_centred = latents.stop
        for question, tokens in segments:
            self._sums[question, latents] += values[tokens].sum(0)
        for group, tokens in segments if self.by_question else _ALL:
            part = values[tokens]
            maximum = self._maximum[group, latents]
            torch.maximum(maximum, part.amax(0), out=maximum)
            # Absolute TopK lets what is below zero fire too. Summing truth values takes three times longer.
            fires = (torch.ne if piece.reading == "gated" else torch.gt)(part, 0, out=torch.empty_like(part))
            self._n_firing[group, latents] += fires.sum(0).int()
            self._squares[group, latents] += (part - self._centre[latents]).square_().sum(0)

    def _add_sparse(self, piece: Sparse, segments: Sequence[Segment]) -> None:
        self._maximum.clamp_(min=0)  # of all that is not among the pairs
        question = torch.empty(len(piece.latents), 1, dtype=torch.long, device=piece.latents.device)
        for i, tokens in segments:
            question[tokens] = i
        values, d_sae = piece.values.flatten(), len(self._centre)
        of_question = (piece.latents + question * d_sae).flatten()
        of_group = of_question if self.by_question else piece.latents.flatten()
        exact = values.double()
        self._sums.view(-1).index_add_(0, of_question, exact)
        self._squares.view(-1).index_add_(0, of_group, exact.square())
        self._n_firing.view(-1).index_add_(0, of_group, (values > 0).int())
        self._maximum.view(-1).scatter_reduce_(0, of_group, values, "amax")

    def mean(self, n_tokens: Int[Tensor, " n_questions"]) -> Float[np.ndarray, " d_sae"]:
        """Over all tokens."""
        return (self._sums.sum(0) / int(n_tokens.sum())).cpu().numpy()

    def means(self, n_tokens: Int[Tensor, " n_questions"]) -> Float[np.ndarray, "n_asked d_sae"]:
        """Of every question that has tokens, in float32."""
        asked = n_tokens.nonzero()[:, 0].tolist()
        means = np.empty((len(asked), len(self._centre)), dtype=np.float32)
        for row, question in enumerate(asked):
            means[row] = (self._sums[question] / int(n_tokens[question])).cpu().numpy()
        return means

    def spread(self, n_tokens: Int[Tensor, " n_questions"]) -> Spread:
        """Over all tokens."""
        n, mean = int(n_tokens.sum()), self._sums.sum(0) / int(n_tokens.sum())
        return _spread(self._squares.sum(0), self._n_firing.sum(0), self._maximum.amax(0), mean - self._centre, n)

    def spreads(self, n_tokens: Int[Tensor, " n_questions"]) -> Spread | None:
        """Of every question that has tokens, in float32; None where they were not kept."""
        if not self.by_question:
            return None
        asked = n_tokens.nonzero()[:, 0].tolist()
        found = Spread(*(np.empty((len(asked), len(self._centre)), dtype=np.float32) for _ in range(3)))
        for row, question in enumerate(asked):
            n = int(n_tokens[question])
            off_centre = self._sums[question] / n - self._centre
            one = _spread(self._squares[question], self._n_firing[question], self._maximum[question], off_centre, n)
            found.variance[row], found.frequency[row], found.maximum[row] = one.variance, one.frequency, one.maximum
        return found


def _spread(squares: Tensor, n_firing: Tensor, maximum: Tensor, off_centre: Tensor, n: int) -> Spread:
    variance = (squares / n - off_centre.square()).clamp(min=0)
    return Spread(*(values.cpu().double().numpy() for values in (variance, n_firing / n, maximum)))
