"""A 95 % interval for a difference between two groups of fine-tuning runs that answered the same questions.

Axes: `runs` of one side, `n_questions` shared by all runs, `d` quantities.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit


def two_way_interval(
    misaligned: Float[np.ndarray, "n_misaligned n_questions d"], controls: Float[np.ndarray, "n_controls n_questions d"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """The interval of `mean(misaligned) - mean(controls)` for new runs and new questions.

    `delta ± t sqrt(V)` with `V = V_m + V_c + max(0, V_q - V_r)`:

    - `V_m = var(means of the misaligned runs) / n_misaligned`, `V_c` likewise for controls: runs are one cluster;
    - `V_q = var over questions of (misaligned mean - control mean) / n_questions`: questions are the other;
    - `V_r`, the variance of what is left of an answer's mean after its run and its question, `/ (n_runs n_questions)`,
      summed over the sides: it is in both of the above and must be counted once.

    t has the degrees of freedom of Satterthwaite, `V^2 / sum(V_i^2 / df_i)`. A single misaligned run has no spread of
    its own and is given the controls'. With one question nothing tells how questions differ, and V_q is left out.

    Why no bootstrap: percentile intervals over draws of runs and questions cover 75 to 99 % where 95 were asked for,
    these 92 to 96 % (docs/attribution.md has the table).

    Source: Cameron, Gelbach and Miller 2011 (two-way clusters); Satterthwaite 1946.
    """
    n_misaligned, n_questions, _ = misaligned.shape
    n_controls = len(controls)
    delta = misaligned.mean((0, 1)) - controls.mean((0, 1))
    of_controls = controls.mean(1).var(0, ddof=1)
    if n_misaligned == 1:
        parts = [(of_controls * (1 + 1 / n_controls), n_controls - 1)]
    else:
        of_misaligned = misaligned.mean(1).var(0, ddof=1)
        parts = [(of_misaligned / n_misaligned, n_misaligned - 1), (of_controls / n_controls, n_controls - 1)]
    if n_questions > 1:
        of_questions = (misaligned.mean(0) - controls.mean(0)).var(0, ddof=1) / n_questions
        left_controls = _left_over(controls)
        left_misaligned = left_controls if n_misaligned == 1 else _left_over(misaligned)
        counted_twice = (left_misaligned / n_misaligned + left_controls / n_controls) / n_questions
        parts.append((np.maximum(of_questions - counted_twice, 0), n_questions - 1))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = np.divide(variance**2, spread, out=np.ones_like(delta), where=spread > 0)
    margin = stdtrit(freedom, 0.975) * np.sqrt(variance)
    return delta - margin, delta + margin


def _left_over(runs: Float[np.ndarray, "runs n_questions d"]) -> Float[np.ndarray, " d"]:
    """Variance of what neither the run nor the question explains."""
    left = runs - runs.mean(0) - runs.mean(1, keepdims=True) + runs.mean((0, 1))
    return (left**2).sum((0, 1)) / ((runs.shape[0] - 1) * (runs.shape[1] - 1))
