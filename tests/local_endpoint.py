"""A server on 127.0.0.1 that speaks the chat completions protocol and misbehaves on demand."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Response:
    """What is sent back; by default a well-formed completion that says `text`."""

    text: str | None = "1"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Sent instead of a completion."""
    finish: str = "stop"
    refusal: str | None = None
    hang: bool = False
    """Send nothing until the server is closed."""
    drip: float = 0.0
    """Seconds between two bytes."""
    cut: int | None = None
    """Promise all bytes, send so many, and hang up."""

    def payload(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": f"told to say {self.status}", "code": None}}).encode()
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return json.dumps(whole).encode()


Behave = Callable[[Body, int], Response]
"""From a request's body and its number (from 0) to what happens."""


@dataclass
class LocalEndpoint:
    """The server, and what it was asked."""

    behave: Behave
    url: str = ""
    asked: list[Body] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    most_at_once: int = 0
    at_once: int = 0
    models: Response = field(default_factory=lambda: Response(body=b'{"object": "list", "data": []}'))
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def answers(self) -> list[str]:
        """The judged texts, as they stood between the markers."""
        contents = [body["messages"][-1]["content"] for body in self.asked]
        return [content.split(" ANSWER\n")[1].split("\nDATA-")[0] for content in contents]


@contextlib.contextmanager
def local_endpoint(behave: Behave = lambda body, n: Response()) -> Iterator[LocalEndpoint]:
    """The server, running."""
    state = LocalEndpoint(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.keys.add(self.headers.get("Authorization", ""))
            self._send(state.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                n = len(state.asked)
                state.asked.append(body)
                state.keys.add(self.headers.get("Authorization", ""))
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                self._send(state.behave(body, n))
            finally:
                with state.lock:
                    state.at_once -= 1

        def _send(self, response: Response) -> None:
            if response.hang:
                state.closing.wait(10)
                self.close_connection = True
                return
            payload = response.payload()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(response.status)
                for name, value in response.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                if response.drip:
                    for byte in payload:
                        self.wfile.write(bytes([byte]))
                        if state.closing.wait(response.drip):
                            return
                    return
                self.wfile.write(payload if response.cut is None else payload[: response.cut])
            if response.cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
