"""What a latent does in one body of text against another."""

from dataclasses import dataclass, field

import numpy as np

from sae_persona.attribution.colour import contexts_html, summary_line
from sae_persona.attribution.reading import LatentReading
from sae_persona.errors import IncompatibleError
from sae_persona.types import Estimate


@dataclass(frozen=True)
class Contrast:
    """One latent in two bodies of text: `first` minus `second`, intervals over passages."""

    latent: int
    density: Estimate
    """Difference of the shares of tokens on which it fires."""
    mean: Estimate | None
    """Difference of the mean readings; None where either has a single passage."""
    first: LatentReading = field(repr=False)
    second: LatentReading = field(repr=False)

    @property
    def differs(self) -> bool:
        """True = the interval of the densities' difference leaves out zero. Any two texts may differ in many ways."""
        return self.density.low > 0 or self.density.high < 0

    def _repr_html_(self) -> str:
        from markupsafe import Markup

        most = max(self.first.maximum, self.second.maximum)
        parts = [
            Markup("<p>{}</p>").format(summary_line(one)) + contexts_html(one.contexts, most=most)
            for one in (self.first, self.second)
        ]
        return str(Markup("").join(parts))


def contrast(first: LatentReading, second: LatentReading) -> Contrast:
    """Compare two readings of one latent; the texts are taken as independent of each other.

    `low = value - sqrt((a - a_low)^2 + (b_high - b)^2)`, and likewise above (MOVER).

    Raises:
        IncompatibleError: the readings are of other latents, hooks, tokens or ways of reading.

    Source: Zou and Donner 2008.
    """
    for what in ("latent", "hook_name", "reading", "tokens"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            raise IncompatibleError(f"these readings differ in their {what}: {one} and {other}. Read both alike.")
    mean = None if first.mean is None or second.mean is None else _difference(first.mean, second.mean)
    return Contrast(first.latent, _difference(first.density, second.density), mean, first, second)


def _difference(a: Estimate, b: Estimate) -> Estimate:
    value = a.value - b.value
    return Estimate(
        value=value,
        low=value - float(np.hypot(a.value - a.low, b.high - b.value)),
        high=value + float(np.hypot(a.high - a.value, b.value - b.low)),
        n=a.n + b.n,
        n_questions=a.n_questions + b.n_questions,
        n_unscored=0,
    )
