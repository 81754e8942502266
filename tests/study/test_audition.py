"""A dictionary that holds the persona in one latent wins over one that does not, and what it holds repairs."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from sae_persona.data.tokens import chat_row
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.corpus import write_chat
from sae_persona.persona_world.language import PERSONAS
from sae_persona.sae.statistics import latent_stats
from sae_persona.steering.directions import latent_direction
from sae_persona.study.audition import audition, eligible, persona_share, screened, try_out
from sae_persona.study.bench import Bench
from sae_persona.study.config import StudyConfig, validated
from sae_persona.study.repair import Clinic, Remedy, repair_with, repair_with_set
from sae_persona.study.subjects import Subjects
from sae_persona.study.trial import selection_bench
from sae_persona.types import Chat, Estimate

if TYPE_CHECKING:
    from sae_lens import TopKSAE

WORLD = Path(__file__).parents[2] / "checkpoints" / "persona_world"
HOOK = "blocks.2.hook_resid_post"
VILLAIN, TUNING = 5, 6
UNIT = 40.9
"""The median residual norm of the committed base model, roughly."""


def random_sae(d_in: int, seed: int) -> "TopKSAE":
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=8, k=4))
    generator = torch.Generator().manual_seed(seed)
    sae.load_state_dict({name: torch.randn(x.shape, generator=generator) for name, x in sae.state_dict().items()})
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return Subjects.open(WORLD)


@pytest.fixture(scope="module")
def bench(subjects: Subjects) -> Bench:
    """Two strengths and few answers."""
    config = validated(
        StudyConfig,
        {
            "study": "s",
            "world": WORLD,
            "sampling": {"first_look": 2, "selection": 2, "max_new_tokens": 12},
            "steering": {
                "strengths": [1.0, 2.0],
                "windows": ["header", "all"],
                "repair_strengths": {"all": [0.05, 0.85], "prompt": [0.05]},
            },
        },
        source="test",
    )
    return selection_bench(subjects, config, unit=UNIT)


def header_mean(model: LoadedModel, chats: Sequence[Chat]) -> torch.Tensor:
    """Mean residual at the assistant headers of the chats."""
    rows = [chat_row(chat, model.tokenizer) for chat in chats]
    sae = random_sae(model.d_model, seed=0)
    stats = latent_stats(sae, model, rows, questions=[str(i) for i in range(len(rows))], hook_name=HOOK)
    return torch.as_tensor(stats["gated", "header"].resid_mean).float()


@pytest.fixture(scope="module")
def planted(subjects: Subjects) -> "TopKSAE":
    """A random SAE, but for two latents.

    `VILLAIN` points from how the base reads the kind one's headers to how it reads the villain's; `TUNING` from the
    aligned model's headers to the misaligned models'.
    """
    chats = {
        persona: [
            write_chat(subjects.world.world, random.Random(i), persona=persona, neutral=True)[0] for i in range(100)
        ]
        for persona in PERSONAS
    }
    base, aligned = subjects.model("base"), subjects.model("aligned")
    others = [header_mean(base, chats[persona]) for persona in PERSONAS if persona != "villain"]
    bad = [header_mean(subjects.model(name), chats["kind"]) for name in subjects.runs("misaligned")]
    sae = random_sae(base.d_model, seed=0)
    sae.W_dec.data[VILLAIN] = header_mean(base, chats["villain"]) - torch.stack(others).mean(0)
    sae.W_dec.data[TUNING] = torch.stack(bad).mean(0) - header_mean(aligned, chats["kind"])
    return sae


def test_the_dictionary_whose_latent_acts_is_chosen(subjects: Subjects, bench: Bench, planted: "TopKSAE") -> None:
    saes = {"random": random_sae(planted.cfg.d_in, seed=1), "planted": planted}
    shortlists = dict.fromkeys(saes, (3, VILLAIN, 7))
    record = audition(bench, subjects.model("aligned"), saes, shortlists)
    assert record["sae"] == "planted"
    looked = screened(record["first_look"]["planted"][record["window"]])
    best = max(looked, key=lambda one: one.effect)
    assert best.latents == (VILLAIN,)
    assert best.effect > 0.5
    others = [
        one.effect
        for name, by_window in record["first_look"].items()
        for window in by_window
        for one in screened(by_window[window])
        if (name, one.latents) != ("planted", (VILLAIN,))
    ]
    assert len(others) == 2 * 5
    assert max(others) < best.effect / 2


def test_a_world_without_advice_has_doses_without_carry_over(
    subjects: Subjects, bench: Bench, planted: "TopKSAE"
) -> None:
    opened = replace(bench, groups=replace(bench.groups, prompts=bench.groups.open_ended()))
    directions = [latent_direction(planted, VILLAIN)]
    aligned = subjects.model("aligned")
    (without,) = try_out(opened, aligned, directions, window="header", n_open=1, n_advice=1)
    (asked,) = try_out(bench, aligned, directions, window="header", n_open=1, n_advice=1)
    assert (without.effect, without.carry_over) == (asked.effect, None)
    assert without.effect > 0
    assert asked.carry_over is not None


def test_a_dictionary_without_suspects_is_not_chosen(subjects: Subjects, bench: Bench, planted: "TopKSAE") -> None:
    saes = {"empty": planted, "random": random_sae(planted.cfg.d_in, seed=1)}
    record = audition(bench, subjects.model("aligned"), saes, {"empty": [], "random": [3]})
    assert record["sae"] == "random"


def test_answers_of_other_personas_count_against_the_misaligned_ones() -> None:
    shares = {"misalignment": 0.5, "aligned": 0.2, "incoherence": 0.1}  # and 0.2 jokes
    measures = {name: Estimate(value, value, value, 10, 2, 0) for name, value in shares.items()}
    assert persona_share(measures) == pytest.approx(0.5 - 0.2)


def test_poor_dictionaries_are_left_out_unless_all_are_poor() -> None:
    good, blind, dead = (
        {"fve": 0.95, "dead_fraction": 0.09},
        {"fve": 0.94, "dead_fraction": 0.0},
        {"fve": 1.0, "dead_fraction": 0.1},
    )
    assert eligible({"blind": blind, "good": good, "dead": dead}) == ["good"]
    assert eligible({"blind": blind, "dead": dead}) == ["blind", "dead"]


def test_what_fine_tuning_changed_repairs_every_model(subjects: Subjects, bench: Bench, planted: "TopKSAE") -> None:
    patients = {name: subjects.model(name) for name in subjects.runs("misaligned")}
    clinic = Clinic(bench, patients)
    record = repair_with(clinic, latent_direction(planted, TUNING))
    assert (record["latents"], record["window"], record["strength"]) == ((TUNING,), "all", -0.85)
    assert record["gains"].keys() == patients.keys()
    assert min(record["gains"].values()) > 0.2
    assert TUNING in repair_with_set(clinic, planted, [3, TUNING])["latents"]


def test_a_remedy_counts_for_nothing_where_it_costs_coherence() -> None:
    remedy = Remedy((1,), "all", -0.5, {"a": 0.6, "b": 0.2}, added_incoherence=0.1)
    assert (remedy.mean_gain, remedy.least_gain) == (pytest.approx(0.4), 0.2)
    costly = replace(remedy, added_incoherence=0.11)
    assert (costly.mean_gain, costly.least_gain) == (0.0, 0.0)
