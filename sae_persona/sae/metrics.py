"""How well an SAE reconstructs a model's residual stream on text it was not trained on.

Axes: `n` tokens of one block, `d_in` width of the residual stream, `d_sae` latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sae_persona.cache.moments import Moments
from sae_persona.data.packed import PackedRows
from sae_persona.data.tokens import TokenBatch, TokenRow, batches
from sae_persona.errors import DataError, ModelError
from sae_persona.model.hooks import Edit, Position, Resid, edit_residual, residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import blocks, counted_tokens
from sae_persona.sae.load import check_fits

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class SAEMetrics:
    """Over counted tokens, with `x` the residual stream, `f` the latents' activations and `x_hat` the reconstruction.

    Cross-entropies (`ce_`) and Kullback-Leibler divergences (`kl_`) from what the model as it is predicts, `KL(clean ||
    edited)`, are in nats per predicted token, over the tokens that follow a counted one.
    """

    n_tokens: int
    l0: float
    """`mean #{j: f_j != 0}`"""
    fve: float
    """`1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2`, both sums over all tokens."""
    mse: float
    """`mean (x - x_hat)^2` over tokens and coordinates."""
    cosine: float
    """`mean <x, x_hat> / (||x|| ||x_hat||)`"""
    dead_fraction: float
    """Share of the latents that fire on none of these tokens."""
    density: tuple[float, ...]
    """For every latent, the share of tokens on which it fires."""
    ce_clean: float | None
    """Of the model as it is; None, like all below, where nothing was spliced in."""
    ce_spliced: float | None
    """With `x_hat` in place of `x`."""
    ce_ablated: float | None
    """With zeros (or the `ablation` that was given) in place of `x`."""
    ce_recovered: float | None
    """`(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)`; 1 = nothing is lost, 0 = no better than the ablation.

    None where the ablation costs nothing.
    """
    kl_spliced: float | None
    """With `x_hat` in place of `x`."""
    kl_ablated: float | None
    """With the ablation in place of `x`."""
    kl_recovered: float | None
    """`1 - kl_spliced / kl_ablated`, SAELens's `kl_div_score`."""


