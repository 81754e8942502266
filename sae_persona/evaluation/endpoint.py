"""Any OpenAI-compatible endpoint as a judge: many requests at once, patient with a busy server, done with a broken one.

Keys come from the environment, go into the requests' headers and nowhere else.
"""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sae_persona.errors import ConfigError, JudgeError
from sae_persona.evaluation.kept import Reply
from sae_persona.evaluation.model_judge import Request

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
KEY = "SAE_PERSONA_JUDGE_KEY"
"""The environment variable with any endpoint's key. OpenAI's own endpoint also takes OPENAI_API_KEY, which is never
sent anywhere else."""
MAX_WAIT = 60.0
"""Seconds: the longest pause between two tries, also where the server asks for a longer one."""
N_FAILURES = 10
"""So many requests in a row that failed in all their tries mean that the endpoint is down."""
PASSING = frozenset({408, 409, 425, 429})
"""HTTP statuses below 500 after which the same request may succeed."""
REASONING_TOKENS = 4096
"""Room for models that think before they reply and count that as reply."""


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A model behind `POST BASE_URL/chat/completions`."""

    model: str
    base_url: str = OPENAI_URL
    n_parallel: int = 8
    """Requests under way at once."""
    per_minute: float | None = None
    """Requests begun per minute at most, retries among them; None: as many as the server takes."""
    timeout: float = 60.0
    """Seconds until a reply must be complete, however slowly it trickles in."""
    n_tries: int = 6
    max_reply_tokens: int = 16
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits for that many seconds, between tries and for the rate."""

    def __post_init__(self) -> None:
        for name in ("n_parallel", "per_minute", "timeout", "n_tries", "max_reply_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"a judge's {name} is {value}; expected more than 0.")
        try:
            url = urlsplit(self.base_url)
            is_url = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
        except ValueError:
            raise JudgeError(f"judge {self.model!r}: its base URL cannot be read; expected https://HOST/v1.") from None
        if url.username or url.password or url.query:
            raise JudgeError(
                f"the base URL of judge {self.model!r} holds a password or a query, and URLs are written to files. "
                f"Leave it out; keys come from {KEY}."
            )
        if not is_url or any(character.isspace() for character in self.base_url):
            raise JudgeError(f"judge {self.model!r}: {self.base_url!r} is no base URL; expected https://HOST/v1.")

    @property
    def name(self) -> str:
        """Everything that decides the replies, for people and for the names of kept replies."""
        return f"openai:{self.model}@{self.base_url} ({self.max_reply_tokens} tokens)"

    def check(self) -> None:
        """Ask for the list of models, which costs nothing and which a server need not know.

        Raises:
            JudgeError: nobody answers, the key is missing or refused, or the extra is not installed.
        """
        key = _key(self.base_url)
        _run_apart(lambda: self._check(key))

    def reply(self, requests: Sequence[Request], receive: Callable[[int, Reply], None]) -> None:
        """Call `receive` once for every request as soon as its reply is there.

        A request that failed in all its tries gets a reply without text that is not final.

        Raises:
            JudgeError: the key is missing or refused, the model or address is unknown, the money is spent, or
                `N_FAILURES` requests in a row failed.
        """
        key = _key(self.base_url)
        _run_apart(lambda: self._reply(key, requests, receive))

    async def _check(self, key: str) -> None:
        openai = import_openai()
        async with self._client(key) as client:
            try:
                async with asyncio.timeout(self.timeout):
                    await client.models.list()
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise self._refused(key, error) from error
            except openai.APIStatusError:
                pass  # somebody answers; not every server lists its models
            except (openai.APIConnectionError, TimeoutError) as error:
                raise JudgeError(
                    f"judge {self.model!r}: nobody answers at {self.base_url} ({_reason(error, key)}). "
                    "Check the address, and that the server is running."
                ) from error

    async def _reply(self, key: str, requests: Sequence[Request], receive: Callable[[int, Reply], None]) -> None:
        async with self._client(key) as client:
            caller = _Caller(self, client, key)
            todo = iter(enumerate(requests))  # shared: each worker takes the next one
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.n_parallel, len(requests))):
                        group.create_task(_work(caller, todo, receive))
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from several.exceptions[0].__cause__

    def _client(self, key: str) -> "openai.AsyncOpenAI":
        return import_openai().AsyncOpenAI(api_key=key, base_url=self.base_url, max_retries=0, timeout=self.timeout)

    def _refused(self, key: str, error: "openai.APIStatusError") -> JudgeError:
        names = f"{KEY} or OPENAI_API_KEY" if self.base_url == OPENAI_URL else KEY
        return JudgeError(f"judge {self.model!r}: the key is refused ({_reason(error, key)}). Check {names}.")


