"""Numbers as a reader wants them."""

from sae_persona.types import Estimate

NOT_RUN = "not run"


def percent(share: float) -> str:
    """A share, such as `2.1%`; whole hundreds lose the decimal."""
    return f"{100 * share:.1f}%".replace("100.0%", "100%")


def with_interval(estimate: Estimate) -> str:
    """A share with its 95 % interval in per cent, such as `2.1% [1.0, 3.4]`."""
    return f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def with_kappa(kappa: Estimate | None) -> str:
    """Cohen's kappa with its 95 % interval, such as `0.71 [0.55, 0.83]`."""
    if kappa is None:
        return "undefined, each judge gives one label"
    return f"{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]"


def points(difference: float) -> str:
    """A difference of two shares, such as `+12.3 points`."""
    return f"{100 * difference:+.1f} points"


def nats(difference: float) -> str:
    """A difference of cross-entropies, such as `+0.123 nats`."""
    return f"{difference:+.3f} nats"


def points_with_interval(difference: Estimate) -> str:
    """A difference of two shares with its 95 % interval, such as `+12.3 points [8.0, 16.9]`."""
    return f"{points(difference.value)} [{100 * difference.low:.1f}, {100 * difference.high:.1f}]"


def strength(value: float) -> str:
    """A steering strength with its sign, such as `+0.4`."""
    return f"{value:+g}" if value else "0"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def counted(n: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
