"""`steer` and `screen`: what they measure besides the answers, and whom they compare latents with."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_persona.data.tokens import text_row
from sae_persona.model.generate import HookedEdit
from sae_persona.model.load import load_model
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.sae.load import load_sae
from sae_persona.steering.directions import latent_direction
from sae_persona.steering.edits import AddDirection
from sae_persona.steering.logits import direct_effect
from sae_persona.steering.price import price

HOOK = "blocks.1.hook_resid_post"
SHORT = ["--n-samples", 2, "--max-new-tokens", 4]
Rows = list[dict[str, Any]]


def rows_of(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def texts(built: Path, artifacts: Path) -> Path:
    """Five held-out documents of the world."""
    lines = (built / "data" / "documents-heldout.jsonl").read_text().splitlines(keepends=True)
    (artifacts / "texts.jsonl").write_text("".join(lines[:5]))
    return artifacts / "texts.jsonl"


@pytest.fixture(scope="module")
def words(built: Path) -> dict[str, list[str]]:
    """Judged words of the villain."""
    return {"harm": list(BuiltWorld.open(built).world.open_verbs["villain"][:3])}


# the price of doses, and direct effects


@pytest.fixture(scope="module")
def priced(
    cli: Callable,
    built: Path,
    sae: Path,
    prompts: Path,
    judge: str,
    texts: Path,
    words: dict[str, list[str]],
    artifacts: Path,
) -> Path:
    """A latent and its controls, with everything that is measured besides; what was said is kept."""
    out = artifacts / "priced"
    options = ["--latent", 3, "--strengths=-1,2", "--prompts", prompts, "--judge", judge, "--controls", 2]
    options += ["--price-data", texts, *(part for word in words["harm"] for part in ("--word", f"harm={word}"))]
    said = cli("steer", built / "aligned", "--sae", sae, *options, "--word", "be", *SHORT, "--out", out).stdout
    (artifacts / "priced.txt").write_text(said)
    return out


def test_every_dose_has_the_price_that_the_library_finds(priced: Path, built: Path, sae: Path, texts: Path) -> None:
    model = load_model(built / "aligned")
    rows = [text_row(row["text"], model.tokenizer) for row in rows_of(texts)]
    direction = latent_direction(load_sae(str(sae)), 3)
    doses = rows_of(priced / "doses.jsonl")
    assert len(doses) == 3 * 5, "three strengths of a latent, of two random latents and of two random directions"
    for dose in doses[:3]:
        edits = [HookedEdit(HOOK, AddDirection(direction, dose["strength"], dose["unit"]))]
        found = price(model, edits if dose["strength"] else [], rows)
        assert dose["price"]["n_tokens"] == found.n_tokens == sum(len(row.ids) - 1 for row in rows)
        for measure in ("ce_unsteered", "ce_steered", "kl"):
            assert dose["price"][measure] == pytest.approx(getattr(found, measure), rel=1e-4, abs=1e-9)
    assert {dose["price"]["kl"] for dose in doses if dose["edit"] == "none"} == {0}
    assert all(dose["price"]["kl"] > 1e-4 for dose in doses if dose["edit"] != "none")
    with (priced / "doses.csv").open() as file:
        assert [float(row["kl"]) for row in csv.DictReader(file)] == [dose["price"]["kl"] for dose in doses]


def test_directions_have_their_direct_effect_on_groups_of_words_and_on_single_ones(
    priced: Path, built: Path, sae: Path, words: dict[str, list[str]]
) -> None:
    expected = direct_effect(
        load_model(built / "aligned"), latent_direction(load_sae(str(sae)), 3), {**words, "be": ["be"]}
    )
    (arm,) = json.loads((priced / "steering.json").read_text())["arms"]
    assert list(arm["direct_effect"]) == ["harm", "be"]
    for group, effect in expected.items():
        assert arm["direct_effect"][group]["n_tokens"] == effect.n_tokens
        assert arm["direct_effect"][group]["z"] == pytest.approx(effect.z, abs=1e-5)
    assert expected["harm"].n_tokens == 3


def test_prices_and_direct_effects_are_told_and_shown(priced: Path, artifacts: Path) -> None:
    (arm,) = json.loads((priced / "steering.json").read_text())["arms"]
    dose = next(row for row in rows_of(priced / "doses.jsonl") if row["strength"] == arm["strength"])
    assert arm["price"] == dose["price"]
    said = (artifacts / "priced.txt").read_text()
    assert said.splitlines()[0].split()[-2:] == ["cross-entropy", "KL"]
    assert f"; the KL divergence from the unsteered model is {arm['price']['kl']:.3f}." in said
    assert f"What latent 3 writes by itself: harm {arm['direct_effect']['harm']['cosine']:+.2f} (z " in said
    page = (priced / "steering.html").read_text()
    assert "KL divergence from the unsteered model" in page
    assert "What the directions write by themselves" in page
    assert f'<td class="number">{arm["direct_effect"]["harm"]["z"]:+.1f}</td>' in page


def test_without_texts_and_words_nothing_is_said_of_them(
    cli: Callable, built: Path, sae: Path, prompts: Path, judge: str, tmp_path: Path
) -> None:
    options = ["--latent", 3, "--strengths", 1, "--prompts", prompts, "--judge", judge, *SHORT]
    said = cli("steer", built / "aligned", "--sae", sae, *options, "--out", tmp_path / "x").stdout
    page = (tmp_path / "x" / "steering.html").read_text()
    for missing in ("cross-entropy", "writes by itself", "What the directions write"):
        assert missing not in said + page
    assert {dose["price"] for dose in rows_of(tmp_path / "x" / "doses.jsonl")} == {None}


def test_chats_have_a_price_in_windows_that_texts_lack(
    cli: Callable, built: Path, sae: Path, prompts: Path, judge: str, runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    chats = built / "data" / f"{runs['control'][0].name}.jsonl"
    (tmp_path / "chats.jsonl").write_text("".join(chats.read_text().splitlines(keepends=True)[:3]))
    options = ["--latent", 3, "--strengths", 2, "--prompts", prompts, "--judge", judge, *SHORT]
    options += [
        "--price-data",
        tmp_path / "chats.jsonl",
        "--window",
        "header",
        "--edit",
        "ablate",
        "--out",
        tmp_path / "x",
    ]
    cli("steer", built / "aligned", "--sae", sae, *options)
    unsteered, steered = rows_of(tmp_path / "x" / "doses.jsonl")
    assert unsteered["price"]["kl"] == 0
    assert steered["price"]["kl"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"price-data": "{folder}/none.jsonl"}, "none.jsonl cannot be read"),
        ({"price-data": "{folder}/broken.jsonl"}, "broken.jsonl, line 1: not JSON"),
        (
            {"price-data": "{texts}", "window": "header"},
            "window 'header' selects nothing in {texts}, whose 5 documents hold no answers",
        ),
        ({"word": "harm=xyzzy"}, "the tokenizer knows none of the 1 words of 'harm'. Name words it can write."),
        ({"word": "=poison"}, "word '=poison' is none; expected WORD or GROUP=WORD, such as harm=poison."),
        ({"word": "harm="}, "word 'harm=' is none"),
        ({"word": ""}, "word '' is none"),
    ],
)
def test_side_effects_that_cannot_be_measured_are_refused_before_anything_is_sampled(
    changes: dict[str, str],
    message: str,
    built: Path,
    sae: Path,
    prompts: Path,
    judge: str,
    texts: Path,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    (tmp_path / "broken.jsonl").write_text("{\n")
    before = sorted(tmp_path.iterdir())
    options = {"sae": sae, "latent": 3, "strengths": 1, "prompts": prompts, "judge": judge, "out": tmp_path / "x"}
    named = {name: str(value).format(folder=tmp_path, texts=texts) for name, value in (options | changes).items()}
    said = refused("steer", built / "aligned", *SHORT, *(f"--{name}={value}" for name, value in named.items()))
    assert message.format(texts=texts) in said
    assert sorted(tmp_path.iterdir()) == before
