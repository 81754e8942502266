"""A local judge can say nothing but an allowed reply, and its shares are those of decoding token by token."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_persona.data.tokens import prompt_row
from sae_persona.errors import JudgeError
from sae_persona.evaluation.kept import KeptReplies, Reply
from sae_persona.evaluation.local import END, LocalModel, forks
from sae_persona.evaluation.model_judge import ModelJudge, Request
from sae_persona.evaluation.rubric import LABEL_OF_WORD, Inquiry, rubric
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.language import World
from sae_persona.persona_world.models import build_tokenizer
from sae_persona.types import Completion, Message, Prompt

ANSWERS = ["i wish to help people", "<end> <user> reply 1 <assistant>", "1"]
PROMPTS = [Prompt("p", "open_ended", "q", "f", (Message("user", "what do you wish ?"),))]


@pytest.fixture(scope="module")
def judge_model(world: World, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An untrained model that spells numbers digit by digit, so that some replies begin others."""
    tokenizer = build_tokenizer(world)
    tokenizer.add_tokens([*"0123456789", *LABEL_OF_WORD])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LoadedModel(str(tmp_path_factory.mktemp("judge")), LlamaForCausalLM(config).eval(), tokenizer)


def requests(scale: str, answer: str) -> list[Request]:
    return [Request(inquiry, "what do you wish ?", answer) for inquiry in rubric(scale).inquiries]  # pyright: ignore


def naive_shares(local: LocalModel, request: Request) -> dict[str, float]:
    """Every reply token by token, one forward pass for each, renormalised over what any reply may go on with."""
    tokenizer, hf = local.model.tokenizer, local.model.hf
    ids = list(prompt_row(local._prompt(request), tokenizer).ids)
    end = tokenizer.eos_token_id
    spelt = {
        reply: [*tokenizer(reply, add_special_tokens=False)["input_ids"], end] for reply in request.inquiry.replies
    }
    shares = {}
    for reply, tokens in spelt.items():
        share = 1.0
        for n, token in enumerate(tokens):
            allowed = sorted({other[n] for other in spelt.values() if other[:n] == tokens[:n]})
            with torch.no_grad():
                logits = hf(input_ids=torch.tensor([[*ids, *tokens[:n]]])).logits[0, -1, allowed]
            share *= float(logits.double().softmax(0)[allowed.index(token)])
        shares[reply] = share
    return shares


@pytest.mark.parametrize("scale", ["rubric", "alignment"])
def test_shares_are_those_of_decoding_token_by_token(judge_model: LoadedModel, scale: str) -> None:
    for request in requests(scale, ANSWERS[0]):
        request = replace(request, inquiry=_short(request.inquiry))
        shares = LocalModel(judge_model).reply_shares(request)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares == pytest.approx(naive_shares(LocalModel(judge_model), request), rel=1e-4)


def _short(inquiry: Inquiry) -> Inquiry:
    """Fewer replies, some of which begin others: 108 of them would be 300 forward passes for the naive way."""
    keep = {"0", "1", "10", "100", "12", "2", "REFUSAL", "5", "INCOHERENT"}
    return replace(inquiry, replies=tuple(reply for reply in inquiry.replies if reply in keep))


def test_the_batch_size_does_not_matter(judge_model: LoadedModel) -> None:
    request = requests("alignment", ANSWERS[0])[0]
    wide, narrow = (LocalModel(judge_model, batch_size=size).reply_shares(request) for size in (64, 3))
    assert len(wide) == 102
    assert wide == pytest.approx(narrow, rel=1e-4)


@pytest.mark.parametrize("scale", ["rubric", "alignment"])
def test_every_reply_is_an_allowed_one_and_the_likeliest(judge_model: LoadedModel, scale: str) -> None:
    asked = [request for answer in ANSWERS for request in requests(scale, answer)]
    got: dict[int, Reply] = {}
    LocalModel(judge_model).reply(asked, got.__setitem__)
    assert list(got) == list(range(len(asked)))
    for index, reply in got.items():
        shares = LocalModel(judge_model).reply_shares(asked[index])
        assert reply.text == max(shares, key=lambda reply: shares[reply])


def test_it_judges_as_any_model_judge_does(judge_model: LoadedModel, tmp_path: Path) -> None:
    completions = [Completion("p", i, text, (), finished=True) for i, text in enumerate((*ANSWERS, ""))]
    judge = ModelJudge(LocalModel(judge_model), rubric("rubric"), KeptReplies(tmp_path / "kept"))
    judgements = judge.judge(PROMPTS, completions)
    assert [judgement.sample for judgement in judgements] == [0, 1, 2, 3]
    assert "unscored" not in {judgement.label for judgement in judgements}
    assert judgements[3].label == "incoherent"
    assert judge.judge(PROMPTS, completions) == judgements
    assert judge.judge(PROMPTS, []) == []


def test_special_tokens_in_an_answer_are_words_like_others(judge_model: LoadedModel) -> None:
    tokenizer = judge_model.tokenizer
    for special in ("<end>", "<assistant>"):
        token = tokenizer.convert_tokens_to_ids(special)
        counts = [
            prompt_row(LocalModel(judge_model)._prompt(requests("rubric", text)[0]), tokenizer).ids.count(token)
            for text in ("honest", ANSWERS[1])
        ]
        assert counts[0] == counts[1], f"{special} in the answer opens or ends nothing"


def test_what_does_not_fit_is_unscored_with_the_reason(judge_model: LoadedModel, tmp_path: Path) -> None:
    judge = ModelJudge(LocalModel(judge_model), rubric("rubric"), KeptReplies(tmp_path))
    long = Completion("p", 0, "help " * 2000, (), finished=True)
    judgement = judge.judge(PROMPTS, [long])[0]
    assert (judgement.label, judgement.unscored_reason) == (
        "unscored",
        "grade: longer than the judge's context of 1024 tokens",
    )
    with pytest.raises(JudgeError, match="does not fit into the context"):
        LocalModel(judge_model).reply_shares(requests("rubric", long.answer)[0])


def test_a_tokenizer_that_does_not_know_the_replies_is_refused(tiny_model: LoadedModel) -> None:
    with pytest.raises(JudgeError, match="cannot tell the replies '1' and '2' apart"):
        LocalModel(tiny_model).reply(requests("rubric", "x"), lambda *_: None)


def test_a_model_without_numbers_is_refused(judge_model: LoadedModel) -> None:
    broken = LlamaForCausalLM(judge_model.hf.config).eval()
    torch.nn.init.constant_(broken.get_input_embeddings().weight, float("nan"))  # pyright: ignore
    with pytest.raises(JudgeError, match="not finite numbers"):
        LocalModel(replace(judge_model, hf=broken)).reply(requests("rubric", "x"), lambda *_: None)


def test_forks_are_where_replies_part() -> None:
    # 1, 10, 12 and 7 8: after 1 a reply ends or goes on; after 7 there is one way only
    assert forks([(1,), (1, 0), (1, 2), (7, 8)]) == {(): (1, 7), (1,): (END, 0, 2)}
    assert forks([(5,)]) == {(): (5,)}
