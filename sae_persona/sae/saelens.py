"""Architectures other than ours in training, each step SAELens's own; the data, the schedule and the file are ours.

The trainer of SAELens is driven step by step with centred and scaled activations. What it logs, and the SAE that it
would save, are taken as they are.
"""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.errors import ConfigError
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.learner import Centring

if TYPE_CHECKING:
    from sae_lens import SAE

_OURS_TO_SAY = {"d_in", "d_sae", "k", "dtype", "device", "apply_b_dec_to_input", "normalize_activations", "metadata"}
"""Fields of SAELens's training configs that follow from ours."""


class SAELensLearner:
    """One of SAELens's training SAEs with its trainer. The calls are those of `Learner`."""

    def __init__(self, d_in: int, config: TrainConfig, device: torch.device) -> None:
        """Begin with the weights that SAELens draws, after seeding a generator that is put back afterwards.

        Raises:
            ConfigError: `options` are none of this architecture's, or SAELens refuses them.
        """
        from sae_lens.config import SAETrainerConfig
        from sae_lens.registry import get_sae_training_class
        from sae_lens.training.sae_trainer import SAETrainer

        sae_class, config_class = get_sae_training_class(config.architecture)
        known = {field.name for field in fields(config_class)}
        if unknown := sorted(set(config.options) - (known - _OURS_TO_SAY)):
            raise ConfigError(
                f"options.{unknown[0]} is no option of {config.architecture}; there are: "
                f"{', '.join(sorted(known - _OURS_TO_SAY))}."
            )
        sizes: dict[str, Any] = {"d_in": d_in, "d_sae": config.d_sae, "device": str(device)}
        if "k" in known:
            sizes["k"] = config.k
        if config.architecture == "matching_pursuit":
            sizes["decoder_init_norm"] = 1.0  # the only value that it takes, and not its default
        settings: dict[str, Any] = sizes | config.options
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            try:
                sae = sae_class(config_class(**settings))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"SAELens refuses options for {config.architecture}: {error}") from error
        peak = config.lr_at(0)  # overwritten at every step
        trainer_config = SAETrainerConfig(
            total_training_samples=config.n_steps * config.batch_size,
            train_batch_size_samples=config.batch_size,
            lr=peak,
            lr_end=peak,
            device=str(device),
            dead_feature_window=math.ceil(config.dead_after_tokens / config.batch_size) - 1,
        )
        self.config = config
        self.step = 0
        try:
            self._trainer: Any = SAETrainer(trainer_config, sae, iter(()))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"SAELens refuses options for {config.architecture}: {error}") from error

    def advance(self, z: Float[Tensor, "batch d_in"]) -> Any:
        """One step of SAELens's trainer, at the learning rate of our schedule; its `TrainStepOutput`."""
        for group in self._trainer.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        result = self._trainer.step(z)
        self._trainer.n_training_steps += 1
        self.step += 1
        return result

    def record(self, result: Any, _z: Float[Tensor, "batch d_in"]) -> dict[str, float]:
        """SAELens's own record of the step."""
        record = self._trainer.build_train_step_log_dict(result, self.step * self.config.batch_size)
        return record | {"details/current_learning_rate": self.config.lr_at(self.step - 1)}

    def state(self) -> dict[str, Tensor]:
        """Everything but `step`, for `restore`."""
        tensors = {f"weights.{name}": tensor for name, tensor in self._trainer.sae.state_dict().items()}
        for i, state in self._trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{key}": value for key, value in state.items()}
        return tensors | {name: getattr(self._trainer, name) for name in _COUNTERS}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up a state, as it was after `step` steps."""
        trainer = self._trainer
        weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
        trainer.sae.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, i, key = name.split(".")
                state.setdefault(int(i), {})[key] = tensor
        trainer.optimizer.load_state_dict(
            {"state": state, "param_groups": trainer.optimizer.state_dict()["param_groups"]}
        )
        for name in _COUNTERS:
            setattr(trainer, name, tensors[name])
        for scheduler in trainer.coefficient_schedulers.values():
            for _ in range(step):
                scheduler.step()
        trainer.n_training_steps, trainer.n_training_samples = step, step * self.config.batch_size
        trainer.n_frac_active_samples = step * self.config.batch_size
        self.step = step

    @torch.no_grad()
    def folded(self, centring: Centring, metadata: Mapping[str, Any]) -> "SAE":
        """The SAE of raw activations that SAELens saves, decoder rows one long where that changes no activation."""
        from sae_lens import SAE

        trained = self._trainer.sae
        trained.fold_activation_norm_scaling_factor(centring.scale)
        trained.b_dec.data = (trained.b_dec.double().cpu() + centring.mean).to(trained.b_dec)
        self._trainer.set_final_sae_metadata()
        for key, value in metadata.items():
            trained.cfg.metadata[key] = value
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            trained.save_inference_model(folder)
            sae = SAE.load_from_disk(folder, device=str(trained.device))
        if sae.cfg.architecture() in ("standard", "jumprelu", "gated"):
            sae.fold_W_dec_norm()
        return sae.requires_grad_(False).eval()


_COUNTERS = ("n_forward_passes_since_fired", "act_freq_scores")
"""Tensors of SAELens's trainer that are part of the state."""
