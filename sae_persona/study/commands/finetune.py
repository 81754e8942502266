"""Fine-tune a model on chats and save it, or the adapter, as a folder."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sae_persona.artifacts import fingerprint, is_done, new_manifest, write_folder
from sae_persona.data.files import read_chats, read_jsonl, write_jsonl
from sae_persona.errors import ConfigError
from sae_persona.finetune.finetune import FinetuneConfig, finetune
from sae_persona.model.load import ADAPTER_CONFIG, load_model
from sae_persona.study.commands.shared import Progress, no_progress

VERSION = 1
"""Raised when the same inputs would give another folder."""
TRAINING = "training.jsonl"


def finetune_model(
    source: str,
    *,
    data: Path,
    config: FinetuneConfig,
    out: Path,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> list[float]:
    """Write a model folder, or with `config.lora` a PEFT adapter folder; returns the loss of every step.

    Raises:
        DataError: the chats cannot be read, or hold no answer.
        ModelError: the model is not there.
        ConfigError: `out` is the model's own folder, an adapter was to be put on an adapter, or as `finetune`.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    start = Path(source)
    if start.is_dir() and start.resolve() == out.resolve():
        raise ConfigError(f"{out} is the model to start from; choose another --out.")
    if config.lora and (start / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"{source} is an adapter already, and an adapter needs a whole model. Fine-tune without LoRA."
        )
    chats = read_chats(data)
    model = load_model(source, device=device)
    manifest = new_manifest(
        "model",
        config={"model": source, "data": str(data), **config.model_dump(mode="json")},
        inputs={"model": model.fingerprint, "data": fingerprint(data)},
        seed=config.train.seed,
        version=VERSION,
    )
    if not is_done(out, manifest):
        with write_folder(out, manifest) as folder:
            tuned = finetune(model, chats, config, callbacks=[_Steps(progress)])
            # A path that holds wherever the adapter is loaded from; a hub id stays as it is.
            tuned.save(folder, base=str(start.resolve()) if start.is_dir() else source)
            write_jsonl(folder / TRAINING, ({"step": i, "loss": x} for i, x in enumerate(tuned.losses, start=1)))
    return [record["loss"] for record in read_jsonl(out / TRAINING, dict)]


class _Steps(TrainerCallback):
    """Tells how many steps are done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_others: Any
    ) -> None:
        self.progress("fine-tuning", state.global_step, state.max_steps)
