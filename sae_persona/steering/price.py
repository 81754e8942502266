"""What steering costs on text that has nothing to do with the persona: cross-entropy and divergence of predictions."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sae_persona.data.tokens import Part, TokenBatch, TokenRow, batches
from sae_persona.errors import DataError
from sae_persona.model.generate import HookedEdit
from sae_persona.model.hooks import Position, edit_residual
from sae_persona.model.load import LoadedModel


@dataclass(frozen=True)
class Price:
    """Over all predicted tokens, in nats per token."""

    n_tokens: int
    ce_unsteered: float
    """`mean -log p(next token)` of the model as it is."""
    ce_steered: float
    kl: float
    """`mean sum_v p(v) log(p(v) / q(v))`, p of the model as it is, q of the steered one."""

    @property
    def added(self) -> float:
        """Rise of the cross-entropy."""
        return self.ce_steered - self.ce_unsteered


def price(model: LoadedModel, edits: Sequence[HookedEdit], rows: Sequence[TokenRow], *, batch_size: int = 32) -> Price:
    """What the edits cost on the rows, held-out text or chats that were written by someone else.

    Windows mean what they mean while an answer is written: the header is the last token before each answer. Text
    without answers is all prompt, so that only `all` and `prompt` steer it.

    Raises:
        DataError: no row has a second token.
        HookError: the model lacks a hook.
    """
    return prices(model, [edits], rows, batch_size=batch_size)[0]


@torch.no_grad()
def prices(
    model: LoadedModel,
    conditions: Sequence[Sequence[HookedEdit]],
    rows: Sequence[TokenRow],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Price]:
    """The `price` of each condition's edits; the model as it is reads every batch once for all of them.

    `progress` is told the number of rows times conditions that have just been read.

    Raises:
        DataError, HookError: as `price`.
    """
    sums = torch.zeros(len(conditions), 2, dtype=torch.double)  # steered cross-entropy, divergence
    clean_sum, n_tokens = 0.0, 0
    for indices, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        followed = batch.mask[:, :-1] & batch.mask[:, 1:]
        targets = batch.ids[:, 1:][followed][:, None]
        clean = _log_probabilities(model, batch, followed)
        clean_sum -= float(clean.gather(-1, targets).sum())
        n_tokens += len(targets)
        position = position_in_text(batch)
        for i, edits in enumerate(conditions):
            with contextlib.ExitStack() as stack:
                for one in edits:
                    hook = edit_residual(model.hf, one.hook_name, one.edit, position=lambda position=position: position)
                    stack.enter_context(hook)
                steered = _log_probabilities(model, batch, followed)
            sums[i, 0] -= float(steered.gather(-1, targets).sum())
            sums[i, 1] += float((clean.exp() * (clean - steered)).sum())
            if progress is not None:
                progress(len(indices))
    if n_tokens == 0:
        raise DataError(f"none of {len(rows)} rows has a second token to predict. Give longer texts.")
    return [Price(n_tokens, clean_sum / n_tokens, ce / n_tokens, kl / n_tokens) for ce, kl in sums.tolist()]


def position_in_text(batch: TokenBatch) -> Position:
    """What edits may know about tokens that were written before, as if the answers were being written now."""
    answer = batch.counts(Part.ANSWER)
    before_answer = torch.zeros_like(answer)
    before_answer[:, :-1] = answer[:, 1:] & ~answer[:, :-1] & batch.mask[:, :-1]
    condition = torch.zeros(len(batch.ids), dtype=torch.long, device=batch.ids.device)
    return Position(batch.mask, answer, answer | before_answer, condition)


def _log_probabilities(
    model: LoadedModel, batch: TokenBatch, followed: Bool[Tensor, "batch seq_minus_1"]
) -> Float[Tensor, "n vocab"]:
    logits = model.hf(
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids, use_cache=False
    ).logits
    return functional.log_softmax(logits[:, :-1][followed].double(), dim=-1)
