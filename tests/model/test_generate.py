"""A prompt's sample is its own: the seed, the prompt and the sample's number decide, and nothing else."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from sae_persona.data.tokens import prompt_row
from sae_persona.errors import ConfigError, DataError, HookError, ModelError
from sae_persona.model.fan_out import can_fan_out, n_blocks_before
from sae_persona.model.generate import HookedEdit, draw_tokens, sample
from sae_persona.model.hooks import Position, blocks
from sae_persona.model.load import LoadedModel
from sae_persona.types import Completion, Message, Prompt

HOOK = "blocks.0.hook_resid_post"
END = 5
FOUR_WORDS = ["w10 w11 w12 w13", "w20 w21 w22 w23", "w30 w31 w32 w33", "w40 w41 w42 w43", "w50 w51 w52 w53"]
MIXED = ["w10 w11 w12", "w20 w21 w22 w23", "w30 w31 w32 w33 w34 w35 w36", "w40 w41 w42 w43 w44", "w50 w51"]


def prompts(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(text, "open_ended", text, "frame", (Message("user", text),)) for text in texts]


def answers(model: LoadedModel, texts: Sequence[str], **changes: Any) -> list[list[Completion]]:
    return sample(model, prompts(texts), **{"n_samples": 3, "seed": 7, "max_new_tokens": 8, **changes})


def push(resid: Tensor, position: Position) -> Tensor:
    """Condition i moves every token by 4 i along one coordinate."""
    moved = resid.clone()
    moved[..., 3] += 4.0 * position.condition[:, None]
    return moved


def push_by_place(resid: Tensor, position: Position) -> Tensor:
    """The same from a row's third token on only, counted without padding."""
    assert position.index is not None
    return torch.where((position.index > 2)[..., None], push(resid, position), resid)


def count_rows(hf: PreTrainedModel, rows: list[int]) -> list[RemovableHandle]:
    """Add the number of rows that each block reads to a list, block by block and pass by pass."""

    def count(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    return [block.register_forward_pre_hook(count, with_kwargs=True) for block in blocks(hf)]


def with_head_scaled(model: LoadedModel, end: float = 1, *, all_tokens: float = 1) -> LoadedModel:
    """The model with another head: every token's logit multiplied, the end token's once more."""
    hf = copy.deepcopy(model.hf)
    hf.lm_head.weight.mul_(all_tokens)[END].mul_(end)  # pyright: ignore[reportAttributeAccessIssue]
    return LoadedModel(model.source, hf, model.tokenizer)


@pytest.fixture(scope="module")
def talker(loaded: LoadedModel) -> LoadedModel:
    """The tiny model with a liking for the end token: some answers end early, some never."""
    return with_head_scaled(loaded, 5)


# --- the shape of the answer -----------------------------------------------------------------------------------------


def test_answers_come_by_condition_then_prompt_then_sample(talker: LoadedModel) -> None:
    found = answers(talker, MIXED, n_conditions=2)
    assert [[(c.prompt_id, c.sample) for c in condition] for condition in found] == [
        [(text, i) for text in MIXED for i in range(3)]
    ] * 2


def test_an_answer_ends_before_its_first_stop_token(talker: LoadedModel) -> None:
    found = answers(talker, MIXED, n_samples=20)[0]
    assert {c.finished for c in found} == {True, False}
    for completion in found:
        assert talker.tokenizer.eos_token_id not in completion.token_ids
        assert completion.finished or len(completion.token_ids) == 8
        assert completion.answer == talker.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True)


def test_the_generation_config_may_name_more_stop_tokens(talker: LoadedModel) -> None:
    plain = answers(talker, FOUR_WORDS)[0]
    stop = plain[0].token_ids[2]
    hf = copy.deepcopy(talker.hf)
    hf.generation_config.eos_token_id = [END, stop]  # pyright: ignore[reportOptionalMemberAccess]
    stopped = answers(LoadedModel(talker.source, hf, talker.tokenizer), FOUR_WORDS)[0]
    assert stopped[0].token_ids == plain[0].token_ids[: plain[0].token_ids.index(stop)]
    assert all(stop not in completion.token_ids for completion in stopped)


def test_progress_counts_every_answer_once(talker: LoadedModel) -> None:
    steps: list[int] = []
    answers(talker, MIXED, n_conditions=2, batch_size=4, progress=steps.append)
    assert sum(steps) == len(MIXED) * 3 * 2
    assert max(steps) <= 4


# --- independence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_samples_do_not_depend_on_the_batch_size(talker: LoadedModel, batch_size: int) -> None:
    assert answers(talker, FOUR_WORDS, batch_size=batch_size) == answers(talker, FOUR_WORDS)


