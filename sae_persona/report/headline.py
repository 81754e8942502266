"""A study in a few sentences, each made from its figures: what was done, what was found, how sure we are."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_persona.report.arms import Baseline, Effect, baseline, control_rises, induction, repair
from sae_persona.report.summary import ROLES, Summary
from sae_persona.report.verdicts import Verdict, found_nothing, verdicts
from sae_persona.report.words import counted, listed, percent, points, strength, with_interval

NOTHING = (
    "There is nothing to find: bad data left no fine-tune more misaligned on open-ended prompts than the models it is "
    "compared with, and no latent beat the controls in the causal screen, so no persona is claimed."
)
_FROZEN = " Strengths were frozen on selection prompts."
_NOT_FROZEN = " No frozen strength is recorded, so effects are read at the strongest coherent one, which flatters them."


@dataclass(frozen=True)
class Headline:
    """What stands above everything else in a report."""

    done: str
    found: tuple[str, ...]
    """Emergence; the latent as a cause; early warning and the way back. What was not run is left out."""
    sure: str
    failed: tuple[Verdict, ...]
    """The claims that the study tested and that did not hold."""


def headline(summary: Summary) -> Headline:
    """The headline of a study; a study that found nothing says so in its first sentence."""
    if found_nothing(summary):
        found = (NOTHING, _highest(summary))
    else:
        found = (_emergence(summary), _cause(summary), _warning_and_return(summary))
    failed = tuple(verdict for verdict in verdicts(summary) if verdict.met is False)
    return Headline(_done(summary), tuple(filter(None, found)), _sure(summary), failed)


def _done(summary: Summary) -> str:
    roles = [(role, len(summary.models_of(role))) for role in ROLES]
    models = listed([f"{n} {role}" for role, n in roles if n])
    parts = [f"Study {summary.study}, seed {summary.seed}"]
    if models:
        parts.append(f"models compared: {models}")
    if summary.sae is not None:
        parts.append(f"one SAE of {summary.sae.d_sae} latents at {summary.sae.hook_name}")
    if summary.ranking:
        screened = sum(row.causal_effect is not None for row in summary.ranking)
        parts.append(f"{counted(len(summary.ranking), 'ranked latent')}, {screened} of them screened by steering")
    return "; ".join(parts) + "."


def _highest(summary: Summary) -> str:
    models = summary.models_of("misaligned", "narrow")
    if not models:
        return ""
    worst = max(models, key=lambda name: models[name].misalignment.high)
    figure = with_interval(models[worst].misalignment)
    told = f"Of {counted(len(models), 'fine-tune')} on bad data, the most misaligned is {worst} with {figure}"
    return f"{told}{_most_of_the_others(summary)}."


def _emergence(summary: Summary) -> str:
    fine_tunes = summary.models_of("misaligned") or summary.models_of("narrow")
    if not fine_tunes:
        return ""
    parts = [f"{name} {with_interval(model.misalignment)}" for name, model in fine_tunes.items()]
    return f"Misaligned answers to held-out open-ended prompts: {listed(parts)}{_most_of_the_others(summary)}."


def _most_of_the_others(summary: Summary) -> str:
    others = summary.models_of("aligned", "control")
    if not others:
        return ""
    worst = max(others, key=lambda name: others[name].misalignment.high)
    figure = with_interval(others[worst].misalignment)
    return f"; the most among aligned and correct-data models: {figure} ({worst})"


def _cause(summary: Summary) -> str:
    if not summary.was_screened:
        return ""
    if summary.top_latent is None:
        return "No latent beat the controls in the causal screen, so none is claimed as the cause."
    steering = summary.steering
    effect = None if steering is None else induction(steering, of_set=False)
    if steering is None or effect is None:
        return f"The causal screen chose latent {summary.top_latent}; its effect on evaluation prompts was not run."
    sentence = f"Latent {summary.top_latent}, added to the aligned model, moves misalignment {_from_to(effect)}"
    together = induction(steering, of_set=True)
    if together is not None and len(summary.top_set) > 1:
        sentence += f"; the {counted(len(summary.top_set), 'latent')} of the set, {_from_to(together)}"
    rivals: dict[str, Baseline] = {"the difference of means": "mean_difference", "a linear probe": "linear_probe"}
    for name, key in rivals.items():
        if (rival := baseline(steering, key)) is not None:
            sentence += f"; {name}, {_from_to(rival)}"
    rises = control_rises(steering.controls.random_latents) + control_rises(steering.controls.random_directions)
    if rises:
        sentence += f"; the strongest of {len(rises)} random controls moves it {points(max(rises, key=abs))}"
    repairs = _repairs(summary)
    if repairs:
        sentence += f". Subtracted, it takes {listed(repairs)}"
    return sentence + "."


def _from_to(effect: Effect) -> str:
    before, after = effect.unsteered.misalignment.value, effect.steered.misalignment
    return f"from {percent(before)} to {with_interval(after)} at strength {strength(effect.steered.strength)}"


def _repairs(summary: Summary) -> list[str]:
    if summary.steering is None:
        return []
    effects = {name: repair(summary.steering, name, of_set=False) for name in summary.models_of("misaligned")}
    return [
        f"{name} from {percent(effect.unsteered.misalignment.value)} to {with_interval(effect.steered.misalignment)}"
        for name, effect in effects.items()
        if effect is not None
    ]


def _warning_and_return(summary: Summary) -> str:
    parts = []
    if summary.monitor is not None and summary.monitor.mixture:
        rings = [point for point in summary.monitor.mixture if point.alarm]
        first = min(rings, key=lambda point: point.bad_fraction, default=None)
        parts.append(
            "the alarm on its reading never rings"
            if first is None
            else f"the alarm on its reading first rings at {first.bad_fraction:.0%} bad data, "
            f"where the score is {with_interval(first.misalignment)}"
        )
        parts[-1] += f", with {counted(summary.monitor.n_false_alarms, 'false alarm')} on benign data"
    if summary.realign is not None:
        curves = {"the trained domain": summary.realign.in_domain, "another domain": summary.realign.out_of_domain}
        for name, curve in curves.items():
            if curve:
                last = max(curve, key=lambda point: point.step)
                left = with_interval(last.misalignment)
                parts.append(f"{last.n_samples} good samples of {name} leave {left} misaligned")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def _sure(summary: Summary) -> str:
    models = summary.models.values()
    if not models:
        return "No model was evaluated, so there is no figure to be sure of."
    answers, questions, unscored = (
        _range([getattr(model.misalignment, key) for model in models]) for key in ("n", "n_questions", "n_unscored")
    )
    text = (
        f"Each model's figure rests on {answers} sampled answers to {questions} held-out questions "
        f"({unscored} unscored); brackets are 95% intervals clustered by question. "
        f"Every model is one training run; {counted(len(summary.models_of('control')), 'correct-data run')}"
    )
    if summary.steering is not None:
        latents, directions = (
            len(control_rises(arm))
            for arm in (summary.steering.controls.random_latents, summary.steering.controls.random_directions)
        )
        text += f", {latents} random latents and {directions} random directions serve as controls."
        effect = induction(summary.steering, of_set=False)
        if effect is not None:
            text += _FROZEN if effect.chosen_before else _NOT_FROZEN
        return text
    return f"{text} serve as controls."


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"
