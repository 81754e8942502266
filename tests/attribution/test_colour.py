"""Coloured contexts: text stays text, the highest is darkest."""

from sae_persona.attribution.colour import contexts_html, contexts_text
from sae_persona.attribution.contexts import Context


def context(tokens, activations, peak):
    return Context(0, 0, peak, tuple(tokens), tuple(activations))


def test_tokens_are_text_and_no_markup():
    html = str(contexts_html([context(["<script>alert(1)</script>", ' "><img src=x>'], [1.0, 2.0], 1)]))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert "&#34;&gt;&lt;img" in html


def test_the_highest_of_all_is_darkest_silent_tokens_are_plain_and_spaces_are_not_coloured():
    html = str(contexts_html([context(["we", " ruin"], [0.0, 4.0], 1), context([" ruin"], [2.0], 0)]))
    assert ' <mark title="4" style="background:rgba(213,94,0,0.80)" class="peak">ruin</mark>' in html
    assert "rgba(213,94,0,0.40)" in html
    assert html.count("<mark") == 2


def test_a_character_in_two_tokens_is_coloured_by_the_higher_one():
    html = str(contexts_html([context(["", "é", "!"], [3.0, 1.0, 0.0], 0)]))
    assert '<mark title="3"' in html
    assert html.count("<mark") == 1


def test_a_terminal_obeys_nothing_that_stands_in_a_text():
    one = context(["a", "\x1b[2J", "\n", " b"], [0.0, 1.0, 0.0, 2.0], 3)
    assert contexts_text([one], colour=False) == "       2  a\\x1b[2J⏎ [b]"
    coloured = contexts_text([one], colour=True)
    assert "\x1b[2J" not in coloured
    assert coloured.count("\x1b[38;5;0") == 2
