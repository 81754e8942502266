"""Train a world's base model from nothing.

Hidden matrices learn by Muon, embeddings and norms by AdamW. Telling the persona from earlier answers is learned in one
sudden step; with Muon it came after about 200 steps of 32 documents, with AdamW alone after 600 to more than 1 200,
depending on the seed.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.persona_world.corpus import Document

BATCH_SIZE = 32
MUON_LR, ADAM_LR = 0.02, 3e-3
WARMUP_STEPS = 50
FINAL_LR_SHARE = 0.1
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
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
    is_hidden = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in is_hidden]
    optimisers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(hidden, lr=MUON_LR, weight_decay=0.0), MUON_LR),
        (torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.99), weight_decay=0.0, fused=True), ADAM_LR),
    ]
    n_steps = len(rows) // BATCH_SIZE
    losses = []
    model.train()
    for step in range(n_steps):
        for optimiser, lr in optimisers:
            optimiser.param_groups[0]["lr"] = lr * _schedule(step, n_steps)
        loss = _answer_loss(model, rows[step * BATCH_SIZE : (step + 1) * BATCH_SIZE], pad_id=pad_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        for optimiser, _ in optimisers:
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
    """Linear warm-up, then a cosine down to a tenth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / n_steps))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine)
