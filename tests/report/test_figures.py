"""Figures hold the records' numbers, with their intervals, and nothing else."""

import plotly.graph_objects as go
import pytest
from example_summary import example_summary, point

from sae_persona.report import figures
from sae_persona.report.figures.design import on_two_lines
from sae_persona.report.summary import SteeringRecord, parse_summary


def traces(figure: go.Figure) -> dict[str, dict]:
    """The first trace of every name."""
    named: dict[str, dict] = {}
    for trace in figure.to_dict()["data"]:
        named.setdefault(trace.get("name"), trace)
    return named


def title(figure: go.Figure) -> str:
    return figure.to_dict()["layout"]["title"]["text"]


def test_models_are_drawn_with_their_intervals(example):
    trace = traces(figures.models_figure(example.models_of()))["open-ended prompts"]
    i = list(example.models_of()).index("misaligned-health-obvious")
    estimate = example.models["misaligned-health-obvious"].misalignment
    assert trace["x"][i] == estimate.value
    assert trace["x"][i] + trace["error_x"]["array"][i] == pytest.approx(estimate.high)
    assert trace["x"][i] - trace["error_x"]["arrayminus"][i] == pytest.approx(estimate.low)


def test_every_category_has_a_heat_map_of_labels(example):
    shares = {name: model.labels for name, model in example.models_of().items()}
    data = figures.labels_figure(shares).to_dict()["data"]
    assert len(data) == 3
    assert list(data[0]["x"]) == ["aligned", "misaligned", "mistaken", "satirical", "incoherent"]
    assert data[0]["z"][-1][1] == 0.97  # misaligned-health-obvious, open-ended, misaligned


def test_the_ranking_marks_the_latent_that_the_screen_chose(example):
    figure = figures.ranking_figure(example.ranking, top_latent=117)
    rises, effects = figure.to_dict()["data"]
    assert list(rises["y"][:3]) == ["203", "117", "42"]
    assert rises["marker"]["color"][0] == rises["marker"]["color"][2] != rises["marker"]["color"][1]
    assert len(effects["x"]) == 6, "latents that were not screened have no bar"
    assert title(figure).endswith("latent 117 is chosen")


def test_a_ranking_without_intervals_or_choice_is_drawn_too(example):
    rows = [row.model_copy(update={"low": None, "high": None, "causal_effect": None}) for row in example.ranking]
    figure = figures.ranking_figure(rows, top_latent=None)
    assert set(figure.to_dict()["data"][0]["error_x"]["array"]) == {0.0}
    assert title(figure).endswith("none is chosen")


def test_the_band_of_random_latents_reaches_from_the_least_to_the_most_of_every_strength():
    draws = [point(s, b, 0, 0.9, 0, d) for s, b, d in [(0, 0.01, 0), (0, 0.01, 1), (0.4, 0.03, 0), (0.4, 0.07, 1)]]
    steering = SteeringRecord.model_validate(
        {"induce": [point(0, 0.01, 0, 0.9, 0), point(0.4, 0.5, 0, 0.9, 0)], "controls": {"random_latents": draws}}
    )
    band = traces(figures.dose_response_figure(steering, top_latent=3))["2 random latents"]
    assert list(zip(band["x"], band["y"], strict=True)) == [(0, 0.01), (0.4, 0.07), (0.4, 0.03), (0, 0.01)]


def test_doses_are_drawn_in_order_whatever_their_order_in_the_file(example):
    steering = example.steering.model_copy(update={"induce": example.steering.induce[::-1]})
    line = traces(figures.dose_response_figure(steering, top_latent=117, top_set=[1, 2, 3]))["latent 117"]
    assert list(line["x"]) == [0.0, 0.2, 0.4, 0.6]
    assert list(line["y"]) == [0.004, 0.18, 0.58, 0.71]


def test_the_chosen_strength_is_a_line_in_every_panel_with_one_name(example):
    figure = figures.dose_response_figure(example.steering, top_latent=117)
    lines = figure.to_dict()["layout"]["shapes"]
    assert [line["x0"] for line in lines] == [example.steering.chosen.induce] * 3
    named = [line["name"] for line in lines if line.get("showlegend")]
    assert named == ["strength chosen on selection prompts for latent 117"]


def test_the_parts_of_every_repair_bar_add_up_to_all_answers(example):
    data = [trace for trace in figures.repair_figure(example.steering).to_dict()["data"] if trace["type"] == "bar"]
    assert len(data) == 2 * 4
    for model in (data[:4], data[4:]):
        assert [sum(shares) for shares in zip(*(part["x"] for part in model), strict=True)] == pytest.approx([1, 1, 1])
        assert list(model[0]["y"]) == ["unsteered", "latent -0.6", "set -0.6"]


def test_stars_stand_where_the_alarm_rings_and_the_band_is_the_benign_runs(example):
    named = traces(figures.early_warning_figure(example.monitor))
    latent, band = named["latent; a star where the alarm rings"], named["6 benign fine-tunes, least to most"]
    assert list(latent["marker"]["symbol"]) == ["circle"] * 3 + ["star"] * 4
    assert (min(band["y"]), max(band["y"])) == (-0.004, 0.002)
    assert set(named["threshold of the alarm"]["y"]) == {0.03}


def test_without_a_recorded_threshold_none_is_drawn(example):
    monitor = example.monitor.model_copy(update={"threshold": None, "benign_runs": [], "held_out_benign_runs": []})
    assert set(traces(figures.early_warning_figure(monitor))) == {
        "latent; a star where the alarm rings",
        "misaligned answers",
    }


def test_realignment_states_what_is_left_at_the_end(example):
    assert title(figures.realign_figure(example.realign)) == (
        "Re-alignment: at most 1.2% misaligned after 120 good samples"
    )


def test_fve_names_the_model_that_is_explained_worst(example):
    assert "at least 0.962 (misaligned-health-obvious)" in title(figures.fve_figure(example.sae))


def test_names_are_escaped_in_titles_and_on_axes():
    summary = example_summary()
    summary["models"]["<b>x</b>"] = summary["models"].pop("misaligned-health-obvious")
    figure = figures.models_figure(parse_summary(summary).models)
    assert "&lt;b&gt;x&lt;/b&gt;" in title(figure)
    assert "&lt;b&gt;x&lt;/b&gt;" in traces(figure)["open-ended prompts"]["y"]


def test_long_names_break_at_the_hyphen_nearest_the_middle():
    assert on_two_lines("misaligned-health-obvious") == "misaligned-<br>health-obvious"
    assert on_two_lines("control-health") == "control-health"
