"""Train a causal language model on chats or texts with transformers' `Trainer`; global random state is left alone."""

import contextlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from sae_persona.data.tokens import Part, TokenRow, pad_rows

IGNORED = -100
"""The label that transformers leaves out of the loss."""


class TrainConfig(BaseModel):
    """What changes the numbers of a training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_steps: PositiveInt = 80
    """Optimiser steps; the rows are gone through as often as that takes."""
    batch_size: PositiveInt = 16
    """Rows per step."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate of AdamW."""
    schedule: str = "constant"
    """One of transformers' schedules: `constant`, `linear`, `cosine`, `cosine_with_min_lr`."""
    warmup_steps: int = 0
    weight_decay: float = 0.0
    seed: int = 0
    """Seeds the order of the rows."""


def train(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    config: TrainConfig,
    *,
    pad_id: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[float]:
    """Train `model` in place on the answers of `rows`, and return the loss of every step."""
    losses: list[float] = []

    def collate(rows: list[TokenRow]) -> dict[str, torch.Tensor]:
        batch = pad_rows(rows, pad_id=pad_id)
        labels = torch.where(batch.counts(Part.ANSWER), batch.ids, IGNORED)
        return {"input_ids": batch.ids, "labels": labels, "attention_mask": batch.mask.long()}

    with tempfile.TemporaryDirectory() as scratch, _random_state_restored():
        trainer = _Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=config.n_steps,
                per_device_train_batch_size=config.batch_size,
                learning_rate=config.lr,
                lr_scheduler_type=config.schedule,
                lr_scheduler_kwargs={"min_lr_rate": 0.1} if config.schedule == "cosine_with_min_lr" else {},
                warmup_steps=config.warmup_steps,
                weight_decay=config.weight_decay,
                optim="adamw_torch_fused",
                adam_beta2=0.99,
                seed=config.seed,
                data_seed=config.seed,
                save_strategy="no",
                logging_strategy="steps",
                logging_steps=10**9,
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=model.device.type == "cpu",
            ),
            train_dataset=list(rows),  # pyright: ignore[reportArgumentType]
            data_collator=collate,
            callbacks=list(callbacks),
        )
        trainer.losses = losses
        trainer.train()
    model.eval()
    return losses


class _Trainer(Trainer):
    losses: list[float]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Keep quiet: the caller gets the losses."""


@contextlib.contextmanager
def _random_state_restored() -> Iterator[None]:
    """The Trainer seeds every global generator; put them back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
