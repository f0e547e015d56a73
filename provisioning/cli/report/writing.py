"""Files that are there whole or not at all, and that nobody's file is overwritten by."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from provisioning.cli.errors import CliError, UsageError


def check_free(path: Path, *, force: bool) -> None:
    """Raise a UsageError where there is something at ``path`` already, or no directory for it."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name a file")
    if not force and os.path.lexists(path):
        raise UsageError(f"{path} exists: --force overwrites it, or name another file")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory: make it first, or name another file")


@contextlib.contextmanager
def whole_file(path: Path, *, force: bool) -> Iterator[TextIO]:
    """Write ``path`` by a file beside it, which takes its place at the end, or is gone.

    A device or a pipe that is there is written to: nothing may take the place of ``/dev/null``.
    """
    if force and path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        return
    beside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        with beside.open("x", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _put(beside, path, force=force)
    except OSError as error:
        raise CliError(f"can't write {path}: {(error.strerror or str(error)).lower()}") from error
    finally:
        beside.unlink(missing_ok=True)


def _put(beside: Path, path: Path, *, force: bool) -> None:
    if force:
        beside.replace(path)
        return
    try:
        os.link(beside, path)  # unlike a rename it never takes another file's place
    except FileExistsError:
        raise UsageError(f"{path} exists: --force overwrites it, or name another file") from None
    except OSError:
        check_free(path, force=False)  # a file system without hard links
        beside.replace(path)
