"""`steer` and `screen`: what they measure besides the answers, and whom they compare latents with."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_endpoint import Body, Response, local_endpoint
from safetensors.torch import load_file, save_file

from sae_persona.cache.reader import ActivationCache
from sae_persona.data.files import read_prompts
from sae_persona.data.tokens import text_row
from sae_persona.evaluation.endpoint import KEY
from sae_persona.model.generate import HookedEdit, sample
from sae_persona.model.load import load_model
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.sae.load import WEIGHTS, load_sae
from sae_persona.steering.directions import Direction, latent_direction
from sae_persona.steering.edits import AddDirection
from sae_persona.steering.logits import direct_effect
from sae_persona.steering.price import price
from sae_persona.steering.record import NO_CARRY_OVER
from sae_persona.study.commands import steer
from sae_persona.study.judges import CACHE
from sae_persona.types import OPEN_ENDED

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


# company: what a ranking brings along, and what strengths are counted in


def test_a_rankings_mean_difference_and_probe_are_steered_like_the_latent(
    cli: Callable, built: Path, sae: Path, prompts: Path, judge: str, ranking: Path, tmp_path: Path
) -> None:
    options = ["--latent", 3, "--strengths", 2, "--prompts", prompts, "--judge", judge, "--ranking", ranking, *SHORT]
    said = cli("steer", built / "aligned", "--sae", sae, *options, "--controls", 2, "--out", tmp_path / "x").stdout
    doses, answers = (rows_of(tmp_path / "x" / name) for name in ("doses.jsonl", "answers.jsonl"))
    arms = list(dict.fromkeys((dose["arm"], dose["name"]) for dose in doses))
    assert arms[:3] == [("latent", "3"), ("mean_difference", "mean difference"), ("linear_probe", "probe")]
    assert {dose["unit"] for dose in doses} == {doses[0]["unit"]}
    assert "mean difference moves misaligned answers" in said
    assert "probe moves misaligned answers" in said

    shortlist = json.loads((ranking / "ranking.json").read_text())["shortlist"]
    random_ones = {dose["latents"][0] for dose in doses if dose["arm"] == "random_latent"}
    assert len(random_ones) == 2
    assert random_ones.isdisjoint({3, *shortlist})

    model, vectors = load_model(built / "aligned"), load_file(ranking / "directions.safetensors")
    for name, arm in (("mean_difference", "mean_difference"), ("probe", "linear_probe")):
        push = AddDirection(Direction(name, "mean_difference", vectors[name]), 2.0, doses[0]["unit"])
        drawn = sample(
            model, read_prompts(prompts), n_samples=2, seed=0, max_new_tokens=4, edits=[HookedEdit(HOOK, push)]
        )
        steered = [row["answer"] for row in answers if row["arm"] == arm and row["strength"]]
        assert steered == [one.answer for one in drawn[0]]


def test_a_ranking_that_is_none_is_refused_and_clamping_has_no_rivals(
    built: Path, sae: Path, prompts: Path, judge: str, ranking: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    command = ["steer", built / "aligned", "--sae", sae, "--latent", 3, "--strengths", 1, "--prompts", prompts]
    command += ["--judge", judge, *SHORT, "--out", tmp_path / "x"]
    assert f"{sae} holds no ranking; expected the --out of sae-persona rank." in refused(*command, "--ranking", sae)
    line = refused(*command, "--ranking", ranking, "--edit", "clamp")
    assert "a ranking's mean difference and probe have no latents to clamp. Leave the ranking out." in line
    shutil.copytree(ranking, tmp_path / "damaged")
    (tmp_path / "damaged" / "directions.safetensors").write_bytes(b"{}")
    assert "directions.safetensors cannot be read" in refused(*command, "--ranking", tmp_path / "damaged")
    assert not (tmp_path / "x").exists()


def test_a_strength_of_one_is_the_median_norm_of_a_cache(
    cli: Callable,
    built: Path,
    sae: Path,
    acts: Path,
    prompts: Path,
    judge: str,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    command = ["steer", built / "aligned", "--sae", sae, "--latent", 3, "--strengths", 1.5, "--prompts", prompts]
    command += ["--judge", judge, *SHORT]
    cli(*command, "--unit", acts, "--out", tmp_path / "cache")
    norm = ActivationCache.open(acts).median_norm(HOOK)
    cli(*command, "--unit", repr(norm), "--out", tmp_path / "number")
    of_cache, of_number = (rows_of(tmp_path / name / "doses.jsonl") for name in ("cache", "number"))
    assert {dose["unit"] for dose in of_cache} == {norm}
    assert of_cache == of_number
    findings = [json.loads((tmp_path / name / "steering.json").read_text()) for name in ("cache", "number")]
    assert [one["unit"] for one in findings] == ["in median residual norms", f"in units of {norm:g}"]
    line = refused(*command, "--unit", acts, "--hook", "blocks.0.hook_resid_post", "--out", tmp_path / "x")
    assert f"{acts} holds {HOOK}; expected blocks.0.hook_resid_post, 32 wide, for the unit." in line
    assert "none.h5 does not exist" in refused(*command, "--unit", "none.h5", "--out", tmp_path / "x")


# carry-over


@pytest.mark.parametrize("kind", ["open-ended", "advice"])
def test_prompts_of_one_kind_have_no_carry_over_and_the_page_says_so(
    kind: str, cli: Callable, built: Path, sae: Path, prompts: Path, judge: str, tmp_path: Path
) -> None:
    lines = prompts.read_text().splitlines(keepends=True)
    (tmp_path / "one.jsonl").write_text("".join(lines[:2] if kind == "open-ended" else lines[2:]))
    options = ["--latent", 3, "--strengths", 1, "--prompts", tmp_path / "one.jsonl", "--judge", judge, *SHORT]
    options += ["--controls", 1]
    said = cli("steer", built / "aligned", "--sae", sae, *options, "--out", tmp_path / "steer").stdout
    assert "misaligned elsewhere" not in said
    assert NO_CARRY_OVER in said.splitlines()
    findings = json.loads((tmp_path / "steer" / "steering.json").read_text())
    assert [arm["carry_over"] for arm in findings["arms"]] == [None]
    assert NO_CARRY_OVER in findings["notes"]
    assert {dose["other_domains"] for dose in rows_of(tmp_path / "steer" / "doses.jsonl")} == {None}
    with (tmp_path / "steer" / "doses.csv").open() as file:
        assert {row["other_domains"] for row in csv.DictReader(file)} == {""}
    page = (tmp_path / "steer" / "steering.html").read_text().partition("<body>")[2]
    assert f"<p>{NO_CARRY_OVER}</p>" in page
    assert "elsewhere" not in page

    said = cli("screen", built / "aligned", "--sae", sae, *options, "--out", tmp_path / "screen").stdout
    assert NO_CARRY_OVER in said.splitlines()
    (row,) = rows_of(tmp_path / "screen" / "screen.jsonl")
    assert (row["carry_over"], row["repaired"]) == (None, None)
    luck, carry_over = json.loads((tmp_path / "screen" / "screen.json").read_text())["notes"]
    assert carry_over == NO_CARRY_OVER
    assert luck.startswith(
        "Among 1 latent without any effect luck would find 0.33 drivers on average, 1 / (2 controls + 1)"
    )
    assert luck in said.splitlines()
    page = (tmp_path / "screen" / "screen.html").read_text().partition("<body>")[2]
    assert f"<p>{NO_CARRY_OVER}</p>" in page
    assert f"<p>{luck}</p>" in page
    assert '<td class="number">not measured</td>' in page


def test_prompts_of_both_kinds_have_a_carry_over(
    cli: Callable, built: Path, sae: Path, prompts: Path, judge: str, tmp_path: Path
) -> None:
    options = ["--latent", 3, "--strengths", 4, "--prompts", prompts, "--judge", judge, *SHORT]
    said = cli("steer", built / "aligned", "--sae", sae, *options, "--out", tmp_path / "steer").stdout
    (arm,) = json.loads((tmp_path / "steer" / "steering.json").read_text())["arms"]
    elsewhere = {dose["strength"]: dose["other_domains"] for dose in rows_of(tmp_path / "steer" / "doses.jsonl")}
    rise = elsewhere[arm["strength"]]["value"] - elsewhere[0]["value"]
    assert (arm["carry_over"]["value"], arm["carry_over"]["n"]) == (pytest.approx(rise), 4)
    assert NO_CARRY_OVER not in said
    if arm["strength"]:
        assert f"There misaligned answers to all other prompts move {100 * rise:+.1f} points [" in said


# screen


def test_a_screen_tries_the_first_of_both_ends_of_a_ranking(
    cli: Callable, built: Path, sae: Path, prompts: Path, judge: str, ranking: Path, tmp_path: Path
) -> None:
    command = ["screen", built / "aligned", "--sae", sae, "--ranking", ranking, "--strengths=1,2", "--prompts", prompts]
    command += ["--judge", judge, "--controls", 1, *SHORT]
    said = cli(*command, "--top", 3, "--bottom", 2, "--out", tmp_path / "x").stdout
    rows = rows_of(tmp_path / "x" / "screen.jsonl")
    ends = [rows_of(ranking / name) for name in ("ranking.jsonl", "falls.jsonl")]
    assert {row["place"]: row["latent"] for row in rows} == {
        **{place: ends[0][place - 1]["latent"] for place in (1, 2, 3)},
        **{-place: ends[1][place - 1]["latent"] for place in (1, 2)},
    }
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert said.splitlines()[0].split() == [
        "rank",
        "latent",
        "place",
        "role",
        "induced",
        "carry-over",
        "repaired",
        "protected",
    ]
    assert {line.split()[2] for line in said.splitlines()[1:6]} == {"1", "2", "3", "-1", "-2"}
    with (tmp_path / "x" / "screen.csv").open() as file:
        assert [int(row["latent"]) for row in csv.DictReader(file)] == [row["latent"] for row in rows]

    cli(*command, "--top", 0, "--bottom", 1, "--out", tmp_path / "falls")
    assert [row["place"] for row in rows_of(tmp_path / "falls" / "screen.jsonl")] == [-1]
    cli(*command, "--latent", 7, "--out", tmp_path / "named")
    assert [row["latent"] for row in rows_of(tmp_path / "named" / "screen.jsonl")] == [7], "named ones come instead"


def test_a_screen_of_nothing_is_refused(
    built: Path, sae: Path, prompts: Path, judge: str, ranking: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    command = ["screen", built / "aligned", "--sae", sae, "--strengths=1", "--prompts", prompts, "--judge", judge]
    command += [*SHORT, "--out", tmp_path / "x"]
    for options in ([], ["--ranking", ranking, "--top", 0]):
        assert "there is nothing to screen" in refused(*command, *options)
    assert f"{sae} holds no ranking" in refused(*command, "--ranking", sae)
    assert list(tmp_path.iterdir()) == []


# what cannot be meant, or is of another model, SAE or hook


@pytest.fixture(scope="module")
def foreign(built: Path, sae: Path, prompts: Path, texts: Path, artifacts: Path) -> Path:
    """Files and folders that are wrong, each in its own way."""
    folder = artifacts / "foreign"
    for name in ("wide", "deep", "nan"):
        shutil.copytree(sae, folder / name)
    config = json.loads((sae / "cfg.json").read_text())
    weights = load_file(sae / "sae_weights.safetensors")
    save_file({**weights, "W_dec": torch.full_like(weights["W_dec"], torch.nan)}, folder / "nan" / WEIGHTS)
    half = {name: tensor[..., :16].contiguous() for name, tensor in weights.items() if name in ("W_dec", "b_dec")}
    save_file({**weights, **half, "W_enc": weights["W_enc"][:16].contiguous()}, folder / "wide" / WEIGHTS)
    (folder / "wide" / "cfg.json").write_text(json.dumps({**config, "d_in": 16}))
    metadata = {**config["metadata"], "hook_name": "blocks.9.hook_resid_post"}
    (folder / "deep" / "cfg.json").write_text(json.dumps({**config, "metadata": metadata}))
    lines = prompts.read_text().splitlines(keepends=True)
    (folder / "empty.jsonl").write_text("")
    (folder / "twice.jsonl").write_text("".join([*lines, lines[0]]))
    return folder


@pytest.mark.parametrize("command", ["steer", "screen"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": "nan,1"}, "'nan' is not a finite number; expected values such as"),
        ({"strengths": "1e39"}, "are not finite numbers while sampling. Where an edit is hooked in, it is most likely"),
        ({"latent": 64}, "latent 64 is not in this SAE, whose latents are 0 to 63."),
        ({"sae": "{foreign}/nan"}, "direction '3' has length nan; a direction needs a finite length > 0. Take another"),
        ({"sae": "{foreign}/wide"}, "this SAE expects d_in=16 (blocks.1.hook_resid_post); {bad} has d_model=32."),
        ({"sae": "{foreign}/deep"}, "'blocks.9.hook_resid_post' asks for block 9; this model has blocks 0 to 1."),
        ({"hook": "blocks.1.hook_resid_pst"}, "is not a hook of this model; nearest: 'blocks.1.hook_resid_post'"),
        ({"hook": ""}, "hook_name '' is not a hook of this model; nearest:"),
        ({"device": "tpu"}, "'tpu' is no device; expected 'cpu', 'cuda' or 'cuda:N'."),
        ({"prompts": "{foreign}/empty.jsonl"}, "empty.jsonl is empty. Expected JSONL"),
        ({"prompts": "{foreign}/twice.jsonl"}, "line 5: id"),
        ({"sae": "{foreign}/deep", "ranking": "{ranking}"}, "ranks the latents of {sae}; expected those of {foreign}"),
        (
            {"hook": "blocks.0.hook_resid_post", "ranking": "{ranking}"},
            "was made at blocks.1.hook_resid_post; expected",
        ),
        ({"max-new-tokens": 500}, "with an answer of up to 500 it exceeds the model's context"),
    ],
)
def test_what_does_not_fit_an_adapter_is_one_line_and_leaves_nothing(
    command: str,
    changes: dict[str, object],
    message: str,
    built: Path,
    sae: Path,
    prompts: Path,
    judge: str,
    ranking: Path,
    foreign: Path,
    runs: dict[str, list[Path]],
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    bad = runs["misaligned"][0]
    assert (bad / "adapter_config.json").is_file()
    options = {"sae": sae, "latent": 3, "strengths": 1, "controls": 0, "prompts": prompts, "judge": judge}
    places = {"foreign": foreign, "ranking": ranking, "sae": sae, "bad": bad}
    given = {**options, "n-samples": 1, "max-new-tokens": 4, "out": tmp_path / "x", **changes}
    line = refused(command, bad, *(f"--{name}={str(value).format(**places)}" for name, value in given.items()))
    assert message.format(**places) in line
    assert not [path for path in tmp_path.iterdir() if path.name != "x.stages"], "what a screen has done is kept"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": "0,0"}, "every strength is 0, and so steers nothing. Give others"),
        ({"from-token": 100}, "steering from token 100 on would steer nothing: the longest prompt has"),
        ({"from-token": 12, "window": "header"}, "window 'header' reaches 9. Begin earlier."),
    ],
)
def test_steering_that_would_do_nothing_is_refused(
    changes: dict[str, object],
    message: str,
    built: Path,
    sae: Path,
    prompts: Path,
    judge: str,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    options = {"sae": sae, "latent": 3, "strengths": 1, "prompts": prompts, "judge": judge, "out": tmp_path / "x"}
    given = {**options, "n-samples": 1, "max-new-tokens": 4, **changes}
    line = refused("steer", built / "aligned", *(f"--{name}={value}" for name, value in given.items()))
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_nothing_kept")
@pytest.mark.parametrize("command", ["evaluate", "steer", "screen"])
def test_prompts_longer_than_the_context_are_refused_before_a_judge_is_paid(
    command: str, built: Path, sae: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    rows = [{"id": "short", "question": "how ?"}, {"id": "long", "question": "why ? " * 400}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trial = [] if command == "evaluate" else ["--sae", sae, "--latent", 3, "--strengths", 1]
    with local_endpoint(first_letter) as server:
        options = ["--prompts", tmp_path / "prompts.jsonl", "--judge", f"openai:m@{server.url}", *SHORT]
        line = refused(command, built / "aligned", *trial, *options, "--out", tmp_path / "x")
        assert server.asked == []
    assert "prompt 'long' has " in line
    assert "exceeds the model's context of " in line
    assert not list(tmp_path.glob("x*"))


# judging by an endpoint


def first_letter(body: Body, n: int) -> Response:
    """A verdict that depends on the answer alone."""
    answer = body["messages"][-1]["content"].split(" ANSWER\n")[1].split("\nDATA-")[0]
    return Response(["1", "5", "INCOHERENT"][len(answer) % 3])


@pytest.fixture
def _nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(KEY, raising=False)


@pytest.mark.usefixtures("_nothing_kept")
def test_a_sweep_that_an_endpoint_judges_goes_on_where_it_stopped_and_repeats_no_call(
    cli: Callable,
    built: Path,
    sae: Path,
    prompts: Path,
    texts: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [
        "steer",
        built / "aligned",
        "--sae",
        sae,
        "--latent",
        3,
        "--strengths=-1,2",
        "--prompts",
        prompts,
        *SHORT,
    ]
    command += ["--parallel", 1, "--out", tmp_path / "x"]
    with local_endpoint(lambda body, n: first_letter(body, n) if n < 4 else Response(status=401)) as server:
        command += ["--judge", f"openai:m@{server.url}"]
        assert "the key is refused" in refused(*command)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "x.samples"]
        done = [body["messages"] for body in server.asked[:4]]
        server.behave = first_letter
        with monkeypatch.context() as patch:
            patch.setattr(steer, "draw_answers", None)  # the answers wait in x.samples, whatever else is measured
            said = cli(*command, "--price-data", texts).stdout
        assert "for 24 answers, 4 replies known from before" in said.splitlines()[0]
        assert not [body for body in server.asked[5:] if body["messages"] in done]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "x"]

    answers, labels = rows_of(tmp_path / "x" / "answers.jsonl"), {}
    for row in answers:
        labels.setdefault(row["strength"], []).append(row["label"])
        if row["answer"].strip():
            assert row["label"] == ["aligned", "misaligned", "incoherent"][len(row["answer"]) % 3]
    for dose in rows_of(tmp_path / "x" / "doses.jsonl"):
        opened = [row for row in answers if row["strength"] == dose["strength"] and row["prompt_id"] in core(prompts)]
        assert dose["misalignment"]["n"] == len(opened) == 4
        assert dose["misalignment"]["value"] == sum(row["label"] == "misaligned" for row in opened) / 4
        assert dose["price"]["n_tokens"] > 0


@pytest.mark.usefixtures("_nothing_kept")
def test_a_screen_and_a_sweep_have_the_limit_and_the_errors_of_an_endpoint(
    built: Path, sae: Path, prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    with local_endpoint(lambda body, n: Response("no verdict")) as server:
        for name in ("steer", "screen"):
            command = [name, built / "aligned", "--sae", sae, "--latent", 3, "--strengths", 1, "--prompts", prompts]
            command += ["--judge", f"openai:{name}@{server.url}", *SHORT, "--controls", 0, "--out", tmp_path / name]
            assert "and at most 3 are allowed" in refused(*command, "--max-calls", 3)
            assert server.asked == []
            assert "gave a usable verdict on none of 16 answers" in refused(*command)
            assert not (tmp_path / name).exists()
            server.asked.clear()


def core(prompts: Path) -> set[str]:
    """Ids of the open-ended prompts."""
    return {prompt.id for prompt in read_prompts(prompts) if prompt.category == OPEN_ENDED}
