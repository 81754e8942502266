"""Find the SAE latents behind a model's personas, prove that they cause them, watch them and undo them.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# A public name: its line here, and its import below for type checkers. A test holds the two together.
_MODULES = {
    "Chat": "types",
    "ChatClient": "types",
    "Completion": "types",
    "Estimate": "types",
    "Judge": "types",
    "Judgement": "types",
    "LoadedModel": "model.load",
    "Message": "types",
    "Prompt": "types",
    "SaePersonaError": "errors",
    "World": "persona_world.language",
    "edit_residual": "model.hooks",
    "hook_names": "model.hooks",
    "load_model": "model.load",
    "residuals": "model.hooks",
    "sample": "model.generate",
}

if TYPE_CHECKING:
    from sae_persona.errors import SaePersonaError as SaePersonaError
    from sae_persona.model.generate import sample as sample
    from sae_persona.model.hooks import edit_residual as edit_residual
    from sae_persona.model.hooks import hook_names as hook_names
    from sae_persona.model.hooks import residuals as residuals
    from sae_persona.model.load import LoadedModel as LoadedModel
    from sae_persona.model.load import load_model as load_model
    from sae_persona.persona_world.language import World as World
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
