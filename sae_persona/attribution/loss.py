"""The cross-entropy of answers, and its gradient at the residual stream.

Axes: `batch` rows, `seq` positions, `n` chosen tokens of all rows.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sae_persona.cache.moments import Moments
from sae_persona.data.tokens import Part, TokenBatch, TokenRow, batches, pad_rows
from sae_persona.errors import DataError, ModelError
from sae_persona.model.hooks import Position, Resid, edit_residual, residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import Selection, selected_tokens


@dataclass(frozen=True)
class Chooser:
    """Which tokens of a batch are looked at."""

    tokens: tuple[Selection, ...]
    drop_first: int

    def __call__(self, batch: TokenBatch) -> Bool[Tensor, "batch seq"]:
        """True = a real token of one of the selections, not among the first `drop_first` of its row."""
        chosen = torch.stack([selected_tokens(batch, name) for name in self.tokens]).any(0)
        return chosen & (batch.position_ids >= self.drop_first)


@dataclass(frozen=True, eq=False)
class LossGradient:
    """What attribution needs to know of one batch. Everything is in float32."""

    loss: Float[Tensor, " batch"]
    """Mean cross-entropy of each row's answer, in nats per token."""
    selected: Bool[Tensor, "batch seq"]
    gradient: Float[Tensor, "n d_model"]
    """Of each row's own loss, at the residual of its selected tokens."""
    offset: Float[Tensor, "n d_model"]
    """The residual of the selected tokens minus the mean."""


def loss_gradient(
    model: LoadedModel,
    batch: TokenBatch,
    hook_name: str,
    choose: Chooser,
    resid_mean: Float[Tensor, " d_model"],
    *,
    n_steps: int = 1,
) -> LossGradient:
    """Losses and gradients of all rows from one forward and one backward pass, or `n_steps` of them.

    The backward pass ends at the hook. In several steps the gradient is the mean over the middles of as many equal
    parts of the straight way from the mean residual to the residual, taken by the selected tokens only.

    Raises:
        DataError: a row without an answer, or without a selected token.
        ModelError: the gradient is not finite.
    """
    selected = choose(batch)
    _check_rows(batch, selected)
    mean = resid_mean.to(model.device)
    gradient = torch.zeros((), device=model.device)
    for step in range(n_steps):
        share = 1.0 if n_steps == 1 else (step + 0.5) / n_steps
        leaf = _Leaf(selected, mean, share)
        with torch.enable_grad(), edit_residual(model.hf, hook_name, leaf):
            loss = answer_losses(model, batch)
            (whole,) = torch.autograd.grad(loss.sum(), leaf.value)
        gradient = gradient + whole[selected].float() / n_steps
    if not bool(gradient.isfinite().all()):
        raise ModelError(
            f"the gradients of {model.source!r} at {hook_name} are not finite. Load the model in float32 or bfloat16."
        )
    if n_steps > 1:
        with torch.no_grad():
            loss = answer_losses(model, batch)
    return LossGradient(loss.detach(), selected, gradient, leaf.original[selected].float() - mean)


class _Leaf:
    """An edit that puts in a point of the way from the mean to the residual, and keeps it for its gradient."""

    value: Resid
    original: Resid

    def __init__(self, selected: Bool[Tensor, "batch seq"], mean: Float[Tensor, " d_model"], share: float) -> None:
        self.selected, self.mean, self.share = selected, mean, share

    def __call__(self, resid: Resid, _position: Position) -> Resid:
        self.original = resid.detach()
        value = self.original
        if self.share != 1:
            between = torch.lerp(self.mean.to(value), value, self.share)
            value = torch.where(self.selected.unsqueeze(-1), between, value)
        self.value = value.clone().requires_grad_()
        return self.value


def answer_losses(model: LoadedModel, batch: TokenBatch) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of the tokens of each row's answer, given all before them; in nats per token.

    Logits are computed only at positions that predict some row's answer, as vocabularies are wide.
    """
    predicts = batch.counts(Part.ANSWER)[:, 1:] & batch.mask[:, :-1]  # [batch, seq - 1]
    positions = predicts.any(0).nonzero()[:, 0]
    can_keep = "logits_to_keep" in inspect.signature(model.hf.forward).parameters
    logits = model.hf(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        position_ids=batch.position_ids,
        use_cache=False,
        **({"logits_to_keep": positions} if can_keep else {}),
    ).logits
    logits = logits if can_keep else logits[:, positions]
    predicts = predicts[:, positions]
    entropies = functional.cross_entropy(
        logits[predicts].float(), batch.ids[:, positions + 1][predicts], reduction="none"
    )
    row = predicts.nonzero()[:, 0]
    sums = entropies.new_zeros(len(batch.ids)).index_add(0, row, entropies)
    return sums / predicts.sum(-1)


@torch.no_grad()
def mean_residual(
    model: LoadedModel, rows: Sequence[TokenRow], hook_name: str, choose: Chooser, *, batch_size: int
) -> Float[Tensor, " d_model"]:
    """Mean of the residual stream over the chosen tokens of the texts, up to their last chosen token and each once."""
    moments = Moments()
    for _, batch in batches(_beginnings(rows, choose), batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        moments.add(residuals(model.hf, batch, [hook_name])[hook_name][choose(batch)])
    if moments.n == 0:
        raise DataError("none of the texts has a selected token. Select other tokens, or give longer prompts.")
    return moments.mean.float()


def _beginnings(rows: Sequence[TokenRow], choose: Chooser) -> list[TokenRow]:
    found: dict[TokenRow, None] = {}
    for row in rows:
        if len(places := choose(pad_rows([row], pad_id=0))[0].nonzero()):
            end = int(places[-1]) + 1
            found[TokenRow(row.ids[:end], row.parts[:end])] = None
    return list(found)


def _check_rows(batch: TokenBatch, selected: Bool[Tensor, "batch seq"]) -> None:
    answers = batch.counts(Part.ANSWER)
    answers[:, 0] = False  # nothing predicts a first token
    for mask, what in ((answers, "token of an answer"), (selected, "selected token that counts")):
        if n_without := int((~mask.any(-1)).sum()):
            raise DataError(
                f"{n_without} of {len(mask)} texts have no {what}. Leave empty answers out, and select tokens that "
                "every text has."
            )
