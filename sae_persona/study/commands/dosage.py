"""What a sweep of the command line does to the model: in which unit, and beside which controls and rivals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sae_persona.artifacts import read_manifest
from sae_persona.cache.reader import ActivationCache
from sae_persona.data.files import read_documents, read_jsonl
from sae_persona.data.tokens import TokenRow, chat_row, completion_row, prompt_row, text_row
from sae_persona.errors import ConfigError, IncompatibleError, SAEError
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import (
    Direction,
    DirectionKind,
    latent_direction,
    random_directions,
    random_latents,
)
from sae_persona.steering.edits import Window
from sae_persona.steering.sweep import Arm, EditKind
from sae_persona.steering.units import Firing, firing, median_norm
from sae_persona.study.commands.rank import DIRECTIONS, FALLS, FINDINGS, ROWS
from sae_persona.study.commands.ranked import Findings, NamedLatent
from sae_persona.study.commands.shared import Sampling, fingerprint_of, read_record
from sae_persona.types import Prompt

if TYPE_CHECKING:
    from sae_lens import SAE

UNITS = "median, max, absolute, a number or a cache FILE.h5"
RIVALS: Mapping[str, DirectionKind] = {"mean_difference": "mean_difference", "probe": "linear_probe"}
"""The directions of a ranking that compete with latents, and what they are."""


@dataclass(frozen=True)
class Dosage:
    """What is done to the residual stream, how much of it, and where."""

    strengths: tuple[float, ...]
    edit: EditKind = "add"
    unit: str | None = None
    """What a strength of one means: `median` (the default), `max`, `absolute`, a number, or a cache, whose median norm
    counts. Clamped latents default to `max`; an ablated share has no unit."""
    window: Window = "all"
    from_token: int = 0


@dataclass(frozen=True)
class Company:
    """With what latents are compared: the same strengths, prompts and samples for all."""

    n_controls: int = 0
    """Random latents, and as many random directions; clamping has no random directions."""
    control_seed: int = 0
    ranking: Path | None = None
    """A ranking's folder: its mean difference and probe are tried too, and its shortlist gives no random latents."""
    data: Path | None = None
    """Chats or texts on which firing densities and maxima are read; None: the prompts and the model's own answers."""


