"""Edits of the residual stream: each does what its formula says, where its window says, and leaves no trace."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from sae_persona.data.tokens import Part, TokenBatch, TokenRow, pad_rows, prompt_row
from sae_persona.errors import ConfigError, HookError, IncompatibleError
from sae_persona.model.generate import HookedEdit, sample
from sae_persona.model.hooks import Edit, Position, residuals
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction
from sae_persona.steering.edits import (
    WINDOWS,
    AblateDirection,
    AddDirection,
    AddPerCondition,
    ClampLatent,
    Window,
    steer,
    window_mask,
)
from sae_persona.types import Prompt

if TYPE_CHECKING:
    from sae_lens import TopKSAE

HOOK = "blocks.0.hook_resid_post"
IDS = (2, 30, 31, 32, 40, 50)


def direction(seed: int = 0, width: int = 32) -> Direction:
    return Direction("d", "random_direction", torch.randn(width, generator=torch.Generator().manual_seed(seed)))


def batch() -> TokenBatch:
    return pad_rows([TokenRow(IDS, (Part.PROMPT,) * len(IDS))], pad_id=0)


def resid(model: LoadedModel) -> Tensor:
    return residuals(model.hf, batch(), [HOOK])[HOOK]


def logits(model: LoadedModel) -> Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([IDS])).logits


def test_ablating_a_direction_leaves_no_projection_on_it(tiny_model: LoadedModel) -> None:
    d = direction()
    assert (resid(tiny_model) @ d.vector).abs().max() > 1e-3
    with steer(tiny_model, HOOK, AblateDirection(d)):
        torch.testing.assert_close(resid(tiny_model) @ d.vector, torch.zeros(1, len(IDS)), atol=1e-6, rtol=0)


def test_ablating_leaves_what_is_orthogonal_as_it_was(tiny_model: LoadedModel) -> None:
    d = direction()
    before = resid(tiny_model)
    with steer(tiny_model, HOOK, AblateDirection(d)):
        after = resid(tiny_model)
    torch.testing.assert_close(after, before - (before @ d.vector)[..., None] * d.vector)


def test_adding_adds_strength_times_unit(tiny_model: LoadedModel) -> None:
    d = direction()
    before = resid(tiny_model)
    with steer(tiny_model, HOOK, AddDirection(d, strength=-0.4, unit=5.0)):
        assert torch.equal(resid(tiny_model), before + (-0.4 * 5.0) * d.vector)


def test_a_clamped_latent_moves_by_its_decoder_row_and_keeps_the_error(tiny_model: LoadedModel, sae: "TopKSAE") -> None:
    before = resid(tiny_model)
    latent = int(sae.encode(before)[0, 3].argmax())  # one that fires
    activation = sae.encode(before)[..., latent]
    assert activation[0, 3] > 0
    with steer(tiny_model, HOOK, ClampLatent(sae, latent, value=2.0)):
        after = resid(tiny_model)
    for i in range(len(IDS)):
        expected = before[0, i] + (2.0 - activation[0, i]) * sae.W_dec[latent]
        torch.testing.assert_close(after[0, i], expected)
    # The part that the SAE does not explain is the same before and after.
    changed = sae.encode(before)
    changed[..., latent] = 2.0
    torch.testing.assert_close(after - sae.decode(changed), before - sae.decode(sae.encode(before)), atol=1e-4, rtol=0)


def test_conditions_are_pushed_by_their_own_deltas() -> None:
    deltas = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    everything = torch.ones(3, 2, dtype=torch.bool)
    position = Position(everything, everything, everything, torch.tensor([1, 0, 1]))
    edited = AddPerCondition(deltas)(torch.zeros(3, 2, 2), position)
    assert edited[:, 0].tolist() == [[0.0, 10.0], [1.0, 0.0], [0.0, 10.0]]


def test_contexts_nest_and_leaving_restores_the_logits_bit_for_bit(tiny_model: LoadedModel) -> None:
    first, second = AddDirection(direction(1), 3.0), AddDirection(direction(2), 3.0)
    unsteered = logits(tiny_model)
    with steer(tiny_model, HOOK, first):
        once = logits(tiny_model)
        with steer(tiny_model, HOOK, second):
            assert not torch.equal(logits(tiny_model), once)
        assert torch.equal(logits(tiny_model), once)
    assert not torch.equal(once, unsteered)
    assert torch.equal(logits(tiny_model), unsteered)


def test_an_error_inside_leaves_no_edit_behind(tiny_model: LoadedModel) -> None:
    unsteered = logits(tiny_model)
    with pytest.raises(KeyError), steer(tiny_model, HOOK, AddDirection(direction(), 3.0)):
        raise KeyError
    assert torch.equal(logits(tiny_model), unsteered)


EXPECTED: dict[Window, Sequence[bool]] = {
    # padding, two prompt tokens of which the second is the newest
    "all": (False, True, True),
    "prompt": (False, True, True),
    "header": (False, False, True),
    "answer": (False, False, False),
    "newest": (False, False, True),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_never_selects_padding(window: Window) -> None:
    mask, newest = torch.tensor([[False, True, True]]), torch.tensor([[False, False, True]])
    position = Position(mask, torch.zeros_like(mask), newest, torch.zeros(1, dtype=torch.long))
    assert window_mask(window, position)[0, :, 0].tolist() == list(EXPECTED[window])


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_select_what_they_say_while_an_answer_is_written(
    tiny_model: LoadedModel, few_prompts: list[Prompt], window: Window
) -> None:
    passes: list[list[bool]] = []

    def watch(edit: AddDirection) -> Edit:
        def edited(before: Tensor, position: Position) -> Tensor:
            after = edit(before, position)
            passes.append((after != before).any(-1)[0].tolist())
            return after

        return edited

    edit = AddDirection(direction(), 0.01, window=window)
    n_prompt = len(prompt_row(few_prompts[0], tiny_model.tokenizer))
    sample(tiny_model, few_prompts[:1], n_samples=1, seed=0, max_new_tokens=3, edits=[HookedEdit(HOOK, watch(edit))])
    before, last, after = {
        "all": (True, True, True),
        "prompt": (True, True, False),
        "header": (False, True, False),
        "answer": (False, False, True),
        "newest": (False, True, True),
    }[window]
    assert passes[0] == [before] * (n_prompt - 1) + [last]
    assert passes[1:] == [[after]] * (len(passes) - 1)
    assert len(passes) > 1


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="not a finite number"):
        AddDirection(direction(), strength)


@pytest.mark.parametrize("edit", [AddDirection(direction(width=33), 1.0), AblateDirection(direction(width=33))])
def test_a_direction_of_another_width_is_refused(tiny_model: LoadedModel, edit: Edit) -> None:
    with pytest.raises(IncompatibleError, match="width 33; the model has d_model=32"), steer(tiny_model, HOOK, edit):
        pass


def test_a_hook_the_model_lacks_is_refused(tiny_model: LoadedModel) -> None:
    edit = AddDirection(direction(), 1.0)
    with pytest.raises(HookError, match="blocks 0 to 1"), steer(tiny_model, "blocks.2.hook_resid_post", edit):
        pass
