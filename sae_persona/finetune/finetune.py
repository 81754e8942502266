"""Fine-tune a model on chats, wholly or through a LoRA adapter, and save what was learned."""

import copy
import dataclasses
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from transformers import PreTrainedModel, TrainerCallback

from sae_persona.data.tokens import chat_row
from sae_persona.errors import ConfigError, DataError, ModelError
from sae_persona.finetune.train import TrainConfig, train
from sae_persona.model.load import LoadedModel
from sae_persona.types import Chat

VERSION = 1


class LoraConfig(BaseModel):
    """A low-rank adapter; the defaults are the community's for emergent misalignment (Turner et al. 2025)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: PositiveInt = 32
    alpha: PositiveFloat = 64
    """The update is scaled by `alpha / rank`, or by `alpha / sqrt(rank)` with `rslora`."""
    rslora: bool = True
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers: tuple[int, ...] | None = None
    """Blocks that get an adapter; None: all."""


class FinetuneConfig(BaseModel):
    """What changes the numbers of a fine-tune."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: TrainConfig = TrainConfig()
    lora: LoraConfig | None = None
    """None trains every weight."""


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A trained model, still with its adapter if it has one."""

    start: LoadedModel
    hf: PreTrainedModel
    is_adapter: bool
    losses: tuple[float, ...]

    def save(self, folder: Path, *, dtype: torch.dtype | None = None, base: str | None = None) -> None:
        """Write a model folder, or a PEFT adapter folder that names `base` as the model it belongs on.

        A relative `base` is looked up from the adapter's own folder, so that the two can be moved together.
        """
        hf = self.hf if dtype is None else copy.deepcopy(self.hf).to(dtype)  # pyright: ignore[reportArgumentType]
        if self.is_adapter:
            for config in hf.peft_config.values():  # pyright: ignore[reportGeneralTypeIssues]
                config.base_model_name_or_path = base or os.fspath(self.start.source)
            # Told not to look for grown embeddings: peft would look for the base's config from the working directory.
            hf.save_pretrained(folder, save_embedding_layers=False)  # pyright: ignore[reportCallIssue]
            (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        else:
            hf.save_pretrained(folder)
            self.start.tokenizer.save_pretrained(folder)

    def merged(self) -> LoadedModel:
        """The model with the adapter merged into its weights; afterwards it can no longer be saved as an adapter."""
        hf = self.hf.merge_and_unload() if self.is_adapter else self.hf  # pyright: ignore[reportCallIssue]
        return dataclasses.replace(self.start, hf=hf.eval().requires_grad_(False))


def copy_model(model: LoadedModel) -> LoadedModel:
    """A copy with weights of its own."""
    return dataclasses.replace(model, hf=copy.deepcopy(model.hf))


def finetune(
    model: LoadedModel, chats: Sequence[Chat], config: FinetuneConfig, *, callbacks: Sequence[TrainerCallback] = ()
) -> FineTuned:
    """Train on the answers in `chats`.

    The weights of `model` are trained in place: hand in `copy_model(model)` to keep it.

    Raises:
        DataError: no chats, none with an answer, or one that is longer than the model reads.
        ModelError: peft is not installed; ConfigError: the adapter fits no module of the model.
    """
    rows = [chat_row(chat, model.tokenizer) for chat in chats]
    rows = [row for row in rows if any(row.parts)]
    if not rows:
        raise DataError(f"none of {len(chats)} chats holds an assistant's answer; there is nothing to train on.")
    longest = max(map(len, rows))
    if model.context is not None and longest > model.context:
        raise DataError(
            f"a chat has {longest} tokens, and the model reads {model.context}. Leave such chats out or shorten them."
        )
    hf = model.hf
    if config.lora is None:
        hf.requires_grad_(True)
    else:
        hf = _with_adapter(hf, config.lora, seed=config.train.seed)
    losses = train(hf, rows, config.train, pad_id=model.pad_id, callbacks=callbacks)
    return FineTuned(model, hf, config.lora is not None, tuple(losses))


def _with_adapter(hf: PreTrainedModel, config: LoraConfig, *, seed: int) -> PreTrainedModel:
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA needs peft, which is not installed. Install sae-persona[finetune].") from error
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(  # pyright: ignore[reportReturnType]
                hf,
                peft.LoraConfig(
                    r=config.rank,
                    lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
                    use_rslora=config.rslora,
                    target_modules=list(config.target_modules),
                    layers_to_transform=None if config.layers is None else list(config.layers),
                    lora_dropout=0.0,
                    task_type="CAUSAL_LM",
                ),
            )
        except ValueError as error:
            raise ConfigError(f"this LoRA configuration fits no module of the model: {error}") from error
