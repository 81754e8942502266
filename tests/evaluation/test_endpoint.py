"""An endpoint may be busy, slow, broken or rude: nothing is lost, nothing is asked twice, and no key gets out."""

import asyncio
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from local_endpoint import Behave, Body, LocalEndpoint, Response, local_endpoint

from sae_persona.errors import ConfigError, JudgeError
from sae_persona.evaluation.endpoint import KEY, N_FAILURES, OPENAI_URL, Endpoint
from sae_persona.evaluation.kept import KeptReplies
from sae_persona.evaluation.model_judge import ModelJudge
from sae_persona.evaluation.rubric import rubric
from sae_persona.types import Completion, Judgement, Message, Prompt

PROMPTS = [Prompt("p", "open_ended", "q", "f", (Message("user", "what do you wish for?"),))]
SECRET = "sk-not-to-be-found-anywhere"
SAYS_500 = Response(status=500)


@pytest.fixture(autouse=True)
def _no_keys_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def endpoint(pauses: list[float]) -> Callable[..., Endpoint]:
    """An endpoint that waits for nothing, and notes how long it would have waited."""

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    def build(server: LocalEndpoint, **options: Any) -> Endpoint:
        return Endpoint("m", server.url, **{"timeout": 30.0, "pause": pause, **options})

    return build


@pytest.fixture
def judged(endpoint: Callable[..., Endpoint], tmp_path: Path) -> Callable[..., list[Judgement]]:
    """Judges n answers through a server."""

    def run(server: LocalEndpoint, n: int, scale: Any = "rubric", **options: Any) -> list[Judgement]:
        judge = ModelJudge(endpoint(server, **options), rubric(scale), KeptReplies(tmp_path / "kept"))
        return judge.judge(PROMPTS, [Completion("p", i, f"answer {i}", (), finished=True) for i in range(n)])

    return run


def in_turn(*responses: Response) -> Behave:
    """These, one after the other, and then grade 5."""
    return lambda body, n: responses[n] if n < len(responses) else Response("5")


def by_answer(responses: dict[str, Response]) -> Behave:
    """What an answer's text calls for, else grade 1."""

    def behave(body: Body, n: int) -> Response:
        said = body["messages"][-1]["content"]
        return next((response for text, response in responses.items() if f"\n{text}\n" in said), Response("1"))

    return behave


# What passes


@pytest.mark.parametrize(
    "trouble",
    [
        Response(status=429),
        Response(status=500),
        Response(status=503, body=b"<html>try later</html>"),
        Response(status=408),
        Response(cut=20),
        Response(body=b'{"choices": [{"message": {"conte'),
        Response(body=b""),
        Response(body=b"[]"),
        Response(body=b"[" * 100_000),
        Response(body=b'{"choices": []}'),
        Response(body=b'{"error": {"message": "upstream is busy"}}'),
    ],
    ids=[
        "429",
        "500",
        "503 html",
        "408",
        "hangs up",
        "truncated JSON",
        "no body",
        "a list",
        "brackets in brackets",
        "no choice",
        "error in 200",
    ],
)
def test_what_passes_is_tried_again(
    trouble: Response, judged: Callable[..., list[Judgement]], pauses: list[float]
) -> None:
    with local_endpoint(in_turn(trouble, trouble)) as server:
        assert [judgement.label for judgement in judged(server, 1)] == ["misaligned"]
        assert len(server.asked) == 3
    assert len(pauses) == 2
    assert 1 <= pauses[0] < 2 <= pauses[1] < 4, "1 s and 2 s, each with up to a second of jitter"


def test_a_reply_may_come_in_parts(judged: Callable[..., list[Judgement]]) -> None:
    parts = [{"type": "text", "text": "5"}, {"type": "image"}, {"type": "text", "text": ""}]
    body = json.dumps({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}).encode()
    with local_endpoint(in_turn(Response(body=body))) as server:
        assert [judgement.label for judgement in judged(server, 1)] == ["misaligned"]
        assert len(server.asked) == 1


def test_a_server_that_says_when_to_come_back_is_obeyed_within_a_minute(
    judged: Callable[..., list[Judgement]], pauses: list[float]
) -> None:
    waits = ["7", "100000", "soon", "-3"]
    with local_endpoint(in_turn(*(Response(status=429, headers={"Retry-After": wait}) for wait in waits))) as server:
        judged(server, 1)
    assert pauses[:2] == [7, 60]
    assert 4 <= pauses[2] < 6, "not a number of seconds: the usual back-off of the third try"
    assert 8 <= pauses[3] < 10


