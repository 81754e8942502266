"""The page of a causal screen: every line that is drawn has its name, and what was not done is not there."""

from sae_persona.artifacts import Manifest, new_manifest
from sae_persona.report.figures.screen import screen_figure
from sae_persona.report.screen import render_screen
from sae_persona.steering.record import ScreenedLatent, ScreenFindings

ROWS = [
    ScreenedLatent(1, 20, 3, "driver", 0.76, 1.5, 0.4, 0.08, -1.0, 0.0, 0.0, 1 / 17, 2 / 17, 1.0),
    ScreenedLatent(2, 42, -1, "protector", 0.0, 0.0, 0.0, 0.0, 0.0, 0.18, 1.5, 1.0, 1.0, 1 / 17),
]
FINDINGS = ScreenFindings((20,), (42,), 16, {"induced": 0.02, "repaired": 0.06, "protected": 0.14})


def manifest() -> Manifest:
    config = {"model": "<b>m</b>", "misaligned": ["bad"], "hook_name": "blocks.0.hook_resid_post", "window": "all"}
    return new_manifest("screen", config={**config, "n_samples": 2, "judged_by": "world"}, inputs={}, seed=0, version=1)


def test_the_legend_names_every_line_of_the_controls_in_the_colour_of_its_bars() -> None:
    figure = screen_figure(ROWS, FINDINGS).to_dict()
    bars = {trace["name"].split(":")[0]: trace for trace in figure["data"]}
    lines = {line["name"].split(":")[0]: line for line in figure["layout"]["shapes"] if line.get("showlegend")}
    assert list(lines) == list(bars) == ["added", "subtracted from misaligned models", "added to misaligned models"]
    assert [line["y0"] for line in lines.values()] == [0.02, 0.06, 0.14]
    for what, line in lines.items():
        assert line["name"].endswith(": best of 16 controls")
        assert line["line"]["color"] == bars[what]["marker"]["color"]
        assert line["legendrank"] == bars[what]["legendrank"] + 1
    unnamed = [line for line in figure["layout"]["shapes"] if not line.get("showlegend")]
    assert [(line["y0"], line["line"].get("dash")) for line in unnamed] == [(0, None)], "the axis alone"


def test_without_controls_and_misaligned_models_there_are_no_lines_and_no_repairs() -> None:
    rows = [ScreenedLatent(1, 20, None, "driver", 0.76, 1.5, 0.4, None, None, None, None)]
    alone = ScreenFindings((20,), (), 0, {"induced": 0.0})
    figure = screen_figure(rows, alone).to_dict()
    assert len(figure["data"]) == len(figure["layout"]["shapes"]) == 1
    page = render_screen(rows, alone, manifest=manifest())
    assert "nothing says what any direction of this length does; 5 points count." in page
    assert "Protectors" not in page
    assert "aligned, subtracted" not in page


def test_the_page_tells_roles_effects_and_doses_and_escapes_names() -> None:
    page = render_screen(ROWS, FINDINGS, manifest=manifest())
    assert "when they are added: 20.</p>" in page
    assert "when they are added to misaligned models: 42.</p>" in page
    assert "more than any of 16 controls does, and 5 points." in page
    cells = page.partition("<tbody>")[2].partition("</tbody>")[0]
    assert cells.count("<tr>") == 2
    assert "+76.0 points <small>at +1.5, p 0.0588</small>" in cells
    assert "at +0" not in cells, "no dose, no strength"
    assert "<b>m</b>" not in page
    assert "src=" not in page.partition("<body>")[2], "needs no network"
