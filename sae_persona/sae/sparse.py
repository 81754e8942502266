"""Choosing a few latents per token, and products that visit only these: the arithmetic under the training step.

On a GPU the products are Triton kernels where it runs these, and gathered rows where it does not.

Axes: `batch` tokens, `nnz` chosen (token, latent) pairs, `d_in` width, `d_sae` latents. Matrices have one latent or one
token per row, so that a product is a weighted sum, or a dot product, of gathered rows.
"""

import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

_GATHER_ROWS = 256
"""Tokens whose chosen rows are gathered at once on a CPU: few enough to stay in its cache."""
_GATHER_ENTRIES = 2**26
"""Entries that are gathered at once on a GPU (256 MB): enough to be busy with, and an end to the memory they take."""
_CACHED_ENTRIES = 2**20
"""Entries of a matrix (4 MB) up to which gathering its rows is as fast as `sampled_addmm`, which leaves them there."""
_GROUP = 16
"""Latents of which `largest_of_batch` looks at the greatest first on a CPU."""
_MOST_OF_GROUP = 64
"""The same in `largest_by_groups`, at most."""
_WIDE_ROW = 2048
"""Entries from which on selecting by groups is faster on a CPU, whatever `k`."""
_TRITON_NEEDS = (8, 0)
"""Compute capability of the oldest GPUs that Triton supports."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Chosen latents and their activations, token by token."""

    latents: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    """At least zero; a zero takes part in nothing."""
    first: Int[Tensor, " batch"]
    """Where each token's pairs begin."""
    per_token: int | None
    """Pairs of every token; None where their number varies."""

    def tokens(self) -> Int[Tensor, " nnz"]:
        """The token of each pair."""
        n_pairs = len(self.latents)
        if self.per_token is not None:
            return torch.arange(n_pairs, device=self.latents.device) // self.per_token
        n_of_token = torch.diff(self.first, append=self.first.new_full((1,), n_pairs))
        tokens = torch.arange(len(self.first), device=self.first.device)
        return tokens.repeat_interleave(n_of_token, output_size=n_pairs)

    def only(self, kept: Bool[Tensor, " nnz"]) -> "Chosen":
        """Some of the pairs; where every token has as many, the others stay with an activation of zero."""
        if self.per_token is not None:
            return Chosen(self.latents, self.values * kept, self.first, self.per_token)
        return _ragged(self.tokens()[kept], self.latents[kept], self.values[kept], len(self.first))


def joined(parts: Sequence[Chosen]) -> Chosen:
    """Consecutive tokens' choices, each of as many latents, as one."""
    if len(parts) == 1:
        return parts[0]
    latents = torch.cat([part.latents for part in parts])
    values = torch.cat([part.values for part in parts])
    k = parts[0].per_token
    assert k is not None
    return Chosen(latents, values, torch.arange(0, len(latents), k, device=latents.device), k)


def largest_of_each(pre: Float[Tensor, "batch d_sae"], k: int) -> Chosen:
    """Each token's `k` largest entries, those below zero as zeros."""
    by_groups = runs_triton(pre) or (pre.device.type == "cpu" and pre.shape[1] >= _WIDE_ROW)
    values, latents = largest_by_groups(pre, k) if by_groups else pre.topk(k, dim=-1, sorted=False)
    first = torch.arange(0, latents.numel(), k, device=pre.device)
    return Chosen(latents.flatten(), values.relu_().flatten(), first, k)


