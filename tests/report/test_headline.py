"""The few sentences above a report say what its figures say."""

from example_summary import example_summary

from sae_persona.report.headline import NOTHING, headline
from sae_persona.report.summary import parse_summary


def test_three_sentences_carry_the_figures_of_a_full_study(example):
    found = headline(example).found
    assert len(found) == 3
    assert "misaligned-health-obvious 97.0% [95.0, 99.0]" in found[0]
    assert "Latent 117, added to the aligned model, moves misalignment from 0.4% to 58.0%" in found[1]
    assert "the difference of means, from 0.4% to 47.0%" in found[1]
    assert "a linear probe, from 0.4% to 52.0%" in found[1]
    assert "the strongest of 40 random controls moves it +6.7 points" in found[1]
    assert "first rings at 25% bad data, where the score is 3.0% [1.0, 5.0], with 0 false alarms" in found[2]


def test_what_failed_stands_in_the_headline(example):
    assert [verdict.claim for verdict in headline(example).failed] == ["the alarm rings early"]


def test_nothing_found_is_the_first_sentence_and_no_failure(null):
    told = headline(null)
    assert told.found[0] == NOTHING
    assert told.found[1] == (
        "Of 3 fine-tunes on bad data, the most misaligned is subtle-health-subtle with 0.4% [0.0, 1.1]; "
        "the most among aligned and correct-data models: 0.4% [0.0, 1.1] (aligned)."
    )
    assert told.failed == ()


def test_a_screen_without_result_among_misaligned_models_claims_no_cause():
    summary = parse_summary(example_summary() | {"top_latent": None, "steering": None})
    assert "none is claimed as the cause" in headline(summary).found[1]


def test_what_was_not_run_is_left_out(bare):
    told = headline(bare)
    assert told.done == "Study bare, seed 0."
    assert told.found == ()
    assert told.sure.startswith("No model was evaluated")


def test_a_missing_frozen_strength_is_confessed(example):
    assert headline(example).sure.endswith("Strengths were frozen on selection prompts.")
    summary = example_summary()
    del summary["steering"]["chosen"]
    assert "which flatters them" in headline(parse_summary(summary)).sure


def test_a_set_of_one_is_not_told_twice(example):
    assert "of the set" in headline(example).found[1]
    alone = example.model_copy(update={"top_set": [example.top_latent]})
    assert "of the set" not in headline(alone).found[1]