def test_samples_do_not_depend_on_the_other_prompts_or_their_order(talker: LoadedModel) -> None:
    together = answers(talker, MIXED)[0]
    for text in reversed(MIXED):
        assert answers(talker, [text])[0] == [c for c in together if c.prompt_id == text]
    backwards = answers(talker, MIXED[::-1])[0]
    assert sorted(backwards, key=lambda c: (MIXED.index(c.prompt_id), c.sample)) == together


def test_more_samples_leave_the_first_ones_as_they_were(talker: LoadedModel) -> None:
    many = answers(talker, FOUR_WORDS, n_samples=6)[0]
    assert [c for c in many if c.sample < 3] == answers(talker, FOUR_WORDS)[0]
    assert len({c.token_ids for c in many}) > 20


def test_every_prompt_sample_and_step_has_luck_of_its_own(talker: LoadedModel) -> None:
    """Where all tokens are equally likely, the token drawn tells the uniform number to a four-hundredth."""
    flat = answers(with_head_scaled(talker, all_tokens=0), FOUR_WORDS[:2], n_samples=40)[0]
    drawn = [completion.token_ids for completion in flat]
    neighbours = [
        *zip(drawn[:40], drawn[40:], strict=True),  # one sample number, two prompts
        *pairwise(drawn[:40]),  # one prompt, two samples
        *((ids, ids[1:]) for ids in drawn),  # two steps
    ]
    pairs = [pair for one, other in neighbours for pair in zip(one, other, strict=False)]
    assert len(pairs) > 1000
    assert sum(a == b for a, b in pairs) < 0.02 * len(pairs)


def test_a_longer_limit_only_continues_the_answers(talker: LoadedModel) -> None:
    short, long = (answers(talker, FOUR_WORDS, max_new_tokens=n)[0] for n in (3, 8))
    assert [c.token_ids for c in short] == [c.token_ids[:3] for c in long]


def test_another_seed_gives_other_samples(talker: LoadedModel) -> None:
    assert answers(talker, FOUR_WORDS, seed=8) != answers(talker, FOUR_WORDS)


def test_sampling_leaves_the_global_generators_untouched(talker: LoadedModel) -> None:
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    answers(talker, MIXED)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1][1])
    assert random.getstate() == before[2]


# --- the right distribution ------------------------------------------------------------------------------------------


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -2.0])
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000, dtype=np.float32))
    for temperature in (1.0, 0.5):
        drawn = draw_tokens(logits.expand(20_000, -1), uniforms, temperature)
        expected = 20_000 * torch.softmax(logits.double() / temperature, 0)
        assert chisquare(torch.bincount(drawn, minlength=6), expected).pvalue > 0.01


def test_a_uniform_number_falls_into_the_token_whose_share_of_the_line_it_lies_in() -> None:
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(6, -1)
    uniforms = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 0.999])
    assert draw_tokens(logits, uniforms, 1.0).tolist() == [0, 0, 1, 1, 2, 2]


def test_tokens_of_no_probability_are_never_drawn_even_at_the_ends() -> None:
    logits = torch.full((500, 50), float("-inf"))
    logits[:, 10:40] = torch.randn(500, 30, generator=torch.Generator().manual_seed(0))  # totals of many roundings
    nearly_one = float(np.nextafter(np.float32(1), np.float32(0)))
    assert draw_tokens(logits, torch.zeros(500), 1.0).tolist() == [10] * 500
    assert draw_tokens(logits, torch.full((500,), nearly_one), 1.0).tolist() == [39] * 500


def test_first_tokens_of_many_samples_follow_the_model_s_probabilities(talker: LoadedModel) -> None:
    asked = prompts(FOUR_WORDS[:1])[0]
    found = sample(talker, [asked], n_samples=3000, seed=1, max_new_tokens=1)[0]
    ids = torch.tensor([prompt_row(asked, talker.tokenizer).ids])
    expected = 3000 * torch.softmax(talker.hf(input_ids=ids).logits[0, -1].double(), 0)
    drawn = torch.tensor([c.token_ids[0] if c.token_ids else END for c in found])
    counts = torch.bincount(drawn, minlength=len(expected))
    common = expected > 5  # the chi-square approximation wants five or more in a cell
    observed = [*counts[common].tolist(), int(counts[~common].sum())]
    assert chisquare(observed, [*expected[common].tolist(), float(expected[~common].sum())]).pvalue > 0.01


