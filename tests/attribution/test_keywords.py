"""The explainer without a model: by hand, and through the same exam as a language model."""

from sae_persona.attribution.explanation import detection_score, exam, explain_latent
from sae_persona.attribution.keywords import Keywords
from sae_persona.attribution.reading import read_latents
from sae_persona.types import Message


def test_it_names_the_marked_words_the_most_frequent_first():
    shown = '"a «bad» day"\n"«bad» «luck» again"'
    assert Keywords(2).complete([Message("user", shown)]) == "EXPLANATION: the words bad luck"


def test_it_calls_a_passage_that_holds_one_of_the_words():
    asked = 'Explanation: "the words bad luck"\n\nPassages:\n1. "no luck"\n2. "lucky me"\n3. "so bad"'
    assert Keywords().complete([Message("user", asked)]) == "[1, 0, 1]"


def test_a_latent_of_one_word_is_explained_and_every_passage_called_rightly(coordinates, write):
    passages = [[(0, 0), (i % 2, 0), (0, 0)] for i in range(40)]
    ids = [[2 + i % 5, 0 if i % 2 else 1, 2 + i // 5] for i in range(40)]
    test = exam(read_latents(coordinates, write(passages, ids=ids), [0], width=3)[0])
    found = explain_latent(Keywords(), test)
    assert found.text == "the words a"
    assert detection_score(Keywords(), found.text, test).balanced_accuracy.value == 1


def test_a_latent_that_no_word_tells_is_not(coordinates, write):
    passages = [[(i % 2, 0), (0, 0)] for i in range(80)]
    ids = [[i // 2 % 4, 4 + i // 8] for i in range(80)]
    test = exam(read_latents(coordinates, write(passages, ids=ids), [0], width=2)[0])
    found = explain_latent(Keywords(), test)
    assert found.text is not None
    assert detection_score(Keywords(), found.text, test).balanced_accuracy.value == 0.5, "the same words are silent"
