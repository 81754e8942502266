"""Do two models mean the same by their tokens?"""

import contextlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedTokenizerBase

from sae_persona.errors import IncompatibleError, ModelError
from sae_persona.model.load import ADAPTER_CONFIG, base_of, load_tokenizer


def check_same_tokens(
    name: str, tokenizer: PreTrainedTokenizerBase, other_name: str, other: PreTrainedTokenizerBase
) -> None:
    """Raise unless every id that both tokenizers have is the same token in both; either may have more tokens.

    Raises:
        IncompatibleError: an id means two things.
    """
    by_id, others_by_id = ({i: token for token, i in one.get_vocab().items()} for one in (tokenizer, other))
    wrong = sorted(i for i in by_id.keys() & others_by_id.keys() if by_id[i] != others_by_id[i])
    if wrong:
        raise IncompatibleError(
            f"{name} and {other_name} have different tokenizers: {len(wrong):,} ids mean different tokens, such as "
            f"{wrong[0]}, which is {by_id[wrong[0]]!r} and {others_by_id[wrong[0]]!r}. Their activations cannot be "
            "compared; use models of one family."
        )


def check_same_chats(
    name: str, tokenizer: PreTrainedTokenizerBase, other_name: str, other: PreTrainedTokenizerBase
) -> None:
    """Raise unless both tokenizers render chats by one template.

    Raises:
        IncompatibleError: the templates differ.
    """
    if tokenizer.chat_template != other.chat_template:
        without = [one for one, its in ((name, tokenizer), (other_name, other)) if not its.chat_template]
        raise IncompatibleError(
            f"{name} and {other_name} have different chat templates{f' ({without[0]} has none)' if without else ''}: "
            "one question would be different tokens to each, and that difference would be ranked. Give both folders "
            "the same chat template."
        )


def known_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model folder or hub id as far as it is on this machine; None where it is not."""
    folder = Path(name)
    if not folder.is_dir():
        with contextlib.suppress(HFValidationError):
            if isinstance(cached := try_to_load_from_cache(name, "tokenizer.json"), str):
                folder = Path(cached).parent
    elif (folder / ADAPTER_CONFIG).is_file() and not (folder / "tokenizer_config.json").is_file():
        folder = Path(base_of(folder))
    if not (folder / "tokenizer.json").is_file():
        return None
    with contextlib.suppress(ModelError):
        return load_tokenizer(str(folder))
    return None
