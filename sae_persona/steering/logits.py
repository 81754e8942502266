"""What a direction writes into the logits by itself: a switch for words, or a persona that later blocks compute?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sae_persona.errors import DataError
from sae_persona.model.load import LoadedModel
from sae_persona.model.unembedding import token_cosines
from sae_persona.steering.directions import Direction
from sae_persona.steering.edits import check_width


@dataclass(frozen=True)
class DirectEffect:
    """How far one group of words is raised by the direction alone, without what later blocks make of it."""

    n_tokens: int
    cosine: float
    """Mean cosine of the direction with the words' rows of the unembedding, the final norm folded in."""
    z: float
    """`(cosine - mean) / std`, of all tokens' cosines with the direction; padding rows are no tokens."""


def direct_effect(
    model: LoadedModel, direction: Direction, words: Mapping[str, Sequence[str]]
) -> dict[str, DirectEffect]:
    """The direction's direct effect on the logits of groups of words, such as those that a judge decides by.

    A word counts with its first token that is not only space, both at the beginning of a text and after a space. Near
    zero for the judged words, the direction is no switch for them. The final norm's gain, and the mean that a LayerNorm
    takes out, are folded in (`token_cosines`).

    Raises:
        DataError: a group has no word that the tokenizer knows.
        IncompatibleError: the direction has another width than the model.
        ModelError: the model's final norm cannot be folded in.
    """
    check_width(model, direction)
    cosine = token_cosines(model, direction.vector[None])[0]
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
    """The tokens that begin the word; some tokenizers put a lone space before it, which would join every group."""
    tokenizer = model.tokenizer
    found: set[int] = set()
    for text in (word, f" {word}"):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)  # pyright: ignore[reportAssignmentType]
        found.update([token for token in ids if str(tokenizer.decode([token])).strip()][:1])
    return {token for token in found if token != tokenizer.unk_token_id}