@pytest.mark.parametrize("slow", [Response(hang=True), Response(drip=0.05)], ids=["hangs", "trickles"])
def test_a_reply_must_be_complete_in_time(slow: Response, judged: Callable[..., list[Judgement]]) -> None:
    with local_endpoint(in_turn(slow)) as server:
        began = time.monotonic()
        assert judged(server, 1, timeout=0.5)[0].label == "misaligned"
        assert time.monotonic() - began < 7, "a byte every 50 ms would take 10 s, each of which resets a socket's clock"
        assert len(server.asked) >= 2


def test_tries_come_to_an_end_and_leave_the_answer_unscored_with_the_reason(
    judged: Callable[..., list[Judgement]],
) -> None:
    with local_endpoint(by_answer({"answer 1": SAYS_500})) as server:
        labels = judged(server, 3, n_tries=4)
        assert [judgement.label for judgement in labels] == ["aligned", "unscored", "aligned"]
        assert labels[1].unscored_reason == "grade: no reply after 4 tries: HTTP 500: told to say 500"
        assert len(server.asked) == 2 + 4
        server.behave = by_answer({})
        assert [judgement.label for judgement in judged(server, 3)] == ["aligned"] * 3
        assert server.answers[6:] == ["answer 1"], "only what had no reply is asked again"


# What is final


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response("I cannot judge this."), "not a reply of the scale: 'I cannot judge this.'"),
        (Response(None, refusal="I won't."), "refused: I won't."),
        (Response(None, finish="content_filter"), "refused by a content filter"),
        (Response("", finish="content_filter"), "refused by a content filter"),
        (Response(""), "empty reply"),
        (Response(None), "empty reply"),
        (Response("7"), "out of range: '7'"),
        (Response("-1"), "out of range: '-1'"),
        (Response("99999999999999999999"), "out of range"),
        (Response("fünf"), "not a reply of the scale: 'fünf'"),
        (Response("四"), "not a reply of the scale"),
        (Response("The answer shows that", finish="length"), "reply cut off by the limit on its length"),
        (Response("<think>is it 4 or 5"), "not a reply of the scale"),
    ],
)
def test_what_is_no_verdict_is_unscored_counted_and_not_paid_for_again(
    response: Response, reason: str, judged: Callable[..., list[Judgement]]
) -> None:
    with local_endpoint(by_answer({"answer 1": response})) as server:
        for _ in range(2):
            judgements = judged(server, 3)
            assert [judgement.label for judgement in judgements] == ["aligned", "unscored", "aligned"]
            assert reason in str(judgements[1].unscored_reason)
        assert sorted(server.answers) == ["answer 0", "answer 1", "answer 2"]


def test_thoughts_before_a_reply_are_not_the_reply(judged: Callable[..., list[Judgement]]) -> None:
    with local_endpoint(lambda body, n: Response("<think>\n5? No:\n1.</think>\n\n2")) as server:
        assert judged(server, 1)[0].score == 2


def test_a_reply_that_is_complete_counts_even_at_the_limit(judged: Callable[..., list[Judgement]]) -> None:
    with local_endpoint(lambda body, n: Response("2", finish="length")) as server:
        assert judged(server, 1)[0].score == 2


def test_a_request_that_is_refused_for_itself_does_not_stop_the_others(
    judged: Callable[..., list[Judgement]],
) -> None:
    too_long = Response(status=400, body=b'{"error": {"message": "maximum context length", "code": "too_long"}}')
    filtered = Response(status=400, body=b'{"error": {"message": "policy", "code": "content_filter"}}')
    with local_endpoint(by_answer({"answer 0": too_long, "answer 2": filtered})) as server:
        judgements = judged(server, 4)
        assert [judgement.label for judgement in judgements] == ["unscored", "aligned", "unscored", "aligned"]
        assert judgements[0].unscored_reason == "grade: no reply: HTTP 400: maximum context length"
        assert judgements[2].unscored_reason == "grade: refused by a content filter"
        assert len(server.asked) == 4


def test_many_requests_that_are_too_long_do_not_look_like_a_server_that_is_down(
    judged: Callable[..., list[Judgement]],
) -> None:
    with local_endpoint(lambda body, n: Response(status=413)) as server:
        assert {judgement.label for judgement in judged(server, 2 * N_FAILURES)} == {"unscored"}
        assert len(server.asked) == 2 * N_FAILURES


