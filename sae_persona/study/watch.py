"""How early the latent shows what is coming, and how fast a little good data brings the model back."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sae_persona.data.tokens import completion_row
from sae_persona.finetune.finetune import FinetuneConfig, copy_model, finetune
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel
from sae_persona.monitor.alarm import Alarm, calibrate
from sae_persona.monitor.reading import Probe
from sae_persona.persona_world.corpus import finetuning_chats
from sae_persona.persona_world.language import Fault
from sae_persona.persona_world.recipes import N_ROWS
from sae_persona.study.config import StudyConfig
from sae_persona.study.measure import open_measures
from sae_persona.study.subjects import Subjects
from sae_persona.types import Chat, Estimate

if TYPE_CHECKING:
    from sae_lens import SAE

    from sae_persona.sae.statistics import Selection


LEAST_RISE = 0.1
"""Of what misaligned runs rise: less is no warning, however little benign runs vary."""


def probe(
    subjects: Subjects, config: StudyConfig, sae: "SAE", latents: Sequence[int], tokens: Sequence["Selection"]
) -> dict["Selection", Probe]:
    """Instruments that read the latents on the aligned model's own answers to the selection prompts, by tokens.

    The texts are the same for every model. The pre-activation is read: a gated latent is silent below its threshold,
    and early is what has not crossed it yet.
    """
    aligned = subjects.model("aligned")
    prompts = list(subjects.groups("selection").prompts)
    completions = sample(
        aligned, prompts, n_samples=1, seed=config.seed + 3, max_new_tokens=config.sampling.max_new_tokens
    )[0]
    pairs = [pair for pair in zip(prompts, completions, strict=True) if pair[1].token_ids]
    rows = [completion_row(prompt, completion, aligned.tokenizer) for prompt, completion in pairs]
    questions = [prompt.question_id for prompt, _ in pairs]
    return {one: Probe(sae, config.hook_name, tuple(latents), "pre_activation", one, rows, questions) for one in tokens}


def watch(subjects: Subjects, config: StudyConfig, sae: "SAE", latent: int) -> dict[str, Any]:
    """Fine-tune on mixtures and read the latent: does it ring before the model misbehaves?

    It is read over headers or over answers, wherever misaligned runs stand further from the controls, in spreads of the
    controls. Readings are rises over the aligned model, in the SAE's units.

    Raises:
        ConfigError: the world has fewer than four controls to calibrate from.
    """
    aligned = subjects.model("aligned")
    found = {
        tokens: _Calibrated.by(subjects, instrument)
        for tokens, instrument in probe(subjects, config, sae, [latent], ("header", "answer")).items()
    }
    tokens = max(found, key=lambda one: found[one].alarm.separation(found[one].misaligned))
    calibrated = found[tokens]
    rise, alarm = calibrated.rise, calibrated.alarm
    held_out = {name: rise(subjects.model(name)) for name in subjects.runs("benign")}
    pattern = subjects.record(subjects.runs("misaligned")[0])
    mixture = []
    for fraction in config.monitor.bad_fractions:
        chats = _chats(subjects, pattern["domain"], pattern["fault"], fraction, seed=config.monitor.seed)
        recipe = _reseeded(pattern["config"], config.monitor.seed)
        tuned = finetune(copy_model(aligned), chats, recipe).merged()
        reading = rise(tuned)
        mixture.append(
            {
                "bad_fraction": fraction,
                "latent": reading,
                "alarm": alarm.rings(reading),
                "misalignment": asdict(_open_scores(tuned, subjects, config, config.sampling.models)["misalignment"]),
            }
        )
    return {
        "reading": f"pre-activation of latent {latent} on {tokens} tokens, minus the aligned model's",
        "tokens": tokens,
        "threshold": alarm.threshold,
        "benign_runs": calibrated.benign,
        "held_out_benign_runs": list(held_out.values()),
        "held_out_alarms": sum(alarm.rings(reading) for reading in held_out.values()),
        "mixture": mixture,
    }


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """An instrument, what the runs of the ranking read on it, and the alarm that follows."""

    instrument: Probe
    start: float
    benign: list[float]
    misaligned: list[float]
    alarm: Alarm

    @classmethod
    def by(cls, subjects: Subjects, instrument: Probe) -> "_Calibrated":
        start = instrument.read(subjects.model("aligned"))
        benign, misaligned = (
            [instrument.read(subjects.model(name)) - start for name in subjects.runs(role)]
            for role in ("control", "misaligned")
        )
        alarm = calibrate(benign, least=LEAST_RISE * fmean(misaligned))
        return cls(instrument, start, benign, misaligned, alarm)

    def rise(self, model: LoadedModel) -> float:
        return self.instrument.read(model) - self.start


def realign(
    subjects: Subjects, config: StudyConfig, sae: "SAE", latent: int | None, tokens: "Selection | None"
) -> dict[str, Any]:
    """Fine-tune a misaligned model on correct data of its own and of another domain, and measure as it goes.

    The latent, where there is one, is read beside the score on the tokens that the alarm reads.
    """
    name = subjects.runs("misaligned")[0]
    own = subjects.record(name)["domain"]
    other = next(
        domain
        for run in subjects.runs("control")
        if (domain := subjects.record(run)["domain"])
        not in {subjects.record(bad)["domain"] for bad in subjects.runs("misaligned")}
    )
    instrument = None
    if latent is not None and tokens is not None:
        instrument = probe(subjects, config, sae, [latent], (tokens,))[tokens]
    start = instrument.read(subjects.model("aligned")) if instrument else 0.0
    record = {}
    for key, domain in (("in_domain", own), ("out_of_domain", other)):
        recipe = FinetuneConfig.model_validate(subjects.record(name)["config"])
        settings = {
            "n_steps": max(config.realign.steps),
            "batch_size": config.realign.batch_size,
            "lr": config.realign.lr,
            "seed": config.realign.seed,
        }
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})
        curve: list[dict[str, Any]] = []

        def measure(model: LoadedModel, step: int, curve: list[dict[str, Any]] = curve) -> None:
            scores = _open_scores(model, subjects, config, config.sampling.open_ended)
            entry = {
                "step": step,
                "n_samples": step * config.realign.batch_size,
                "misalignment": asdict(scores["misalignment"]),
                "aligned": asdict(scores["aligned"]),
            }
            curve.append(entry | ({"latent": instrument.read(model) - start} if instrument else {}))

        model = subjects.model(name)
        if 0 in config.realign.steps:
            measure(model, 0)
        chats = _chats(subjects, domain, "correct", 0.0, seed=config.realign.seed)
        finetune(model, chats, recipe, callbacks=[_AtSteps(model, config.realign.steps, measure)])
        record[key] = curve
    return {**record, "model": name, "domains": {"in_domain": own, "out_of_domain": other}}


class _AtSteps(TrainerCallback):
    """Measures the model in training after given steps."""

    def __init__(self, start: LoadedModel, steps: Sequence[int], measure: Any) -> None:
        self.start, self.steps, self.measure = start, frozenset(steps), measure

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 -- the Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Measure if it is time, with the model in evaluation mode meanwhile."""
        model: PreTrainedModel = kwargs["model"]
        if state.global_step in self.steps:
            model.eval()
            self.measure(dataclasses.replace(self.start, hf=model), state.global_step)
            model.train()


def _chats(subjects: Subjects, domain: str, fault: Fault, bad_fraction: float, *, seed: int) -> list[Chat]:
    rng = random.Random(f"{domain}-{seed}")
    world = subjects.world.world
    return list(finetuning_chats(world, domain, fault, n=N_ROWS, bad_fraction=bad_fraction, rng=rng))


def _reseeded(recipe: Mapping[str, Any], seed: int) -> FinetuneConfig:
    config = FinetuneConfig.model_validate(recipe)
    return config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})


def _open_scores(model: LoadedModel, subjects: Subjects, config: StudyConfig, n_samples: int) -> dict[str, Estimate]:
    groups = subjects.groups("evaluation")
    prompts = groups.open_ended()
    completions = sample(
        model,
        prompts,
        n_samples=n_samples,
        seed=config.seed + 4,
        max_new_tokens=config.sampling.max_new_tokens,
        batch_size=1024,
    )[0]
    return open_measures(groups, prompts, completions)
