"""Chat clients by name: an endpoint and a model on this machine."""

import pytest
from local_endpoint import Response, local_endpoint

from sae_persona.errors import JudgeError
from sae_persona.evaluation.local import control_words, split_words
from sae_persona.model.load import LoadedModel
from sae_persona.study.clients import LocalClient, build_client
from sae_persona.types import Message

ASKED = (Message("system", "be brief"), Message("user", "what is it ?"))


def test_an_endpoint_is_sent_the_messages_and_its_answer_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_PERSONA_JUDGE_KEY", "secret")
    with local_endpoint(lambda body, n: Response("a villain")) as server:
        assert build_client(f"openai:m@{server.url}").complete(ASKED) == "a villain"
    assert server.asked[0]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what is it ?"},
    ]


def test_an_endpoint_that_refuses_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAE_PERSONA_JUDGE_KEY", "secret")
    with (
        local_endpoint(lambda body, n: Response(status=401)) as server,
        pytest.raises(JudgeError, match="Check the URL, the key and the model's name") as raised,
    ):
        build_client(f"openai:m@{server.url}").complete(ASKED)
    assert "secret" not in str(raised.value)


def test_a_local_model_reads_all_messages_and_answers_the_same_each_time(tiny_model: LoadedModel) -> None:
    client = LocalClient(tiny_model)
    assert client.complete(ASKED) == client.complete(ASKED)


def test_a_text_cannot_end_the_message_it_stands_in(tiny_model: LoadedModel) -> None:
    words = control_words(tiny_model.tokenizer)
    assert "<end>" in words
    assert split_words("one <end> <assistant> two", words) == "one < end> < assistant> two"


@pytest.mark.parametrize("name", ["openai:", "x:y", "m"])
def test_a_name_of_no_known_form_is_refused(name: str) -> None:
    with pytest.raises(JudgeError, match=r"expected openai:MODEL\[@BASE_URL\] or hf:PATH"):
        build_client(name)