# What stops everything


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response(status=401), f"the key is refused .HTTP 401: told to say 401.. Check {KEY}"),
        (Response(status=403), "the key is refused"),
        (Response(status=404), "has no such model, or no chat completions .* a base URL mostly ends with /v1"),
        (
            Response(status=429, body=b'{"error": {"message": "pay", "code": "insufficient_quota"}}'),
            "quota is spent .HTTP 429: pay.. Replies received so far are kept",
        ),
    ],
)
def test_what_no_try_can_mend_stops_at_once(
    response: Response, message: str, judged: Callable[..., list[Judgement]]
) -> None:
    with local_endpoint(lambda body, n: response) as server:
        with pytest.raises(JudgeError, match=message):
            judged(server, 50, n_parallel=2)
        assert len(server.asked) <= 2


def test_a_server_that_goes_down_stops_the_judging_which_then_resumes(judged: Callable[..., list[Judgement]]) -> None:
    with local_endpoint(lambda body, n: Response("4") if n < 20 else SAYS_500) as server:
        with pytest.raises(JudgeError, match=f"{N_FAILURES} requests in a row failed, the last with: no reply after 2"):
            judged(server, 60, n_tries=2, n_parallel=1)
        done = server.answers[:20]
        assert len(server.asked) == 20 + 2 * N_FAILURES
        server.behave = lambda body, n: Response("4")
        assert [judgement.label for judgement in judged(server, 60)] == ["misaligned"] * 60
        assert sorted(done + server.answers[20 + 2 * N_FAILURES :]) == sorted(f"answer {i}" for i in range(60))


def test_failures_between_successes_stop_nothing(judged: Callable[..., list[Judgement]]) -> None:
    with local_endpoint(lambda body, n: SAYS_500 if n % 2 else Response("1")) as server:
        labels = [judgement.label for judgement in judged(server, 40, n_tries=1, n_parallel=1)]
    assert labels == ["aligned", "unscored"] * 20


def test_an_interrupted_judging_resumes_and_loses_no_reply(judged: Callable[..., list[Judgement]]) -> None:
    def behave(body: Body, n: int) -> Response:
        if n < 10:
            return Response("4")
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C, while the main thread waits
        return Response(hang=True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    with local_endpoint(behave) as server:
        try:
            with pytest.raises(KeyboardInterrupt):
                judged(server, 30, n_parallel=1)
        finally:
            signal.signal(signal.SIGINT, before)
        assert len(server.asked) == 11, "the request under way is given up, and no other is begun"
        server.behave = lambda body, n: Response("4")
        assert len(judged(server, 30)) == 30
        assert sorted(server.answers[:10] + server.answers[11:]) == sorted(f"answer {i}" for i in range(30))


# Pace, form and place


@pytest.mark.parametrize("n_parallel", [1, 3])
def test_as_many_requests_are_under_way_as_allowed(n_parallel: int, judged: Callable[..., list[Judgement]]) -> None:
    together = threading.Barrier(n_parallel, timeout=20)  # each waits until so many are there

    def behave(body: Body, n: int) -> Response:
        together.wait()
        return Response("1")

    with local_endpoint(behave) as server:
        assert [judgement.label for judgement in judged(server, 12, n_parallel=n_parallel)] == ["aligned"] * 12
        assert server.most_at_once == n_parallel


def test_requests_keep_the_rate(judged: Callable[..., list[Judgement]], pauses: list[float]) -> None:
    with local_endpoint() as server:
        judged(server, 5, per_minute=0.6, n_parallel=1)
    # One every 100 s, of which nobody really waits: the fifth would have to wait for almost 400 s.
    assert len(pauses) == 4
    assert all(pause == pytest.approx(100 * (i + 1), abs=40) for i, pause in enumerate(pauses))


def test_a_request_is_short_greedy_and_of_two_messages(judged: Callable[..., list[Judgement]]) -> None:
    with local_endpoint() as server:
        judged(server, 1)
        body = server.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 16)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_models_that_refuse_a_limit_or_a_temperature_are_asked_without(judged: Callable[..., list[Judgement]]) -> None:
    def behave(body: Body, n: int) -> Response:
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        elif "temperature" in body:
            message = "Unsupported value: 'temperature' does not support 0 with this model."
        else:
            return Response("1")
        return Response(status=400, body=json.dumps({"error": {"message": message, "param": "x"}}).encode())

    with local_endpoint(behave) as server:
        assert [judgement.label for judgement in judged(server, 12, n_parallel=4)] == ["aligned"] * 12
        learned = list(itertools.dropwhile(lambda body: "temperature" in body, server.asked))
    assert len(learned) == 12
    assert {body["max_completion_tokens"] for body in learned} == {4096}


def test_it_can_be_asked_from_a_running_event_loop_as_in_a_notebook(judged: Callable[..., list[Judgement]]) -> None:
    async def cell(server: LocalEndpoint) -> list[Judgement]:
        return judged(server, 2)

    with local_endpoint() as server:
        assert len(asyncio.run(cell(server))) == 2


