"""`summary.json`, read into typed records: what every table, figure and sentence of a report is made from.

A study leaves out what it did not run, so everything but the study's name and seed may be missing; a missing section is
None (or empty) and is reported as not run. Keys that are not listed here are kept and ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sae_persona.artifacts import read_json
from sae_persona.errors import ArtifactError
from sae_persona.types import Estimate

SCHEMA = 1
SUMMARY = "summary.json"
ModelRole = Literal["base", "aligned", "control", "narrow", "misaligned"]
ROLES: tuple[ModelRole, ...] = ("base", "aligned", "control", "narrow", "misaligned")


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class ModelRecord(_Record):
    """One model, as shares of all its answers: to the held-out open-ended prompts where no category is named."""

    role: ModelRole
    misalignment: Estimate
    incoherence: Estimate | None = None
    aligned: Estimate | None = None
    by_category: dict[str, Estimate] = {}
    """Misaligned share of all answers, by category of prompt."""
    labels: dict[str, dict[str, float]] = {}
    """Share of every label, by category of prompt."""


class CandidateRecord(_Record):
    """A dictionary that was trained, and what its strongest latent did in the audition on selection prompts."""

    name: str
    d_sae: int
    k: int | None = None
    fve: float | None = None
    dead_fraction: float | None = None
    best_effect: float | None = None
    """As a latent's `causal_effect`; None where the dictionary was not tried."""


class SAERecord(_Record):
    """The chosen dictionary and its quality on held-out documents of the base model."""

    name: str = "sae"
    """Its folder within the study's `sae`."""
    hook_name: str
    d_in: int
    d_sae: int
    k: int | None = None
    l0: float | None = None
    fve: float | None = None
    fve_by_model: dict[str, float] = {}
    ce_recovered: float | None = None
    dead_fraction: float | None = None
    n_tokens: int | None = None
    candidates: list[CandidateRecord] = []
    """All dictionaries, the chosen one among them."""


class RankedLatent(_Record):
    """One row of the ranking."""

    rank: int
    latent: int
    reading: str | None = None
    tokens: str | None = None
    delta_activation: float
    low: float | None = None
    high: float | None = None
    q_value: float | None = None
    """None where no control runs calibrate one."""
    delta_attribution: float | None = None
    causal_effect: float | None = None
    """Rise of the misaligned share, less that of other personas' answers, on selection prompts; None where the
    latent was not screened."""
    top_tokens: list[str] = []


class ScreenRecord(_Record):
    """What the causal screen weighed, on selection prompts and within the coherence gate.

    Rises of the misaligned share, less that of other personas' answers.
    """

    window: str | None = None
    best_latent: float | None = None
    best_control: float | None = None


class SteeringPoint(_Record):
    """The answers of one steered model at one strength, in units of the median residual norm."""

    strength: float
    draw: int | None = None
    """Which random latent or direction; None for the arms of which there is one."""
    misalignment: Estimate
    incoherence: Estimate | None = None
    aligned: Estimate | None = None
    other_domains: Estimate | None = None


class SteeringControls(_Record):
    """The same strengths for directions that should do nothing, and for what should do something without the latent."""

    random_latents: list[SteeringPoint] = []
    random_directions: list[SteeringPoint] = []
    mean_difference: list[SteeringPoint] = []
    linear_probe: list[SteeringPoint] = []
    last_hook: list[SteeringPoint] = []
    """The latent's own vector where it can only change which words are written: at the last hook."""


class ChosenStrengths(_Record):
    """The strengths that were frozen on selection prompts."""

    induce: float | None = None
    induce_set: float | None = None
    mean_difference: float | None = None
    linear_probe: float | None = None
    last_hook: float | None = None
    repair: dict[str, float] = {}
    repair_set: dict[str, float] = {}


class SteeringRecord(_Record):
    """Dose and response: induction on the aligned model, repair of the misaligned ones. One latent, or `top_set`."""

    window: str | None = None
    induce: list[SteeringPoint] = []
    induce_set: list[SteeringPoint] = []
    repair: dict[str, list[SteeringPoint]] = {}
    repair_set: dict[str, list[SteeringPoint]] = {}
    controls: SteeringControls = SteeringControls()
    chosen: ChosenStrengths = ChosenStrengths()

    @model_validator(mode="after")
    def _every_arm_holds_the_strengths_it_is_read_at(self) -> Self:
        arms, chosen = self.arms(), self.chosen
        wanted: dict[str, float | None] = {
            "induce": chosen.induce,
            "induce_set": chosen.induce_set,
            "controls.mean_difference": chosen.mean_difference,
            "controls.linear_probe": chosen.linear_probe,
            "controls.last_hook": chosen.last_hook,
        }
        wanted |= {f"repair.{model}": strength for model, strength in chosen.repair.items()}
        wanted |= {f"repair_set.{model}": strength for model, strength in chosen.repair_set.items()}
        for name, points in arms.items():
            measured = sorted({point.strength for point in points})
            if points and 0 not in measured:
                raise ValueError(f"{name} holds no point of strength 0, so there is nothing to compare its doses with")
            if points and wanted.get(name) not in (None, *measured):
                raise ValueError(f"{name} was frozen at strength {wanted[name]:g}, which is not among {measured}")
        return self

    def arms(self) -> dict[str, list[SteeringPoint]]:
        """Every list of points, by the path that leads to it."""
        return {
            "induce": self.induce,
            "induce_set": self.induce_set,
            **{f"repair.{model}": points for model, points in self.repair.items()},
            **{f"repair_set.{model}": points for model, points in self.repair_set.items()},
            "controls.random_latents": self.controls.random_latents,
            "controls.random_directions": self.controls.random_directions,
            "controls.mean_difference": self.controls.mean_difference,
            "controls.linear_probe": self.controls.linear_probe,
            "controls.last_hook": self.controls.last_hook,
        }


