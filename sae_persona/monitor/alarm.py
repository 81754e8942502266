"""When is a rise of a latent more than benign fine-tuning does? A one-sided prediction bound from benign runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from sae_persona.errors import ConfigError

FALSE_ALARM_RATE = 0.01
"""Share of further benign runs that may ring, if their readings are normal about a common mean."""
MIN_BENIGN = 4


@dataclass(frozen=True)
class Alarm:
    """Rings above `threshold`."""

    threshold: float
    mean: float
    spread: float
    n_benign: int

    def rings(self, reading: float) -> bool:
        """Is this reading higher than benign runs explain?"""
        return reading > self.threshold

    def separation(self, readings: Sequence[float]) -> float:
        """How far these readings stand above the benign ones on average, in benign spreads; infinite without spread."""
        rise = float(np.mean(readings)) - self.mean
        return rise / self.spread if self.spread else math.copysign(math.inf, rise)


def calibrate(benign: Sequence[float], *, rate: float = FALSE_ALARM_RATE, least: float = 0.0) -> Alarm:
    """The bound that one further benign run exceeds with probability `rate`.

    threshold = mean + t_{n-1, 1-rate} * spread * sqrt(1 + 1/n), the one-sided prediction interval of a normal sample;
    its width pays for estimating mean and spread from few runs. It is never below `least`, the smallest reading that is
    a warning at all, nor below zero: readings are rises over the starting model, and what has not risen is no warning.

    Raises:
        ConfigError: fewer than four benign runs, or readings that are not finite.
    """
    readings = np.asarray(benign, dtype=float)
    n = len(readings)
    if n < MIN_BENIGN or not np.isfinite(readings).all():
        raise ConfigError(
            f"an alarm needs the finite readings of at least {MIN_BENIGN} benign fine-tunes; got {list(benign)}. "
            "Fine-tune more on correct data."
        )
    mean, spread = float(readings.mean()), float(readings.std(ddof=1))
    width = float(student_t.ppf(1 - rate, n - 1)) * spread * math.sqrt(1 + 1 / n)
    return Alarm(max(0.0, least, mean + width), mean, spread, n)
