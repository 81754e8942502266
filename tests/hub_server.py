"""What of the Hugging Face hub an upload talks to, on this machine: repositories, and the files that commits add."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_somebody"


class Hub:
    """Its repositories by name, each with its files by path."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """For a process that is to take this for the hub."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that listens until the context is left."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
            return
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                there = name in self._hub.repositories
                self._hub.repositories.setdefault(name, {})
                self._hub.private.setdefault(name, asked.get("visibility") == "private" or asked.get("private") is True)
                self._answer(409 if there else 200, {"url": f"{self._hub.url}/{name}", "name": name})
            case ["api", "validate-yaml"]:
                self._answer(200, {"errors": [], "warnings": []})
            case ["api", "models", user, name, "preupload", _]:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self._answer(200, {"files": files})
            case ["api", "models", user, name, "commit", _]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        self._hub.repositories[f"{user}/{name}"][line["value"]["path"]] = content
                url = f"{self._hub.url}/{user}/{name}/commit/0123456789"
                self._answer(200, {"commitUrl": url, "commitOid": "0123456789", "success": True})
            case _:
                self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["api", "models", user, name] if f"{user}/{name}" in self._hub.repositories:
                self._answer(200, {"id": f"{user}/{name}", "sha": "0123456789", "siblings": [], "tags": []})
            case ["api", "models", *_]:
                self._answer(404, {"error": "Repository not found"}, "RepoNotFound")
            case _:
                self._answer(404, {"error": "Entry not found"}, "EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    @property
    def _hub(self) -> Hub:
        return self.server.hub  # pyright: ignore[reportAttributeAccessIssue]

    def _answer(self, status: int, value: object, error: str | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Keep requests from stderr."""
