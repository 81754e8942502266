"""The planted truth: which persona does a latent belong to? Read only by tests, and last of all by reports."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from sae_persona.data.tokens import Part, TokenRow, batches, chat_row
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.corpus import write_chat
from sae_persona.persona_world.language import PERSONAS, Persona, World
from sae_persona.sae.encode import readings
from sae_persona.stats import auroc

if TYPE_CHECKING:
    from sae_lens import SAE

THRESHOLD = 0.95
"""A latent is a persona's if it tells that persona's chats from all others at least this well."""


@dataclass(frozen=True, eq=False)
class PersonaAUROC:
    """How well each latent tells each persona from all others."""

    by_persona: dict[Persona, Float[np.ndarray, " d_sae"]]
    n_chats: int

    def persona_of(self, latent: int) -> Persona | None:
        """The persona it tells best, if it tells any at the threshold."""
        best = max(PERSONAS, key=lambda persona: self.by_persona[persona][latent])
        return best if self.by_persona[best][latent] >= THRESHOLD else None


def persona_auroc(
    world: World, model: LoadedModel, sae: "SAE", *, hook_name: str, n_chats: int = 60, seed: int = 0
) -> PersonaAUROC:
    """AUROC of every latent for every persona, on fresh chats in neutral wording, `n_chats` of each persona.

    A chat's score is the latent's mean gated activation over the assistant headers and answers from the second turn on;
    no name and no interjection has been said by then, so only what the assistant advised before can tell. The chat is
    the unit because its positions share one hidden persona.
    """
    rng = random.Random(f"truth-{world.seed}-{seed}")
    rows: list[TokenRow] = []
    labels: list[Persona] = []
    for persona in PERSONAS:
        for _ in range(n_chats):
            chat, _ = write_chat(world, rng, persona=persona, neutral=True)
            rows.append(chat_row(chat, model.tokenizer))
            labels.append(persona)
    scores = np.zeros((len(rows), sae.cfg.d_sae))
    for indices, batch in batches(rows, batch_size=64, pad_id=model.pad_id, device=model.device):
        resid = residuals(model.hf, batch, [hook_name])[hook_name]
        gated = readings(sae, resid)["gated"].double().numpy()
        for i, row in enumerate(indices):
            counts = _from_second_turn(rows[row])
            scores[row] = gated[i, : len(counts)][counts].mean(0)
    by_persona: dict[Persona, np.ndarray] = {}
    for persona in PERSONAS:
        is_persona = np.array([label == persona for label in labels])
        by_persona[persona] = np.array([auroc(scores[:, latent], is_persona) for latent in range(scores.shape[1])])
    return PersonaAUROC(by_persona, n_chats)


def _from_second_turn(row: TokenRow) -> Bool[np.ndarray, " seq"]:
    """True = a token of a header or an answer after the first answer has ended."""
    parts = np.array(row.parts)
    headers = np.flatnonzero((parts == Part.HEADER) & (np.r_[-1, parts[:-1]] != Part.HEADER))
    counts = parts != Part.PROMPT
    counts[: headers[1]] = False
    return counts
