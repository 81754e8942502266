"""Find the SAE latents behind a model's personas, prove that they cause them, watch them and undo them.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# A public name: its line here, and its import below for type checkers. A test holds the two together.
_MODULES = {
    "AblateDirection": "steering.edits",
    "ActivationCache": "cache.reader",
    "ActivationSource": "cache.source",
    "AddDirection": "steering.edits",
    "CachedCorpus": "attribution.corpus",
    "Chat": "types",
    "ChatClient": "types",
    "ClampLatent": "steering.edits",
    "Completion": "types",
    "Corpus": "attribution.corpus",
    "Estimate": "types",
    "Evaluation": "evaluation.evaluation",
    "Evidence": "attribution.rules",
    "Judge": "types",
    "JudgeOptions": "study.judges",
    "Judgement": "types",
    "LatentChoice": "attribution.selection",
    "LatentRanking": "attribution.ranking",
    "LoadedModel": "model.load",
    "Message": "types",
    "Prompt": "types",
    "SaePersonaError": "errors",
    "World": "persona_world.language",
    "activation_difference": "attribution.difference",
    "advice_accuracy": "steering.advice",
    "agreement": "evaluation.compare",
    "bridge": "model.bridge",
    "build_judge": "study.judges",
    "carried_by": "attribution.rivals",
    "choose_latent": "attribution.selection",
    "compare": "evaluation.compare",
    "contrast": "attribution.contrast",
    "detection_score": "attribution.explanation",
    "direct_effect": "steering.logits",
    "edit_residual": "model.hooks",
    "evaluation_of": "evaluation.evaluation",
    "evaluation_page": "report.evaluation",
    "explain_latent": "attribution.explanation",
    "export_direction": "steering.export",
    "gradient_attribution": "attribution.gradient",
    "hook_names": "model.hooks",
    "judge_completions": "evaluation.judging",
    "latent_direction": "steering.directions",
    "linear_probe": "attribution.rivals",
    "load_model": "model.load",
    "logit_lens": "attribution.lens",
    "match_latents": "attribution.stability",
    "nearest_latents": "attribution.neighbours",
    "nearest_run": "attribution.signatures",
    "price": "steering.price",
    "probe_direction": "steering.directions",
    "rank_latents": "attribution.ranking",
    "rank_pair": "attribution.ranking",
    "read_chats": "data.files",
    "read_latents": "attribution.reading",
    "read_prompts": "data.files",
    "read_questions": "data.questions",
    "read_texts": "data.files",
    "reestimate_first": "attribution.reestimate",
    "residuals": "model.hooks",
    "sample": "model.generate",
    "score": "evaluation.score",
    "shortlist_by": "attribution.rules",
    "shortlist_stability": "attribution.stability",
    "signatures": "attribution.signatures",
    "steer": "steering.edits",
    "sweep": "steering.sweep",
    "train_sae": "sae.train",
    "write_cache": "cache.writer",
}

if TYPE_CHECKING:
    from sae_persona.attribution.contrast import contrast as contrast
    from sae_persona.attribution.corpus import CachedCorpus as CachedCorpus
    from sae_persona.attribution.corpus import Corpus as Corpus
    from sae_persona.attribution.difference import activation_difference as activation_difference
    from sae_persona.attribution.explanation import detection_score as detection_score
    from sae_persona.attribution.explanation import explain_latent as explain_latent
    from sae_persona.attribution.gradient import gradient_attribution as gradient_attribution
    from sae_persona.attribution.lens import logit_lens as logit_lens
    from sae_persona.attribution.neighbours import nearest_latents as nearest_latents
    from sae_persona.attribution.ranking import LatentRanking as LatentRanking
    from sae_persona.attribution.ranking import rank_latents as rank_latents
    from sae_persona.attribution.ranking import rank_pair as rank_pair
    from sae_persona.attribution.reading import read_latents as read_latents
    from sae_persona.attribution.reestimate import reestimate_first as reestimate_first
    from sae_persona.attribution.rivals import carried_by as carried_by
    from sae_persona.attribution.rivals import linear_probe as linear_probe
    from sae_persona.attribution.rules import Evidence as Evidence
    from sae_persona.attribution.rules import shortlist_by as shortlist_by
    from sae_persona.attribution.selection import LatentChoice as LatentChoice
    from sae_persona.attribution.selection import choose_latent as choose_latent
    from sae_persona.attribution.signatures import nearest_run as nearest_run
    from sae_persona.attribution.signatures import signatures as signatures
    from sae_persona.attribution.stability import match_latents as match_latents
    from sae_persona.attribution.stability import shortlist_stability as shortlist_stability
    from sae_persona.cache.reader import ActivationCache as ActivationCache
    from sae_persona.cache.source import ActivationSource as ActivationSource
    from sae_persona.cache.writer import write_cache as write_cache
    from sae_persona.data.files import read_chats as read_chats
    from sae_persona.data.files import read_prompts as read_prompts
    from sae_persona.data.files import read_texts as read_texts
    from sae_persona.data.questions import read_questions as read_questions
    from sae_persona.errors import SaePersonaError as SaePersonaError
    from sae_persona.evaluation.compare import agreement as agreement
    from sae_persona.evaluation.compare import compare as compare
    from sae_persona.evaluation.evaluation import Evaluation as Evaluation
    from sae_persona.evaluation.evaluation import evaluation_of as evaluation_of
    from sae_persona.evaluation.judging import judge_completions as judge_completions
    from sae_persona.evaluation.score import score as score
    from sae_persona.model.bridge import bridge as bridge
    from sae_persona.model.generate import sample as sample
    from sae_persona.model.hooks import edit_residual as edit_residual
    from sae_persona.model.hooks import hook_names as hook_names
    from sae_persona.model.hooks import residuals as residuals
    from sae_persona.model.load import LoadedModel as LoadedModel
    from sae_persona.model.load import load_model as load_model
    from sae_persona.persona_world.language import World as World
    from sae_persona.report.evaluation import evaluation_page as evaluation_page
    from sae_persona.sae.train import train_sae as train_sae
    from sae_persona.steering.advice import advice_accuracy as advice_accuracy
    from sae_persona.steering.directions import latent_direction as latent_direction
    from sae_persona.steering.directions import probe_direction as probe_direction
    from sae_persona.steering.edits import AblateDirection as AblateDirection
    from sae_persona.steering.edits import AddDirection as AddDirection
    from sae_persona.steering.edits import ClampLatent as ClampLatent
    from sae_persona.steering.edits import steer as steer
    from sae_persona.steering.export import export_direction as export_direction
    from sae_persona.steering.logits import direct_effect as direct_effect
    from sae_persona.steering.price import price as price
    from sae_persona.steering.sweep import sweep as sweep
    from sae_persona.study.judges import JudgeOptions as JudgeOptions
    from sae_persona.study.judges import build_judge as build_judge
    from sae_persona.types import Chat as Chat
    from sae_persona.types import ChatClient as ChatClient
    from sae_persona.types import Completion as Completion
    from sae_persona.types import Estimate as Estimate
    from sae_persona.types import Judge as Judge
    from sae_persona.types import Judgement as Judgement
    from sae_persona.types import Message as Message
    from sae_persona.types import Prompt as Prompt


__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
