"""Private files: for their owner alone from their first moment, whole or not at all, by no link of another.

All that Muster keeps is written by these: a name that somebody else has put there first, as a file or as a
link, is not written to, and no mode depends on the umask. Errors are OSErrors that name the file.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
UMASK: Final = 0o077
"""Of every process that writes into a state directory, for what libraries and other programs make."""

MAX_LOG_BYTES: Final = 1024 * 1024
"""Beyond that a log is put aside, and the one that was before it is gone."""

_OTHERS: Final = 0o077
_ANYBODYS: Final = stat.S_IWOTH | stat.S_ISVTX
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{16}\.part")
# One that was being written by a process that was killed; nothing takes that long to write.
_ABANDONED_AFTER_S: Final = 3600.0


class NotOursError(PermissionError):
    """A file or directory that another user made, or may change; `str()` names it."""


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """Nothing that the block makes may be read by others; the umask is the whole process's."""
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


def make_private_directory(path: Path) -> None:
    """Make a directory of mode 0700, and what it is in; one that is there is left as it is."""
    path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)


def open_private(path: Path, mode: Literal["a", "w", "x"]) -> IO[Any]:
    """Open a text file of mode 0600 to append to, to write anew, or (``x``) to make where there is none.

    An existing file's mode is made so too. A symbolic link, and another user's file, is an OSError.
    """
    flags = {"a": os.O_APPEND, "w": 0, "x": os.O_EXCL}[mode]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, FILE_MODE)
    try:
        status = os.fstat(descriptor)
        check_ours(path, status)
        if status.st_mode & _OTHERS:
            os.fchmod(descriptor, FILE_MODE)
        if mode == "w":
            os.ftruncate(descriptor, 0)
        return os.fdopen(descriptor, mode if mode != "x" else "w", encoding="utf-8")
    except BaseException:
        os.close(descriptor)
        raise


def open_to_read(path: Path) -> IO[bytes]:
    """Open a file to read, and wait for nobody: a pipe that nobody writes to is empty."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def write_private(path: Path, content: str | bytes, *, durable: bool = False, replace: bool = True) -> None:
    """Write a file of mode 0600 in one step; readers see the old one or the new one, never a part.

    ``durable``: its bytes are on the disk when this returns. A link at ``path`` is replaced, not followed.
    Without ``replace`` nothing is: FileExistsError where there is something already.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def rotate(log: Path) -> None:
    """Before a log is opened to append to: one that has grown large becomes ``….log.1``."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))


def tighten(path: Path) -> None:
    """Take the rights of others off ``path`` and all in it, and what a killed `write_private` has left.

    Links are not followed. Raises `NotOursError` where something, a link too, is another user's, and OSError.
    """
    for place, status in _all_in(path):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(status.st_mode) and _TEMPORARY.fullmatch(place.name):
                if time.time() - status.st_mtime > _ABANDONED_AFTER_S:
                    place.unlink()
            elif _is_loose(status):
                place.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)


def first_loose(path: Path) -> Path | None:
    """The first of ``path`` and all in it that others have rights to, None where they have none.

    Errors are those of `tighten`.
    """
    return next((place for place, status in _all_in(path) if _is_loose(status)), None)


def check_ours(path: Path, status: os.stat_result) -> None:
    """Raise `NotOursError` where ``status``, of ``path``, is that of another user's."""
    if status.st_uid != os.geteuid():
        raise NotOursError(errno.EPERM, "belongs to another user", str(path))


def _all_in(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """``path`` and all in it; links are not followed, and what goes meanwhile is passed over."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        check_ours(path, status)
        yield path, status
        if not stat.S_ISDIR(status.st_mode):
            return
    for directory, directories, files in os.walk(path, onerror=_unless_gone):
        for name in (*directories, *files):
            place = Path(directory, name)
            with contextlib.suppress(FileNotFoundError):
                status = place.lstat()
                check_ours(place, status)
                yield place, status


def _is_loose(status: os.stat_result) -> bool:
    return bool(status.st_mode & _OTHERS) and not stat.S_ISLNK(status.st_mode)


def _unless_gone(error: OSError) -> None:
    # Programs that run on it make and remove files all the time.
    if not isinstance(error, FileNotFoundError):
        raise error


def changeable_by_others(path: Path) -> str | None:
    """Why code must not be run from ``path``, as in "/x may be written by others"; None where it may.

    It must belong to this user or to root, and nobody else may write to it; a directory that it is in may be
    written by anybody only where the sticky bit keeps them off each other's entries.
    """
    for place in (path, *path.absolute().parents):
        try:
            status = place.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if status.st_uid not in (os.geteuid(), 0):
            if place == path:
                return f"{place} belongs to another user"
            continue  # who owns a home above ours is the administrator's choice
        loose = others_may_write(status) if place == path else status.st_mode & _ANYBODYS == stat.S_IWOTH
        if loose:
            return f"{place} may be written by others"
    return None


def others_may_write(status: os.stat_result) -> bool:
    """Whether anybody but its owner may write to a file; a group that is the owner's alone is the owner."""
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return True
    return group.gr_name != owner or not set(group.gr_mem) <= {owner}
