"""The table on the terminal: one row per claim that was tested."""

import io

from example_summary import example_summary
from rich.console import Console

from sae_persona.report.summary import Summary, parse_summary
from sae_persona.report.table import terminal_table


def printed(summary: Summary) -> str:
    console = Console(width=110, file=io.StringIO())
    console.print(terminal_table(summary))
    return console.file.getvalue()


def test_the_table_is_short_and_states_verdict_claim_figure_and_target(example):
    text = printed(example)
    assert "persona_world, seed 11: 14 met, 1 not met" in text
    row = next(line for line in text.splitlines() if "misalignment emerges" in line)
    assert row.split()[0] == "met"
    assert "81.0% [76.3, 85.7], lowest of" in row
    assert "≥ 60% in each" in row
    assert len(text.splitlines()) <= 40


def test_nothing_to_find_is_in_the_title(null):
    assert "persona_world_null, seed 12: 5 met, 0 not met; nothing to find" in printed(null)


def test_what_was_not_run_is_named_below_and_has_no_row():
    summary = example_summary()
    del summary["realign"]
    text = printed(parse_summary(summary))
    assert "Not run: a few good samples re-align." in text
    assert "in 30 steps" not in text


def test_names_are_text_and_no_markup():
    summary = example_summary()
    summary["models"]["[red]odd[/red]"] = summary["models"].pop("misaligned-finance-obvious")
    summary["steering"]["repair"] = summary["steering"]["repair_set"] = {}
    summary["steering"]["chosen"] = {}
    assert "[red]odd[/red]" in printed(parse_summary(summary))
