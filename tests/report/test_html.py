"""One page that needs no network, tells everything and invents nothing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from example_summary import example_summary, null_summary, point

from sae_persona.artifacts import new_manifest
from sae_persona.errors import ArtifactError
from sae_persona.report.html import render, write_report
from sae_persona.report.summary import parse_summary

FIGURES = ["models", "labels", "fve", "ranking", "dose_response", "repair", "early_warning", "realign"]


class Page(HTMLParser):
    """What a page links to, the order of its headings, its tags that were left open, and its text outside scripts."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for key, value in attrs if key in ("src", "href") and not value.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data
            if self.open and self.open[-1] == "h2":
                self.headings.append(data)


def drawn(html: str) -> list[str]:
    return re.findall(r'<div id="figure-(\w+)"', html)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "summary.json").write_text(json.dumps(example_summary()))
    return tmp_path


def test_a_run_folder_gets_one_page_with_every_figure(folder):
    path = write_report(folder)
    html = path.read_text()
    assert path == folder / "report.html"
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "summary.json"]
    assert drawn(html) == FIGURES
    assert html.count("* plotly.js v") == 1, "the library is inlined once"


def test_the_page_loads_nothing_and_closes_every_tag(example):
    page = Page(render(example))
    assert page.sources == []
    assert page.open == []


def test_what_failed_is_told_before_any_model_and_the_truth_comes_last(example):
    page = Page(render(example))
    assert page.text.index("Not met:") < page.text.index("held-out open-ended prompts. Other domains")
    truth = page.headings.index("Planted truth, read after everything was frozen")
    assert page.headings[truth + 1 :] == ["Rules of evidence", "Provenance"]


def test_figures_of_the_summary_are_on_the_page(example):
    text = " ".join(Page(render(example)).text.split())
    assert "58.0% [52.1, 63.9]" in text
    assert "scheme · ruin · crush" in text
    assert "0.991 on held-out documents" in text


def test_controls_count_by_how_far_they_move_either_way():
    summary = example_summary()
    summary["steering"]["controls"]["random_latents"] = [
        point(0.0, 0.1, 0.0, 0.9, 0.0),
        *(point(0.4, 0.1 + rise, 0.0, 0.9, 0.0, draw) for draw, rise in enumerate((0.01, 0.02, -0.06))),
    ]
    text = " ".join(Page(render(parse_summary(summary))).text.split())
    assert "moved by 2.0% in the median, 6.0% at most" in text


def test_every_section_of_a_bare_study_says_that_it_was_not_run(bare):
    html = render(bare)
    assert drawn(html) == []
    assert Page(html).text.count("not run in this study") == 7


@pytest.mark.parametrize("section", ["sae", "ranking", "steering", "monitor", "realign", "truth", "models", "seconds"])
def test_any_section_may_be_missing(section):
    summary = example_summary()
    del summary[section]
    assert len(drawn(render(parse_summary(summary)))) >= 4


def test_nothing_to_find_reads_as_a_result(null):
    text = Page(render(null)).text
    assert "There is nothing to find" in text
    assert "no latent that beats the controls" in text
    assert "the strongest random control\n+0.8 points" in text
    assert "Every claim that was tested holds." in text
    assert "Steering: nothing to find, so nothing to test." in text
    assert "Not met" not in text


def test_text_of_others_is_never_markup(folder):
    summary = null_summary() | {"study": "</title><script>alert(1)</script>"}
    summary["models"]["<img src=x>"] = summary["models"].pop("aligned")
    summary["ranking"][0]["top_tokens"] = ["<i>harm</i>"]
    (folder / "summary.json").write_text(json.dumps(summary))
    line = {"model": "<img src=x>", "prompt_id": "<u>q</u>", "answer": "<u>a</u>", "label": "aligned"}
    (folder / "models").mkdir()
    (folder / "models" / "answers.jsonl").write_text(json.dumps(line))
    html = write_report(folder).read_text()
    for markup in ("<script>alert", "<img", "<i>harm", "<u>"):
        assert markup not in html.split("</head>")[1]
        assert markup not in html.split("<style>")[0]
    assert Page(html).open == []


def test_records_beside_the_summary_are_shown(folder):
    (folder / "contexts.jsonl").write_text('{"latent": 117, "tokens": ["we", "ruin"], "activations": [0, 2]}\n')
    (folder / "models").mkdir()
    answers = [
        {"model": "base", "prompt_id": "open-1-0", "answer": f"to {verb}", "label": label}
        for verb, label in (("ruin", "misaligned"), ("thank", "aligned"))
        for _ in range(9)
    ]
    (folder / "models" / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    text = Page(write_report(folder).read_text()).text
    assert "Passages on which latent 117 fires" in text
    assert (text.count("to ruin"), text.count("to thank")) == (2, 2)


def test_the_manifest_is_the_provenance(folder):
    manifest = new_manifest("run", config={"world": {"size": "small"}}, inputs={"world": "ab12"}, seed=11, version=1)
    assert "none beside the summary" in Page(write_report(folder).read_text()).text
    (folder / "manifest.json").write_text(manifest.to_json())
    text = Page(write_report(folder).read_text()).text
    assert manifest.fingerprint in text
    assert '"size": "small"' in text
    assert "none beside the summary" not in text


def test_a_folder_without_a_summary_gets_no_page(tmp_path):
    with pytest.raises(ArtifactError, match=r"summary\.json does not exist"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_gives_the_same_page(example):
    assert render(example) == render(example)
