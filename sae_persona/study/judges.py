"""A judge from its name on the command line: `world:DIR`, `openai:MODEL[@BASE_URL]` or `hf:PATH`."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sae_persona.errors import ConfigError, JudgeError
from sae_persona.evaluation.endpoint import OPENAI_URL, Endpoint, import_openai
from sae_persona.evaluation.kept import KeptReplies
from sae_persona.evaluation.local import LocalModel
from sae_persona.evaluation.model_judge import ModelJudge, Plan, no_plan, no_progress
from sae_persona.evaluation.rubric import Scale, rubric
from sae_persona.model.load import load_model
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.types import Judge

FORMS = "world:DIR, openai:MODEL[@BASE_URL] or hf:PATH"
CACHE = "SAE_PERSONA_CACHE"
"""The environment variable with the folder for replies that are kept between runs; default ~/.cache/sae_persona."""


@dataclass(frozen=True)
class JudgeOptions:
    """How a model judge is asked; a world's rule judge has no options."""

    scale: Scale = "rubric"
    n_parallel: int = 8
    """Requests to an endpoint under way at once."""
    per_minute: float | None = None
    """Requests to an endpoint per minute at most; None: as many as it takes."""
    max_reply_tokens: int = 16
    """Raise it for a model that thinks aloud before it replies."""
    max_calls: int | None = None
    """Refuse a judging that would take more calls than this; None: no limit."""


def build_judge(
    spec: str,
    *,
    options: JudgeOptions | None = None,
    device: str = "cpu",
    on_plan: Callable[[Plan], None] = no_plan,
    progress: Callable[[int, int], None] = no_progress,
) -> Judge:
    """The judge that `spec` names.

    `device` is where an `hf:` judge runs. `on_plan` and `progress` are told what a model judge is about to do, and what
    it has done.

    Raises:
        JudgeError: `spec` has none of the forms, the judge cannot be built, or what it needs is not installed.
        ModelError: `hf:PATH` names no model.
        ConfigError: an option that cannot be meant, or one for a judge that has none.
        ArtifactError: `world:DIR` names a folder that is no built world.
    """
    kind, _, target = spec.partition(":")
    if kind not in ("world", "openai", "hf") or not target.strip():
        raise JudgeError(f"judge {spec!r} has no known form; expected {FORMS}.")
    if kind == "world":
        if options is not None and options != JudgeOptions():
            raise ConfigError(f"judge {spec!r} is a rule: it has no scale, pace or limit. Leave those options out.")
        return BuiltWorld.open(Path(target)).judge
    options = options or JudgeOptions()
    respondent = _endpoint(target, options) if kind == "openai" else LocalModel(load_model(target, device=device))
    return ModelJudge(
        respondent,
        rubric(options.scale),
        KeptReplies(cache_folder() / "replies"),
        on_plan=_limited(options.max_calls, on_plan),
        progress=progress,
    )


def cache_folder() -> Path:
    """Where what was paid for is kept between runs."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "sae_persona")


def _endpoint(target: str, options: JudgeOptions) -> Endpoint:
    import_openai()
    found = re.fullmatch(r"(?P<model>.*?)(?:@(?P<url>https?://.*))?", target)
    if found is None or not found["model"].strip():
        raise JudgeError("judge 'openai:' names no model; expected openai:MODEL or openai:MODEL@BASE_URL.")
    model, url = found["model"], found["url"]
    if url is None and re.search(r"@[\w.-]+(:\d+|/)", model[1:]):
        shown = target.partition("@")[0]
        raise JudgeError(
            f"judge 'openai:{shown}@...': a BASE_URL begins with http:// or https://, as @https://host/v1."
        )
    return Endpoint(
        model,
        url.rstrip("/") if url else OPENAI_URL,
        n_parallel=options.n_parallel,
        per_minute=options.per_minute,
        max_reply_tokens=options.max_reply_tokens,
    )


def _limited(max_calls: int | None, on_plan: Callable[[Plan], None]) -> Callable[[Plan], None]:
    """Tell the plan and refuse one that is too long."""

    def tell(plan: Plan) -> None:
        on_plan(plan)
        if max_calls is not None and plan.n_calls > max_calls:
            raise ConfigError(
                f"judging {plan.n_answers} answers takes {plan.n_calls} calls, and at most {max_calls} are allowed. "
                "Raise the limit, or ask for fewer samples."
            )

    return tell
