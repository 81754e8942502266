"""Hooks read and edit exactly what they name, and leave no trace."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

from sae_persona.data.tokens import Part, TokenBatch, TokenRow, pad_rows
from sae_persona.errors import HookError, ModelError
from sae_persona.model.hooks import Position, blocks, edit_residual, hook_names, residuals, resolve_hook

ROUNDING = 2e-6
"""Padding changes the order of float32 sums; a wrong mask or position shows as 0.1 and more."""


def rows(*lengths: int) -> list[TokenRow]:
    ids = torch.randint(6, 400, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1)).tolist()
    return [TokenRow(tuple(r[:n]), (Part.PROMPT,) * n) for r, n in zip(ids, lengths, strict=True)]


def batch(*lengths: int, side: str = "right") -> TokenBatch:
    return pad_rows(rows(*lengths), pad_id=0, side=side)


def logits(model: PreTrainedModel, tokens: TokenBatch) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens.ids, attention_mask=tokens.mask.long(), position_ids=tokens.position_ids).logits


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


# --- names -----------------------------------------------------------------------------------------------------------


def test_every_block_has_a_hook_before_and_a_hook_after_it(family: PreTrainedModel) -> None:
    assert hook_names(family) == (
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_pre",
        "blocks.2.hook_resid_post",
    )
    assert resolve_hook(family, "blocks.1.hook_resid_pre") == (1, "pre")


def test_a_misspelt_hook_is_an_error_that_names_the_nearest(llama: PreTrainedModel) -> None:
    with pytest.raises(
        HookError, match=r"'blocks.0.hook_resid_pst' is not a hook.*nearest: 'blocks.0.hook_resid_post'"
    ):
        resolve_hook(llama, "blocks.0.hook_resid_pst")


def test_a_block_beyond_the_last_is_an_error_that_says_how_many_there_are(llama: PreTrainedModel) -> None:
    with pytest.raises(HookError, match="asks for block 3; this model has blocks 0 to 2"):
        resolve_hook(llama, "blocks.3.hook_resid_post")


@pytest.mark.parametrize("name", ["", "blocks.00.hook_resid_post", "blocks.-1.hook_resid_post", "model.layers.0"])
def test_no_other_spelling_is_taken_for_a_hook(llama: PreTrainedModel, name: str) -> None:
    with pytest.raises(HookError):
        residuals(llama, batch(3), [name])
    with pytest.raises(HookError), edit_residual(llama, name, lambda resid, _: resid):
        pass


def test_an_architecture_without_known_blocks_is_an_error() -> None:
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ModelError, match="BertModel keeps its blocks in none of the known places"):
        blocks(BertModel(config))


# --- reading ---------------------------------------------------------------------------------------------------------


def test_residuals_are_the_hidden_states_between_the_blocks(family: PreTrainedModel) -> None:
    tokens = batch(9, 9)
    with torch.no_grad():
        hidden = family(input_ids=tokens.ids, output_hidden_states=True).hidden_states
    taken = residuals(family, tokens, hook_names(family))
    for block in range(3):
        assert difference(taken[f"blocks.{block}.hook_resid_pre"], hidden[block]) < ROUNDING
    for block in range(2):
        assert difference(taken[f"blocks.{block}.hook_resid_post"], hidden[block + 1]) < ROUNDING


def test_the_last_residual_is_the_last_block_s_output_before_the_final_norm(family: PreTrainedModel) -> None:
    tokens = batch(9, 9)
    outputs = []
    handle = blocks(family)[2].register_forward_hook(lambda *call: outputs.append(call[-1]))
    logits(family, tokens)
    handle.remove()
    output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    taken = residuals(family, tokens, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"]
    assert difference(taken, output) < ROUNDING


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_the_residuals_of_real_tokens(family: PreTrainedModel, side: str) -> None:
    lengths = (4, 9, 12)
    padded = batch(*lengths, side=side)
    name = "blocks.2.hook_resid_post"
    taken = residuals(family, padded, [name])[name]
    for i, row in enumerate(rows(*lengths)):
        alone = residuals(family, pad_rows([row], pad_id=0), [name])[name][0]
        assert difference(taken[i][padded.mask[i]], alone) < ROUNDING


def test_residuals_of_one_hook_do_not_depend_on_the_others_asked_for(family: PreTrainedModel) -> None:
    tokens = batch(5, 8)
    together = residuals(family, tokens, hook_names(family))
    for name in hook_names(family):
        assert torch.equal(residuals(family, tokens, [name, name])[name], together[name])


@pytest.mark.parametrize(
    ("hook_name", "run"),
    [("blocks.0.hook_resid_pre", []), ("blocks.0.hook_resid_post", [0]), ("blocks.2.hook_resid_pre", [0, 1])],
)
def test_nothing_above_the_deepest_hook_is_computed(llama: PreTrainedModel, hook_name: str, run: list[int]) -> None:
    entered = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, i=i: entered.append(i))  # pyright: ignore[reportCallIssue]
        for i, block in enumerate(blocks(llama))
    ]
    residuals(llama, batch(4), ["blocks.0.hook_resid_pre", hook_name])
    for handle in handles:
        handle.remove()
    assert entered == run


def test_reading_takes_no_gradients_and_leaves_the_logits_bit_for_bit(family: PreTrainedModel) -> None:
    tokens = batch(5, 8)
    before = logits(family, tokens)
    trainable = copy.deepcopy(family).requires_grad_(True)
    taken = residuals(trainable, tokens, hook_names(family))
    assert not any(resid.requires_grad for resid in taken.values())
    assert torch.equal(logits(trainable, tokens), before)


# --- editing ---------------------------------------------------------------------------------------------------------


def test_an_edit_after_the_last_block_reaches_the_logits_through_norm_and_head_alone(llama: PreTrainedModel) -> None:
    planted = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    with edit_residual(llama, "blocks.2.hook_resid_post", lambda *_: planted):
        edited = logits(llama, batch(5, 5))
    assert torch.equal(edited, llama.lm_head(llama.model.norm(planted)))


def test_editing_after_a_block_equals_editing_before_the_next(family: PreTrainedModel) -> None:
    tokens = batch(5, 8)
    plain = logits(family, tokens)
    edited = []
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"):
        with edit_residual(family, name, lambda resid, _: resid * torch.linspace(0, 2, 32)):
            edited.append(logits(family, tokens))
    assert torch.equal(edited[0], edited[1])
    assert not torch.allclose(edited[0], plain, atol=0.01)


def test_a_hook_before_a_block_also_finds_hidden_states_passed_by_name(llama: PreTrainedModel) -> None:
    resid = torch.zeros(1, 2, 32)
    position = llama.model.rotary_emb(resid, torch.arange(2)[None])
    block = blocks(llama)[0]
    planted = torch.full((1, 2, 32), 3.0)
    with edit_residual(llama, "blocks.0.hook_resid_pre", lambda *_: planted):
        edited = block(hidden_states=resid, position_embeddings=position)
    assert torch.equal(edited, block(planted, position_embeddings=position))


def test_edits_at_one_hook_apply_in_the_order_they_were_entered(llama: PreTrainedModel) -> None:
    name = "blocks.1.hook_resid_post"
    tokens = batch(4)
    plain = residuals(llama, tokens, [name])[name]
    with (
        edit_residual(llama, name, lambda resid, _: resid + 1),
        edit_residual(llama, name, lambda resid, _: resid * 2),
    ):
        assert torch.equal(residuals(llama, tokens, [name])[name], (plain + 1) * 2)


def test_leaving_the_inner_edit_keeps_the_outer_one(llama: PreTrainedModel) -> None:
    name = "blocks.1.hook_resid_post"
    tokens = batch(4)
    plain = residuals(llama, tokens, [name])[name]
    with edit_residual(llama, name, lambda resid, _: resid + 1):
        with edit_residual(llama, name, lambda resid, _: resid * 2):
            pass
        assert torch.equal(residuals(llama, tokens, [name])[name], plain + 1)


def test_leaving_restores_the_logits_bit_for_bit(family: PreTrainedModel) -> None:
    tokens = batch(5, 8)
    before = logits(family, tokens)
    with edit_residual(family, "blocks.0.hook_resid_pre", lambda resid, _: resid * 2):
        with edit_residual(family, "blocks.1.hook_resid_post", lambda resid, _: resid * 3):
            assert not torch.equal(logits(family, tokens), before)
        assert not torch.equal(logits(family, tokens), before)
    assert torch.equal(logits(family, tokens), before)


@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"])
def test_an_edit_that_fails_leaves_nothing_behind(llama: PreTrainedModel, hook_name: str) -> None:
    tokens = batch(4)
    before = logits(llama, tokens)

    def fail(resid: Tensor, position: Position) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), edit_residual(llama, hook_name, fail):
        logits(llama, tokens)
    with pytest.raises(ZeroDivisionError), edit_residual(llama, hook_name, fail):
        residuals(llama, tokens, ["blocks.2.hook_resid_post"])
    assert torch.equal(logits(llama, tokens), before)


def test_gradients_flow_through_an_edit(llama: PreTrainedModel) -> None:
    shift = torch.zeros(32, requires_grad=True)
    with edit_residual(llama, "blocks.0.hook_resid_post", lambda resid, _: resid + shift):
        llama(input_ids=batch(4).ids).logits[0, -1, 5].backward()
    assert shift.grad is not None
    assert shift.grad.norm() > 0


def test_without_a_position_the_last_token_of_a_pass_is_newest_and_single_tokens_are_answers(
    llama: PreTrainedModel,
) -> None:
    seen: list[Position] = []

    def look(resid: Tensor, position: Position) -> Tensor:
        seen.append(position)
        return resid

    with edit_residual(llama, "blocks.0.hook_resid_post", look):
        llama.generate(batch(3, 3).ids, max_new_tokens=2, do_sample=False, eos_token_id=399)
    prompt, token = seen
    assert prompt.newest.tolist() == [[False, False, True]] * 2
    assert prompt.answer.tolist() == [[False] * 3] * 2
    assert prompt.mask.all()
    assert token.newest.tolist() == token.answer.tolist() == [[True]] * 2
    assert prompt.condition.tolist() == token.condition.tolist() == [0, 0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_blocks_of_a_peft_model_are_those_of_its_base(llama: PreTrainedModel) -> None:
    from peft import LoraConfig, get_peft_model

    base = copy.deepcopy(llama)
    wrapped = get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert blocks(wrapped) is base.model.layers  # pyright: ignore[reportArgumentType]
