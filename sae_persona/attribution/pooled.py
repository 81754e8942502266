"""Δ-attribution of several models as one: the run is the unit that an interval speaks of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from sae_persona.attribution.gradient import LatentAttribution
from sae_persona.errors import ConfigError, IncompatibleError


@dataclass(frozen=True, eq=False)
class PooledAttribution:
    """The mean Δ-attribution of every latent over runs, each weighing the same, with a 95 % interval."""

    n_runs: int
    delta: Float[np.ndarray, " d_sae"]
    low: Float[np.ndarray, " d_sae"]
    high: Float[np.ndarray, " d_sae"]


def pool_attributions(runs: Sequence[LatentAttribution], *, seed: int = 0) -> PooledAttribution:
    """Pool what was attributed in several models, each with pairs of answers of its own or the same for all.

    The interval is `delta ± t sqrt(var(deltas of the runs) / n_runs)`, with `n_runs - 1` degrees of freedom: for new
    runs on such questions. A single run has `LatentAttribution.interval`, over its questions, and says nothing of
    other runs.

    Raises:
        ConfigError: no run.
        IncompatibleError: runs of different SAEs, tokens or numbers of steps.
    """
    if not runs:
        raise ConfigError("there are no attributions to pool; attribute at least one model.")
    kinds = {(len(run.delta), run.tokens, run.n_steps) for run in runs}
    if len(kinds) > 1:
        told = "; ".join(f"{d_sae} latents, {'+'.join(tokens)}, {n} steps" for d_sae, tokens, n in sorted(kinds))
        raise IncompatibleError(f"attributions of different kinds cannot be pooled ({told}). Attribute all runs alike.")
    if len(runs) == 1:
        return PooledAttribution(1, runs[0].delta, *runs[0].interval(seed=seed))
    deltas = np.stack([run.delta for run in runs])  # [runs, d_sae]
    delta = deltas.mean(0)
    margin = stdtrit(len(runs) - 1, 0.975) * deltas.std(0, ddof=1) / np.sqrt(len(runs))
    return PooledAttribution(len(runs), delta, delta - margin, delta + margin)
