"""The state directory: made private, marked as Muster's, owned by one service at a time."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import StateBusyError, StateError, StateVersionError

STATE_FORMAT = 1
MARKER = "muster.json"
SERVICE_RECORD = "service.json"
"""Where clients find the service; there while it runs."""
_LOCK = "service.lock"


def prepare_state_directory(path: Path) -> None:
    """Make the state directory (mode 0700), or check that an existing one is ours and readable by us.

    Raises StateError where it can't be used and StateVersionError where a newer version made it.
    """
    marker = path / MARKER
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not marker.exists():
            write_atomically(marker, {"format": STATE_FORMAT, "created_at": iso(time.time())})
            return
        text = marker.read_text(encoding="utf-8")
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


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file (mode 0600) whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def owned(state_dir: Path) -> Generator[None, None, None]:
    """Own the directory; StateBusyError if another service does. A crash gives it up."""
    lock = FileLock(state_dir / _LOCK, blocking=False)
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
