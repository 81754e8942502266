"""What a sweep's directions do besides changing answers: to benign text, and to the logits of words by themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sae_persona.artifacts import fingerprint
from sae_persona.data.tokens import Part, TokenRow
from sae_persona.errors import ConfigError
from sae_persona.model.load import LoadedModel
from sae_persona.steering.logits import DirectEffect, direct_effect
from sae_persona.steering.price import Price, prices
from sae_persona.steering.record import CONTROLS
from sae_persona.steering.sweep import Arm, SweepConfig, edits_alone
from sae_persona.study.commands.dosage import document_rows
from sae_persona.study.commands.shared import Progress, counting

if TYPE_CHECKING:
    from sae_lens import SAE

N_LOGITS = 2**26
"""Logits of a batch at most: half a gigabyte as the double-precision log-probabilities that are compared."""


@dataclass(frozen=True)
class SideEffects:
    """What is measured of every dose and direction besides the answers."""

    price_data: Path | None = None
    """Benign chats or texts on which every dose has its price."""
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Groups of words, such as those that the judge decides by, whose logits a direction may write by itself."""

    @property
    def inputs(self) -> dict[str, str]:
        """What a manifest knows them by; nothing where nothing is measured."""
        data = {} if self.price_data is None else {"price_data": fingerprint(self.price_data)}
        return data | ({"words": fingerprint([[name, *of] for name, of in self.words.items()])} if self.words else {})


def grouped_words(given: Sequence[str]) -> dict[str, list[str]]:
    """`GROUP=WORD` and `WORD`, as the command line takes them, by group; a word without a group is one of its own.

    Raises:
        ConfigError: an empty word or group.
    """
    groups: dict[str, list[str]] = {}
    for one in given:
        group, _, word = (part.strip() for part in (one if "=" in one else f"{one}={one}").partition("="))
        if not (group and word):
            raise ConfigError(f"word {one!r} is none; expected WORD or GROUP=WORD, such as harm=poison.")
        groups.setdefault(group, []).append(word)
    return groups


def benign_rows(model: LoadedModel, path: Path, config: SweepConfig) -> list[TokenRow]:
    """Chats and texts of a file, cut where the model's context ends.

    Raises:
        DataError: the file cannot be read.
        ConfigError: the window selects no token of it.
    """
    rows = document_rows(model, path)
    if config.window not in ("all", "prompt") and not any(Part.ANSWER in row.parts for row in rows):
        raise ConfigError(
            f"window {config.window!r} selects nothing in {path}, whose {len(rows)} documents hold no answers, so that "
            "every price would be 0. Give chats, or steer all tokens."
        )
    return rows


def prices_of(
    model: LoadedModel,
    arms: Sequence[Arm],
    rows: Sequence[TokenRow],
    config: SweepConfig,
    *,
    sae: "SAE",
    batch_size: int,
    progress: Progress,
) -> list[Price]:
    """The price of every condition of the arms' sweep, in the order of its answers."""
    conditions = edits_alone(arms, config, sae=sae)
    at_once = max(1, N_LOGITS // (max(len(row.ids) for row in rows) * len(model.unembedding)))
    advance = counting(progress, "price on benign text", len(conditions) * len(rows))
    return prices(model, conditions, rows, batch_size=min(batch_size, at_once), progress=advance)


def direct_effects(
    model: LoadedModel, arms: Sequence[Arm], words: Mapping[str, Sequence[str]]
) -> list[dict[str, DirectEffect]]:
    """What each arm's direction writes into the logits of the words; nothing of controls.

    Raises:
        DataError: the tokenizer knows no word of a group.
    """
    return [direct_effect(model, arm.direction, words) if arm.direction.kind not in CONTROLS else {} for arm in arms]