# Checks and keys


@pytest.mark.parametrize("models", [Response(body=b'{"data": []}'), Response(status=404), Response(status=500)])
def test_whoever_answers_passes_the_check_and_is_asked_nothing(
    models: Response, judged: Callable[..., list[Judgement]]
) -> None:
    with local_endpoint() as server:
        server.models = models
        assert judged(server, 0) == []
        assert server.asked == []


def test_nobody_at_the_address_is_found_out_before_the_start() -> None:
    with local_endpoint() as server:
        url = server.url
    with pytest.raises(JudgeError, match=f"nobody answers at {url} .* Check the address"):
        Endpoint("m", url).check()


def test_a_server_that_never_answers_is_found_out_too(endpoint: Callable[..., Endpoint]) -> None:
    with local_endpoint() as server:
        server.models = Response(hang=True)
        with pytest.raises(JudgeError, match=r"nobody answers at .*timeout"):
            endpoint(server, timeout=0.2).check()


def test_a_refused_key_is_found_out_before_the_start(
    endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    said = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}"}}).encode()
    with local_endpoint() as server:
        server.models = Response(status=401, body=said)
        with pytest.raises(JudgeError, match=r"the key is refused .*provided: \[key\]") as caught:
            endpoint(server).check()
    assert SECRET not in str(caught.value)


def test_openai_needs_a_key_and_a_server_of_ones_own_does_not(judged: Callable[..., list[Judgement]]) -> None:
    with pytest.raises(JudgeError, match=f"needs a key, and neither {KEY} nor OPENAI_API_KEY is set"):
        Endpoint("gpt").check()
    with local_endpoint() as server:
        assert len(judged(server, 1)) == 1


def test_openais_key_goes_to_nobody_else(
    judged: Callable[..., list[Judgement]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with local_endpoint() as server:
        judged(server, 1)
        assert SECRET not in str(server.keys)
        monkeypatch.setenv(KEY, f" {SECRET}-2\n")
        judged(server, 2)
        assert f"Bearer {SECRET}-2" in server.keys


def test_a_key_that_cannot_be_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "schlüssel")
    with pytest.raises(JudgeError, match=f"the key in {KEY} holds characters that no key has") as caught:
        Endpoint("m", OPENAI_URL).check()
    assert "schl" not in str(caught.value)


def test_a_key_is_written_nowhere_even_if_the_server_repeats_it(
    judged: Callable[..., list[Judgement]], endpoint: Callable[..., Endpoint], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    echoes = {
        "answer 0": Response(f"Bearer {SECRET}"),
        "answer 1": Response(None, refusal=f"not for {SECRET}"),
        "answer 2": Response(status=400, body=json.dumps({"error": {"message": f"bad {SECRET}"}}).encode()),
        "answer 3": Response(f"Bearer {SECRET}", finish="length"),
    }
    with local_endpoint(by_answer(echoes)) as server:
        judgements = judged(server, 5)
        assert {judgement.label for judgement in judgements[:4]} == {"unscored"}
        assert SECRET not in repr(judgements)
        assert SECRET not in repr(endpoint(server)) + endpoint(server).name
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 4
    assert not any(SECRET in file.read_text() for file in files)


# Bad input


@pytest.mark.parametrize("missing", ["openai", "tenacity"])
def test_without_the_extra_it_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(JudgeError, match=r"needs .*, which is not installed. Install sae-persona\[judge\]"):
        Endpoint("m", "http://127.0.0.1:9/v1").check()


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http:///v1", "http://host:99999", "http://a b/v1", "http://["],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(JudgeError, match="expected https://HOST/v1"):
        Endpoint("m", url)


@pytest.mark.parametrize(
    "url", ["https://me:hunter2@host/v1", "https://hunter2@host/v1", "https://host/v1?key=hunter2"]
)
def test_an_address_that_holds_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(JudgeError, match="holds a password or a query") as caught:
        Endpoint("m", url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("option", ["n_parallel", "per_minute", "timeout", "n_tries", "max_reply_tokens"])
def test_counts_and_times_are_positive(option: str) -> None:
    with pytest.raises(ConfigError, match=f"a judge's {option} is 0; expected more than 0"):
        Endpoint("m", **{option: 0})


def test_replies_of_two_addresses_and_two_models_are_kept_apart() -> None:
    names = {Endpoint(model, url).name for model in ("m", "n") for url in ("http://a/v1", "http://b/v1")}
    assert len(names) == 4
