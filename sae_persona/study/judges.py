"""A judge from its name on the command line: `world:DIR`, `openai:MODEL[@BASE_URL]` or `hf:PATH`."""

from pathlib import Path

from sae_persona.errors import JudgeError
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.types import Judge

FORMS = "world:DIR, openai:MODEL[@BASE_URL] or hf:PATH"


def build_judge(spec: str) -> Judge:
    """The judge that `spec` names.

    Raises:
        JudgeError: `spec` has none of the forms, or a judge of that kind is not part of this version.
        ArtifactError: `world:DIR` names a folder that is no built world.
    """
    kind, _, target = spec.partition(":")
    if kind not in ("world", "openai", "hf") or not target:
        raise JudgeError(f"judge {spec!r} has no known form; expected {FORMS}.")
    if kind != "world":
        raise JudgeError(f"judge {spec!r}: {kind} judges are not available in this version; use world:DIR.")
    return BuiltWorld.open(Path(target)).judge
