"""The arithmetic of the training step in Triton, for CUDA: maxima, sums and products of gathered rows, the optimiser.

`sparse.py` and `adam.py` say what each computes and compute it in PyTorch where these cannot run. Nothing here makes
the CPU wait. This file needs Triton, which comes with PyTorch for CUDA; import it where a tensor is on a GPU.

Axes: `nnz` chosen (token, latent) pairs, `d_in` width, `d_sae` latents.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_TILE = 4096
"""Entries of a tile of gathered rows: as many as the registers of a block hold beside its sums."""


def group_maxima(rows: Float[Tensor, "n width"], group: int) -> Float[Tensor, "n groups"]:
    """The greatest of each `group` entries, a power of two that divides `width`: ten times as fast as `amax`."""
    n, width = rows.shape
    maxima = torch.empty(n, width // group, dtype=rows.dtype, device=rows.device)
    n_groups = max(_TILE // group, 1)
    _group_maxima[(triton.cdiv(maxima.numel(), n_groups),)](maxima, rows, maxima.numel(), n_groups, group)
    return maxima


def weighted_rows(
    matrix: Float[Tensor, "rows d_in"],
    indices: Int[Tensor, " nnz"],
    weights: Float[Tensor, " nnz"],
    first: Int[Tensor, " bags"],
) -> Float[Tensor, "bags d_in"]:
    """For each bag of pairs, `first[i]` to `first[i + 1]`, the sum of its rows of `matrix`, weighted."""
    d_in = matrix.shape[1]
    sums = torch.empty(len(first), d_in, dtype=matrix.dtype, device=matrix.device)
    width = min(triton.next_power_of_2(d_in), 1024)
    _weighted_rows[len(first), triton.cdiv(d_in, width)](
        sums, matrix, indices, weights, first, len(first), len(indices), d_in, _TILE // width, width
    )
    return sums


def dots(
    rows: Float[Tensor, "batch d_in"],
    matrix: Float[Tensor, "d_sae d_in"],
    tokens: Int[Tensor, " nnz"],
    latents: Int[Tensor, " nnz"],
) -> Float[Tensor, " nnz"]:
    """For each pair the dot product of its token's and its latent's row."""
    d_in = matrix.shape[1]
    products = torch.empty(len(tokens), dtype=matrix.dtype, device=matrix.device)
    width = min(triton.next_power_of_2(d_in), 512)
    n_pairs = _TILE // 2 // width
    if len(tokens):
        _dots[(triton.cdiv(len(tokens), n_pairs),)](
            products, rows, matrix, tokens, latents, len(tokens), d_in, n_pairs, width
        )
    return products


def adam_of_weighted_rows(
    weight: Float[Tensor, "d_sae d_in"],
    exp_avg: Float[Tensor, "d_sae d_in"],
    exp_avg_sq: Float[Tensor, "d_sae d_in"],
    *,
    rows: Float[Tensor, "any d_in"],
    indices: Int[Tensor, " nnz"],
    weights: Float[Tensor, " nnz"],
    first: Int[Tensor, " d_sae"],
    rates: Float[Tensor, "2"],
    betas: tuple[float, float],
    eps: float,
    unit_rows: bool,
) -> None:
    """One step of Adam, in place, whose gradient is `weighted_rows(rows, indices, weights, first)`.

    The gradient is never written: each latent's is summed, used and forgotten, and weights and moments are read and
    written once. With `unit_rows`, what points along the row is first taken out of its gradient, and the row is made
    one long at the end. `rates` are the learning rate and what the root of the second moment is multiplied by, each
    with the correction for the number of steps.
    """
    d_sae, d_in = weight.shape
    width = triton.next_power_of_2(d_in)
    _adam_of_weighted_rows[(d_sae,)](
        weight,
        exp_avg,
        exp_avg_sq,
        rows,
        indices,
        weights,
        first,
        d_sae,
        len(indices),
        d_in,
        rates,
        1 - betas[0],
        betas[1],
        1 - betas[1],
        eps,
        torch.finfo(weight.dtype).tiny,
        unit_rows,
        max(_TILE * 2 // width, 1),
        width,
        num_warps=min(max(width // 512, 4), 8),  # pyright: ignore[reportCallIssue]
    )


@triton.jit
@no_type_check
def _group_maxima(
    maxima,
    entries,
    n_maxima,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    there = group < n_maxima
    tile = tl.load(entries + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :], mask=there[:, None], other=0.0)
    tl.store(maxima + group, tl.max(tile, 1), mask=there)


@triton.jit
@no_type_check
def _weighted_rows(
    sums,
    matrix,
    indices,
    weights,
    first,
    n_bags,
    n_pairs,
    d_in,
    PAIRS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < d_in
    begin = tl.load(first + bag)
    end = tl.load(first + bag + 1, mask=bag + 1 < n_bags, other=n_pairs)
    total = tl.zeros([WIDTH], dtype=sums.dtype.element_ty)
    for start in range(begin, end, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        there = pair < end
        index = tl.load(indices + pair, mask=there, other=0).to(tl.int64)
        weight = tl.load(weights + pair, mask=there, other=0.0)
        tile = tl.load(
            matrix + index[:, None] * d_in + column[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        total += tl.sum(tile * weight[:, None], 0)
    tl.store(sums + bag * d_in + column, total, mask=inside)


@triton.jit
@no_type_check
def _dots(
    products,
    rows,
    matrix,
    tokens,
    latents,
    n_pairs,
    d_in,
    PAIRS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    there = pair < n_pairs
    token = tl.load(tokens + pair, mask=there, other=0).to(tl.int64)
    latent = tl.load(latents + pair, mask=there, other=0).to(tl.int64)
    total = tl.zeros([PAIRS, WIDTH], dtype=products.dtype.element_ty)
    for start in range(0, d_in, WIDTH):
        column = start + tl.arange(0, WIDTH)
        inside = there[:, None] & (column < d_in)[None, :]
        row = tl.load(rows + token[:, None] * d_in + column[None, :], mask=inside, other=0.0)
        other = tl.load(matrix + latent[:, None] * d_in + column[None, :], mask=inside, other=0.0)
        total += row * other
    tl.store(products + pair, tl.sum(total, 1), mask=there)


@triton.jit
@no_type_check
def _adam_of_weighted_rows(
    weight,
    exp_avg,
    exp_avg_sq,
    rows,
    indices,
    weights,
    first,
    d_sae,
    n_pairs,
    d_in,
    rates,
    one_less_beta1,
    beta2,
    one_less_beta2,
    eps,
    tiny,
    UNIT_ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < d_in
    at = latent * d_in + column
    w = tl.load(weight + at, mask=inside, other=0.0)
    m = tl.load(exp_avg + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    begin = tl.load(first + latent)
    end = tl.load(first + latent + 1, mask=latent + 1 < d_sae, other=n_pairs)
    gradient = tl.zeros([WIDTH], dtype=weight.dtype.element_ty)
    for start in range(begin, end, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        there = pair < end
        index = tl.load(indices + pair, mask=there, other=0).to(tl.int64)
        factor = tl.load(weights + pair, mask=there, other=0.0)
        tile = tl.load(rows + index[:, None] * d_in + column[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        gradient += tl.sum(tile * factor[:, None], 0)
    if UNIT_ROWS:
        gradient -= tl.sum(gradient * w, 0) * w
    m += one_less_beta1 * (gradient - m)
    v = beta2 * v + one_less_beta2 * gradient * gradient
    w -= tl.load(rates) * m / (tl.sqrt(v) * tl.load(rates + 1) + eps)
    if UNIT_ROWS:
        w /= tl.sqrt(tl.maximum(tl.sum(w * w, 0), tiny))
    tl.store(weight + at, w, mask=inside)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