@dataclass(frozen=True, eq=False)
class Lab:
    """A model with the SAE and the prompts, from which units and arms are made."""

    model: LoadedModel
    sae: "SAE"
    hook_name: str
    prompts: Sequence[Prompt]
    sampling: Sampling
    dosage: Dosage
    company: Company
    batch_size: int = 256

    @cached_property
    def firing(self) -> Firing:
        """Density and maximum of every latent."""
        return firing(self.sae, self.model, self._rows(), hook_name=self.hook_name)

    @cached_property
    def unit(self) -> float | None:
        """What a strength of one means for all arms; None where every latent has its own maximum."""
        named, edit = self.dosage.unit, self.dosage.edit
        if edit == "ablate":
            if named is not None:
                raise ConfigError(
                    f"an ablated share has no unit, and {named!r} was given. Leave it out; 1 is all of it."
                )
            return 1.0
        named = named or ("max" if edit == "clamp" else "median")
        if named == "max":
            return None
        if named == "absolute":
            return 1.0
        if named == "median":
            rows = [prompt_row(prompt, self.model.tokenizer) for prompt in self.prompts]
            return median_norm(self.model, rows, hook_name=self.hook_name)
        if named.endswith(".h5"):
            return _norm_in(Path(named), self.hook_name, self.model)
        return _number(named)

    @property
    def unit_in_words(self) -> str:
        """How an axis calls it."""
        if self.dosage.edit == "ablate":
            return "share ablated"
        if self.unit is None:
            return "in the latent's maximum"
        named = self.dosage.unit or "median"
        if named == "median" or named.endswith(".h5"):
            return "in median residual norms"
        return "absolute" if named == "absolute" else f"in units of {self.unit:g}"

    def latent_arms(self, groups: Sequence[tuple[int, ...]]) -> list[Arm]:
        """One arm for each group of latents."""
        return [self._arm(latent_direction(self.sae, *group)) for group in groups]

    def rival_arms(self, latents: Sequence[int]) -> list[Arm]:
        """The mean difference and the probe of the ranking, if there is one, pushed as far as `latents`."""
        if self.company.ranking is None:
            return []
        if self.dosage.edit == "clamp":
            raise ConfigError("a ranking's mean difference and probe have no latents to clamp. Leave the ranking out.")
        return [self._arm(direction, like=latents) for direction in read_rivals(self.company.ranking)]

    def control_arms(self, latents: Sequence[int]) -> list[Arm]:
        """Random latents that fire about as often as the first of `latents`, and random directions."""
        n, seed = self.company.n_controls, self.company.control_seed
        if not n:
            return []
        exclude = sorted({*latents, *(_shortlist(self.company.ranking) if self.company.ranking else ())})
        # A latent that only fires below zero, as Absolute TopK's may, has no maximum and is no control.
        density = self.firing.density.where(self.firing.maximum > 0, 0.0)
        drawn = random_latents(self.sae, density, latents[0], exclude=exclude, n=n, seed=seed)
        if self.dosage.edit == "clamp":
            return [self._arm(direction) for direction in drawn]
        drawn += random_directions(self.model.d_model, n=n, seed=seed)
        return [self._arm(direction, like=latents) for direction in drawn]

    def unit_of(self, direction: Direction, *, like: Sequence[int] = ()) -> float:
        """What a strength of one means for a direction.

        In maxima: the mean over its latents of their highest activations, times their decoder rows' lengths where it
        is added; with `like`, the largest of those latents, so that what is compared with them is pushed as far.
        """
        if self.unit is not None:
            return self.unit
        if like:
            return max(self._maximum(latent) for latent in like)
        return sum(map(self._maximum, direction.latents)) / len(direction.latents)

    def _maximum(self, latent: int) -> float:
        maximum = float(self.firing.maximum[latent])
        if maximum <= 0:
            where = self.company.data or "the prompts and the model's answers"
            raise SAEError(
                f"latent {latent} is never above zero on {where}, so its maximum is no unit. Name texts on which it "
                "is, or another unit."
            )
        return maximum * (float(self.sae.W_dec[latent].norm()) if self.dosage.edit == "add" else 1.0)

    def _arm(self, direction: Direction, *, like: Sequence[int] = ()) -> Arm:
        dosage = self.dosage
        strengths = tuple(sorted(set(dosage.strengths) | (set() if dosage.edit == "clamp" else {0.0})))
        return Arm(direction, strengths, dosage.edit, self.unit_of(direction, like=like))

    def _rows(self) -> list[TokenRow]:
        if self.company.data is not None:
            return document_rows(self.model, self.company.data)
        by_id = {prompt.id: prompt for prompt in self.prompts}
        answers = sample(
            self.model,
            self.prompts,
            n_samples=1,
            max_new_tokens=self.sampling.max_new_tokens,
            seed=self.sampling.seed,
            batch_size=self.batch_size,
        )[0]
        return [completion_row(by_id[answer.prompt_id], answer, self.model.tokenizer) for answer in answers]


def document_rows(model: LoadedModel, path: Path) -> list[TokenRow]:
    """Chats and texts of a file as tokens, cut where the model's context ends.

    Raises:
        DataError: the file cannot be read.
    """
    tokenizer, context = model.tokenizer, model.context
    rows = [
        text_row(one, tokenizer) if isinstance(one, str) else chat_row(one, tokenizer) for one in read_documents(path)
    ]
    return [TokenRow(row.ids[:context], row.parts[:context]) for row in rows]


def groups_of(latents: Sequence[int]) -> list[tuple[int, ...]]:
    """Each latent alone and, where there are several, all of them."""
    alone = list(dict.fromkeys(latents))
    return [*((latent,) for latent in alone), *([tuple(alone)] if len(alone) > 1 else [])]


