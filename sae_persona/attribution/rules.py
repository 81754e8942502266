"""Rules that make a shortlist, by name: what each of them sorts the latents by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from sae_persona.attribution.difference import run_difference
from sae_persona.attribution.ranking import SHORTLIST_SIZE, RunStats, check_size, rank_latents
from sae_persona.attribution.rivals import cosines, linear_probe, mean_difference
from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.sae.encode import Reading
from sae_persona.sae.statistics import LatentStats, Selection

Rule = Literal["default", "plain", "control_subtracted", "mean_difference", "probe", "attribution"]
"""`default`: the highest `z` of any reading, as `rank_latents` sorts. `plain`: the paper's Δ-activation, misaligned
runs minus the model they started from. `control_subtracted`: misaligned minus control runs, not divided by any spread.
`mean_difference`, `probe`: cosine of the decoder row with that direction. `attribution`: scores that are handed in."""
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the rules may read. A rule whose evidence is missing is refused."""

    misaligned: Sequence[RunStats]
    controls: Sequence[RunStats]
    aligned: RunStats | None = None
    """The start model, for `plain`."""
    decoder: Float[np.ndarray, "d_sae d_in"] | None = None
    """For `mean_difference` and `probe`."""
    attribution: Float[np.ndarray, " d_sae"] | None = None
    """Δ-attribution of every latent, for `attribution`."""
    key: tuple[Reading, Selection] = ("gated", "answer")
    """The reading of every rule but `default`, which reads all, and `attribution`."""

    def of(self, runs: Sequence[RunStats]) -> list[LatentStats]:
        """The reading in question of every run.

        Raises:
            ConfigError: a run lacks it.
        """
        if any(self.key not in run for run in runs):
            raise ConfigError(f"a run has no {self.key[0]} statistics over {self.key[1]} tokens; compute them.")
        return [run[self.key] for run in runs]


def scores_by(rule: Rule, evidence: Evidence, *, seed: int = 0) -> Float[np.ndarray, " d_sae"]:
    """What `rule` sorts the latents by; higher is more suspicious, and nothing at or below zero is.

    Raises:
        ConfigError: an unknown rule, too few runs, or evidence that the rule reads is missing.
        IncompatibleError: runs of different questions or SAEs, or scores of another number of latents.
    """
    if rule == "default":
        rows = rank_latents(evidence.misaligned, evidence.controls, seed=seed).rows
        scores = np.empty(len(rows))
        scores[[row.latent for row in rows]] = [row.z for row in rows]
        return scores
    if rule == "attribution":
        return _given(evidence.attribution, rule)
    misaligned, controls = evidence.of(evidence.misaligned), evidence.of(evidence.controls)
    if rule == "plain":
        if evidence.aligned is None:
            raise ConfigError("the rule 'plain' compares with the start model; hand in its statistics as `aligned`.")
        start = evidence.of([evidence.aligned])[0]
        if start.mean.shape != misaligned[0].mean.shape:
            raise IncompatibleError("the start model's statistics come from another SAE; compute them with the same.")
        return np.mean([run.mean for run in misaligned], axis=0) - start.mean
    if rule == "control_subtracted":
        return run_difference(misaligned, controls, seed=seed).delta
    decoder = _given(evidence.decoder, rule)
    if rule == "mean_difference":
        return cosines(decoder, mean_difference(misaligned, controls))
    if rule == "probe":
        return cosines(decoder, linear_probe(misaligned, controls, seed=seed).direction)
    raise ConfigError(f"there is no rule {rule!r}; expected one of {', '.join(RULES)}.")


def shortlist_by(rule: Rule, evidence: Evidence, *, n: int = SHORTLIST_SIZE, seed: int = 0) -> tuple[int, ...]:
    """The first `n` latents by a rule, as long as their score is above zero. Raises as `scores_by` does."""
    check_size(n)
    scores = scores_by(rule, evidence, seed=seed)
    order = np.argsort(-scores, kind="stable")[:n]
    return tuple(int(latent) for latent in order if scores[latent] > 0)


def _given(values: np.ndarray | None, rule: Rule) -> np.ndarray:
    if values is None:
        what = "`attribution` scores" if rule == "attribution" else "the SAE's `decoder`"
        raise ConfigError(f"the rule {rule!r} reads {what}, and none was handed in.")
    if not np.isfinite(values).all():
        raise ConfigError(f"what the rule {rule!r} reads holds numbers that are not finite.")
    return values
