"""What each latent does over chosen tokens of many texts, gathered in one pass and constant memory.

Axes: `d_sae` latents, `d_in` width of the residual stream, `n` tokens of one block.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from sae_persona.artifacts import write_file
from sae_persona.cache.moments import Moments
from sae_persona.data.tokens import Part, TokenRow, batches
from sae_persona.errors import ArtifactError, DataError
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import Reading, blocks, counted_tokens, readings
from sae_persona.sae.load import check_fits, sae_mark

if TYPE_CHECKING:
    from sae_lens import SAE

Selection = Literal["prompt", "header", "answer"]
VERSION = 1
"""Raised when the same tokens would give other statistics."""


@dataclass(frozen=True, eq=False)
class LatentStats:
    """One reading of every latent over one selection of tokens. All numbers are in the SAE's own activation units."""

    reading: Reading
    tokens: Selection
    n_tokens: int
    mean: Float[np.ndarray, " d_sae"]
    """Over tokens: each question weighs as many tokens as it has."""
    variance: Float[np.ndarray, " d_sae"]
    """`mean((a - mean(a))^2)` over tokens."""
    frequency: Float[np.ndarray, " d_sae"]
    """Share of tokens on which the reading is above zero."""
    maximum: Float[np.ndarray, " d_sae"]
    question_ids: tuple[str, ...]
    """Questions with at least one such token, in the order in which they were first given."""
    per_question: Float[np.ndarray, "n_questions d_sae"]
    """Mean over the tokens of each question."""
    tokens_per_question: Int[np.ndarray, " n_questions"]
    resid_mean: Float[np.ndarray, " d_in"]
    """Mean of the residual stream over the same tokens, for the difference-of-means baseline."""
    resid_per_question: Float[np.ndarray, "n_questions d_in"] | None = None
    """The same for the tokens of each question, for probes; None in files of earlier versions."""
    sae: str | None = None
    """Which SAE at which hook (`sae_mark`); None in files of earlier versions."""

    @property
    def n_questions(self) -> int:
        """Clusters behind every interval."""
        return len(self.question_ids)

    def save(self, path: Path | str) -> None:
        """Write one `.safetensors` file, the words in its metadata."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
        words = {name: value for name, value in values.items() if name not in arrays}
        with write_file(path) as partial:
            save_file(arrays, partial, metadata={"latent_stats": json.dumps(words)})

    @classmethod
    def load(cls, path: Path | str) -> "LatentStats":
        """The statistics that `save` wrote.

        Raises:
            ArtifactError: the file is missing or holds something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                words = json.loads((file.metadata() or {})["latent_stats"])
            return cls(**{**words, "question_ids": tuple(words["question_ids"])}, **arrays)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} holds no latent statistics ({error}). Compute them again.") from error


def latent_stats(
    sae: "SAE",
    model: LoadedModel,
    rows: Sequence[TokenRow],
    *,
    questions: Sequence[str],
    hook_name: str,
    selections: Sequence[Selection] = ("header", "answer"),
    drop_first: int = 1,
    max_norm: float | None = None,
    batch_size: int = 256,
) -> dict[tuple[Reading, Selection], LatentStats]:
    """Statistics of every latent, by reading and selection of tokens; `questions` names the question of each row.

    The first `drop_first` tokens of a row and tokens of a norm above `max_norm` do not count, as in training. Sums are
    in float64, so neither batches nor padding change the result beyond the rounding of the model itself.

    Raises:
        DataError: no rows, another number of questions than of rows, or a selection without a token.
        HookError, IncompatibleError: the SAE does not fit the model.
    """
    check_fits(sae, model, hook_name)
    if not rows or len(rows) != len(questions):
        raise DataError(
            f"{len(rows)} rows and {len(questions)} questions were given; expected one question for every row."
        )
    question_ids = tuple(dict.fromkeys(questions))
    index_of = {question: i for i, question in enumerate(question_ids)}
    selected: dict[Selection, _Selected] = {name: _Selected(len(question_ids)) for name in selections}
    for indices, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        resid = residuals(model.hf, batch, [hook_name])[hook_name]
        counts = counted_tokens(batch, resid, drop_first=drop_first, max_norm=max_norm)
        question = torch.tensor([index_of[questions[i]] for i in indices], device=counts.device)
        question = question.unsqueeze(-1).expand_as(counts)  # [batch, seq]
        for name, tokens in selected.items():
            use = counts & batch.counts(Part[name.upper()])
            tokens.add(sae, resid[use].to(sae.W_dec.device), question[use].to(sae.W_dec.device))
    mark = sae_mark(sae, hook_name)
    return {
        (stats.reading, name): replace(stats, sae=mark)
        for name, tokens in selected.items()
        for stats in tokens.stats(name, question_ids)
    }


