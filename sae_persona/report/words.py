"""Numbers as a reader wants them."""

from sae_persona.types import Estimate

NOT_RUN = "not run"


def percent(share: float) -> str:
    """A share, such as `2.1%`; whole hundreds lose the decimal."""
    return f"{100 * share:.1f}%".replace("100.0%", "100%")


def with_interval(estimate: Estimate) -> str:
    """A share with its 95 % interval in per cent, such as `2.1% [1.0, 3.4]`."""
    return f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def points(difference: float) -> str:
    """A difference of two shares, such as `+12.3 points`."""
    return f"{100 * difference:+.1f} points"


def strength(value: float) -> str:
    """A steering strength with its sign, such as `+0.4`."""
    return f"{value:+g}" if value else "0"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def counted(n: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