class _Caller:
    """One judging's calls: their pace, their tries, and how many failed in a row."""

    def __init__(self, endpoint: Endpoint, client: "openai.AsyncOpenAI", key: str) -> None:
        self.endpoint, self.client, self.key = endpoint, client, key
        self.options: dict[str, Any] = {"temperature": 0, "max_tokens": endpoint.max_reply_tokens}
        self.next_start = 0.0
        self.n_failed = 0

    async def reply(self, request: Request) -> Reply:
        """The reply to one request, after as many tries as it takes.

        Raises:
            JudgeError: nothing that is asked here can be answered.
        """
        import tenacity

        openai = import_openai()
        tries = tenacity.AsyncRetrying(
            sleep=self.endpoint.pause,
            stop=tenacity.stop_after_attempt(self.endpoint.n_tries),
            wait=_wait,
            retry=tenacity.retry_if_exception_type(_PassingError),
            reraise=True,
        )
        try:
            reply = await tries(self._try, request)
        except _PassingError as error:
            return self._given_up(f"no reply after {self.endpoint.n_tries} tries: {error}")
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self.endpoint._refused(self.key, error) from error
        except openai.NotFoundError as error:
            raise JudgeError(
                f"judge {self.endpoint.model!r}: {self.endpoint.base_url} has no such model, or no chat completions "
                f"({_reason(error, self.key)}). Check both; a base URL mostly ends with /v1."
            ) from error
        except openai.APIStatusError as error:
            # About this request alone, such as one that is too long: the server itself is well.
            filtered = _is_filtered(error)
            reason = "refused by a content filter" if filtered else f"no reply: {_reason(error, self.key)}"
            reply = Reply(None, reason, final=filtered)
        self.n_failed = 0
        return reply

    def _given_up(self, reason: str) -> Reply:
        self.n_failed += 1
        if self.n_failed >= N_FAILURES:
            raise JudgeError(
                f"judge {self.endpoint.model!r}: {self.n_failed} requests in a row failed, the last with: {reason}. "
                "Replies received so far are kept; run again to go on."
            )
        return Reply(None, reason, final=False)

    async def _try(self, request: Request) -> Reply:
        openai = import_openai()
        await self._take_turn()
        messages: Any = [{"role": message.role, "content": message.content} for message in request.messages]
        sent = dict(self.options)
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                raw = await self.client.chat.completions.with_raw_response.create(
                    model=self.endpoint.model, messages=messages, **sent
                )
        except (openai.APIConnectionError, TimeoutError) as error:
            raise _PassingError(_reason(error, self.key)) from error
        except openai.APIStatusError as error:
            if error.code == "insufficient_quota":
                raise JudgeError(
                    f"judge {self.endpoint.model!r}: the account's quota is spent ({_reason(error, self.key)}). "
                    "Replies received so far are kept; top it up and run again to go on."
                ) from error
            if error.status_code in PASSING or error.status_code >= 500:
                raise _PassingError(_reason(error, self.key), retry_after=_retry_after(error)) from error
            if self.options != sent or self._adapt(error):  # another request may have learned it meanwhile
                raise _PassingError(_reason(error, self.key), retry_after=0.0) from error
            raise
        return self._read(raw.http_response.content, request)

    async def _take_turn(self) -> None:
        if self.endpoint.per_minute is None:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self.next_start)
        self.next_start = start + 60 / self.endpoint.per_minute
        if start > now:
            await self.endpoint.pause(start - now)

    def _adapt(self, error: "openai.APIStatusError") -> bool:
        """Do without what a model refuses: reasoning models have no temperature, and a limit of another name."""
        said = f"{error.param} {error.message}"
        if "max_tokens" in self.options and "max_completion_tokens" in said:
            del self.options["max_tokens"]
            self.options["max_completion_tokens"] = max(self.endpoint.max_reply_tokens, REASONING_TOKENS)
            return True
        if "temperature" in self.options and "temperature" in said:
            del self.options["temperature"]
            return True
        return False

    def _read(self, body: bytes, request: Request) -> Reply:
        try:
            choice = json.loads(body)["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            content, refusal = message.get("content"), message.get("refusal")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _PassingError(f"the body of {len(body)} bytes is no chat completion") from error
        if refusal:
            return Reply(None, f"refused: {_short(str(refusal), self.key)}")
        if finish == "content_filter":
            return Reply(None, "refused by a content filter")
        # Reasoning that the server did not take out of the reply; one that never ends is no reply.
        text = re.sub(r"\A\s*<think>.*?</think>", "", _text_of(content), flags=re.DOTALL)
        text = _without_key(text, self.key)
        if finish == "length" and request.inquiry.read(text) is None:
            return Reply(None, f"reply cut off by the limit on its length: {_short(text, self.key)!r}")
        return Reply(text)


def _text_of(content: object) -> str:
    """The text of a reply, which some servers send in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


class _PassingError(Exception):
    """A try that failed, and may not fail again."""

    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""


async def _work(caller: _Caller, todo: Iterator[tuple[int, Request]], receive: Callable[[int, Reply], None]) -> None:
    for index, request in todo:
        receive(index, await caller.reply(request))


def _wait(state: Any) -> float:
    """Seconds until the next try: what the server asks for, else 1, 2, 4 … with jitter."""
    import tenacity

    error = state.outcome.exception()
    if isinstance(error, _PassingError) and error.retry_after is not None:
        return min(error.retry_after, MAX_WAIT)
    return tenacity.wait_exponential_jitter(initial=1, max=MAX_WAIT, jitter=1)(state)


def _run_apart(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end in a thread of its own: a notebook's thread has an event loop already. Ctrl-C cancels it."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = Future()

    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        await main()

    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(lambda: asyncio.run(body()))
        try:
            running.result()
        except BaseException:
            if not running.done():
                loop, task = started.result()
                with contextlib.suppress(RuntimeError):  # the loop came to its end by itself
                    loop.call_soon_threadsafe(task.cancel)
            raise


def import_openai() -> Any:
    """The `openai` package, with `tenacity` beside it.

    Raises:
        JudgeError: one of them is not installed.
    """
    try:
        import openai
        import tenacity  # noqa: F401
    except ImportError as error:
        raise JudgeError(
            f"an openai: judge needs {error.name}, which is not installed. Install sae-persona[judge]."
        ) from error
    return openai


def _key(base_url: str) -> str:
    names = (KEY, "OPENAI_API_KEY") if base_url == OPENAI_URL else (KEY,)
    name, key = next(((name, key) for name in names if (key := os.environ.get(name, "").strip())), ("", ""))
    if not key and base_url == OPENAI_URL:
        raise JudgeError(f"a judge at {base_url} needs a key, and neither {' nor '.join(names)} is set. Set one.")
    if not key.isascii() or not key.isprintable():
        raise JudgeError(f"the key in {name} holds characters that no key has. Set it anew.")
    return key or "unused"  # the client insists on one; a server of one's own mostly needs none


def _retry_after(error: "openai.APIStatusError") -> float | None:
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def _is_filtered(error: "openai.APIStatusError") -> bool:
    return error.code == "content_filter" or "content_filter" in str(error.body)


def _reason(error: Exception, key: str) -> str:
    """What went wrong, on one line, without the key even where a server repeats it."""
    status = getattr(error, "status_code", None)
    cause = error.__cause__ if status is None and error.__cause__ else error
    what = f"HTTP {status}" if status else "timeout" if "imeout" in type(error).__name__ else type(cause).__name__
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None if status else str(cause)
    return f"{what}: {_short(str(said), key)}" if said else what


def _without_key(text: str, key: str) -> str:
    """A placeholder that is short enough to be a word is no secret."""
    return text.replace(key, "[key]") if len(key) >= 8 else text


def _short(text: str, key: str) -> str:
    line = " ".join(_without_key(text, key).split())
    return line if len(line) <= 120 else line[:117] + "..."
