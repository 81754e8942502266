"""Fused sweeps: the same answers as one arm at a time, and an unsteered model at strength 0."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from sae_persona.errors import ConfigError, HookError, IncompatibleError
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction, latent_direction, random_directions
from sae_persona.steering.sweep import Arm, SweepConfig, draw_answers, edits_alone, n_conditions, sweep
from sae_persona.types import Completion, Estimate, Prompt

if TYPE_CHECKING:
    from sae_lens import TopKSAE

CONFIG = SweepConfig(
    hook_name="blocks.0.hook_resid_post", unit=2.0, window="all", n_samples=2, max_new_tokens=4, seed=5
)


class Recorder:
    """A measure that keeps the answers of every condition, and names each by its number."""

    def __init__(self) -> None:
        self.answers: list[list[Completion]] = []

    def __call__(self, completions: list[Completion]) -> Mapping[str, Estimate]:
        self.answers.append(completions)
        number = float(len(self.answers) - 1)
        return {"number": Estimate(number, number, number, len(completions), 1, 0)}


def swept(
    model: LoadedModel, arms: Sequence[Arm], prompts: Sequence[Prompt], config: SweepConfig = CONFIG, **options: int
) -> list[list[list[Completion]]]:
    """The answers of every arm at every strength."""
    record = Recorder()
    doses = sweep(model, arms, prompts, record, config, **options)
    return [[record.answers[int(dose.measures["number"].value)] for dose in arm] for arm in doses]


def test_a_fused_sweep_equals_one_arm_at_a_time(tiny_model: LoadedModel, few_prompts: list[Prompt]) -> None:
    arms = [Arm(direction, (-3.0, 0.0, 3.0)) for direction in random_directions(32, n=3, seed=0)]
    together = swept(tiny_model, arms, few_prompts)
    alone = [swept(tiny_model, [arm], few_prompts)[0] for arm in arms]
    assert together == alone
    assert together[0][0] != together[0][2]  # and steering does something


def test_the_edits_of_a_condition_alone_give_its_answers(
    tiny_model: LoadedModel, few_prompts: list[Prompt], sae: "TopKSAE"
) -> None:
    (direction,) = random_directions(32, n=1, seed=0)
    arms = [
        Arm(direction, (0.0, 3.0)),
        Arm(latent_direction(sae, 4), (0.0, 30.0), "clamp", 1.0),
        Arm(direction, (1.0,), "ablate"),
    ]
    alone = edits_alone(arms, CONFIG, sae=sae)
    together = draw_answers(tiny_model, arms, few_prompts, CONFIG, sae=sae)
    assert len(alone) == len(together) == n_conditions(arms) == 5
    for edits, answers in zip(alone, together, strict=True):
        assert sample(tiny_model, few_prompts, n_samples=2, seed=5, max_new_tokens=4, edits=edits)[0] == answers
    assert edits_alone(arms[2:], CONFIG)[-1], "without a strength of 0 no condition is unsteered"


def test_strength_zero_is_the_unsteered_model(tiny_model: LoadedModel, few_prompts: list[Prompt]) -> None:
    (answers,) = swept(tiny_model, [Arm(random_directions(32, n=1, seed=0)[0], (0.0, 3.0))], few_prompts)
    assert answers[0] == sample(tiny_model, few_prompts, n_samples=2, seed=5, max_new_tokens=4)[0]


def test_strength_zero_is_sampled_once_and_shared(tiny_model: LoadedModel, few_prompts: list[Prompt]) -> None:
    record = Recorder()
    arms = [Arm(direction, (0.0, 1.0)) for direction in random_directions(32, n=3, seed=0)]
    doses = sweep(tiny_model, arms, few_prompts, record, CONFIG)
    assert len(record.answers) == 4  # three strengths of one, and one unsteered
    assert {arm[0].measures["number"].value for arm in doses} == {3.0}
    assert [[dose.strength for dose in arm] for arm in doses] == [[0.0, 1.0]] * 3


def test_a_dose_counts_in_units(tiny_model: LoadedModel, few_prompts: list[Prompt]) -> None:
    (direction,) = random_directions(32, n=1, seed=0)
    in_units = swept(tiny_model, [Arm(direction, (3.0,))], few_prompts)
    in_ones = swept(tiny_model, [Arm(direction, (6.0,))], few_prompts, replace(CONFIG, unit=1.0))
    assert in_units == in_ones


def test_a_sweep_without_an_arm_is_refused(tiny_model: LoadedModel, few_prompts: list[Prompt]) -> None:
    with pytest.raises(ConfigError, match="at least one arm"):
        swept(tiny_model, [], few_prompts)


def test_a_strength_that_is_no_number_is_refused(tiny_model: LoadedModel, few_prompts: list[Prompt]) -> None:
    with pytest.raises(ConfigError, match="nan is not a finite number"):
        swept(tiny_model, [Arm(random_directions(32, n=1, seed=0)[0], (float("nan"),))], few_prompts)


def test_a_direction_of_another_width_is_refused(tiny_model: LoadedModel, few_prompts: list[Prompt]) -> None:
    wide = Direction("wide", "latent", torch.ones(33))
    with pytest.raises(IncompatibleError, match="width 33; the model has d_model=32"):
        swept(tiny_model, [Arm(wide, (1.0,))], few_prompts)


def test_a_hook_the_model_lacks_is_refused(tiny_model: LoadedModel, few_prompts: list[Prompt]) -> None:
    arms = [Arm(random_directions(32, n=1, seed=0)[0], (1.0,))]
    with pytest.raises(HookError, match="blocks 0 to 1"):
        swept(tiny_model, arms, few_prompts, replace(CONFIG, hook_name="blocks.7.hook_resid_post"))
