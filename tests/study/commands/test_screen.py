"""The causal ranking of many latents: its order, its roles, and that it goes on where it stopped."""

import json
import random
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

from sae_persona.artifacts import new_manifest
from sae_persona.errors import ConfigError
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.sae.load import save_sae
from sae_persona.steering.screen import Screened
from sae_persona.study.commands import screen
from sae_persona.study.commands.dosage import Company, Dosage
from sae_persona.study.commands.panel import Panel
from sae_persona.study.commands.screen import Best, rank_by_effect, screen_latents
from sae_persona.study.commands.shared import Sampling
from sae_persona.types import Estimate

HOOK = "blocks.1.hook_resid_post"


def best(latent: int, induced: float, protected: float) -> Best:
    def found(effect: float) -> Screened:
        return Screened((latent,), str(latent), 1.5, "all", effect, 0.0)

    return {"induced": found(induced), "repaired": found(0.0), "protected": found(protected)}


def test_roles_are_given_to_what_no_control_reaches() -> None:
    candidates = [best(1, 0.1, 0.3), best(2, 0.5, 0.0), best(3, 0.1, 0.2), best(4, 0.4, 0.4)]
    rows, findings = rank_by_effect(candidates, [best(8, 0.1, 0.0), best(9, 0.0, 0.2)], {2: 7, 3: -1})
    assert [(row.latent, row.rank, row.place, row.role) for row in rows] == [
        (2, 1, 7, "driver"),
        (4, 2, None, "both"),
        (1, 3, None, "protector"),
        (3, 4, -1, "none"),
    ]
    assert (findings.drivers, findings.protectors) == ((2, 4), (4, 1))
    assert findings.best_control == {"induced": 0.1, "repaired": 0.0, "protected": 0.2}


def test_a_p_value_counts_the_controls_that_move_as_much() -> None:
    # Of four controls two induce at least 0.3, a tie among them, and all protect at least 0: p = 3/5 and 5/5.
    controls = [best(6, 0.0, 0.1), best(7, 0.2, 0.0), best(8, 0.1 + 0.2, 0.2), best(9, 0.4, 0.0)]
    rows, findings = rank_by_effect([best(1, 0.3, 0.0), best(2, 0.5, 0.3)], controls, {})
    assert [(row.latent, row.induced_p, row.repaired_p, row.protected_p) for row in rows] == [
        (2, 1 / 5, 1.0, 1 / 5),
        (1, 3 / 5, 1.0, 1.0),
    ]
    assert findings.expected_by_luck == 2 / 5
    assert findings.notes == (
        "Among 2 latents without any effect luck would find 0.40 drivers and as many protectors on average, "
        "2 / (4 controls + 1); effects are maxima over doses, so measure chosen latents with steer on other prompts.",
    )


def test_luck_finds_as_many_drivers_as_the_screen_says() -> None:
    """300 screens of 20 latents that move as their 9 controls do: 2 drivers on average, and no more small p-values."""
    drawn = random.Random(0)
    n_drivers, p_values = [], []
    for _ in range(300):
        arms = [best(i, drawn.uniform(0.1, 1.0), 0.0) for i in range(29)]
        rows, findings = rank_by_effect(arms[:20], arms[20:], {})
        assert findings.expected_by_luck == 2
        n_drivers.append(len(findings.drivers))
        p_values += [row.induced_p for row in rows]
    assert fmean(n_drivers) == pytest.approx(2, abs=4 * stdev(n_drivers) / 300**0.5)
    for k in range(1, 11):  # a screen's share of small ones has a standard deviation of up to 0.19
        assert fmean(p <= k / 10 for p in p_values) == pytest.approx(k / 10, abs=4 * 0.19 / 300**0.5)


def test_without_controls_nothing_is_said_of_luck() -> None:
    rows, findings = rank_by_effect([best(1, 0.5, 0.0)], [], {})
    assert (rows[0].induced_p, findings.expected_by_luck) == (1.0, None)
    assert findings.notes[0].startswith("Effects are maxima over doses")


def test_without_controls_five_points_are_the_least_that_counts() -> None:
    rows, _ = rank_by_effect([best(1, 0.051, 0.0), best(2, 0.05, 0.0)], [], {})
    assert [row.role for row in rows] == ["driver", "none"]


