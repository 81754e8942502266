"""Files and folders that are whole or absent, and that know what they were made of.

Every output folder holds a `manifest.json`. Its fingerprint covers what decides the result: kind, resolved config, the
fingerprints of the inputs, seed, and the version of the code that wrote it. Git commit, library versions and time are
recorded beside it and never compared.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from sae_persona.errors import ArtifactError

MANIFEST = "manifest.json"
_LIBRARIES = ("sae-persona", "torch", "transformers", "sae-lens", "transformer-lens", "peft", "numpy", "h5py")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what it was made of."""

    kind: str
    """The noun, such as `world`, `sae`, `ranking`."""
    config: Mapping[str, Any]
    """The resolved configuration, as JSON."""
    inputs: Mapping[str, str]
    """Fingerprints of what was read, by name."""
    seed: int
    version: int
    """Raised by hand in the module that writes the artifact, whenever the same inputs give another result."""
    versions: Mapping[str, str]
    """Installed libraries; recorded, not compared."""
    git_commit: str | None
    """Commit of the source tree; None for an installed package. Recorded, not compared."""
    created: str
    """UTC time in ISO format; recorded, not compared."""

    @cached_property
    def fingerprint(self) -> str:
        """Two artifacts with equal fingerprints hold the same result."""
        return fingerprint([self.kind, self.config, self.inputs, self.seed, self.version])

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json_text({**dataclasses.asdict(self), "fingerprint": self.fingerprint}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The manifest that `to_json` wrote.

        Raises:
            ArtifactError: the text is no manifest, or was changed by hand.
        """
        try:
            fields = json.loads(text)
            stated = fields.pop("fingerprint")
            manifest = cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"the manifest cannot be read ({error}). Delete the artifact and make it again."
            ) from error
        if stated != manifest.fingerprint:
            raise ArtifactError(
                f"the manifest states fingerprint {str(stated)[:12]}… and its entries give "
                f"{manifest.fingerprint[:12]}…: it was changed after it was written. "
                "Delete the artifact and make it again."
            )
        return manifest


def new_manifest(
    kind: str, *, config: Mapping[str, object], inputs: Mapping[str, str], seed: int, version: int
) -> Manifest:
    """A manifest of what is about to be made here and now."""
    return Manifest(
        kind=kind,
        config=json.loads(json_text(config)),
        inputs=dict(inputs),
        seed=seed,
        version=version,
        versions={"python": python_version(), **_library_versions()},
        git_commit=_git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def read_manifest(folder: Path | str) -> Manifest | None:
    """The manifest of an artifact folder; None where there is none.

    Raises:
        ArtifactError: the manifest is corrupt.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except (ArtifactError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {error}") from error


def is_done(folder: Path | str, manifest: Manifest) -> bool:
    """Whether `folder` already holds what `manifest` describes, so that making it may be skipped."""
    found = read_manifest(folder)
    return found is not None and (found.kind, found.fingerprint) == (manifest.kind, manifest.fingerprint)


def fingerprint(value: object) -> str:
    """SHA-256 in hex of a JSON value, or of the bytes behind a path; sequences and mappings may hold both.

    A folder counts with the relative names and bytes of all its files except every `manifest.json`, which holds a time.
    Dataclasses count as mappings.

    Raises:
        ArtifactError: a path that does not exist, or a number that is not finite.
    """
    if isinstance(value, Path):
        return _fingerprint_path(value)
    return hashlib.sha256(json_text(_paths_as_fingerprints(value), sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def write_folder(path: Path | str, manifest: Manifest) -> Iterator[Path]:
    """Yield a temporary sibling `NAME.partial-…` to fill; on success it gets the manifest and takes `path`'s place.

    An older artifact of the same kind is replaced at the end. After an error nothing of the new one is left and the old
    one is untouched; what a killed process left is removed by the next writer.

    Raises:
        ArtifactError: `path` holds something else, cannot be written, or the disk is full.
    """
    path = Path(path)
    _check_replaceable(path, manifest.kind)
    _make_folder(path.parent)
    _remove_abandoned(path)
    with _partial(path) as partial:
        _make_folder(partial)
        lock = _lock(partial)
        try:
            yield partial
            (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            _check_replaceable(path, manifest.kind)
            _put_in_place(partial, path)
        finally:
            if lock is not None:
                os.close(lock)


@contextlib.contextmanager
def write_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling `NAME.partial-…` to write; on success it takes the place of `path`.

    Raises:
        ArtifactError: `path` is a folder, cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, and a file is to be written there. Choose another name.")
    _make_folder(path.parent)
    with _partial(path) as partial:
        yield partial
        partial.replace(path)


@contextlib.contextmanager
def only_writer(path: Path | str) -> Iterator[None]:
    """Keep every other process that asks for the same from writing `path`, by a lock on the file `NAME.lock` beside it.

    The system frees the lock of a process that was killed; the file that it left is taken up and removed by the next.
    Where the system has no such locks, two writers at once are the user's to avoid.

    Raises:
        ArtifactError: another process writes `path`, or the file cannot be made.
    """
    path = Path(path)
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    _make_folder(path.parent)
    file = path.with_name(f"{path.name}.lock")
    with contextlib.ExitStack() as held:
        while True:
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CREAT, 0o666)
            except OSError as error:
                if error.errno in _DISK_FULL:
                    raise
                raise ArtifactError(f"{file} cannot be made: {error.strerror}. Choose another --out.") from error
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ArtifactError(f"{path} is being written by another process. Wait for it to end.") from error
            except OSError:
                pass  # a file system without locks
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    break  # else its last holder removed the file before it was locked here
        held.callback(file.unlink, missing_ok=True)  # before the lock is given back
        yield


def json_text(value: object, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON of a value in which dataclasses stand for objects; on one line without `indent`.

    Raises:
        ArtifactError: a number that is not finite.
    """
    try:
        return json.dumps(_plain(value), indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError as error:
        raise ArtifactError(f"a value holds a number that is not finite ({error}); JSON has none.") from error


def write_json(path: Path | str, value: object) -> None:
    """Write a JSON value or a dataclass, whole or not at all.

    Raises:
        ArtifactError: a number that is not finite, or a file that cannot be written.
    """
    text = json_text(value, indent=1)
    with write_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """The JSON value in a file.

    Raises:
        ArtifactError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}.") from error


def _plain(value: object) -> object:
    """Dataclasses as mappings and sequences as lists, all the way down; the rest as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(entry) for entry in value]
    return value


def _paths_as_fingerprints(value: object) -> object:
    value = _plain(value)
    if isinstance(value, dict):
        return {key: _paths_as_fingerprints(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_paths_as_fingerprints(entry) for entry in value]
    return _fingerprint_path(value) if isinstance(value, Path) else value


def _fingerprint_path(path: Path) -> str:
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist, so it has no fingerprint. Check the path.")
    files = sorted(
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file() and file.name != MANIFEST
    )
    return fingerprint({name: _fingerprint_path(path / name) for name in files})


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _git_commit() -> str | None:
    """The commit of the repository that tracks this very file; a copy installed inside another repository has none."""
    here = Path(__file__)
    for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
        try:
            answer = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        if answer.returncode != 0:
            return None
    return answer.stdout.strip()


def _check_replaceable(path: Path, kind: str) -> None:
    if path.is_file():
        raise ArtifactError(f"{path} is a file, and a folder is to be written there. Choose another --out.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    found = read_manifest(path)
    if found is None:
        raise ArtifactError(
            f"{path} is not empty and holds no {MANIFEST}, so it is not ours to replace. "
            "Choose another --out, or empty it."
        )
    if found.kind != kind:
        raise ArtifactError(
            f"{path} holds {_one(found.kind)}, and {_one(kind)} is to be written there. "
            "Choose another --out or delete it."
        )


def _one(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A sibling name that is gone when the context closes; a full disk becomes one clear error."""
    partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
    try:
        yield partial
    except BaseException as error:
        _remove(partial)
        # safetensors wraps the system's error in one of its own, so there the text has to do.
        if getattr(error, "errno", None) in _DISK_FULL or any(os.strerror(code) in str(error) for code in _DISK_FULL):
            raise ArtifactError(
                f"disk full while writing {path}; nothing of it was kept. Free some space and run again."
            ) from error
        raise


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise ArtifactError(f"folder {path} cannot be made: {error.strerror}. Choose another --out.") from error


def _put_in_place(partial: Path, path: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = path.with_name(f"{partial.name}-old")
    path.rename(old)
    partial.rename(path)
    _remove(old)


def _remove_abandoned(path: Path) -> None:
    """Remove the partial folders of killed writers: those that no living process holds locked."""
    for partial in path.parent.iterdir():
        is_partial = partial.is_dir() and partial.name.startswith(f"{path.name}.partial-")
        lock = _lock(partial) if is_partial else None
        if lock is not None:
            _remove(partial)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock `folder` until the descriptor is closed or the process ends; None where someone else does, or none can."""
    descriptor = None
    try:
        import fcntl  # POSIX only; elsewhere folders of killed writers stay until they are deleted by hand

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
