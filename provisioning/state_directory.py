"""The state directory: made private, marked as Muster's, owned by one service at a time."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import sqlite3
import time
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from broker.private_files import (
    FILE_MODE,
    NotOursError,
    check_ours,
    first_loose,
    make_private_directory,
    tighten,
    write_private,
)

from .errors import StateBusyError, StateError, StateVersionError

STATE_FORMAT = 1
MARKER = "muster.json"
SERVICE_RECORD = "service.json"
"""Where clients find the service; there while it runs."""
_LOCK = "service.lock"
# All that a state directory holds. What has another name is not ours.
OWN_FILES = (
    MARKER,
    SERVICE_RECORD,
    "demo.json",
    "service.log",
    "signing.key",
    "trusted.keys",
    "group.key",
    "broker.password",
    "api.token",
    "api-read.token",
    "engine.db*",
    "registry.db*",
    "*.lock",
    f".*.{'[0-9a-f]' * 16}.part",
)
OWN_DIRECTORIES = ("stack", "fleets", "releases", "ca")


def prepare_state_directory(path: Path) -> None:
    """Make the state directory (mode 0700), or check that an existing one is ours and readable by us.

    What is in an existing one is made its owner's alone. Raises StateError where it can't be used, or others
    could have put something into it, and StateVersionError where a newer version made it.
    """
    marker = path / MARKER
    try:
        make_private_directory(path)
        _make_private(path)
        if not marker.exists():
            write_atomically(marker, {"format": STATE_FORMAT, "created_at": iso(time.time())})
            return
        text = marker.read_text(encoding="utf-8")
    except NotOursError as error:
        raise StateError(
            f"{error.filename} belongs to another user, who could change the state. Run Muster as that user, "
            f"take it over (chown), or choose another state directory, with --state-dir."
        ) from error
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        found = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StateVersionError(
            f"{marker} is not Muster's. Choose another state directory, or remove the file."
        ) from error
    if not isinstance(found, int) or found > STATE_FORMAT:
        raise StateVersionError(
            f"{path} was made by a newer version of Muster (format {found}; this one reads {STATE_FORMAT}). "
            f"Use that version, or another state directory."
        )


def _make_private(path: Path) -> None:
    """Take the rights of others off the directory and what is Muster's in it; the rest is somebody's own."""
    status = path.stat()
    check_ours(path, status)
    entries = list(path.iterdir())
    ours = [entry for entry in entries if is_ours(entry.name)]
    if status.st_mode & 0o077:
        if len(ours) < len(entries) and not (path / MARKER).exists():
            raise StateError(
                f"{path} has other things in it, and may be read by others: the state would be too. Choose "
                f"an empty or new directory, with --state-dir, or `chmod 700 {path}`."
            )
        path.chmod(0o700)
    for entry in ours:
        tighten(entry)


def loose_state(path: Path) -> Path | None:
    """What others may read, the directory or something of Muster's in it; None where there is nothing.

    Changes nothing. Raises NotOursError where something is another user's, and OSError.
    """
    status = path.stat()
    check_ours(path, status)
    if status.st_mode & 0o077:
        return path
    ours = (entry for entry in path.iterdir() if is_ours(entry.name))
    return next(filter(None, map(first_loose, ours)), None)


def is_ours(name: str) -> bool:
    """Whether something of that name in a state directory is Muster's."""
    return name in OWN_DIRECTORIES or any(fnmatch.fnmatchcase(name, pattern) for pattern in OWN_FILES)


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file (mode 0600) whole or not at all."""
    write_private(path, json.dumps(content), durable=True)


@contextlib.contextmanager
def owned(state_dir: Path) -> Generator[None, None, None]:
    """Own the directory; StateBusyError if another service does. A crash gives it up."""
    lock = FileLock(state_dir / _LOCK, blocking=False, mode=FILE_MODE)
    try:
        lock.acquire()
    except Timeout:
        raise StateBusyError(
            f"Another service{_owner(state_dir)} uses the state directory {state_dir}. "
            f"Stop it with `muster down`, or choose another directory."
        ) from None
    except OSError as error:
        raise _unusable(state_dir, error) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def readable(path: Path) -> Generator[None, None, None]:
    """What reading a database of the state raises, as a StateError that names the file."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StateError(
            f"{path} can't be read ({error}). Choose another state directory, or restore it from a copy."
        ) from error


def _unusable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"Can't use {path} as the state directory ({error.strerror}). Choose another, with --state-dir."
    )


def _owner(state_dir: Path) -> str:
    try:
        pid = json.loads((state_dir / SERVICE_RECORD).read_text(encoding="utf-8"))["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (process {pid})"


def iso(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