class MixturePoint(_Record):
    """One fine-tune on data of which `bad_fraction` is bad."""

    bad_fraction: float
    latent: float
    alarm: bool
    misalignment: Estimate


class MonitorRecord(_Record):
    """The latent's reading relative to the aligned model, over mixtures and over benign fine-tunes."""

    reading: str | None = None
    benign_runs: list[float] = []
    """Where the study holds some benign runs out, those that the alarm was set on."""
    held_out_benign_runs: list[float] = []
    threshold: float | None = None
    """The reading above which the alarm rings, where the study records it."""
    mixture: list[MixturePoint] = []

    @property
    def n_false_alarms(self) -> int:
        """Alarms without bad data: at a bad fraction of 0, and on benign runs where the threshold is recorded.

        Benign runs held out from setting the threshold are asked where there are any, else those it was set on.
        """
        rung = sum(point.alarm for point in self.mixture if point.bad_fraction == 0)
        if self.threshold is None:
            return rung
        return rung + sum(run > self.threshold for run in self.held_out_benign_runs or self.benign_runs)


class RealignPoint(_Record):
    """A misaligned model after some steps on good answers."""

    step: int
    n_samples: int
    misalignment: Estimate
    aligned: Estimate | None = None
    latent: float | None = None


class RealignRecord(_Record):
    """Re-alignment with data of the trained domain, and of another."""

    in_domain: list[RealignPoint] = []
    out_of_domain: list[RealignPoint] = []


class TruthRecord(_Record):
    """What was planted. Nothing else in a study reads it, and it is read after everything was frozen."""

    villain_auroc: dict[int, float] = {}
    top_latent_persona: str | None = None
    n_latents_over_95: int | None = Field(default=None, alias="n_latents_over_0.95")
    best_villain_latent: int | None = None
    best_villain_auroc: float | None = None
    direct_effect: dict[str, float] = {}
    """Mean cosine of the top latent's direction with the unembedding of some words, by who says them."""


class Summary(_Record):
    """One study's figures."""

    schema_: Literal[1] = Field(alias="schema")
    study: str
    seed: int
    models: dict[str, ModelRecord] = {}
    sae: SAERecord | None = None
    ranking: list[RankedLatent] = []
    shortlist: list[int] = []
    top_latent: int | None = None
    """None where the screen finds nothing that beats the controls, and where no screen ran: see `was_screened`."""
    top_set: list[int] = []
    screen: ScreenRecord | None = None
    steering: SteeringRecord | None = None
    monitor: MonitorRecord | None = None
    realign: RealignRecord | None = None
    truth: TruthRecord | None = None
    seconds: dict[str, float] = {}

    @property
    def was_screened(self) -> bool:
        """Whether a causal screen gave an answer, be it a latent or nothing."""
        return "top_latent" in self.model_fields_set

    def models_of(self, *roles: ModelRole) -> dict[str, ModelRecord]:
        """The models of these roles; of all roles where none is named. In the order of `ROLES`, then by name."""
        chosen = [(name, model) for name, model in self.models.items() if not roles or model.role in roles]
        return dict(sorted(chosen, key=lambda item: (ROLES.index(item[1].role), item[0])))


def read_summary(path: Path | str) -> Summary:
    """The summary in a run folder, or in a file of any name.

    Raises:
        ArtifactError: no summary is there, it is of another schema, or an entry is not what the schema says.
    """
    path = Path(path)
    file = path / SUMMARY if path.is_dir() else path
    if not file.exists():
        raise ArtifactError(f"{file} does not exist. Name the folder that `sae-persona run ... --out` wrote.")
    return parse_summary(read_json(file), source=str(file))


def parse_summary(value: object, *, source: str = SUMMARY) -> Summary:
    """The summary in a JSON value; `source` is what error messages call it.

    Raises:
        ArtifactError: as `read_summary`.
    """
    if not isinstance(value, Mapping) or "schema" not in value:
        raise ArtifactError(f"{source} is no summary of a study: it states no schema. Run the study again.")
    if value["schema"] != SCHEMA:
        raise ArtifactError(
            f"{source} has schema {value['schema']!r}; this version reads schema {SCHEMA}. "
            "Read it with the version that wrote it, or run the study again."
        )
    try:
        return Summary.model_validate(value)
    except ValidationError as error:
        first, *others = error.errors()
        where = ".".join(str(part) for part in first["loc"]) or "the summary"
        more = f" ({len(others)} more)" if others else ""
        raise ArtifactError(
            f"{source}: {where}: {first['msg'].removeprefix('Value error, ')}{more}. Run the study again."
        ) from error