@pytest.fixture(scope="module")
def sae(tiny_world: BuiltWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SAE of twelve latents that fits the tiny world."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(model_name="world", hook_name=HOOK)
    drawn = TopKSAE(TopKSAEConfig(d_in=tiny_world.model("aligned").d_model, d_sae=12, k=3, metadata=metadata))
    generator = torch.Generator().manual_seed(0)
    drawn.load_state_dict({name: torch.randn(x.shape, generator=generator) for name, x in drawn.state_dict().items()})
    path = tmp_path_factory.mktemp("sae") / "sae"
    save_sae(drawn, path, manifest=new_manifest("sae", config={}, inputs={}, seed=0, version=1))
    return path


def test_a_screen_that_was_interrupted_goes_on(
    sae: Path, tiny_world: BuiltWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (tiny_world.folder / "prompts" / "selection.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "prompts.jsonl").write_text("".join(lines[:2]))
    monkeypatch.setattr(screen, "N_TOGETHER", 2)
    calls: list[int] = []
    draw = screen.draw_answers

    def dying(*arguments, stop: int, **options):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return draw(*arguments, **options)

    def run(stop: int):
        monkeypatch.setattr(screen, "draw_answers", lambda *a, **o: dying(*a, stop=stop, **o))
        return screen_latents(
            str(tiny_world.folder / "aligned"),
            sae_source=str(sae),
            latents=[3, 5],
            misaligned=[str(tiny_world.folder / tiny_world.names("misaligned")[0])],
            dosage=Dosage((2.0,)),
            prompts_file=tmp_path / "prompts.jsonl",
            judge=f"world:{tiny_world.folder}",
            sampling=Sampling(1, 3, 0),
            out=tmp_path / "x",
            company=Company(n_controls=1),
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop=4)
    assert not (tmp_path / "x").exists()
    rows, findings = run(stop=99)
    assert len(calls) == 4 + 3, "four pairs of arms in three responses are six sweeps, three were kept, one was lost"
    assert sorted(row.latent for row in rows) == [3, 5]
    assert findings.n_controls == 2
    assert all(row.repaired is not None for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "x"]
    assert json.loads((tmp_path / "x" / "screen.json").read_text())["n_controls"] == 2
    run(stop=len(calls) + 1)
    assert len(calls) == 7, "what is done is read"


def test_several_models_are_reported_at_one_strength_that_was_tried(
    sae: Path, tiny_world: BuiltWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (tiny_world.folder / "prompts" / "selection.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "prompts.jsonl").write_text("".join(lines[:1]))
    drawn = random.Random(0)

    def made_up(*_: object) -> dict[str, Estimate]:
        """Any effect, at most 9 points of incoherence."""
        shares = {"misalignment": drawn.random(), "aligned": drawn.random(), "incoherence": 0.09 * drawn.random()}
        return {name: Estimate(value, value, value, 10, 5, 0) for name, value in shares.items()}

    monkeypatch.setattr(Panel, "measures", made_up)
    bad = str(tiny_world.folder / tiny_world.names("misaligned")[0])
    rows, _ = screen_latents(
        str(tiny_world.folder / "aligned"),
        sae_source=str(sae),
        latents=range(12),
        misaligned=[bad, bad, bad],
        dosage=Dosage((1.0, 2.0, 4.0)),
        prompts_file=tmp_path / "prompts.jsonl",
        judge=f"world:{tiny_world.folder}",
        sampling=Sampling(1, 1, 0),
        out=tmp_path / "x",
        company=Company(),
    )
    assert {row.repaired_at for row in rows} <= {0, -1, -2, -4}
    assert {row.protected_at for row in rows} <= {0, 1, 2, 4}
    assert {row.protected_at for row in rows} - {0}, "some dose raises something"


def test_a_screen_of_nothing_or_with_signs_is_refused(sae: Path, tiny_world: BuiltWorld, tmp_path: Path) -> None:
    def run(**changes) -> None:
        options = {"dosage": Dosage((1.0,)), "latents": [1], **changes}
        screen_latents(
            str(tiny_world.folder / "aligned"),
            sae_source=str(sae),
            prompts_file=tiny_world.folder / "prompts" / "selection.jsonl",
            judge=f"world:{tiny_world.folder}",
            sampling=Sampling(1, 3, 0),
            out=tmp_path / "x",
            company=Company(),
            **options,
        )

    with pytest.raises(ConfigError, match="adds and subtracts by itself"):
        run(dosage=Dosage((-1.0, 1.0)))
    with pytest.raises(ConfigError, match="nothing to screen"):
        run(latents=[])
