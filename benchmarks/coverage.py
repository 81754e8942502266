"""How often 95 % intervals over runs and questions hold the truth, and how often error rates are exceeded.

Every row is a design: runs, questions, and how they vary in units of a control run's spread. No latent is raised, so
every interval should hold 0 and every latent that is called is a false one.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from sae_persona.attribution.interval import two_way_interval
from sae_persona.attribution.null import ControlNull, control_z, spread_floor
from sae_persona.stats import benjamini_hochberg

N_LATENTS, N_REPLICATES, N_BOOT, D_SAE = 4000, 300, 300, 200
SHAPES = ((2, 4, 8), (3, 8, 20), (5, 8, 20))
DESIGNS: dict[str, dict[str, float]] = {
    "runs alike": {},
    "misaligned runs vary 2 x": {"misaligned_spread": 2.0},
    "rise differs by question": {"side": 10.0, "noise": 10.0},
    "answers noisy, runs alike": {"side": 0.0, "noise": 10.0},
}


def run() -> Iterator[Mapping[str, object]]:
    for n_misaligned, n_controls, n_questions in SHAPES:
        for name, design in DESIGNS.items():
            rng = np.random.default_rng(0)
            shape = (n_misaligned, n_controls, n_questions)
            bad, good = draw(rng, *shape, N_LATENTS, correlation=0.0, **design)
            yield {
                "misaligned": n_misaligned,
                "controls": n_controls,
                "questions": n_questions,
                "design": name,
                "two-way interval": _holds_zero(two_way_interval(bad, good)),
                "percentile bootstrap": _holds_zero(percentile(bad, good, rng)),
                **error_rates(rng, shape, design),
            }


def draw(
    rng: np.random.Generator,
    n_misaligned: int,
    n_controls: int,
    n_questions: int,
    d: int,
    *,
    correlation: float,
    misaligned_spread: float = 1.0,
    side: float = 0.5,
    noise: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides, `[runs, n_questions, d]`; runs share two factors that carry `correlation` of their variance."""
    loadings = rng.normal(size=(2, d)) / np.sqrt(2)
    turn = side * rng.normal(size=(n_questions, d))

    def runs(n: int, spread: float) -> np.ndarray:
        shared, own = rng.normal(size=(n, 2)) @ loadings, rng.normal(size=(n, d))
        level = spread * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
        return level[:, None] + noise * rng.normal(size=(n, n_questions, d))

    return runs(n_misaligned, misaligned_spread) + turn, runs(n_controls, 1.0)


def percentile(bad: np.ndarray, good: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % over draws of runs and of questions, with replacement."""
    n = bad.shape[1]
    draws = []
    for _ in range(N_BOOT):
        weights = rng.multinomial(n, np.full(n, 1 / n)) / n
        sides = [side[rng.integers(len(side), size=len(side))].mean(0) for side in (bad, good)]
        draws.append(weights @ (sides[0] - sides[1]))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return low, high


def error_rates(rng: np.random.Generator, shape: tuple[int, int, int], design: Mapping[str, float]) -> dict[str, float]:
    """Share of rankings with a latent of q <= 0.10, and with one of a familywise p <= 0.05."""
    n_played = min(shape[0], shape[1] - 2)
    any_q, any_familywise = [], []
    for _ in range(N_REPLICATES):
        bad, good = (side.mean(1) for side in draw(rng, *shape, D_SAE, correlation=0.5, **design))
        floor = spread_floor(good)
        null = ControlNull.of(good, n_played=n_played, floor=floor, rng=rng)
        p, familywise = null.rises(control_z(bad, good, floor))
        any_q.append(bool((benjamini_hochberg(p) <= 0.10).any()))
        any_familywise.append(bool((familywise <= 0.05).any()))
    return {"any q <= 0.10": float(np.mean(any_q)), "any familywise p <= 0.05": float(np.mean(any_familywise))}


def _holds_zero(interval: tuple[np.ndarray, np.ndarray]) -> float:
    return float(np.mean((interval[0] <= 0) & (interval[1] >= 0)))
