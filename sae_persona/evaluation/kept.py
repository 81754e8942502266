"""Judges' replies on disk, found again by what was asked of whom, so that no question is paid for twice."""

from dataclasses import dataclass
from pathlib import Path

from sae_persona.artifacts import fingerprint, read_json, write_json
from sae_persona.errors import ArtifactError


@dataclass(frozen=True)
class Reply:
    """What came back for one request: a text, or why there is none."""

    text: str | None
    reason: str | None = None
    """Why there is no text."""
    final: bool = True
    """False where asking again might help: a server that was down. Such replies are not kept."""


@dataclass(frozen=True)
class KeptReplies:
    """A folder with one small file per reply, named by a hash; several processes may share it.

    A file also holds what was asked, so that a verdict can be looked up by hand. It never holds a key.
    """

    folder: Path

    def get(self, key: str) -> Reply | None:
        """The reply that was kept under `key`; None where there is none that can be read."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            kept = read_json(path)
        except ArtifactError:
            return None  # a damaged file is as good as none: it is asked for again and replaced
        match kept:
            case {"reply": str() as text, "reason": None} if kept.get("key") == key:
                return Reply(text)
            case {"reply": None, "reason": str() as reason} if kept.get("key") == key:
                return Reply(None, reason)
        return None

    def put(self, key: str, reply: Reply, asked: object) -> None:
        """Keep a reply, and for readers what was asked.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        write_json(self._path(key), {"key": key, "reply": reply.text, "reason": reply.reason, "asked": asked})

    @staticmethod
    def key(*parts: object) -> str:
        """The name under which the reply to these is kept."""
        return fingerprint(list(parts))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
