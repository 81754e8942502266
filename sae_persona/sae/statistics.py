"""What each latent does over chosen tokens of many texts, gathered in one pass and constant memory.

Axes: `d_sae` latents, `d_in` width of the residual stream, `n` tokens of one block.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from sae_persona.artifacts import write_file
from sae_persona.cache.moments import Moments
from sae_persona.data.tokens import TokenRow, batches
from sae_persona.errors import ArtifactError, DataError
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.chunks import N_TOKENS, Encoder
from sae_persona.sae.encode import Reading, Selection, counted_tokens, selected_tokens
from sae_persona.sae.load import check_fits, sae_mark
from sae_persona.sae.sums import Segment, Sums

if TYPE_CHECKING:
    from sae_lens import SAE


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
    """Share of tokens on which the latent fires (its gated reading is not zero), or its pre-activation is positive."""
    maximum: Float[np.ndarray, " d_sae"]
    question_ids: tuple[str, ...]
    """Questions with at least one such token, in the order in which they were first given."""
    per_question: Float[np.ndarray, "n_questions d_sae"]
    """Mean over the tokens of each question, in float32."""
    tokens_per_question: Int[np.ndarray, " n_questions"]
    resid_mean: Float[np.ndarray, " d_in"]
    """Mean of the residual stream over the same tokens, for the difference-of-means baseline."""
    variance_per_question: Float[np.ndarray, "n_questions d_sae"] | None = None
    """Like the two below None unless asked for: each takes as much memory as `per_question`."""
    frequency_per_question: Float[np.ndarray, "n_questions d_sae"] | None = None
    maximum_per_question: Float[np.ndarray, "n_questions d_sae"] | None = None
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
    spread_by_question: bool = False,
    drop_first: int = 1,
    max_norm: float | None = None,
    batch_size: int = 256,
) -> dict[tuple[Reading, Selection], LatentStats]:
    """Statistics of every latent, by reading and selection of tokens; `questions` names the question of each row.

    The first `drop_first` tokens of a row and tokens of a norm above `max_norm` do not count, as in training. Sums over
    blocks are in float64, so neither batches nor padding change the result beyond the rounding of the model itself.

    Beside the model and one batch, memory grows with latents times questions, for every selection and reading by 8
    bytes while it runs and 4 in the result (24 and 16 with `spread_by_question`), and not with the number of rows.

    Raises:
        DataError: no rows, another number of questions than of rows, or a selection without a token.
        HookError, IncompatibleError: the SAE does not fit the model.
    """
    return latent_stats_of_saes(
        {"sae": sae},
        model,
        rows,
        questions=questions,
        hook_name=hook_name,
        selections=selections,
        spread_by_question=spread_by_question,
        drop_first=drop_first,
        max_norm=max_norm,
        batch_size=batch_size,
    )["sae"]


def latent_stats_of_saes(
    saes: Mapping[str, "SAE"],
    model: LoadedModel,
    rows: Sequence[TokenRow],
    *,
    questions: Sequence[str],
    hook_name: str,
    selections: Sequence[Selection] = ("header", "answer"),
    spread_by_question: bool = False,
    drop_first: int = 1,
    max_norm: float | None = None,
    batch_size: int = 256,
) -> dict[str, dict[tuple[Reading, Selection], LatentStats]]:
    """What `latent_stats` gives for each of several SAEs of one hook, by name, from one forward pass for all.

    Raises:
        DataError, HookError, IncompatibleError: as `latent_stats`.
    """
    for sae in saes.values():
        check_fits(sae, model, hook_name)
    if not rows or len(rows) != len(questions):
        raise DataError(
            f"{len(rows)} rows and {len(questions)} questions were given; expected one question for every row."
        )
    question_ids = tuple(dict.fromkeys(questions))
    index_of = {question: i for i, question in enumerate(question_ids)}
    selected: dict[tuple[str, Selection], _Selected] = {
        (name, selection): _Selected(encoder, len(question_ids), spread_by_question)
        for name, encoder in {name: Encoder(sae) for name, sae in saes.items()}.items()
        for selection in selections
    }
    with model.active():
        for indices, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
            resid = residuals(model.hf, batch, [hook_name])[hook_name]
            counts = counted_tokens(batch, resid, drop_first=drop_first, max_norm=max_norm)
            question = torch.tensor([index_of[questions[i]] for i in indices], device=counts.device)
            question = question.unsqueeze(-1).expand_as(counts)  # [batch, seq]
            for (name, selection), tokens in selected.items():
                use = counts & selected_tokens(batch, selection)
                tokens.add(resid[use].to(saes[name].W_dec.device), question[use].cpu())
    found: dict[str, dict[tuple[Reading, Selection], LatentStats]] = {name: {} for name in saes}
    for (name, selection), tokens in selected.items():
        mark = sae_mark(saes[name], hook_name)
        for stats in tokens.stats(selection, question_ids):
            found[name][stats.reading, selection] = replace(stats, sae=mark)
    return found


class _Selected:
    """Everything that is gathered over one selection of tokens."""

    def __init__(self, encoder: Encoder, n_questions: int, by_question: bool) -> None:
        self.encoder = encoder
        self.n_questions = n_questions
        self.by_question = by_question
        self.tokens_per_question = torch.zeros(n_questions, dtype=torch.long)
        self.resid = Moments()
        self.resid_of: Tensor | None = None
        """Sums of the residual stream by question, [n_questions, d_in]."""
        self.sums: dict[Reading, Sums] = {}

    def add(self, resid: Float[Tensor, "n d_in"], question: Int[Tensor, " n"]) -> None:
        if len(resid) == 0:
            return
        self.resid.add(resid)
        if self.resid_of is None:
            self.resid_of = torch.zeros(self.n_questions, resid.shape[1], dtype=torch.float64, device=resid.device)
        self.resid_of.index_add_(0, question.to(resid.device), resid.double())
        self.tokens_per_question += question.bincount(minlength=self.n_questions)
        question, by_question = question.sort(stable=True)
        for block, owners in zip(
            resid[by_question.to(resid.device)].split(N_TOKENS), question.split(N_TOKENS), strict=True
        ):
            segments = _segments(owners)
            for piece in self.encoder.pieces(block):
                if piece.reading not in self.sums:
                    self.sums[piece.reading] = Sums(
                        self.n_questions, self.encoder.d_sae, piece.values.device, by_question=self.by_question
                    )
                self.sums[piece.reading].add(piece, segments)

    def stats(self, name: Selection, question_ids: Sequence[str]) -> Iterator[LatentStats]:
        """The statistics of every reading."""
        if self.resid_of is None or self.resid.n == 0:
            raise DataError(
                f"none of the rows has a counted {name} token; the first tokens of a row do not count. Give longer "
                f"texts, or leave {name!r} out of the selections."
            )
        n_tokens = self.tokens_per_question
        asked = n_tokens > 0
        for reading in list(self.sums):
            sums = self.sums.pop(reading)
            spread, spreads = sums.spread(n_tokens), sums.spreads(n_tokens)
            yield LatentStats(
                reading=reading,
                tokens=name,
                n_tokens=self.resid.n,
                mean=sums.mean(n_tokens),
                variance=spread.variance,
                frequency=spread.frequency,
                maximum=spread.maximum,
                question_ids=tuple(question for question, has in zip(question_ids, asked.tolist(), strict=True) if has),
                per_question=sums.means(n_tokens),
                tokens_per_question=n_tokens[asked].numpy(),
                resid_mean=self.resid.mean.cpu().numpy(),
                resid_per_question=(self.resid_of.cpu()[asked] / n_tokens[asked].unsqueeze(-1)).numpy(),
                variance_per_question=spreads and spreads.variance,
                frequency_per_question=spreads and spreads.frequency,
                maximum_per_question=spreads and spreads.maximum,
            )


def _segments(owners: Int[Tensor, " n"]) -> list[Segment]:
    """Runs of equal numbers in sorted ones."""
    present, sizes = owners.unique_consecutive(return_counts=True)
    ends = sizes.cumsum(0).tolist()
    return [
        (question, slice(end - size, end))
        for question, size, end in zip(present.tolist(), sizes.tolist(), ends, strict=True)
    ]
