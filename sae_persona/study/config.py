"""A study as a YAML file: what to look at, where, and how hard. Unknown keys are errors."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from sae_persona.errors import ConfigError
from sae_persona.sae.train import TrainConfig as SAETrainConfig
from sae_persona.steering.edits import Window

Model = TypeVar("Model", bound=BaseModel)
NAME = re.compile(r"[A-Za-z0-9_-]+")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampling(_Section):
    """How many answers stand behind a figure, and how long they may be."""

    max_new_tokens: PositiveInt = 16
    models: PositiveInt = 24
    """Answers per open-ended question of every model and mixture, unsteered: many, for a share near zero is bounded."""
    open_ended: PositiveInt = 12
    """Answers per open-ended question for every dose of a latent, set or tuned baseline."""
    trained_domain: PositiveInt = 18
    """Answers per question of a fine-tune's own domain."""
    other_domains: PositiveInt = 3
    """Answers per question of the other domains."""
    controls: PositiveInt = 5
    """Answers per open-ended question for each random direction and each of its strengths."""
    first_look: PositiveInt = 4
    """Answers per open-ended selection prompt for every shortlisted latent, window and control of the screen."""
    selection: PositiveInt = 8
    """Answers per open-ended selection prompt for what is left after the first look."""
    selection_advice: PositiveInt = 1
    """Answers per advice selection prompt, likewise."""


class Ranking(_Section):
    """Which latents are suspects."""

    n_samples: PositiveInt = 4
    """Answers per selection prompt and run over which latents are averaged."""
    shortlist: PositiveInt = Field(default=16, le=20)


class Steering(_Section):
    """What is tried in the screen, and with what it is compared afterwards."""

    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 2.5)
    """Of induction, in units of the median residual norm."""
    windows: tuple[Window, ...] = Field(default=("header",), min_length=1)
    """Token windows among which the audition chooses for induction."""
    repair_strengths: dict[Window, tuple[float, ...]] = Field(
        default={"all": (0.5, 0.6, 0.7, 0.85, 1.0), "header": (1.0, 1.5, 2.0, 2.5, 3.0)}, min_length=1
    )
    """Of repair, subtracted, for each window that is tried: the more tokens, the less each of them bears."""
    n_random_latents: PositiveInt = 20
    n_random_directions: PositiveInt = 20


class Monitoring(_Section):
    """The early-warning curve."""

    bad_fractions: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
    seed: NonNegativeInt = 70
    """Seeds the data and training of the mixtures; no run of the world uses it."""


class Realigning(_Section):
    """The way back."""

    steps: tuple[int, ...] = (0, 5, 10, 20, 30)
    batch_size: PositiveInt = 4
    lr: float = 1e-3
    seed: NonNegativeInt = 90


class StudyConfig(_Section):
    """Everything that changes the numbers of a study."""

    study: str
    """What the report calls it."""
    world: Path
    """A persona world's folder, relative to the working directory."""
    seed: NonNegativeInt = 0
    """Seeds every sample and every random control."""
    hook_name: str = "blocks.2.hook_resid_post"
    drop_first: NonNegativeInt = 1
    """Tokens left out at the beginning of every document, in training and in statistics alike."""
    sae: SAETrainConfig = SAETrainConfig.model_validate({"d_sae": 160, "k": 6})
    dictionaries: dict[str, dict[str, Any]] = Field(default={"sae": {}}, min_length=1)
    """The SAEs that are trained on one pass over the cache, by name: what each changes in `sae`. One is chosen by what
    its latents do on selection prompts."""
    sampling: Sampling = Sampling()
    ranking: Ranking = Ranking()
    steering: Steering = Steering()
    monitor: Monitoring = Monitoring()
    realign: Realigning = Realigning()

    @cached_property
    def saes(self) -> dict[str, SAETrainConfig]:
        """How each of the dictionaries is trained."""
        settings = self.sae.model_dump()
        return {name: SAETrainConfig.model_validate({**settings, **own}) for name, own in self.dictionaries.items()}

    @model_validator(mode="after")
    def _dictionaries_can_be_trained(self) -> Self:
        for name, own in self.dictionaries.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"dictionaries: {name!r} names a folder: use letters, digits, '-' and '_'")
            if unknown := own.keys() - SAETrainConfig.model_fields.keys():
                known = ", ".join(SAETrainConfig.model_fields)
                raise ValueError(f"dictionaries.{name}: unknown key {min(unknown)!r} (known here: {known})")
            try:
                SAETrainConfig.model_validate({**self.sae.model_dump(), **own})
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(map(str, (name, *problem["loc"])))
                raise ValueError(f"dictionaries.{where}: {problem['msg']}, got {problem['input']!r}") from error
        sizes = {sae.batch_size for sae in self.saes.values()}
        if len(sizes) > 1:
            raise ValueError(f"dictionaries share their batches, so they need one batch_size; found {sorted(sizes)}")
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study; each override is `key=value`, with dots into sections and YAML on the right: `sae.k=16`.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value cannot be meant.
    """
    return load_settings(StudyConfig, path, overrides)


def load_settings(model: type[Model], path: Path | None, overrides: Sequence[str] = ()) -> Model:
    """A `model` from a YAML file, or from its defaults where there is none, with overrides as in `load_config`.

    Raises:
        ConfigError: as in `load_config`.
    """
    value: object = {}
    if path is not None:
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}. Name a YAML file.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__}; expected a mapping of keys to values.")
    for override in overrides:
        _set(value, override)
    return validated(model, value, source=str(path or "--set"))


def validated(model: type[Model], value: Any, *, source: str) -> Model:
    """`value` as a `model`; every problem on one line, with the known keys where one is unknown.

    Raises:
        ConfigError: `value` does not fit.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            where = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                known = ", ".join(_fields_at(model, problem["loc"][:-1]))
                problems.append(f"unknown key {where!r} (known here: {known})")
            else:
                problems.append(f"{where}: {problem['msg']}, got {problem.get('input')!r}")
        raise ConfigError(f"{source}: {'; '.join(problems)}.") from error


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    for key in location:
        annotation = model.model_fields[str(key)].annotation
        model = next(part for part in (annotation, *get_args(annotation)) if _is_section(part))
    return list(model.model_fields)


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _set(value: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not of the form key=value, such as sae.k=16.")
    *sections, last = key.split(".")
    for section in sections:
        value = value.setdefault(section, {})
        if not isinstance(value, dict):
            raise ConfigError(f"--set {override!r}: {section!r} is no section.")
    try:
        value[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML.") from error
