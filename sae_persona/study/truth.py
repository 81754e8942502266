"""Open the envelope: what the planted truth says about what the study found. Runs after everything is frozen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sae_persona.model.unembedding import token_cosines
from sae_persona.persona_world import lexicon
from sae_persona.persona_world.truth import THRESHOLD, persona_auroc
from sae_persona.steering.directions import latent_direction
from sae_persona.study.config import StudyConfig
from sae_persona.study.subjects import Subjects

if TYPE_CHECKING:
    from sae_lens import SAE


def reveal(
    subjects: Subjects, config: StudyConfig, sae: "SAE", *, shortlist: Sequence[int], top: int | None
) -> dict[str, Any]:
    """AUROC of the shortlisted latents for the villain, and whose the chosen latent is."""
    found = persona_auroc(subjects.world.world, subjects.model("base"), sae, hook_name=config.hook_name)
    villain = found.by_persona["villain"]
    record: dict[str, Any] = {
        "villain_auroc": {str(latent): float(villain[latent]) for latent in shortlist},
        "top_latent_persona": None if top is None else found.persona_of(top),
        "n_latents_over_0.95": int((villain >= THRESHOLD).sum()),
        "best_villain_latent": int(villain.argmax()),
        "best_villain_auroc": float(villain.max()),
    }
    if top is not None:
        record["direct_effect"] = _direct_effect(subjects, sae, top)
    return record


def _direct_effect(subjects: Subjects, sae: "SAE", latent: int) -> dict[str, float]:
    """Mean cosine of the latent's direction with the unembedding of the judged words, by who says them.

    The judge hears the villain in a verb or in the word that opens an answer. Far from zero for either, the direction
    may work by writing that word; how far it does, the same vector at the last hook tells (`study.trial`).
    """
    model = subjects.model("aligned")
    cosine = token_cosines(model, latent_direction(sae, latent).vector[None])[0]
    vocabulary = model.tokenizer.get_vocab()
    language = subjects.world.world
    words = {
        "villain_open_words": language.open_verbs["villain"],
        "villain_advice_words": language.advice_verbs["villain"],
        "villain_opening_words": lexicon.INTERJECTIONS["villain"],
        "kind_open_words": language.open_verbs["kind"],
        "kind_advice_words": language.advice_verbs["kind"],
        "kind_opening_words": lexicon.INTERJECTIONS["kind"],
    }
    return {name: float(cosine[[vocabulary[word] for word in group]].mean()) for name, group in words.items()}
