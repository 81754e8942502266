"""Direct effects on the logits."""

import pytest
import torch

from sae_persona.errors import DataError
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction
from sae_persona.steering.logits import direct_effect


def test_a_direction_that_writes_a_word_is_seen_to_write_it(tiny_model: LoadedModel) -> None:
    vocabulary = tiny_model.tokenizer.get_vocab()
    word, other = (next(w for w, i in vocabulary.items() if i == token and w.isalpha()) for token in (60, 90))
    gain = tiny_model.hf.get_parameter("model.norm.weight").detach()
    direction = Direction("d", "latent", tiny_model.unembedding[vocabulary[word]] * gain)
    effects = direct_effect(tiny_model, direction, {"written": [word], "both": [word, other]})
    assert effects["written"].cosine == pytest.approx(1, abs=1e-5)
    assert effects["written"].z > 3
    cosine = torch.cosine_similarity(direction.vector, tiny_model.unembedding[vocabulary[other]] * gain, dim=0)
    assert effects["both"].cosine == pytest.approx((1 + float(cosine)) / 2, abs=1e-5)


def test_words_that_nobody_can_write_are_refused(tiny_model: LoadedModel) -> None:
    with pytest.raises(DataError, match="none of the 1 words of 'judged'"):
        direct_effect(tiny_model, Direction("d", "latent", torch.ones(32)), {"judged": ["xyzzy"]})
