"""`steer` and `evaluate` give the answers that a study gives, and units mean what they say."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sae_persona.artifacts import new_manifest
from sae_persona.data.files import read_jsonl, read_records
from sae_persona.errors import ConfigError
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.sae.load import save_sae
from sae_persona.steering.directions import latent_direction
from sae_persona.steering.record import SteeredDose
from sae_persona.steering.sweep import Arm
from sae_persona.study.bench import Bench
from sae_persona.study.commands.dosage import Company, Dosage
from sae_persona.study.commands.evaluate import evaluate_model
from sae_persona.study.commands.panel import Panel
from sae_persona.study.commands.shared import Sampling
from sae_persona.study.commands.steer import steer_model
from sae_persona.study.config import StudyConfig, validated
from sae_persona.study.measure import measure_model
from sae_persona.study.subjects import Subjects
from sae_persona.types import OPEN_ENDED, Estimate, Judgement

if TYPE_CHECKING:
    from sae_lens import TopKSAE

WORLD = Path(__file__).parents[3] / "checkpoints" / "persona_world"
HOOK = "blocks.2.hook_resid_post"
N_NEW = 4


@pytest.fixture(scope="module")
def sae() -> "TopKSAE":
    """A random SAE that fits the committed world."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    d_in = BuiltWorld.open(WORLD).model("aligned").d_model
    config = TopKSAEConfig(d_in=d_in, d_sae=24, k=4, metadata=SAEMetadata(model_name="world", hook_name=HOOK))
    sae = TopKSAE(config)
    generator = torch.Generator().manual_seed(0)
    sae.load_state_dict({name: torch.randn(x.shape, generator=generator) for name, x in sae.state_dict().items()})
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(sae: "TopKSAE", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved."""
    path = tmp_path_factory.mktemp("sae") / "sae"
    save_sae(sae, path, manifest=new_manifest("sae", config={"hook_name": HOOK}, inputs={}, seed=0, version=1))
    return path


def steered(folder: Path, out: Path, dosage: Dosage, latents: Sequence[int] = (3,), **others: Any) -> list[SteeredDose]:
    """Doses on two answers to every open-ended evaluation prompt, with the seed of a study of seed 0."""
    options = {"categories": [OPEN_ENDED], "sampling": Sampling(1, N_NEW, 2), "batch_size": 2048, **others}
    return steer_model(
        str(WORLD / "aligned"),
        sae_source=str(folder),
        latents=latents,
        dosage=dosage,
        prompts_file=WORLD / "prompts" / "evaluation.jsonl",
        judge=f"world:{WORLD}",
        out=out,
        **options,
    )[0]


def test_steering_gives_the_answers_of_a_study(sae: "TopKSAE", folder: Path, tmp_path: Path) -> None:
    """A study steers with strength times its unit, on evaluation prompts, with its seed plus 2."""
    settings = {"study": "x", "world": WORLD, "hook_name": HOOK, "sampling": {"max_new_tokens": N_NEW}}
    config = validated(StudyConfig, settings, source="test")
    subjects = Subjects.open(WORLD)
    groups = subjects.groups("evaluation")
    bench = Bench(groups, config, unit=40.25, seed=config.seed + 2)
    arms = [Arm(latent_direction(sae, 3), (0.0, 1.5, 2.5))]
    (expected,) = bench.doses(subjects.model("aligned"), arms, window="header", n_open=1, n_advice=0)

    in_units = Dosage((1.5, 2.5), unit="40.25", window="header")
    absolute = Dosage((1.5 * 40.25, 2.5 * 40.25), unit="absolute", window="header")
    for name, dosage in (("units", in_units), ("absolute", absolute)):
        doses = steered(folder, tmp_path / name, dosage)
        for measure in ("misalignment", "incoherence", "aligned"):
            assert [getattr(dose, measure) for dose in doses] == [dose.measures[measure] for dose in expected]

    answers = [row["answer"] for _, row in read_records(tmp_path / "units" / "answers.jsonl")]
    assert answers == [row["answer"] for _, row in read_records(tmp_path / "absolute" / "answers.jsonl")]
    n = len(groups.open_ended())
    assert answers[:n] != answers[2 * n :], "steering does something"


@pytest.mark.parametrize("role", ["aligned", "misaligned"])
def test_an_evaluation_gives_the_answers_of_a_study(role: str, tmp_path: Path) -> None:
    subjects = Subjects.open(WORLD)
    name = role if role == "aligned" else subjects.runs(role)[0]
    groups = dataclasses.replace(subjects.groups("evaluation"), prompts=subjects.groups("evaluation").open_ended())
    entry, expected = measure_model(
        subjects.model(name), groups, domain=None, counts={"open_ended": 1}, max_new_tokens=16, seed=0
    )
    scores = evaluate_model(
        str(WORLD / name),
        prompts_file=WORLD / "prompts" / "evaluation.jsonl",
        judge=f"world:{WORLD}",
        sampling=Sampling(1, 16, 0),
        out=tmp_path / "x",
        categories=[OPEN_ENDED],
        batch_size=1024,
    ).overall
    assert read_jsonl(tmp_path / "x" / "answers.jsonl", Judgement) == expected
    for measure in ("misalignment", "incoherence", "aligned"):
        assert asdict(getattr(scores, measure)) == entry[measure]
    assert max(scores.labels, key=lambda label: scores.labels[label]) == role, "what is equal says something"


def test_controls_are_steered_as_far_as_the_latent_and_clamping_has_no_random_directions(
    folder: Path, tmp_path: Path
) -> None:
    few = Company(n_controls=2)
    doses = steered(folder, tmp_path / "a", Dosage((1.0,), unit="max"), company=few)
    assert [dose.arm for dose in doses if not dose.is_unsteered] == [
        "latent", "random_latent", "random_latent", "random_direction", "random_direction",
    ]  # fmt: skip
    assert len({dose.unit for dose in doses}) == 1
    held = steered(folder, tmp_path / "b", Dosage((0.0, 1.0), edit="clamp"), company=few)
    assert {dose.arm for dose in held} == {"latent", "random_latent"}
    assert [(dose.edit, dose.strength) for dose in held if dose.arm == "latent"] == [
        ("none", 0.0), ("clamp", 0.0), ("clamp", 1.0),
    ]  # fmt: skip
    assert len({dose.unit for dose in held}) == 3, "each is held at its own maximum"


@pytest.mark.parametrize(
    ("dosage", "export", "message"),
    [
        (Dosage((1.0,), unit="metres"), None, "unit 'metres' is none; expected median, max"),
        (Dosage((1.0,), unit="-2"), None, "unit '-2' is none"),
        (Dosage((1.0,), edit="ablate", unit="max"), None, "an ablated share has no unit"),
        (Dosage((1.0,), edit="ablate"), 1.0, "only added directions can be exported"),
        (Dosage((1.0,)), 2.0, "strength 2 is to be exported, and it is not among those that are tried: 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    dosage: Dosage, export: float | None, message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        steered(folder, tmp_path / "x", dosage, export=export)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("incoherent", "strength"), [(0.0, 0.0), (0.9, None)])
def test_clamping_to_0_is_a_dose_and_no_coherent_dose_is_none(
    incoherent: float, strength: float | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doses of a latent held at 0 and at 1, measured as the test says; held at 1 it is always incoherent."""
    measures = Panel.measures
    made_up = iter([incoherent, 0.9, 0.0])

    def told(panel: Panel, judgements: Sequence[Judgement]) -> dict[str, Estimate]:
        found, rate = measures(panel, judgements), next(made_up)
        return {**found, "incoherence": dataclasses.replace(found["incoherence"], value=rate)}

    monkeypatch.setattr(Panel, "measures", told)
    steered(folder, tmp_path / "x", Dosage((0.0, 1.0), edit="clamp", unit="2"))
    findings = json.loads((tmp_path / "x" / "steering.json").read_text())
    assert findings["arms"][0]["strength"] == strength
    said = "no dose leaves the model coherent" in (tmp_path / "x" / "steering.html").read_text()
    assert said == (strength is None)
