"""How well an SAE reconstructs a model's residual stream on text it was not trained on.

Axes: `n` tokens of one block, `d_in` width of the residual stream, `d_sae` latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sae_persona.cache.moments import Moments
from sae_persona.data.tokens import TokenBatch, TokenRow, batches
from sae_persona.errors import DataError
from sae_persona.model.hooks import Edit, Position, Resid, edit_residual, residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import blocks, counted_tokens
from sae_persona.sae.load import check_fits

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class SAEMetrics:
    """Over counted tokens, with `x` the residual stream, `f` the latents' activations and `x_hat` the reconstruction.

    Cross-entropies are in nats per predicted token, over the tokens that follow a counted one.
    """

    n_tokens: int
    l0: float
    """`mean #{j: f_j > 0}`"""
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
    """Of the model as it is; None, like the three below, where nothing was spliced in."""
    ce_spliced: float | None
    """With `x_hat` in place of `x`."""
    ce_ablated: float | None
    """With zeros (or the `ablation` that was given) in place of `x`."""
    ce_recovered: float | None
    """`(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)`; 1 = nothing is lost, 0 = no better than the ablation."""


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
) -> SAEMetrics:
    """Metrics of the SAE on held-out rows, in one pass over them.

    The first `drop_first` tokens of a row and tokens of a norm above `max_norm` do not count, as in training: they are
    neither measured nor replaced. Ablation is by zeros, as in SAELens and SAEBench; hand in `cache.mean(hook_name)` for
    the stricter mean ablation. Without `splice` the forward pass stops at the hook and the cross-entropies are None.

    Raises:
        DataError: no token counts.
        HookError, IncompatibleError: the SAE does not fit the model.
    """
    check_fits(sae, model, hook_name)
    sums = Reconstruction(sae)
    entropies = _Entropies()
    for _, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        resid = residuals(model.hf, batch, [hook_name])[hook_name]
        counts = counted_tokens(batch, resid, drop_first=drop_first, max_norm=max_norm)
        x_hat = sums.add(resid[counts])
        if splice:
            zeros = resid.new_zeros(resid.shape[-1]) if ablation is None else ablation.to(resid)
            entropies.add(model, batch, counts, hook_name, x_hat, zeros)
    if sums.n_tokens == 0:
        raise DataError(
            f"none of the {len(rows)} rows has a token that counts. Give rows of more than {drop_first} tokens."
        )
    return sums.metrics(entropies)


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
            self._n_fired += (gated > 0).sum(0)
            self._squared_error += (x - estimate).square().sum()
            self._cosine += torch.cosine_similarity(x, estimate, dim=-1).sum()
            x_hat[block] = decoded.to(x_hat)
        return x_hat

    def metrics(self, entropies: "_Entropies") -> SAEMetrics:
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
            **entropies.means(),
        )


class _Entropies:
    """Summed cross-entropies of the model left alone, with the reconstruction, and with the ablation."""

    def __init__(self) -> None:
        self.n = 0
        self.clean = self.spliced = self.ablated = 0.0

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

        def replaced_by(values: Tensor) -> Edit:
            def edit(resid: Resid, _position: Position) -> Resid:
                resid = resid.clone()
                resid[counts] = values
                return resid

            return edit

        self.n += int(followed.sum())
        self.clean += _entropy(model, batch, followed)
        with edit_residual(model.hf, hook_name, replaced_by(x_hat)):
            self.spliced += _entropy(model, batch, followed)
        with edit_residual(model.hf, hook_name, replaced_by(ablation)):
            self.ablated += _entropy(model, batch, followed)

    def means(self) -> dict[str, float | None]:
        """The fields of `SAEMetrics` that begin with `ce_`."""
        if self.n == 0:
            return dict.fromkeys(("ce_clean", "ce_spliced", "ce_ablated", "ce_recovered"))
        clean, spliced, ablated = self.clean / self.n, self.spliced / self.n, self.ablated / self.n
        recovered = (ablated - spliced) / (ablated - clean) if ablated != clean else None
        return {"ce_clean": clean, "ce_spliced": spliced, "ce_ablated": ablated, "ce_recovered": recovered}


@torch.no_grad()
def _entropy(model: LoadedModel, batch: TokenBatch, followed: Bool[Tensor, "batch seq_minus_1"]) -> float:
    """Summed cross-entropy of the tokens that come after those marked."""
    logits = model.hf(
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids, use_cache=False
    ).logits
    return float(
        functional.cross_entropy(logits[:, :-1][followed].double(), batch.ids[:, 1:][followed], reduction="sum")
    )