def reconstruction_metrics(
    sae: "SAE",
    model: LoadedModel,
    rows: Sequence[TokenRow],
    *,
    hook_name: str,
    splice: bool = True,
    ablation: Float[Tensor, " d_in"] | None = None,
    drop_first: int = 1,
    max_norm: float | None = None,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> SAEMetrics:
    """Metrics of the SAE on held-out rows, in one pass over them.

    The first `drop_first` tokens of a row and tokens of a norm above `max_norm` do not count, as in training: they are
    neither measured nor replaced. Ablation is by zeros, as in SAELens and SAEBench; hand in `cache.mean(hook_name)` for
    the stricter mean ablation. Without `splice` the forward pass stops at the hook, and what splicing tells is None.
    `progress` gets the number of rows just measured.

    Raises:
        DataError: no token counts.
        ModelError: the activation of a token is not finite.
        HookError, IncompatibleError: the SAE does not fit the model.
    """
    check_fits(sae, model, hook_name)
    sums = Reconstruction(sae)
    predictions = _Predictions()
    for indices, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        resid = residuals(model.hf, batch, [hook_name])[hook_name]
        _check_finite(resid, batch, rows, indices, hook_name)
        counts = counted_tokens(batch, resid, drop_first=drop_first, max_norm=max_norm)
        x_hat = sums.add(resid[counts])
        if splice:
            zeros = resid.new_zeros(resid.shape[-1]) if ablation is None else ablation.to(resid)
            predictions.add(model, batch, counts, hook_name, x_hat, zeros)
        if progress:
            progress(len(batch.ids))
    if sums.n_tokens == 0:
        raise DataError(
            f"none of the {len(rows)} rows has a token that counts. Give rows of more than {drop_first} tokens"
            f"{f', or a max_norm above {max_norm:g}' if max_norm is not None else ''}."
        )
    return sums.metrics(predictions)


def _check_finite(
    resid: Float[Tensor, "batch seq d_in"],
    batch: TokenBatch,
    rows: Sequence[TokenRow],
    indices: Sequence[int],
    hook_name: str,
) -> None:
    """Of all tokens, as in a cache: one that does not count is seen by those after it."""
    bad = (batch.mask & ~resid.isfinite().all(-1)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        document, position = PackedRows.of(rows).documents[indices[row]], int(batch.position_ids[row, column])
        raise ModelError(
            f"the activation at {hook_name} is not finite in {str(resid.dtype).removeprefix('torch.')} at document "
            f"{document}, position {position}. Check the model and its dtype."
        )


class Reconstruction:
    """Sums over the tokens seen so far, from which the metrics of reconstruction follow."""

    def __init__(self, sae: "SAE") -> None:
        self.sae = sae
        device = sae.W_dec.device
        self._x = Moments()
        self._n_fired = torch.zeros(sae.cfg.d_sae, dtype=torch.long, device=device)
        self._squared_error = torch.zeros((), dtype=torch.float64, device=device)
        self._cosine = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def n_tokens(self) -> int:
        """Tokens seen."""
        return self._x.n

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of the tokens on which each latent fires."""
        return self._n_fired.double() / max(self.n_tokens, 1)

    @torch.no_grad()
    def add(self, tokens: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """Take in tokens and return their reconstruction."""
        x_hat = torch.empty_like(tokens)
        for block in blocks(len(tokens), self.sae.cfg.d_sae):
            x = tokens[block].to(self.sae.W_dec.device)
            gated = self.sae.encode(x)
            decoded = self.sae.decode(gated)
            x, estimate = x.double(), decoded.double()
            self._x.add(x)
            self._n_fired += (gated != 0).sum(0)  # AbsTopK's latents fire with either sign
            self._squared_error += (x - estimate).square().sum()
            self._cosine += torch.cosine_similarity(x, estimate, dim=-1).sum()
            x_hat[block] = decoded.to(x_hat)
        return x_hat

    def metrics(self, predictions: "_Predictions") -> SAEMetrics:
        """The metrics over all tokens seen."""
        n, squared_error = self.n_tokens, float(self._squared_error)
        return SAEMetrics(
            n_tokens=n,
            l0=float(self._n_fired.sum()) / n,
            fve=1 - squared_error / max(float(self._x.squares.sum()), torch.finfo(torch.float64).tiny),
            mse=squared_error / (n * self.sae.cfg.d_in),
            cosine=float(self._cosine) / n,
            dead_fraction=float((self._n_fired == 0).double().mean()),
            density=tuple(self.density.tolist()),
            **predictions.means(),
        )


class _Predictions:
    """Sums over predicted tokens, of the model left alone, with the reconstruction, and with the ablation."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: dict[str, float] = dict.fromkeys(
            ("ce_clean", "ce_spliced", "ce_ablated", "kl_spliced", "kl_ablated"), 0.0
        )

    def add(
        self,
        model: LoadedModel,
        batch: TokenBatch,
        counts: Bool[Tensor, "batch seq"],
        hook_name: str,
        x_hat: Float[Tensor, "n d_in"],
        ablation: Float[Tensor, " d_in"],
    ) -> None:
        followed = counts[:, :-1] & batch.mask[:, 1:]
        targets = batch.ids[:, 1:][followed]

        def replaced_by(values: Tensor) -> Edit:
            def edit(resid: Resid, _position: Position) -> Resid:
                resid = resid.clone()
                resid[counts] = values
                return resid

            return edit

        self.n += int(followed.sum())
        clean = _logits(model, batch, followed)
        for block in blocks(len(clean), clean.shape[-1]):
            self.sums["ce_clean"] += _cross_entropy(clean[block].double(), targets[block])
        for name, values in (("spliced", x_hat), ("ablated", ablation)):
            with edit_residual(model.hf, hook_name, replaced_by(values)):
                edited = _logits(model, batch, followed)
            for block in blocks(len(clean), clean.shape[-1]):
                logits, as_it_is = edited[block].double(), clean[block].double()
                self.sums[f"ce_{name}"] += _cross_entropy(logits, targets[block])
                self.sums[f"kl_{name}"] += _divergence(as_it_is, logits)

    def means(self) -> dict[str, float | None]:
        """The fields of `SAEMetrics` that begin with `ce_` and `kl_`."""
        if self.n == 0:
            return dict.fromkeys((*self.sums, "ce_recovered", "kl_recovered"))
        means = {name: total / self.n for name, total in self.sums.items()}
        lost_at_most = means["ce_ablated"] - means["ce_clean"]
        return {
            **means,
            "ce_recovered": (means["ce_ablated"] - means["ce_spliced"]) / lost_at_most if lost_at_most > 0 else None,
            "kl_recovered": 1 - means["kl_spliced"] / means["kl_ablated"] if means["kl_ablated"] > 0 else None,
        }


@torch.no_grad()
def _logits(model: LoadedModel, batch: TokenBatch, followed: Bool[Tensor, "batch seq_minus_1"]) -> Float[Tensor, "n v"]:
    """What is predicted after the marked tokens."""
    out = model.hf(
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids, use_cache=False
    )
    return out.logits[:, :-1][followed]


def _cross_entropy(logits: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> float:
    return float(functional.cross_entropy(logits, targets, reduction="sum"))


def _divergence(clean: Float[Tensor, "n v"], edited: Float[Tensor, "n v"]) -> float:
    """Summed `KL(clean || edited)`."""
    return float(functional.kl_div(edited.log_softmax(-1), clean.log_softmax(-1), reduction="sum", log_target=True))
