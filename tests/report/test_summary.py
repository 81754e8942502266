"""summary.json: what is there is read as it is, what is missing stays missing, what is wrong is named."""

import json

import pytest
from example_summary import example_summary, point

from sae_persona.errors import ArtifactError
from sae_persona.report.summary import parse_summary, read_summary
from sae_persona.types import Estimate


def test_a_folder_and_the_file_in_it_read_alike(tmp_path):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(example_summary()))
    assert read_summary(tmp_path) == read_summary(file)


def test_every_figure_arrives_as_it_was_written(example):
    assert example.models["aligned"].misalignment == Estimate(0.004, 0.0, 0.0115, n=540, n_questions=45, n_unscored=0)
    assert example.sae.fve == 0.991
    assert example.truth.villain_auroc[117] == 0.991
    assert example.truth.n_latents_over_95 == 2
    assert len(example.steering.controls.random_latents) == 20 * 4


def test_what_was_not_run_is_missing_rather_than_zero(bare):
    assert (bare.sae, bare.steering, bare.monitor, bare.realign, bare.truth) == (None,) * 5
    assert not bare.models
    assert not bare.was_screened


def test_a_screen_that_found_nothing_differs_from_no_screen(null, bare):
    assert null.top_latent is bare.top_latent is None
    assert null.was_screened
    assert not bare.was_screened


def test_unknown_keys_are_kept_and_do_no_harm():
    summary = parse_summary(example_summary() | {"weather": "mild"})
    assert summary.model_extra == {"weather": "mild"}


def test_models_are_listed_by_role_then_name(example):
    assert list(example.models_of())[:4] == ["base", "aligned", "control-finance", "control-health"]
    assert list(example.models_of("narrow", "aligned")) == ["aligned", "subtle-health-subtle"]


def test_another_schema_is_refused_by_its_number():
    with pytest.raises(ArtifactError, match="has schema 2; this version reads schema 1"):
        parse_summary(example_summary() | {"schema": 2})


@pytest.mark.parametrize("value", [[], {}, {"study": "x", "seed": 0}])
def test_what_states_no_schema_is_no_summary(value):
    with pytest.raises(ArtifactError, match="states no schema"):
        parse_summary(value)


def test_a_wrong_entry_is_named_by_its_path():
    summary = example_summary()
    summary["models"]["aligned"]["misalignment"]["low"] = "zero"
    with pytest.raises(ArtifactError, match=r"models\.aligned\.misalignment\.low"):
        parse_summary(summary)


def test_a_missing_summary_says_what_writes_one(tmp_path):
    with pytest.raises(ArtifactError, match="sae-persona run"):
        read_summary(tmp_path)


def test_an_arm_without_an_unsteered_point_is_refused():
    summary = example_summary()
    summary["steering"]["repair"]["misaligned-health-obvious"] = [point(-0.6, 0.04, 0.0, 0.9, 0.1)]
    with pytest.raises(ArtifactError, match=r"repair\.misaligned-health-obvious holds no point of strength 0"):
        parse_summary(summary)


def test_a_chosen_strength_that_was_not_measured_is_refused():
    summary = example_summary()
    summary["steering"]["chosen"]["induce_set"] = 0.5
    with pytest.raises(ArtifactError, match=r"induce_set was frozen at strength 0\.5"):
        parse_summary(summary)
