"""The models that a ranking compares: looked at before the first of them is sampled, so that errors cost seconds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from sae_persona.errors import ConfigError, HookError
from sae_persona.model.load import load_model
from sae_persona.model.tokenizers import check_same_chats, check_same_tokens
from sae_persona.sae.load import check_fits, check_tokens

if TYPE_CHECKING:
    from sae_lens import SAE


def check_named_once(sources: Sequence[str], role: str) -> None:
    """Raise `ConfigError` where a run is named twice."""
    twice = {source for source in sources if sources.count(source) > 1}
    if twice:
        raise ConfigError(f"{min(twice)} is named twice as {role}; every run counts once.")


def open_runs(sources: Sequence[str], sae: "SAE", *, hook_name: str, device: str) -> dict[str, str]:
    """The fingerprint of every model. Each is loaded, checked and let go again.

    Raises:
        ModelError, ConfigError: a model or the device is not there.
        HookError, IncompatibleError: the SAE does not fit a model, or the models read text as different tokens.
    """
    fingerprints: dict[str, str] = {}
    first: tuple[str, PreTrainedTokenizerBase] | None = None
    for source in dict.fromkeys(sources):
        model = load_model(source, device=device)
        try:
            check_fits(sae, model, hook_name)
        except HookError as error:
            raise HookError(f"{source}: {error}") from error
        if first is None:
            check_tokens(sae, model)
            first = source, model.tokenizer
        else:
            check_same_tokens(*first, source, model.tokenizer)
            check_same_chats(*first, source, model.tokenizer)
        fingerprints[source] = model.fingerprint
    return fingerprints


def check_weights_differ(sources: Sequence[str], fingerprints: Mapping[str, str]) -> None:
    """Raise `ConfigError` where two of the compared models are one."""
    named: dict[str, str] = {}
    for source in sources:
        other = named.get(fingerprints[source])
        named[fingerprints[source]] = source
        if other is not None:
            raise ConfigError(
                f"{other} and {source} are identical checkpoints: they differ in nothing, so they are not ranked. "
                "Name every run once, and only under one role."
            )
