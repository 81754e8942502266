"""What a dose–response comes to: clamping to 0 is a dose, and an arm without a coherent dose has none."""

from sae_persona.report.doses import sentences
from sae_persona.report.figures.doses import by_arm, response_figure
from sae_persona.steering.record import ArmFinding, SteeredDose, SteeringFindings
from sae_persona.types import Estimate


def share(value: float) -> Estimate:
    return Estimate(value, value, value, 10, 5, 0)


def finding(strength: float | None, change: float) -> ArmFinding:
    return ArmFinding("latent", "3", (3,), strength, share(change), 0.0)


def title(first: ArmFinding) -> str:
    dose = SteeredDose((3,), 0.0, share(0.1), share(0), share(0.9), name="3", edit="clamp")
    return response_figure(by_arm([dose]), unit="units", first=first).to_dict()["layout"]["title"]["text"]


def test_a_clamp_to_0_is_told_as_a_dose() -> None:
    held = finding(0.0, -0.2)
    assert sentences(SteeringFindings("units", (held,), {})) == [
        "latent 3 moves misaligned answers -20.0 points [-20.0, -20.0] at strength 0, incoherent ones +0.0 points."
    ]
    assert "latent 3 moves misaligned answers -20.0 points at 0" in title(held)


def test_an_arm_without_a_coherent_dose_says_so() -> None:
    none = finding(None, 0.0)
    assert sentences(SteeringFindings("units", (none,), {})) == ["latent 3: no dose leaves the model coherent."]
    assert "no dose of latent 3 leaves the model coherent" in title(none)
