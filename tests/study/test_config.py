"""Study files: what is unknown or cannot be meant is refused in one line that says what is known."""

from pathlib import Path

import pytest

from sae_persona.errors import ConfigError
from sae_persona.study.config import StudyConfig, load_config


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_is_its_name_and_world_and_defaults_for_the_rest(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "study: first\nworld: checkpoints/world\n"))
    assert config == StudyConfig(study="first", world=Path("checkpoints/world"))


def test_overrides_reach_into_sections_and_are_yaml(tmp_path: Path) -> None:
    path = written(tmp_path, "study: first\nworld: w\nsteering:\n  strengths: [0.5]\n")
    config = load_config(path, ["sae.k=4", "steering.strengths=[1, 2.5]", "sae.d_sae=64", "seed=3"])
    assert (config.sae.k, config.sae.d_sae, config.seed) == (4, 64, 3)
    assert config.steering.strengths == (1.0, 2.5)


def test_an_unknown_key_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'wrld' \(known here: study, world, seed,"):
        load_config(written(tmp_path, "study: s\nworld: w\nwrld: v\n"))


def test_an_unknown_key_of_a_section_names_that_sections(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'ranking.n' \(known here: n_samples, shortlist\)"):
        load_config(written(tmp_path, "study: s\nworld: w\n"), ["ranking.n=3"])


def test_every_problem_stands_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, "study: s\nseed: -1\nsampling:\n  open_ended: many\n"))
    message = str(caught.value)
    assert all(part in message for part in ("world: Field required", "seed: ", "got -1", "sampling.open_ended: "))
    assert "\n" not in message


def test_dictionaries_are_the_sae_with_changes(tmp_path: Path) -> None:
    text = "study: s\nworld: w\nsae: {d_sae: 64, k: 4}\ndictionaries: {plain: {}, wide: {d_sae: 96}}\n"
    saes = load_config(written(tmp_path, text), ["dictionaries.sparse={k: 2}"]).saes
    assert {name: (one.d_sae, one.k) for name, one in saes.items()} == {
        "plain": (64, 4),
        "wide": (96, 4),
        "sparse": (64, 2),
    }


def test_without_dictionaries_there_is_one(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "study: s\nworld: w\nsae: {d_sae: 64, k: 4}\n"))
    assert config.saes == {"sae": config.sae}


@pytest.mark.parametrize(
    ("dictionaries", "message"),
    [
        ("{}", "at least 1 item"),
        ("{../x: {}}", "'../x' names a folder"),
        ("{a: {width: 3}}", r"dictionaries.a: unknown key 'width' \(known here: .*d_sae"),
        ("{a: {k: none}}", "dictionaries.a.k: Input should be a valid integer.*got 'none'"),
        ("{a: {}, b: {batch_size: 7}}", r"one batch_size; found \[7, "),
    ],
)
def test_dictionaries_that_cannot_be_trained_are_refused(tmp_path: Path, dictionaries: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(written(tmp_path, f"study: s\nworld: w\ndictionaries: {dictionaries}\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["steering.windows=[]", "steering.repair_strengths={}"])
def test_there_must_be_a_window_to_try(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="at least 1 item"):
        load_config(written(tmp_path, "study: s\nworld: w\n"), [setting])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: b: c", "is not YAML"), ("- study", "holds list; expected a mapping"), ("", "holds NoneType")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sae.k", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("study.name=x", "'study' is no section"),
        ("seed=[1", "the value is not YAML"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, "study: s\nworld: w\n"), [override])


def test_a_shortlist_longer_than_a_screen_can_try_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ranking.shortlist: .*20, got 21"):
        load_config(written(tmp_path, "study: s\nworld: w\n"), ["ranking.shortlist=21"])
