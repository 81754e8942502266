"""Doses and what they did, as the commands write them and reports read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sae_persona.steering.directions import DirectionKind
from sae_persona.steering.logits import DirectEffect
from sae_persona.steering.price import Price
from sae_persona.steering.sweep import EditKind
from sae_persona.types import Estimate, Label

CONTROLS: tuple[DirectionKind, ...] = ("random_latent", "random_direction")
"""Arms that should do nothing."""


@dataclass(frozen=True)
class SteeredDose:
    """The model steered in one direction at one strength.

    Shares are of the answers to open-ended prompts, or to all prompts where none is open-ended.
    """

    latents: tuple[int, ...]
    """Whose unit decoder directions are added up; none for a direction that is no latent's."""
    strength: float
    """In the arm's unit."""
    misalignment: Estimate
    incoherence: Estimate
    aligned: Estimate
    other_domains: Estimate | None = None
    """Misaligned share of the answers to all other prompts; None where there are none."""
    labels: Mapping[Label, Estimate] = field(default_factory=dict)
    """Share of every label that was given."""
    arm: DirectionKind = "latent"
    name: str = ""
    """What tells arms of one kind apart."""
    edit: EditKind | Literal["none"] = "add"
    """`none`: the unsteered model."""
    unit: float = 1.0
    """What a strength of one means: a length added, or the activation to which latents are clamped."""
    price: Price | None = None
    """What it costs on benign text; None where no text was given."""

    @property
    def is_unsteered(self) -> bool:
        """Nothing was done."""
        return self.edit == "none"


@dataclass(frozen=True)
class ArmFinding:
    """The dose of one arm that moves misalignment most, among those that leave the model coherent.

    It is chosen and measured on the same answers, as every control's is: compare it with theirs, and measure it again
    on other prompts before it is quoted.
    """

    arm: DirectionKind
    name: str
    latents: tuple[int, ...]
    strength: float | None
    """None where no dose is coherent: the changes below are then the unsteered model's, 0. A latent can be clamped to
    0."""
    change: Estimate
    """Of the misaligned share, steered minus unsteered, paired by question."""
    added_incoherence: float
    carry_over: Estimate | None = None
    """Change of the misaligned share of the answers to all other prompts; None where there are none."""
    price: Price | None = None
    """Of that dose, on benign text; None where no text was given."""
    direct_effect: Mapping[str, DirectEffect] = field(default_factory=dict)
    """What the direction writes into the logits of each group of words by itself."""


@dataclass(frozen=True)
class ControlFinding:
    """How far the controls of one kind move misalignment, each at the coherent dose where it moves it most."""

    n: int
    median: float
    largest: float


@dataclass(frozen=True)
class SteeringFindings:
    """What a dose–response says as a whole."""

    unit: str
    """Of strengths, in words."""
    arms: tuple[ArmFinding, ...]
    controls: Mapping[DirectionKind, ControlFinding]
    notes: tuple[str, ...] = ()


NO_CARRY_OVER = (
    "Carry-over was not measured: that takes open-ended prompts and others, such as advice, in one set of prompts."
)
"""What is said where nothing tells a persona from a switch for the words that are judged."""
MIN_EFFECT = 0.05
"""A share that moves by less is nobody's doing, even where no control moves it more."""
Role = Literal["driver", "protector", "both", "none"]


@dataclass(frozen=True)
class ScreenedLatent:
    """One latent of a causal screen, each effect at its best coherent dose; None without a misaligned model."""

    rank: int
    latent: int
    place: int | None
    """In the ranking it comes from: 1 is the clearest rise, -1 the clearest fall."""
    role: Role
    """driver: added, it raises misalignment beyond every control; protector: added to misaligned models, it brings back
    aligned answers beyond every control."""
    induced: float
    """Rise of the misaligned share when it is added."""
    induced_at: float
    carry_over: float | None
    """Rise of the misaligned share of answers to all other prompts at that dose; None where there are none."""
    repaired: float | None
    """Rise of the aligned share of the misaligned models, in the mean, when it is subtracted."""
    repaired_at: float | None
    """The one strength at which that mean is largest."""
    protected: float | None
    """The same when it is added."""
    protected_at: float | None
    induced_p: float | None = None
    """`(1 + controls with an effect at least as large) / (1 + controls)`, each at its best dose: the p-value of
    this latent alone, whatever the number that is screened. None where the response was not measured."""
    repaired_p: float | None = None
    protected_p: float | None = None


@dataclass(frozen=True)
class ScreenFindings:
    """What a screen comes to. Effects are maxima over doses: measure those of chosen latents on other prompts."""

    drivers: tuple[int, ...]
    protectors: tuple[int, ...]
    n_controls: int
    best_control: Mapping[str, float]
    """The largest effect of any control, by response."""
    notes: tuple[str, ...] = ()
    expected_by_luck: float | None = None
    """`latents / (controls + 1)`: how many drivers, and how many protectors, the screen would find on average if all
    latents moved as controls do, or fewer where effects tie or are below 5 points; None without controls."""
