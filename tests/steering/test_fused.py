"""Arms of every kind in one batch: each answers as it does alone, steered by the plain edit."""

import gc
import resource
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from sae_persona.errors import ConfigError
from sae_persona.model.generate import HookedEdit, sample
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction, latent_direction, random_directions
from sae_persona.steering.edits import AblateDirection, AddDirection, ClampLatent, Window
from sae_persona.steering.fused import Condition, fused_edits
from sae_persona.steering.sweep import Arm, SweepConfig, sweep
from sae_persona.types import Completion, Estimate, Prompt

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
CONFIG = SweepConfig(hook_name=HOOK, unit=2.0, window="all", n_samples=2, max_new_tokens=4, seed=5)
OPTIONS = {"n_samples": 2, "max_new_tokens": 4, "seed": 5}


def answers_of(
    model: LoadedModel, arms: list[Arm], prompts: list[Prompt], sae: "TopKSAE", config: SweepConfig = CONFIG
) -> list[list[list[Completion]]]:
    """The answers of every arm at every dose."""
    kept: dict[str, list[Completion]] = {}

    def measure(completions: list[Completion]) -> dict[str, Estimate]:
        kept[str(len(kept))] = completions
        number = float(len(kept) - 1)
        return {"number": Estimate(number, number, number, 1, 1, 0)}

    swept = sweep(model, arms, prompts, measure, config, sae=sae)
    return [[kept[str(int(dose.measures["number"].value))] for dose in arm] for arm in swept]


def alone(model: LoadedModel, prompts: list[Prompt], *edits: HookedEdit) -> list[Completion]:
    return sample(model, prompts, edits=edits, **OPTIONS)[0]


@pytest.mark.parametrize(("window", "from_token"), [("all", 0), ("header", 0), ("answer", 0), ("all", 6)])
def test_every_kind_of_edit_in_one_batch_answers_as_it_does_alone(
    tiny_model: LoadedModel, sae: "TopKSAE", few_prompts: list[Prompt], window: Window, from_token: int
) -> None:
    (d,) = random_directions(32, n=1, seed=0)
    pair = latent_direction(sae, 2, 7)
    where = {"window": window, "from_token": from_token}
    arms = [
        Arm(d, (0.0, 3.0)),
        Arm(d, (1.0,), "ablate"),
        Arm(pair, (0.5, 1.0), "ablate"),
        Arm(latent_direction(sae, 4), (0.0, 30.0), "clamp"),
        Arm(pair, (20.0,), "clamp", unit=1.5),
    ]
    together = answers_of(tiny_model, arms, few_prompts, sae, replace(CONFIG, **where))
    edits = [
        [None, AddDirection(d, 3.0, 2.0, **where)],
        [AblateDirection(d, **where)],
        [AblateDirection(pair, **where, strength=0.5), AblateDirection(pair, **where)],
        [None, ClampLatent(sae, 4, 0.0, **where), ClampLatent(sae, 4, 60.0, **where)],
        [None, ClampLatent(sae, (2, 7), 30.0, **where)],
    ]
    unsteered = alone(tiny_model, few_prompts)
    for arm, of_arm in zip(together, edits, strict=True):
        for answers, edit in zip(arm, of_arm, strict=True):
            assert answers == (alone(tiny_model, few_prompts, HookedEdit(HOOK, edit)) if edit else unsteered)
    if window == "all":
        assert together[0][1] != unsteered, "adding does something"
        assert together[3][2] != unsteered, "and so does clamping"


def test_an_arm_may_be_steered_at_several_hooks_at_once(
    tiny_model: LoadedModel, sae: "TopKSAE", few_prompts: list[Prompt]
) -> None:
    here, there = random_directions(32, n=2, seed=3)
    both = Arm(here, (3.0,), elsewhere={OTHER: there})
    config = replace(CONFIG, units={OTHER: 4.0})
    together = answers_of(tiny_model, [both, Arm(here, (3.0,)), Arm(there, (1.0,), "ablate")], few_prompts, sae, config)
    first, second = HookedEdit(HOOK, AddDirection(here, 3.0, 2.0)), HookedEdit(OTHER, AddDirection(there, 3.0, 4.0))
    assert together[0][0] == alone(tiny_model, few_prompts, first, second)
    assert together[1][0] == alone(tiny_model, few_prompts, first)
    assert together[0][0] != together[1][0]


def test_an_arms_own_unit_counts_before_the_sweeps(
    tiny_model: LoadedModel, sae: "TopKSAE", few_prompts: list[Prompt]
) -> None:
    (d,) = random_directions(32, n=1, seed=0)
    arms = [Arm(d, (3.0,)), Arm(d, (2.0,), unit=3.0), Arm(d, (6.0,), unit=1.0)]
    in_norms, of_three, absolute = answers_of(tiny_model, arms, few_prompts, sae)
    assert in_norms == of_three == absolute


def test_what_has_no_latents_cannot_be_clamped(sae: "TopKSAE") -> None:
    (d,) = random_directions(32, n=1, seed=0)
    with pytest.raises(ConfigError, match="has no latent to clamp"):
        fused_edits([Condition(Arm(d, (1.0,), "clamp"), 1.0)], CONFIG, n_unsteered=0, sae=sae)
    with pytest.raises(ConfigError, match="needs its SAE"):
        fused_edits([Condition(Arm(latent_direction(sae, 1), (1.0,), "clamp"), 1.0)], CONFIG, n_unsteered=0, sae=None)


def test_two_hundred_sweeps_leave_no_memory_and_no_edit_behind(
    tiny_model: LoadedModel, sae: "TopKSAE", few_prompts: list[Prompt]
) -> None:
    def once() -> None:
        arms = [Arm(latent_direction(sae, 3), (1.0,)), Arm(latent_direction(sae, 3), (1.0,), "clamp")]
        sweep(
            tiny_model,
            arms,
            few_prompts[:1],
            lambda _: {"x": Estimate(0, 0, 0, 1, 1, 0)},
            replace(CONFIG, n_samples=1, max_new_tokens=1),
            sae=sae,
        )

    ids = torch.tensor([[2, 30, 31, 32]])
    before = tiny_model.hf(ids).logits
    for _ in range(20):
        once()
    gc.collect()
    n_tensors = _tensors()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        once()
    gc.collect()
    assert _tensors() <= n_tensors
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20_000, "kilobytes: 100 a sweep would be a leak"
    assert torch.equal(tiny_model.hf(ids).logits, before)


def _tensors() -> int:
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_a_direction_of_a_set_spans_all_its_parts(sae: "TopKSAE") -> None:
    pair = latent_direction(sae, 2, 7)
    assert pair.parts is not None
    torch.testing.assert_close(pair.span @ pair.span.T, torch.eye(2))
    torch.testing.assert_close(pair.parts @ pair.span.T @ pair.span, pair.parts)
    lone = Direction("d", "latent", torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(lone.span, torch.tensor([[0.6, 0.8]]))
