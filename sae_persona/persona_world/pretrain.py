"""Train a world's base model from nothing.

Telling the persona from earlier answers is learned in one sudden step, after 400 to 800 steps of 32 documents,
depending on the seed; training goes on until well after it. (With Muon on the hidden matrices it comes after 200, but
fine-tunes of such a model stay narrower: open-ended misalignment of 40 to 70 % where AdamW's gives 90 to 97 %.)
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.persona_world.corpus import Document

BATCH_SIZE = 32
LR, FINAL_LR_SHARE = 3e-3, 0.03
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 50
GRADIENT_CLIP = 1.0


def document_row(document: Document, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """Token ids of a document; its answers are `Part.ANSWER`, everything else `Part.PROMPT`."""
    ids: list[int] = []
    parts: list[Part] = []
    vocabulary = tokenizer.get_vocab()
    for text, is_answer in document.segments:
        words = text.split()
        ids += [vocabulary[word] for word in words]
        parts += [Part.ANSWER if is_answer else Part.PROMPT] * len(words)
    return TokenRow(tuple(ids), tuple(parts))


def pretrain(
    model: LlamaForCausalLM,
    rows: Sequence[TokenRow],
    *,
    pad_id: int,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Train `model` in place, one pass over `rows` in their order, and return the loss of every step.

    The loss counts answers only: questions are drawn uniformly and hold nothing that could be learned.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True)
    n_steps = len(rows) // BATCH_SIZE
    losses = []
    model.train()
    for step in range(n_steps):
        optimiser.param_groups[0]["lr"] = LR * _schedule(step, n_steps)
        loss = _answer_loss(model, rows[step * BATCH_SIZE : (step + 1) * BATCH_SIZE], pad_id=pad_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if progress:
            progress(1)
    model.eval()
    return losses


def _answer_loss(model: LlamaForCausalLM, rows: Sequence[TokenRow], *, pad_id: int) -> torch.Tensor:
    """Mean cross-entropy of answer tokens; logits are computed at the positions that predict one, and nowhere else."""
    batch = pad_rows(rows, pad_id=pad_id)
    resid = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state  # right padding: no mask needed
    answers = batch.counts(Part.ANSWER)[:, 1:]
    return cross_entropy(model.lm_head(resid[:, :-1][answers]), batch.ids[:, 1:][answers])


def _schedule(step: int, n_steps: int) -> float:
    """Linear warm-up, then a cosine down to three per cent."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / n_steps))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine)
