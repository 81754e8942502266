"""Edits of the residual stream: each does what its formula says, where its window says, and leaves no trace."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from sae_persona.data.tokens import Part, TokenBatch, TokenRow, pad_rows, prompt_row
from sae_persona.errors import ConfigError, HookError, IncompatibleError, SAEError
from sae_persona.model.generate import HookedEdit, sample
from sae_persona.model.hooks import Edit, Position, residuals
from sae_persona.model.load import LoadedModel
from sae_persona.steering.directions import Direction, latent_direction
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


def test_ablating_a_set_leaves_nothing_of_any_of_its_latents(tiny_model: LoadedModel, sae: "TopKSAE") -> None:
    with steer(tiny_model, HOOK, AblateDirection(latent_direction(sae, 2, 7))):
        projections = resid(tiny_model) @ sae.W_dec[[2, 7]].T
    torch.testing.assert_close(projections, torch.zeros(1, len(IDS), 2), atol=1e-4, rtol=0)


def test_ablating_half_leaves_half(tiny_model: LoadedModel) -> None:
    d = direction()
    before = resid(tiny_model) @ d.vector
    with steer(tiny_model, HOOK, AblateDirection(d, strength=0.5)):
        torch.testing.assert_close(resid(tiny_model) @ d.vector, before / 2, atol=1e-5, rtol=1e-4)


def test_latents_of_a_set_are_held_at_once_by_what_they_were_before(tiny_model: LoadedModel, sae: "TopKSAE") -> None:
    before = resid(tiny_model)
    activations = sae.encode(before)[..., [1, 5]]
    with steer(tiny_model, HOOK, ClampLatent(sae, (1, 5), 2.0)):
        after = resid(tiny_model)
    expected = before + (2 - activations[..., :1]) * sae.W_dec[1] + (2 - activations[..., 1:]) * sae.W_dec[5]
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)


def test_all_kinds_of_edits_nest_and_an_error_undoes_them_bit_for_bit(tiny_model: LoadedModel, sae: "TopKSAE") -> None:
    unsteered = logits(tiny_model)
    edits = [AddDirection(direction(), 3.0), AblateDirection(direction(1)), ClampLatent(sae, 3, 9.0)]
    with pytest.raises(KeyError), contextlib.ExitStack() as stack:
        for edit in edits:
            stack.enter_context(steer(tiny_model, HOOK, edit))
        assert not torch.equal(logits(tiny_model), unsteered)
        raise KeyError
    assert torch.equal(logits(tiny_model), unsteered)


def test_tokens_before_the_first_to_be_steered_are_left_alone(tiny_model: LoadedModel) -> None:
    before = resid(tiny_model)
    with steer(tiny_model, HOOK, AddDirection(direction(), 3.0, from_token=4)):
        changed = (resid(tiny_model) != before).any(-1)[0].tolist()
    assert changed == [False, False, False, False, True, True]


def test_tokens_are_counted_without_padding_and_on_into_the_answer(
    tiny_model: LoadedModel, few_prompts: list[Prompt]
) -> None:
    """Steered from behind its prompt on, a row answers as where answers are steered, whatever padding it has."""
    lengths = [len(prompt_row(prompt, tiny_model.tokenizer)) for prompt in few_prompts]
    assert len(set(lengths)) > 1
    options = {"n_samples": 2, "seed": 0, "max_new_tokens": 4, "batch_size": 64}
    for prompt, length in zip(few_prompts, lengths, strict=True):
        counted = HookedEdit(HOOK, AddDirection(direction(), 9.0, from_token=length))
        named = HookedEdit(HOOK, AddDirection(direction(), 9.0, window="answer"))
        padded = sample(tiny_model, few_prompts, edits=[counted], **options)[0]
        assert [one for one in padded if one.prompt_id == prompt.id] == [
            one for one in sample(tiny_model, few_prompts, edits=[named], **options)[0] if one.prompt_id == prompt.id
        ]


def test_a_model_that_does_not_count_its_tokens_is_not_steered_by_their_number() -> None:
    everything = torch.ones(1, 2, dtype=torch.bool)
    position = Position(everything, everything, everything, torch.zeros(1, dtype=torch.long))
    with pytest.raises(HookError, match="from token 3 on"):
        window_mask("all", position, 3)


def test_a_latent_the_sae_lacks_cannot_be_held_nor_at_no_number(sae: "TopKSAE") -> None:
    with pytest.raises(SAEError, match="latent 12 is not in this SAE"):
        ClampLatent(sae, (3, 12), 1.0)
    with pytest.raises(ConfigError, match="nan is not a finite number"):
        ClampLatent(sae, 3, float("nan"))
