"""Would other runs, other questions, one prompt or another SAE have found the same latents?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sae_persona.attribution.difference import least_of, over, shared_questions
from sae_persona.attribution.null import control_z, spread_floor
from sae_persona.attribution.ranking import SHORTLIST_SIZE, RunStats, check_size
from sae_persona.errors import ConfigError, IncompatibleError

N_RESAMPLES = 100
_Stacked = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Means of misaligned and of control runs, `[runs, n_questions, d_sae]`, and the least spread of the controls."""


@dataclass(frozen=True, eq=False)
class Stability:
    """How often each latent would be on the shortlist."""

    frequency: Float[np.ndarray, " d_sae"]
    """Share of half-samples of runs and questions that put it there."""
    single_prompt: float | None
    """Share of the full shortlist that one question alone finds, averaged over questions; None where it is empty."""
    n_resamples: int


@dataclass(frozen=True)
class Match:
    """A latent's counterpart in another SAE."""

    latent: int
    other: int
    cosine: float
    """Of the two decoder rows."""
    mutual: bool
    """True = the counterpart's own nearest is this latent."""


def shortlist_stability(
    misaligned: Sequence[RunStats],
    controls: Sequence[RunStats],
    *,
    n: int = SHORTLIST_SIZE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Stability:
    """Rank again on random halves of the runs of either side and of the questions, and on every single question.

    A half has the odd run or question, never fewer than one misaligned and two control runs. Halves are drawn without
    replacement: a run drawn twice has no spread. Ranked as by `rank_latents`, by the highest `z` of any reading.

    Raises:
        ConfigError: fewer than one misaligned or two control runs, no shared reading, or `n` not from 1 to 20.
        IncompatibleError: runs of different questions or SAEs.

    Source: Meinshausen and Bühlmann 2010 (stability selection).
    """
    check_size(n)
    if not misaligned or len(controls) < 2:
        raise ConfigError(
            f"stability needs at least 1 misaligned and 2 control runs; got {len(misaligned)} and {len(controls)}."
        )
    readings = [_stack(misaligned, controls, key) for key in misaligned[0] if _all_have((*misaligned, *controls), key)]
    if not readings:
        raise ConfigError("the runs share no reading; compute latent statistics of every run in the same way.")
    sizes = (len(misaligned), len(controls), min(bad.shape[1] for bad, _, _ in readings))
    rng = np.random.default_rng(seed)
    counts = np.zeros(readings[0][0].shape[2])
    for _ in range(n_resamples):
        bad, good, asked = (
            np.sort(rng.choice(size, max(least, -(-size // 2)), replace=False))
            for size, least in zip(sizes, (1, 2, 1), strict=True)
        )
        counts[_first(readings, bad, good, asked, n)] += 1
    all_bad, all_good, all_asked = (np.arange(size) for size in sizes)
    full = set(_first(readings, all_bad, all_good, all_asked, n).tolist())
    alone = [
        len(full & set(_first(readings, all_bad, all_good, np.array([question]), n).tolist())) / len(full)
        for question in range(sizes[2])
        if full
    ]
    return Stability(counts / n_resamples, float(np.mean(alone)) if alone else None, n_resamples)


def match_latents(
    decoder: Float[np.ndarray, "d_sae d_in"],
    other: Float[np.ndarray, "d_other d_in_other"],
    latents: Sequence[int] | None = None,
) -> list[Match]:
    """For each latent (all without `latents`) the one in another SAE whose decoder row has the highest cosine.

    Two SAEs of the same activations that differ in their seed share a feature where the match is mutual and near 1.

    Raises:
        IncompatibleError: the SAEs have other widths, or a latent is not one of the first SAE's.
    """
    if decoder.shape[1] != other.shape[1]:
        raise IncompatibleError(
            f"the SAEs write {decoder.shape[1]} and {other.shape[1]} numbers; match SAEs of one hook of one model."
        )
    latents = range(len(decoder)) if latents is None else latents
    if any(not 0 <= latent < len(decoder) for latent in latents):
        raise IncompatibleError(f"the latents of this SAE are 0 to {len(decoder) - 1}; {max(latents)} is none of them.")
    ours, theirs = _unit_rows(decoder), _unit_rows(other)
    found = []
    for latent in latents:
        cosine = theirs @ ours[latent]
        nearest = int(cosine.argmax())
        back = int((ours @ theirs[nearest]).argmax())
        found.append(Match(latent, nearest, float(cosine[nearest]), back == latent))
    return found


def _all_have(runs: Sequence[RunStats], key: object) -> bool:
    return all(key in run for run in runs)


def _stack(misaligned: Sequence[RunStats], controls: Sequence[RunStats], key: object) -> _Stacked:
    """One reading of all runs."""
    sides = [[run[key] for run in side] for side in (misaligned, controls)]  # pyright: ignore[reportArgumentType]
    questions = shared_questions([*sides[0], *sides[1]])
    bad, good = (np.stack([over(stats, questions) for stats in side]) for side in sides)
    return bad, good, least_of(sides[1])


def _first(readings: Sequence[_Stacked], bad: np.ndarray, good: np.ndarray, asked: np.ndarray, n: int) -> np.ndarray:
    """The first `n` latents by the highest `z` of any reading, as long as they rose."""
    found = []
    for of_bad, of_good, least in readings:
        played, rest = of_bad[np.ix_(bad, asked)].mean(1), of_good[np.ix_(good, asked)].mean(1)
        found.append(control_z(played, rest, spread_floor(rest, least), least))
    z = np.max(found, axis=0)
    order = np.argsort(-z, kind="stable")[:n]
    return order[z[order] > 0]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
