"""Judges by name."""

import sys
from pathlib import Path

import pytest
from local_endpoint import local_endpoint

from sae_persona.errors import ArtifactError, ConfigError, JudgeError
from sae_persona.evaluation.endpoint import OPENAI_URL, Endpoint
from sae_persona.evaluation.model_judge import ModelJudge, Plan
from sae_persona.study.judges import CACHE, JudgeOptions, build_judge
from sae_persona.types import Completion, Message, Prompt

PROMPTS = [Prompt("p", "open_ended", "q", "f", (Message("user", "hello"),))]
COMPLETIONS = [Completion("p", i, f"answer {i}", (), finished=True) for i in range(3)]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))


@pytest.mark.parametrize("spec", ["", "world", "world:", "rule:x", "openai:", "openai: ", "hf:"])
def test_a_name_of_no_known_form_is_an_error(spec: str) -> None:
    with pytest.raises(JudgeError, match=r"expected world:DIR, openai:MODEL\[@BASE_URL\] or hf:PATH"):
        build_judge(spec)


@pytest.mark.parametrize(
    ("spec", "model", "url"),
    [
        ("openai:gpt-4o", "gpt-4o", OPENAI_URL),
        ("openai:qwen@http://localhost:8000/v1", "qwen", "http://localhost:8000/v1"),
        ("openai:org/name:free@https://host/api/v1/", "org/name:free", "https://host/api/v1"),
        ("openai:@cf/meta/llama@https://host/v1", "@cf/meta/llama", "https://host/v1"),
        ("openai:claude@20240229", "claude@20240229", OPENAI_URL),
    ],
)
def test_an_endpoint_is_a_model_and_perhaps_an_address(spec: str, model: str, url: str) -> None:
    judge = build_judge(spec, options=JudgeOptions("alignment", n_parallel=3, per_minute=60, max_reply_tokens=9))
    assert isinstance(judge, ModelJudge)
    assert isinstance(judge.respondent, Endpoint)
    asked = judge.respondent
    assert (asked.model, asked.base_url, asked.n_parallel, asked.per_minute) == (model, url, 3, 60)
    assert judge.name == f"openai:{model}@{url} (9 tokens), alignment scale 1"


def test_an_address_without_a_model_is_refused() -> None:
    with pytest.raises(JudgeError, match="'openai:' names no model"):
        build_judge("openai:@http://127.0.0.1:9/v1")


@pytest.mark.parametrize("target", ["gpt@localhost:8000", "gpt@localhost/v1", "gpt@host.org:80/v1"])
def test_an_address_without_http_is_taken_for_no_model(target: str) -> None:
    with pytest.raises(JudgeError, match=r"'openai:gpt@\.\.\.': a BASE_URL begins with http:// or https://"):
        build_judge(f"openai:{target}")


def test_replies_are_kept_for_every_later_judge(tmp_path: Path) -> None:
    plans: list[Plan] = []
    seen: list[tuple[int, int]] = []
    with local_endpoint() as server:
        for _ in range(2):
            spec = f"openai:m@{server.url}"
            judge = build_judge(spec, on_plan=plans.append, progress=lambda done, whole: seen.append((done, whole)))
            assert [judgement.label for judgement in judge.judge(PROMPTS, COMPLETIONS)] == ["aligned"] * 3
        assert len(server.asked) == 3
    assert [(plan.n_calls, plan.n_kept) for plan in plans] == [(3, 0), (0, 3)]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(list((tmp_path / "cache" / "replies").rglob("*.json"))) == 3


def test_more_calls_than_allowed_are_refused_before_the_first() -> None:
    with local_endpoint() as server:
        judge = build_judge(f"openai:m@{server.url}", options=JudgeOptions("alignment", max_calls=5))
        with pytest.raises(ConfigError, match="judging 3 answers takes 6 calls, and at most 5 are allowed"):
            judge.judge(PROMPTS, COMPLETIONS)
        assert server.asked == []


def test_without_the_extra_a_judge_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r"Install sae-persona\[judge\]"):
        build_judge("openai:gpt-4o")


def test_a_rule_has_no_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a rule: it has no scale, pace or limit"):
        build_judge(f"world:{tmp_path}", options=JudgeOptions("alignment"))


def test_a_world_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no persona world"):
        build_judge(f"world:{tmp_path}")
