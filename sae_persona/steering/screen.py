"""The causal screen: steer with every shortlisted latent on selection prompts and keep those that beat the controls.

Everything that can be chosen is chosen here: latent, set, strength and window. Afterwards it is frozen (`Choice`) and
only measured, on other prompts with fresh samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from sae_persona.stats import at_most
from sae_persona.steering.directions import Direction
from sae_persona.steering.edits import Window
from sae_persona.steering.sweep import Dose
from sae_persona.types import Estimate

MAX_ADDED_INCOHERENCE = 0.10
"""The paper's gate of 10 %, counted from the unsteered rate so that an incoherent start cannot reject every repair."""
MAX_SET_SIZE = 3
"""Latents in the largest set that is tried."""


@dataclass(frozen=True)
class Screened:
    """The best admissible dose of one direction."""

    latents: tuple[int, ...]
    name: str
    strength: float
    window: Window
    effect: float
    """Rise of the target measure over the unsteered model; 0 where no strength was admissible."""
    carry_over: float | None
    """Rise of the carry-over measure at the same dose; None where it was not measured."""


@dataclass(frozen=True)
class Rise:
    """What one dose adds to each measure, over the unsteered model."""

    strength: float
    target: float
    incoherence: float
    carry_over: float | None
    """None where it was not measured."""


@dataclass(frozen=True)
class Choice:
    """What the screen froze. `top` is None where no latent beats every control: then there is nothing to find."""

    top: Screened | None
    top_set: Screened | None
    best_control: float
    """The largest effect of any control direction."""


def is_coherent(added_incoherence: float, *, gate: float = MAX_ADDED_INCOHERENCE) -> bool:
    """Whether a rise of the incoherent share over unsteered, or a mean of such rises, stays within the gate."""
    return at_most(added_incoherence, gate)


def best_dose(
    doses: Sequence[Dose], *, window: Window, max_added_incoherence: float = MAX_ADDED_INCOHERENCE
) -> Screened:
    """The strength with the largest effect among those that keep the model coherent.

    Expects the measures `target` and `incoherence`, perhaps `carry_over`, and a dose of strength 0. The effect is the
    rise of `target` over strength 0; a dose is admissible if incoherence is at most `max_added_incoherence`
    (a share) over unsteered.
    """
    return best_for_all(doses[0].direction, [rises(doses)], window=window, max_added_incoherence=max_added_incoherence)


def rises(doses: Sequence[Dose]) -> list[Rise]:
    """What every dose of one direction adds, the unsteered model first; measures as `best_dose` expects."""
    unsteered = next(dose for dose in doses if dose.is_unsteered)
    has_others = "carry_over" in unsteered.measures

    def rise(dose: Dose) -> Rise:
        target, incoherence = (_rise(dose.measures, unsteered.measures, name) for name in ("target", "incoherence"))
        carry_over = _rise(dose.measures, unsteered.measures, "carry_over") if has_others else None
        return Rise(dose.strength, target, incoherence, carry_over)

    return [rise(unsteered), *(rise(dose) for dose in doses if not dose.is_unsteered)]


def best_for_all(
    direction: Direction,
    of_models: Sequence[Sequence[Rise]],
    *,
    window: Window,
    max_added_incoherence: float = MAX_ADDED_INCOHERENCE,
) -> Screened:
    """The one strength whose mean effect over the models is largest, among those that keep them coherent in the mean.

    `of_models` holds the `rises` of each model, all at the same strengths. The unsteered model is among them, so an
    effect is 0 where no admissible strength raises the target. Its carry-over is the models' mean, too.
    """
    means = [_mean(of_dose) for of_dose in zip(*of_models, strict=True)]
    admissible = [means[0], *(one for one in means[1:] if is_coherent(one.incoherence, gate=max_added_incoherence))]
    best = max(admissible, key=lambda one: one.target)
    strength = best.strength if best is not means[0] else 0.0
    return Screened(direction.latents, direction.name, strength, window, best.target, best.carry_over)


def aimed_at(dose: Dose, target: str) -> Dose:
    """The dose as `best_dose` wants it: `target` is what is to rise, misaligned advice, if any, is the carry-over."""
    measures = dose.measures
    carry_over = {"carry_over": measures["other_domains"]} if "other_domains" in measures else {}
    return replace(dose, measures={"target": measures[target], "incoherence": measures["incoherence"], **carry_over})


def extensions(start: Sequence[int], pool: Sequence[int]) -> list[tuple[int, ...]]:
    """`start` with one more latent of the pool, each in turn.

    Sets grow one latent at a time from what is strongest so far: a latent without an effect of its own can be what
    another one lacks, such as which persona it is, where the first one says that it is not the usual one.
    """
    return [(*start, latent) for latent in pool if latent not in start]


def choose(
    singles: Sequence[Screened], sets: Sequence[Screened], controls: Sequence[Screened], *, min_effect: float = 0.05
) -> Choice:
    """The single latent and the set with the largest effect, if they beat every control and `min_effect`.

    Hand the singles in among the sets, too, if a set need not have more than one.

    A latent that moves the target but carries over to nothing else is a switch for the judged words, not a persona: it
    must also raise the carry-over measure, where that was measured.
    """
    best_control = max((control.effect for control in controls), default=0.0)
    threshold = max(best_control, min_effect)

    def strongest(candidates: Sequence[Screened]) -> Screened | None:
        passed = [
            one for one in candidates if one.effect > threshold and (one.carry_over is None or one.carry_over > 0)
        ]
        return max(passed, key=lambda one: one.effect, default=None)

    top = strongest(singles)
    return Choice(top, strongest(sets) if top else None, best_control)


def _mean(of_models: Sequence[Rise]) -> Rise:
    """One dose over several models."""
    carried = [one.carry_over for one in of_models if one.carry_over is not None]
    return Rise(
        of_models[0].strength,
        fmean(one.target for one in of_models),
        fmean(one.incoherence for one in of_models),
        fmean(carried) if carried else None,
    )


def _rise(steered: Mapping[str, Estimate], unsteered: Mapping[str, Estimate], measure: str) -> float:
    return steered[measure].value - unsteered[measure].value