def read_rivals(ranking: Path) -> list[Direction]:
    """The directions that `rank` wrote beside its latents.

    Raises:
        IncompatibleError: the folder holds no ranking, or one without directions.
    """
    _check_ranking(ranking)
    try:
        vectors = load_file(ranking / DIRECTIONS)
    except (OSError, SafetensorError) as error:
        raise IncompatibleError(f"{ranking / DIRECTIONS} cannot be read ({error}). Rank again.") from error
    return [
        Direction(name.replace("_", " "), kind, vectors[name].to(torch.float32))
        for name, kind in RIVALS.items()
        if name in vectors
    ]


def ranked_latents(ranking: Path, n_top: int, n_bottom: int) -> dict[int, int]:
    """The first latents of both ends of a ranking, as far as they moved that way, with their places: 1, 2, ..., -2, -1.

    Raises:
        IncompatibleError: the folder holds no ranking.
    """
    _check_ranking(ranking)
    rises, falls = (read_jsonl(ranking / name, NamedLatent) for name in (ROWS, FALLS))
    places = {row.latent: row.rank for row in falls[:n_bottom] if row.moved < 0}
    return {row.latent: row.rank for row in rises[:n_top] if row.moved > 0} | places


def check_same_sae(ranking: Path, sae_source: str, hook_name: str) -> None:
    """Raise unless the ranking is of this SAE at this hook: its latents and directions mean nothing elsewhere.

    Raises:
        IncompatibleError: the folder holds no ranking, or one of another SAE or hook.
    """
    _check_ranking(ranking)
    manifest = read_manifest(ranking)
    assert manifest is not None
    if manifest.inputs.get("sae") != fingerprint_of(sae_source):
        raise IncompatibleError(
            f"{ranking} ranks the latents of {manifest.config.get('sae')}; expected those of {sae_source}, whose name "
            "or files differ. Use that SAE, or rank with this one."
        )
    if manifest.config.get("hook_name") != hook_name:
        raise IncompatibleError(
            f"{ranking} was made at {manifest.config.get('hook_name')}; expected {hook_name}. Rank at this hook."
        )


def check_reach(from_token: int, window: Window, rows: Sequence[TokenRow], max_new_tokens: int) -> None:
    """Raise where steering from a token on would leave every token of all prompts and answers alone.

    Raises:
        ConfigError: no row is that long.
    """
    longest = max(map(len, rows))
    written = 0 if window in ("prompt", "header") else max_new_tokens - 1  # no pass reads the last token of an answer
    if from_token >= longest + written:
        raise ConfigError(
            f"steering from token {from_token} on would steer nothing: the longest prompt has {longest} tokens, window "
            f"{window!r} reaches {longest + written}. Begin earlier."
        )


def _shortlist(ranking: Path) -> tuple[int, ...]:
    _check_ranking(ranking)
    return read_record(ranking / FINDINGS, Findings).shortlist


def _check_ranking(folder: Path) -> None:
    manifest = read_manifest(folder)
    if manifest is None or manifest.kind != "ranking":
        raise IncompatibleError(f"{folder} holds no ranking; expected the --out of sae-persona rank.")


def _norm_in(path: Path, hook_name: str, model: LoadedModel) -> float:
    cache = ActivationCache.open(path)
    if hook_name not in cache.hook_names or cache.d_in(hook_name) != model.d_model:
        raise IncompatibleError(
            f"{path} holds {', '.join(cache.hook_names)}; expected {hook_name}, {model.d_model} wide, for the unit."
        )
    return cache.median_norm(hook_name)


def _number(text: str) -> float:
    try:
        unit = float(text)
    except ValueError:
        unit = math.nan
    if not (math.isfinite(unit) and unit > 0):
        raise ConfigError(f"unit {text!r} is none; expected {UNITS}.")
    return unit
