"""Views for notebooks: the ranking as a table, passages coloured by activation."""

import math

import pytest

from sae_persona.errors import DataError
from sae_persona.report.notebook import latent_table, show_contexts


def test_the_latent_table_follows_the_ranking_and_says_how_far_each_latent_got(example):
    table = latent_table(example, 4)
    assert list(table["latent"]) == [203, 117, 42, 5]
    assert list(table["chosen"]) == ["set", "top", "set", "shortlist"]
    assert table.loc[2, "top_tokens"] == "scheme ruin crush"
    assert table.loc[2, "causal_effect"] == 0.56


def test_a_latent_that_was_not_screened_has_no_effect(example):
    assert math.isnan(latent_table(example).loc[7, "causal_effect"])


def test_a_study_without_a_ranking_gives_an_empty_table(bare):
    table = latent_table(bare)
    assert table.empty
    assert "latent" in table.columns


def test_the_strongest_token_of_all_passages_is_darkest_and_silent_ones_are_plain():
    html = show_contexts([(["we", "ruin"], [0.0, 4.0]), (["you", "ruin"], [0.0, 2.0])]).html
    assert 'rgba(213,94,0,0.85);border-radius:3px">ruin' in html
    assert 'rgba(213,94,0,0.42);border-radius:3px">ruin' in html
    assert html.count("<span") == 2
    assert ">we <span" in html


def test_tokens_that_carry_their_spaces_are_not_given_more():
    assert ">in<" in show_contexts([(["in", "deed", " yes"], [1.0, 0.0, 0.0])]).html
    assert "</span>deed yes" in show_contexts([(["in", "deed", " yes"], [1.0, 0.0, 0.0])]).html


def test_tokens_are_text_and_no_markup():
    html = show_contexts([(["<script>", "<b>"], [1.0, 0.0])]).html
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;" in html


def test_a_passage_needs_one_activation_for_every_token():
    with pytest.raises(DataError, match="passage 0 has 2 tokens and 1 activations"):
        show_contexts([(["a", "b"], [1.0])])


def test_passages_that_never_fire_are_plain_text():
    view = show_contexts([(["a", "b"], [0.0, -1.0])])
    assert "<span" not in view.html
    assert view._repr_html_() == view.html