class _Running:
    """Sums of one reading."""

    def __init__(self, n_questions: int, d_sae: int, device: torch.device) -> None:
        self.moments = Moments()
        self.n_positive = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.maximum = torch.full((d_sae,), -torch.inf, dtype=torch.float64, device=device)
        self.per_question = torch.zeros(n_questions, d_sae, dtype=torch.float64, device=device)

    def add(self, values: Float[Tensor, "n d_sae"], question: Int[Tensor, " n"]) -> None:
        values = values.double()
        self.moments.add(values)
        self.n_positive += (values > 0).sum(0)
        self.maximum = torch.maximum(self.maximum, values.amax(0))
        self.per_question.index_add_(0, question, values)


class _Selected:
    """Everything that is gathered over one selection of tokens."""

    def __init__(self, n_questions: int) -> None:
        self.n_questions = n_questions
        self.tokens_per_question = torch.zeros(n_questions, dtype=torch.long)
        self.resid = Moments()
        self.resid_of: Tensor | None = None
        """Sums of the residual stream by question, [n_questions, d_in]."""
        self.running: dict[Reading, _Running] = {}

    def add(self, sae: "SAE", resid: Float[Tensor, "n d_in"], question: Int[Tensor, " n"]) -> None:
        self.resid.add(resid)
        if self.resid_of is None:
            self.resid_of = torch.zeros(self.n_questions, resid.shape[1], dtype=torch.float64, device=resid.device)
        self.resid_of.index_add_(0, question, resid.double())
        self.tokens_per_question += question.bincount(minlength=self.n_questions).cpu()
        for block in blocks(len(resid), sae.cfg.d_sae):
            for reading, values in readings(sae, resid[block]).items():
                if reading not in self.running:
                    self.running[reading] = _Running(self.n_questions, sae.cfg.d_sae, values.device)
                self.running[reading].add(values, question[block])

    def stats(self, name: Selection, question_ids: Sequence[str]) -> Iterator[LatentStats]:
        """The statistics of every reading."""
        if self.resid_of is None or self.resid.n == 0:
            raise DataError(f"none of the rows has a counted {name} token. Leave {name!r} out of the selections.")
        asked = self.tokens_per_question > 0
        n_tokens = self.tokens_per_question[asked]
        for reading, sums in self.running.items():
            yield LatentStats(
                reading=reading,
                tokens=name,
                n_tokens=self.resid.n,
                mean=_numpy(sums.moments.mean),
                variance=_numpy(sums.moments.variance),
                frequency=_numpy(sums.n_positive / self.resid.n),
                maximum=_numpy(sums.maximum),
                question_ids=tuple(question for question, has in zip(question_ids, asked.tolist(), strict=True) if has),
                per_question=_numpy(sums.per_question.cpu()[asked] / n_tokens.unsqueeze(-1)),
                tokens_per_question=n_tokens.numpy(),
                resid_mean=_numpy(self.resid.mean),
                resid_per_question=_numpy(self.resid_of.cpu()[asked] / n_tokens.unsqueeze(-1)),
            )


def _numpy(values: Tensor) -> Float[np.ndarray, "..."]:
    return values.cpu().double().numpy()
