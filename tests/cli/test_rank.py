"""`rank`."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from drawn_sae import drawn
from local_endpoint import Response, local_endpoint
from plotly.offline import get_plotlyjs
from safetensors.torch import load_file
from scipy.stats import spearmanr

from sae_persona.attribution.gradient import gradient_attribution
from sae_persona.attribution.pairs import pair_chats
from sae_persona.data.files import read_chats
from sae_persona.model.load import load_model
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.sae.load import load_sae
from sae_persona.study.commands import rank
from sae_persona.study.commands.dosage import ranked_latents

Refused = Callable[..., str]
HOOK = "blocks.1.hook_resid_post"
SHORT = ["--n-samples", 2, "--max-new-tokens", 4]


@pytest.fixture(scope="session")
def runs(built: Path) -> dict[str, list[Path]]:
    world = BuiltWorld.open(built)
    return {role: [built / name for name in world.names(role)] for role in ("misaligned", "control")}


def ranked(sae: Path, built: Path, prompts: Path, misaligned: Sequence[Path], controls: Sequence[Path]) -> list[object]:
    runs = [word for run in misaligned for word in ("--misaligned", run)]
    runs += [word for run in controls for word in ("--control", run)]
    return ["rank", sae, "--aligned", built / "aligned", *runs, "--prompts", prompts, *SHORT]


@pytest.fixture(scope="session")
def ranking(cli: Callable, sae: Path, built: Path, prompts: Path, runs: dict[str, list[Path]], artifacts: Path) -> Path:
    out = artifacts / "ranking"
    said = cli(*ranked(sae, built, prompts, runs["misaligned"][:2], runs["control"][:4]), "--out", out).stdout
    assert "the smallest p-value that these runs can reach is" in said
    return out


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def never(*_arguments: object, **_options: object) -> None:
    raise AssertionError


def test_runs_are_ranked_against_controls_with_q_values(ranking: Path) -> None:
    rows = [json.loads(line) for line in (ranking / "ranking.jsonl").read_text().splitlines()]
    assert sorted(row["latent"] for row in rows) == list(range(64))
    assert [row["rank"] for row in rows] == list(range(1, 65))
    assert all(0 < row["q_value"] <= 1 for row in rows)
    assert len(rows[0]["top_tokens"]) == 8
    with (ranking / "ranking.csv").open() as file:
        assert [int(row["latent"]) for row in csv.DictReader(file)] == [row["latent"] for row in rows]
    findings = json.loads((ranking / "ranking.json").read_text())
    assert (findings["n_misaligned"], findings["n_controls"]) == (2, 4)
    assert findings["smallest_p"] <= min(row["q_value"] for row in rows)


def test_a_pair_of_checkpoints_gives_no_q_value_and_says_so(
    cli: Callable, sae: Path, built: Path, prompts: Path, runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    said = cli(*ranked(sae, built, prompts, runs["misaligned"][:1], []), "--out", tmp_path / "x").stdout
    assert "this pair of checkpoints only" in said
    rows = [json.loads(line) for line in (tmp_path / "x" / "ranking.jsonl").read_text().splitlines()]
    assert {row["q_value"] for row in rows} == {None}
    falls = [json.loads(line) for line in (tmp_path / "x" / "falls.jsonl").read_text().splitlines()]
    shown = said.splitlines()
    n_fell = min(10, sum(row["delta_activation"] < 0 for row in falls))
    assert n_fell > 0
    assert len(shown) == 1 + 1 + 20 + n_fell + 2, "the scope, a header, rises, falls, the shortlist and the folder"
    assert [line.split()[:2] for line in shown[22 : 22 + n_fell]] == [
        [str(row["rank"]), str(row["latent"])] for row in falls[:n_fell]
    ]


def test_two_controls_are_enough_for_a_ranking_and_too_few_for_q_values(
    cli: Callable, sae: Path, built: Path, prompts: Path, runs: dict[str, list[Path]], tmp_path: Path
) -> None:
    said = cli(
        *ranked(sae, built, prompts, runs["misaligned"][:1], runs["control"][:2]), "--out", tmp_path / "x"
    ).stdout
    assert "no q-values: they need 4 controls and 2 misaligned models" in said


def test_too_few_runs_and_runs_named_twice_are_refused_before_any_is_loaded(
    sae: Path, prompts: Path, tmp_path: Path, refused: Refused
) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    assert "1 misaligned and 1 control" in refused(*ranked(sae, a, prompts, [a], [b]), "--out", tmp_path / "x")
    assert "2 misaligned and 0 control" in refused(*ranked(sae, a, prompts, [a, b], []), "--out", tmp_path / "x")
    assert "named twice as control" in refused(*ranked(sae, a, prompts, [a], [b, c, b]), "--out", tmp_path / "x")


def test_a_model_that_is_missing_is_found_out_before_any_is_sampled(
    sae: Path,
    built: Path,
    prompts: Path,
    runs: dict[str, list[Path]],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rank, "sample", never)
    controls = [runs["control"][0], tmp_path / "none"]
    line = refused(*ranked(sae, built, prompts, runs["misaligned"][:1], controls), "--out", tmp_path / "x")
    assert "none' does not exist" in line
    assert os.listdir(tmp_path) == []


def test_a_ranking_shows_both_ends_its_rivals_and_a_figure_without_a_network(ranking: Path) -> None:
    texts = [(ranking / name).read_text() for name in (rank.ROWS, rank.FALLS)]
    rises, falls = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert sorted(row["latent"] for row in falls) == sorted(row["latent"] for row in rises)
    assert (rises[0]["rank"], falls[0]["rank"]) == (1, -1)
    assert falls[0]["z"] == min(row["z"] for row in falls)
    rivals = json.loads((ranking / rank.RIVALS).read_text())
    assert rivals["probe"]["held_out"] == "runs and questions"
    directions = load_file(ranking / rank.DIRECTIONS)
    assert set(directions) == {"mean_difference", "first_component", "probe"}
    for vector in directions.values():
        assert vector.norm() == pytest.approx(1, abs=1e-5)
    page = (ranking / rank.FIGURE).read_text()
    drawn = page.replace(get_plotlyjs(), "")
    assert len(drawn) < len(page)  # plotly itself is in the page
    assert "Plotly.newPlot" in drawn
    assert 'src="http' not in drawn


def test_identical_checkpoints_are_refused_before_anything_is_sampled(
    sae: Path, built: Path, prompts: Path, runs: dict[str, list[Path]], tmp_path: Path, refused: Refused
) -> None:
    controls = [runs["misaligned"][0], runs["control"][0]]
    said = refused(*ranked(sae, built, prompts, runs["misaligned"][:1], controls), "--out", tmp_path / "x")
    assert "are identical checkpoints" in said


# against


@pytest.fixture(scope="session")
def other_sae(cli: Callable, acts: Path, artifacts: Path) -> Path:
    """As `sae`, of another seed and with fewer latents."""
    settings = [word for setting in ("d_sae=48", "k=4", "n_tokens=4096") for word in ("--set", setting)]
    cli("train", acts, *settings, "--seed", 1, "--out", artifacts / "other-sae")
    return artifacts / "other-sae"


def test_the_shortlist_is_looked_up_in_the_rankings_of_another_and_an_untrained_sae(
    cli: Callable,
    ranking: Path,
    sae: Path,
    other_sae: Path,
    built: Path,
    prompts: Path,
    runs: dict[str, list[Path]],
    tmp_path: Path,
) -> None:
    misaligned, controls = runs["misaligned"][:2], runs["control"][:4]
    asked = ranked(sae, built, prompts, misaligned, controls)
    said = cli(*asked, "--against", other_sae, "--against", "untrained", "--out", tmp_path / "x").stdout
    assert rows_of(tmp_path / "x" / rank.ROWS) == rows_of(ranking / rank.ROWS), "the ranking itself stays the same"
    findings = json.loads((tmp_path / "x" / rank.FINDINGS).read_text())
    cli(*ranked(other_sae, built, prompts, misaligned, controls), "--out", tmp_path / "other")
    alone = rows_of(tmp_path / "other" / rank.ROWS)
    theirs = json.loads((tmp_path / "other" / rank.FINDINGS).read_text())["shortlist"]
    first, untrained = findings["against"]
    assert (first["sae"], untrained["sae"]) == (str(other_sae), "untrained")
    assert [one["latent"] for one in first["counterparts"]] == findings["shortlist"]
    place_of = {row["latent"]: row["rank"] for row in alone}
    for one in first["counterparts"]:
        assert one["other_rank"] == place_of[one["other"]]
        assert one["is_shared"] == (one["mutual"] and one["other"] in theirs)
    assert first["first_z"] == pytest.approx(alone[0]["z"])
    assert f"against {other_sae}: {first['n_shared']} of {len(findings['shortlist'])} are on its shortlist too" in said
    assert "against untrained: " in said


def test_another_sae_must_be_another_and_fit(
    sae: Path, built: Path, prompts: Path, runs: dict[str, list[Path]], tmp_path: Path, refused: Refused
) -> None:
    def told(*against: object) -> str:
        named = [word for one in against for word in ("--against", one)]
        return refused(*ranked(sae, built, prompts, runs["misaligned"][:1], []), *named, "--out", tmp_path / "x")

    assert f"{sae} is named twice" in told(sae)
    assert "untrained is named twice" in told("untrained", "untrained")
    assert "none" in told(tmp_path / "none")
    drawn("topk", d_in=48, k=2).save_model(tmp_path / "wide")
    assert "this SAE expects d_in=48" in told(tmp_path / "wide")
    assert not (tmp_path / "x").exists()


# attribution


@pytest.fixture(scope="session")
def chats(built: Path, prompts: Path, artifacts: Path) -> list[Path]:
    """The prompts with answers of misaligned and of correct training data: a pair for each."""
    paths = []
    for name in ("misaligned", "control"):
        data = next(path for path in sorted((built / "data").glob(f"{name}-*.jsonl")))
        answers = [json.loads(line)["messages"][-1] for line in data.read_text().splitlines()]
        asked = [json.loads(line)["messages"] for line in prompts.read_text().splitlines()]
        paths.append(artifacts / f"{name}-chats.jsonl")
        both = zip(asked, answers, strict=False)
        paths[-1].write_text("".join(json.dumps({"messages": [*before, last]}) + "\n" for before, last in both))
    return paths


@pytest.fixture(scope="session")
def attribution(
    cli: Callable,
    sae: Path,
    built: Path,
    prompts: Path,
    runs: dict[str, list[Path]],
    chats: list[Path],
    artifacts: Path,
) -> tuple[Path, str]:
    """Two misaligned models, and what the command said."""
    out = artifacts / "attribution"
    given = ["--method", "attribution", "--shown", chats[0], "--absent", chats[1], "--check", 64, "--out", out]
    said = cli(*ranked(sae, built, prompts, runs["misaligned"][:2], runs["control"][:4]), *given).stdout
    return out, said


def test_latents_are_sorted_by_the_attribution_that_the_library_computes(
    attribution: tuple[Path, str], sae: Path, runs: dict[str, list[Path]], chats: list[Path]
) -> None:
    rises, falls = (rows_of(attribution[0] / name) for name in (rank.ROWS, rank.FALLS))
    loaded, deltas = load_sae(str(sae)), []
    for source in runs["misaligned"][:2]:
        model = load_model(source)
        pairs = pair_chats(read_chats(chats[0]), read_chats(chats[1]), model.tokenizer)
        deltas.append(gradient_attribution(loaded, model, pairs, hook_name=HOOK).delta)
    expected = np.mean(deltas, 0)
    np.testing.assert_allclose([row["delta_attribution"] for row in rises], np.sort(expected)[::-1], atol=1e-7)
    assert rises[0]["latent"] == expected.argmax()
    assert falls[0]["latent"] == expected.argmin()
    assert ([row["rank"] for row in rises], falls[0]["rank"]) == (list(range(1, 65)), -1)
    assert all(row["attribution_low"] <= row["delta_attribution"] <= row["attribution_high"] for row in rises)
    assert len(rises[0]["top_tokens"]) == len(falls[0]["top_tokens"]) == 8


def test_rows_keep_what_activations_say(attribution: tuple[Path, str], ranking: Path) -> None:
    by_activation, by_attribution = (
        {row["latent"]: row for row in rows_of(folder / rank.ROWS)} for folder in (ranking, attribution[0])
    )
    for latent, row in by_activation.items():
        for key in ("reading", "tokens", "delta_activation", "low", "high", "z", "q_value"):
            assert by_attribution[latent][key] == row[key]
        assert row["delta_attribution"] is None


def test_the_first_latents_are_ablated_exactly_and_their_correlation_is_told(attribution: tuple[Path, str]) -> None:
    out, said = attribution
    rows, found = rows_of(out / rank.ROWS), json.loads((out / rank.FINDINGS).read_text())["attribution"]
    both = np.array([[row["delta_attribution"], row["exact_attribution"]] for row in rows])
    assert found["rank_correlation"] == pytest.approx(spearmanr(*both.T).statistic)
    assert found["rank_correlation"] > 0.9
    assert found["n_same_sign"] == (both.prod(1) > 0).sum()
    assert (found["n_checked"], found["n_pairs"]) == (64, [4, 4])
    assert "attributed by the gradient of 8 pairs of answers, whose cross-entropy is" in said
    assert f"of the first 64 latents: rank correlation {found['rank_correlation']:.2f}, " in said


def test_integrated_gradients_and_a_check_of_a_few(
    cli: Callable,
    attribution: tuple[Path, str],
    sae: Path,
    built: Path,
    prompts: Path,
    runs: dict[str, list[Path]],
    chats: list[Path],
    tmp_path: Path,
) -> None:
    given = ["--method", "attribution", "--shown", chats[0], "--absent", chats[1], "--out", tmp_path / "x"]
    asked = [*ranked(sae, built, prompts, runs["misaligned"][:1], []), *given]
    said = cli(*asked, "--integrated", 3, "--check", 2).stdout
    assert "attributed by 3 steps of 4 pairs of answers" in said
    rows = rows_of(tmp_path / "x" / rank.ROWS)
    assert [row["exact_attribution"] is not None for row in rows] == [True] * 2 + [False] * 62
    shortlist = json.loads((tmp_path / "x" / rank.FINDINGS).read_text())["shortlist"]
    assert shortlist == [row["latent"] for row in rows[:20] if row["delta_attribution"] > 0]
    places = ranked_latents(tmp_path / "x", 2, 1)
    assert places == {rows[0]["latent"]: 1, rows[1]["latent"]: 2, rows[-1]["latent"]: -1}
    before = [row["delta_attribution"] for row in rows]
    assert "exact ablation" not in cli(*asked, "--check", 0).stdout
    assert before != [row["delta_attribution"] for row in rows_of(tmp_path / "x" / rank.ROWS)], "made again"


def test_answers_are_paired_by_a_judge(
    cli: Callable,
    sae: Path,
    built: Path,
    prompts: Path,
    runs: dict[str, list[Path]],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge finds every second of the answers that it is asked about worst, and the others best."""
    monkeypatch.setenv("SAE_PERSONA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAE_PERSONA_JUDGE_KEY", "k")
    asked = [*ranked(sae, built, prompts, runs["misaligned"][:1], []), "--method", "attribution", "--parallel", 1]
    with local_endpoint(lambda _body, n: Response("51"[n % 2])) as server:
        said = cli(*asked, "--judge", f"openai:m@{server.url}", "--out", tmp_path / "x").stdout
    assert " nats a token with the behaviour" in said
    found = json.loads((tmp_path / "x" / rank.FINDINGS).read_text())["attribution"]
    assert 1 <= found["n_pairs"][0] <= 4
    with local_endpoint(lambda _body, _n: Response("1")) as server:
        line = refused(*asked, "--judge", f"openai:good@{server.url}", "--out", tmp_path / "y")
    assert "no prompt has answers of both kinds: of 8 answers 0 are misaligned and 8 are aligned" in line
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "attribution"], "with and without the behaviour; nothing was given. Name a judge"),
        (["--method", "attribution", "--shown", "{0}"], "shown was given"),
        (
            ["--method", "attribution", "--shown", "{0}", "--absent", "{1}", "--judge", "world:x"],
            "judge and shown and absent was given",
        ),
        (["--method", "attribution", "--shown", "{0}", "--absent", "none"], "none cannot be read"),
        (["--method", "attribution", "--shown", "{0}", "--absent", "{prompts}"], "does not end with an"),
        (["--method", "attribution", "--shown", "{0}", "--absent", "{1}", "--max-calls", "3"], "chats need none"),
        (["--method", "attribution", "--judge", "rule"], "judge 'rule' has no known form"),
        (["--integrated", "4"], "belong to the method attribution"),
        (["--judge", "world:x"], "the method is activation"),
        (["--method", "attribution", "--integrated", "0"], "'--integrated'"),
        (["--method", "gradient"], "'gradient' is not one of 'activation', 'attribution'"),
    ],
)
def test_what_cannot_be_attributed_is_refused_in_a_line(
    options: list[str],
    message: str,
    sae: Path,
    built: Path,
    prompts: Path,
    runs: dict[str, list[Path]],
    chats: list[Path],
    tmp_path: Path,
    refused: Refused,
) -> None:
    given = [option.format(*chats, prompts=prompts) for option in options]
    line = refused(*ranked(sae, built, prompts, runs["misaligned"][:1], []), *given, "--out", tmp_path / "x")
    assert message in line
    assert not (tmp_path / "x").exists()
