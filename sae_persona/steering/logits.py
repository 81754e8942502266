"""What a direction writes into the logits by itself: a switch for words, or a persona that later blocks compute?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from sae_persona.errors import DataError
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction
from sae_persona.steering.edits import check_width

_FINAL_NORMS = (
    "model.norm.weight",
    "gpt_neox.final_layer_norm.weight",
    "transformer.ln_f.weight",
    "model.decoder.final_layer_norm.weight",
    "model.language_model.norm.weight",
)
"""Where the families keep the gain of the norm before the unembedding."""


@dataclass(frozen=True)
class DirectEffect:
    """How far one group of words is raised by the direction alone, without what later blocks make of it."""

    n_tokens: int
    cosine: float
    """Mean cosine of the direction with the words' rows of the unembedding, the final norm's gain multiplied in."""
    z: float
    """The same in standard deviations of all tokens' cosines from their mean."""


def direct_effect(
    model: LoadedModel, direction: Direction, words: Mapping[str, Sequence[str]]
) -> dict[str, DirectEffect]:
    """The direction's direct effect on the logits of groups of words, such as those that a judge decides by.

    A word counts with its first token, both at the beginning of a text and after a space. Near zero for the judged
    words, the direction is no switch for them.

    Raises:
        DataError: a group has no word that the tokenizer knows.
        IncompatibleError: the direction has another width than the model.
    """
    check_width(model, direction)
    gain = next((p for name in _FINAL_NORMS if (p := _parameter(model, name)) is not None), None)
    unembedding = model.unembedding if gain is None else model.unembedding * gain.to(model.unembedding)
    vector = direction.vector.to(unembedding)
    cosine = functional.cosine_similarity(unembedding, vector[None], dim=-1)
    spread = cosine.std().clamp(min=torch.finfo(cosine.dtype).tiny)
    effects = {}
    for group, members in words.items():
        tokens = sorted({token for word in members for token in _first_tokens(model, word)})
        if not tokens:
            raise DataError(
                f"the tokenizer knows none of the {len(members)} words of {group!r}. Name words it can write."
            )
        mean = cosine[tokens].mean()
        effects[group] = DirectEffect(len(tokens), float(mean), float((mean - cosine.mean()) / spread))
    return effects


def _first_tokens(model: LoadedModel, word: str) -> set[int]:
    unknown = model.tokenizer.unk_token_id
    found = (model.tokenizer.encode(text, add_special_tokens=False) for text in (word, f" {word}"))
    return {ids[0] for ids in found if ids and ids[0] != unknown}


def _parameter(model: LoadedModel, name: str) -> torch.Tensor | None:
    try:
        gain = model.hf.get_parameter(name).detach()
    except AttributeError:
        return None
    # Gemma's norms multiply by one plus their weight.
    return gain + 1 if model.hf.config.model_type.startswith("gemma") else gain
