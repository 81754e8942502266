"""The page of a steered model: one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae_persona.artifacts import Manifest
from sae_persona.report.figures.doses import answers_figure, arm_name, by_arm, price_figure, response_figure
from sae_persona.report.page import N_ANSWERS, drawing, render_page
from sae_persona.report.words import listed, nats, points, strength
from sae_persona.steering.directions import DirectionKind
from sae_persona.steering.record import CONTROLS, SteeredDose, SteeringFindings
from sae_persona.types import LABELS, Estimate


def render_doses(
    doses: Sequence[SteeredDose],
    findings: SteeringFindings,
    *,
    manifest: Manifest,
    answers: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as text; `answers` are judged ones with their doses, of which it shows a few of every label."""
    arms = by_arm(doses)
    tried = {arm: of_arm for arm, of_arm in arms.items() if arm[0] not in CONTROLS}
    drawings = [
        drawing("response", response_figure(arms, unit=findings.unit, first=findings.arms[0])),
        drawing("answers", answers_figure(arms, unit=findings.unit)),
    ]
    priced = any(dose.price for dose in doses)
    if priced:
        drawings.insert(1, drawing("price", price_figure(arms, unit=findings.unit)))
    return render_page(
        "doses.html.j2",
        filters={"strength": strength, "nats": nats},
        title=" and ".join(_titles(findings)),
        sentences=list(sentences(findings)),
        findings=findings,
        arms={arm_name(*arm): of_arm for arm, of_arm in tried.items()},
        drawings=drawings,
        priced=priced,
        elsewhere=any(dose.other_domains for dose in doses),
        direct={arm_name(one.arm, one.name): one.direct_effect for one in findings.arms if one.direct_effect},
        examples=_examples(answers),
        manifest=manifest,
    )


def sentences(findings: SteeringFindings) -> list[str]:
    """What the doses come to, a sentence each."""
    told = []
    for one in findings.arms:
        name = arm_name(one.arm, one.name)
        if one.strength is None:
            told.append(f"{name}: no dose leaves the model coherent.")
            continue
        change, price = one.change, one.price
        moves = "move" if one.arm == "latent_set" else "moves"
        told.append(
            f"{name} {moves} misaligned answers {_change(change)} at strength "
            f"{strength(one.strength)}, incoherent ones {points(one.added_incoherence)}."
        )
        if one.carry_over:
            told.append(f"There misaligned answers to all other prompts move {_change(one.carry_over)}.")
        if price:
            told.append(
                f"There the cross-entropy of benign text moves {nats(price.added)} per token, from "
                f"{price.ce_unsteered:.3f}; the KL divergence from the unsteered model is {price.kl:.3f}."
            )
    for one in findings.arms:
        if one.direct_effect:
            written = [
                f"{group} {effect.cosine:+.2f} (z {effect.z:+.1f})" for group, effect in one.direct_effect.items()
            ]
            writes = "write by themselves" if one.arm == "latent_set" else "writes by itself"
            told.append(f"What {arm_name(one.arm, one.name)} {writes}: {listed(written)}.")
    for kind, control in findings.controls.items():
        told.append(
            f"{control.n} {_KINDS[kind]} move them {100 * control.median:.1f} points in the median and "
            f"{100 * control.largest:.1f} at most."
        )
    return [*told, *findings.notes]


def _change(difference: Estimate) -> str:
    return f"{points(difference.value)} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


_KINDS: Mapping[DirectionKind, str] = {"random_latent": "random latents", "random_direction": "random directions"}


def _titles(findings: SteeringFindings) -> list[str]:
    return [arm_name(one.arm, one.name) for one in findings.arms if one.arm == "latent"][:3]


def _examples(answers: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The first answers of every label at every dose that is no control's, by dose."""
    shown: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in answers:
        if row["arm"] in CONTROLS:
            continue
        unsteered = row["arm"] == "unsteered"
        dose = "unsteered" if unsteered else f"{arm_name(row['arm'], row['name'])} at {strength(row['strength'])}"
        of_label = shown.setdefault(dose, {}).setdefault(row["label"], [])
        if len(of_label) < N_ANSWERS:
            of_label.append(row)
    return {
        dose: [row for label in LABELS for row in labels.get(label, ())] for dose, labels in sorted(
            shown.items(), key=lambda item: item[0] != "unsteered"
        )
    }  # fmt: skip