def largest_of_batch(pre: Float[Tensor, "batch d_sae"], n: int) -> Chosen:
    """The `n` largest entries of the whole batch, as far as they are above zero.

    Exact without sorting `batch * d_sae` numbers: every one of the `n` largest is at least as large as the `n`-th
    largest of the maxima of groups, so only groups whose maximum is that large are looked into. How many these are, a
    GPU could only tell to a CPU that waits; it looks into the `n` of the largest maxima.
    """
    batch, d_sae = pre.shape
    if pre.device.type != "cpu":
        everything, n = pre.view(1, -1), min(n, pre.numel())
        by_groups = runs_triton(pre) or not pre.is_cuda
        values, pairs = largest_by_groups(everything, n) if by_groups else everything.topk(n, sorted=False)
        pairs, by_token = pairs.flatten().sort()
        return _ragged(pairs // d_sae, pairs % d_sae, values.flatten()[by_token].relu_(), batch)
    group = _GROUP if d_sae % _GROUP == 0 else 1
    grouped = pre.view(batch, group, d_sae // group)  # strided groups: their maxima are taken vector by vector
    maxima = grouped.amax(1)  # [batch, d_sae / group]
    n_maxima = min(n, maxima.numel())
    at_least = maxima.flatten().topk(n_maxima, sorted=False).values.min() if n_maxima == n else maxima.new_tensor(0.0)
    token, column = ((maxima >= at_least) & (maxima > 0)).nonzero(as_tuple=True)
    values = grouped[token, :, column]  # [n_groups, group]
    latent = column.unsqueeze(-1) + torch.arange(group, device=pre.device) * (d_sae // group)
    candidates = ((values >= at_least) & (values > 0)).flatten().nonzero().squeeze(-1)
    values, pairs = values.flatten()[candidates], (token.unsqueeze(-1) * d_sae + latent).flatten()[candidates]
    if len(values) > n:
        values, kept = values.topk(n, sorted=False)
        pairs = pairs[kept]
    pairs, by_token = pairs.sort()
    return _ragged(pairs // d_sae, pairs % d_sae, values[by_token], batch)


def largest_by_groups(rows: Float[Tensor, "n width"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """`rows.topk(k)`, unsorted and among equals any, in one pass over the rows and two selections of little.

    The `k` largest entries are in the `k` groups with the largest maxima. With groups of `sqrt(width / k)`, there are
    as many maxima as entries in those groups, `sqrt(width * k)`. Triton's groups are neighbours; elsewhere they are
    strided, so that maxima are taken vector by vector.
    """
    n, width = rows.shape
    group = math.gcd(width, min(2 ** int(math.log2(max(width / k, 1)) / 2), _MOST_OF_GROUP))
    n_groups = width // group
    if group == 1:
        values, columns = rows.topk(k, sorted=False)
        return values, columns
    if runs_triton(rows):
        from sae_persona.sae.kernels import group_maxima

        groups = group_maxima(rows, group).topk(k, sorted=False).indices
        grouped = rows.view(n, n_groups, group)
        candidates = grouped[torch.arange(n, device=rows.device).unsqueeze(-1), groups].flatten(1)  # [n, k * group]
        values, at = candidates.topk(k, sorted=False)
        return values, groups.gather(1, at // group) * group + at % group
    grouped = rows.view(n, group, n_groups)
    groups = grouped.amax(1).topk(k, sorted=False).indices  # [n, k]
    candidates = grouped.gather(2, groups.unsqueeze(1).expand(n, group, k)).flatten(1)  # [n, group * k]
    values, at = candidates.topk(k, sorted=False)
    return values, at // k * n_groups + groups.gather(1, at % k)


def _ragged(
    tokens: Int[Tensor, " nnz"], latents: Int[Tensor, " nnz"], values: Float[Tensor, " nnz"], batch: int
) -> Chosen:
    n_of_token = _occurrences(tokens, batch)
    return Chosen(latents, values, n_of_token.cumsum(0) - n_of_token, None)


def _occurrences(indices: Int[Tensor, " nnz"], n: int) -> Int[Tensor, " n"]:
    """How often each of `n` indices is there: `bincount`, for which a CPU does not wait for its GPU."""
    return indices.new_zeros(n).scatter_add_(0, indices, torch.ones_like(indices))


def weighted_rows(chosen: Chosen, matrix: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
    """`f matrix`: for each token the sum of its latents' rows, weighted by their activations."""
    if runs_triton(matrix):
        from sae_persona.sae import kernels

        return kernels.weighted_rows(matrix, chosen.latents, chosen.values, chosen.first)
    return functional.embedding_bag(
        chosen.latents, matrix, offsets=chosen.first, per_sample_weights=chosen.values, mode="sum"
    )


def dots(
    chosen: Chosen, rows: Float[Tensor, "batch d_in"], matrix: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " nnz"]:
    """The entries of `rows matrix^T` that were chosen, and no others."""
    if runs_triton(rows):
        from sae_persona.sae import kernels

        return kernels.dots(rows, matrix, chosen.tokens(), chosen.latents)
    if rows.device.type == "cpu" and matrix.numel() > _CACHED_ENTRIES and torch.backends.mkl.is_available():
        return _sampled(chosen, rows, matrix)
    products = torch.empty_like(chosen.values)
    n_of_row = max(len(chosen.latents) // len(rows), 1)  # exact, or the mean
    n_rows = _GATHER_ROWS if rows.device.type == "cpu" else max(_GATHER_ENTRIES // (n_of_row * rows.shape[1]), 1)
    if (k := chosen.per_token) is not None:
        latents, by_token = chosen.latents.view(-1, k), products.view(-1, k)
        for start in range(0, len(rows), n_rows):
            block = slice(start, start + n_rows)
            gathered = functional.embedding(latents[block], matrix)  # [rows, k, d_in]
            by_token[block] = (gathered @ rows[block].unsqueeze(-1)).squeeze(-1)
        return products
    tokens = chosen.tokens()
    n_at_once = n_rows * n_of_row
    for start in range(0, len(tokens), n_at_once):
        block = slice(start, start + n_at_once)
        products[block] = (matrix[chosen.latents[block]] * rows[tokens[block]]).sum(-1)
    return products


def _sampled(
    chosen: Chosen, rows: Float[Tensor, "batch d_in"], matrix: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " nnz"]:
    n_pairs = len(chosen.latents)
    ends = torch.cat([chosen.first, chosen.first.new_tensor([n_pairs])])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            ends, chosen.latents, torch.zeros_like(chosen.values), (len(rows), len(matrix)), check_invariants=False
        )
        return torch.sparse.sampled_addmm(pattern, rows, matrix.T, beta=0).values()


@dataclass(frozen=True, eq=False)
class ByLatent:
    """The same pairs latent by latent: latent `j` was chosen by `tokens[first[j] : first[j + 1]]`."""

    tokens: Int[Tensor, " nnz"]
    order: Int[Tensor, " nnz"]
    """Where each pair was before."""
    first: Int[Tensor, " d_sae"]

    @classmethod
    def of(cls, latents: Int[Tensor, " nnz"], tokens: Int[Tensor, " nnz"], d_sae: int) -> "ByLatent":
        """The pairs, sorted; tokens of a latent stay in order."""
        order = latents.int().argsort(stable=True)  # half as long to sort
        n_of_latent = _occurrences(latents, d_sae)
        return cls(tokens[order], order, n_of_latent.cumsum(0) - n_of_latent)

    def weighted_rows(
        self, rows: Float[Tensor, "batch d_in"], factors: Float[Tensor, " nnz"]
    ) -> Float[Tensor, "d_sae d_in"]:
        """For each latent the sum of its tokens' rows, weighted by `factors`, which are in the order before."""
        return functional.embedding_bag(
            self.tokens, rows, offsets=self.first, per_sample_weights=factors[self.order], mode="sum"
        )


def runs_triton(tensor: Tensor) -> bool:
    """True = Triton's kernels run where the tensor is: it is installed, as it is beside PyTorch for CUDA on Linux, and
    knows the GPU.
    """
    return tensor.is_cuda and _has_triton(tensor.device)


@cache
def _has_triton(device: torch.device) -> bool:
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= _TRITON_NEEDS