def test_temperature_zero_is_greedy(family: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    found = answers(LoadedModel("family", family, tokenizer), MIXED, n_samples=1, temperature=0)[0]
    for prompt, completion in zip(prompts(MIXED), found, strict=True):
        ids = torch.tensor([prompt_row(prompt, tokenizer).ids])
        written = family.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
        ended = END in written
        assert completion.token_ids == tuple(written[: written.index(END)] if ended else written)
        assert completion.finished == ended


# --- batches ---------------------------------------------------------------------------------------------------------


def test_padded_rows_are_written_like_rows_alone(family: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    model = LoadedModel("family", family, tokenizer)
    passes: list[Position] = []
    look = HookedEdit(HOOK, lambda resid, position: passes.append(position) or resid)
    padded = answers(model, MIXED, edits=[look])
    assert not passes[0].mask.all()
    assert padded == answers(model, MIXED, batch_size=1)


def test_each_prompt_and_condition_is_read_once_and_finished_rows_are_dropped(talker: LoadedModel) -> None:
    shapes: list[tuple[int, int]] = []
    look = HookedEdit(HOOK, lambda resid, _: shapes.append((resid.shape[0], resid.shape[1])) or resid)
    answers(talker, FOUR_WORDS, n_samples=10, n_conditions=2, edits=[look], max_new_tokens=40)
    assert shapes[:2] == [(10, 7), (100, 1)]
    assert shapes[-1][0] < 50


def test_generation_stops_when_every_answer_has_ended(talker: LoadedModel) -> None:
    steps: list[int] = []
    look = HookedEdit(HOOK, lambda resid, _: steps.append(1) or resid)
    found = answers(with_head_scaled(talker, 5), FOUR_WORDS, edits=[look], max_new_tokens=50)[0]
    assert all(completion.finished for completion in found)
    assert len(steps) == 1 + max(len(completion.token_ids) for completion in found)


def test_a_model_that_cannot_leave_out_logits_gives_the_same_answers(talker: LoadedModel) -> None:
    class Plain(LlamaForCausalLM):
        def forward(self, input_ids: Tensor, **others: Any) -> Any:  # pyright: ignore
            assert "logits_to_keep" not in others
            return super().forward(input_ids, **others)

    hf = copy.deepcopy(talker.hf)
    hf.__class__ = Plain
    assert answers(LoadedModel("plain", hf, talker.tokenizer), MIXED) == answers(talker, MIXED)


# --- conditions and edits --------------------------------------------------------------------------------------------


def test_conditions_meet_the_same_noise(talker: LoadedModel) -> None:
    first, second, third = answers(talker, MIXED, n_conditions=3)
    assert first == second == third == answers(talker, MIXED)[0]


@pytest.mark.parametrize("batch_size", [4, 512])
def test_an_edit_of_one_condition_changes_only_its_rows(talker: LoadedModel, batch_size: int) -> None:
    plain, *edited = answers(
        talker, FOUR_WORDS, n_conditions=3, edits=[HookedEdit(HOOK, push)], max_new_tokens=20, batch_size=batch_size
    )
    assert plain == answers(talker, FOUR_WORDS, max_new_tokens=20)[0]
    for i, condition in enumerate(edited, start=1):

        def push_all(resid: Tensor, position: Position, i: int = i) -> Tensor:
            return push(resid, Position(position.mask, position.answer, position.newest, position.condition + i))

        assert condition == answers(talker, FOUR_WORDS, edits=[HookedEdit(HOOK, push_all)], max_new_tokens=20)[0]
        assert condition != plain


@pytest.mark.parametrize("texts", [FOUR_WORDS, MIXED])
@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_pre", HOOK, "blocks.1.hook_resid_pre", "last"])
def test_a_prompt_is_read_once_up_to_the_first_edit(
    family: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, hook_name: str, texts: list[str]
) -> None:
    model, n = LoadedModel("family", family, tokenizer), len(texts)
    hook_name = f"blocks.{model.n_layers - 1}.hook_resid_post" if hook_name == "last" else hook_name
    rows: list[int] = []
    handles = count_rows(family, rows)
    edit = HookedEdit(hook_name, push_by_place)
    found = answers(model, texts, n_samples=2, n_conditions=3, edits=[edit, HookedEdit(HOOK, lambda resid, _: resid)])
    for handle in handles:
        handle.remove()
    n_shared = min(n_blocks_before(family, hook_name), 1)  # the second edit is after the first block
    assert rows[: model.n_layers] == [n] * n_shared + [3 * n] * (model.n_layers - n_shared)
    for i, condition in enumerate(found):

        def alone(resid: Tensor, position: Position, i: int = i) -> Tensor:
            return push_by_place(resid, replace(position, condition=position.condition + i))

        assert condition == answers(model, texts, n_samples=2, edits=[HookedEdit(hook_name, alone)], batch_size=1)[0]
    assert found[0] != found[1] != found[2]


def test_a_model_that_needs_all_rows_from_the_start_reads_a_prompt_in_every_condition(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = GPTBigCodeConfig(vocab_size=400, n_embd=32, n_layer=3, n_head=2, n_positions=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = GPTBigCodeForCausalLM(config).eval()
    model, rows = LoadedModel("code", hf, tokenizer), []
    handles = count_rows(hf, rows)
    found = answers(model, MIXED, n_conditions=3, edits=[HookedEdit("blocks.1.hook_resid_post", push)])
    for handle in handles:
        handle.remove()
    assert rows[0] == 3 * len(MIXED)
    assert found[0] == answers(model, MIXED)[0]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_learned_prefixes_are_there_for_every_row(talker: LoadedModel) -> None:
    tuned = get_peft_model(copy.deepcopy(talker.hf), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert not can_fan_out(tuned.eval())
    assert can_fan_out(talker.hf)


def test_a_model_with_a_state_that_is_no_cache_of_keys_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    linear = {f"linear_{of}_head_dim": 8 for of in ("key", "value")} | {"linear_num_key_heads": 2}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    config = Qwen3NextConfig(
        **{**sizes, **linear, **experts, "linear_num_value_heads": 2, "shared_expert_intermediate_size": 16},
        **{"vocab_size": 400, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
        num_hidden_layers=2,
    )
    model = LoadedModel("states", Qwen3NextForCausalLM(config).eval(), tokenizer)
    with pytest.raises(ModelError, match=r"'states' keeps a state \(Linear.*\) whose rows cannot be copied"):
        answers(model, FOUR_WORDS)


def test_an_edit_is_told_what_each_token_is(talker: LoadedModel) -> None:
    passes: list[Position] = []
    look = HookedEdit(HOOK, lambda resid, position: passes.append(position) or resid)
    answers(talker, ["w10 w11 w12", "w20 w21 w22 w23"], n_samples=1, n_conditions=2, edits=[look], max_new_tokens=2)
    prompt, written = passes
    assert prompt.mask.tolist() == [[False, *[True] * 6]] * 2 + [[True] * 7] * 2
    assert prompt.newest.tolist() == [[*[False] * 6, True]] * 4
    assert not prompt.answer.any()
    assert prompt.condition.tolist() == [0, 1, 0, 1]
    assert prompt.index is not None
    assert prompt.index[:, -1].tolist() == [5, 5, 6, 6]
    assert written.index is not None
    assert written.index.tolist() == [[6], [6], [7], [7]]
    assert written.mask.all()
    assert written.newest.all()
    assert written.answer.all()
    assert written.mask.shape == (4, 1)
    assert written.condition.tolist() == [0, 1, 0, 1]


def test_several_edits_apply_together(talker: LoadedModel) -> None:
    there = HookedEdit(HOOK, lambda resid, _: resid + 2)
    back = HookedEdit(HOOK, lambda resid, _: resid - 2)
    assert answers(talker, FOUR_WORDS, edits=[there]) != answers(talker, FOUR_WORDS)
    assert answers(talker, FOUR_WORDS, edits=[there, back]) == answers(talker, FOUR_WORDS)


def test_edits_are_gone_after_sampling_and_after_an_error(talker: LoadedModel) -> None:
    plain = answers(talker, FOUR_WORDS)
    answers(talker, FOUR_WORDS, edits=[HookedEdit(HOOK, lambda resid, _: resid + 2)])
    with pytest.raises(HookError):
        answers(talker, FOUR_WORDS, edits=[HookedEdit(HOOK, push), HookedEdit("blocks.0.hook_resid_pst", push)])
    assert answers(talker, FOUR_WORDS) == plain
    assert not any(block._forward_hooks for block in talker.hf.model.layers)  # pyright: ignore


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_edit_that_breaks_the_numbers_is_named_as_the_cause(talker: LoadedModel) -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match=r"not finite numbers while sampling.*an edit .* most likely too strong"):
            answers(
                talker,
                FOUR_WORDS,
                edits=[HookedEdit(HOOK, lambda resid, _: resid * float("inf"))],
                temperature=temperature,
            )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "there are no prompts"),
        (prompts(["w10", "w11", "w10"]), "'w10' comes twice"),
        ([Prompt("p", "open_ended", "q", "f", ())], "prompt 'p' has no messages"),
        (
            prompts(["w9 " * 54]),
            "has 57 tokens; with an answer of up to 8 it exceeds the model's context of 64",
        ),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(talker: LoadedModel, asked: list[Prompt], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample(talker, asked, n_samples=1, seed=0, max_new_tokens=8)


@pytest.mark.parametrize(
    "change", [{"n_samples": 0}, {"max_new_tokens": 0}, {"batch_size": 0}, {"n_conditions": 0}, {"temperature": -1.0}]
)
def test_counts_below_one_and_negative_temperatures_are_refused(talker: LoadedModel, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        answers(talker, FOUR_WORDS, **change)
