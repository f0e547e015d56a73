"""The API's tokens: the full one, and one that may only read. Who has one may ask from anywhere.

A token is a variable's, or a file's: then it is what the file has at the moment, so that a new one counts,
and the old one does not, from the next request on. The files of the state directory are made at first need.
"""

from __future__ import annotations

import contextlib
import re
import stat
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Final, Literal

from broker.private_files import write_private

from .errors import SettingsError, StateError
from .secret_files import read_secret

Level = Literal["full", "read"]

TOKEN_FILES: Final[dict[Level, str]] = {"full": "api.token", "read": "api-read.token"}
"""In the state directory."""
VARIABLES: Final[dict[Level, str]] = {"full": "MUSTER_API_TOKEN", "read": "MUSTER_API_READ_TOKEN"}
MIN_TOKEN_CHARS: Final = 32
MAX_TOKEN_CHARS: Final = 512

_SENDABLE: Final = re.compile(r"[!-~]+")
_RANDOM_BYTES: Final = 32


def check_token(token: str, name: str) -> str:
    """The token, if it is one; SettingsError names the place that it is from, and never has it in it."""
    if not MIN_TOKEN_CHARS <= len(token) <= MAX_TOKEN_CHARS or not _SENDABLE.fullmatch(token):
        raise SettingsError(
            f"{name} is no token: it needs {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} characters of ASCII "
            f"without spaces, and has {len(token)}. `openssl rand -base64 32` makes one."
        )
    return token


class Token:
    """One token: ``fixed``, or what the file ``path`` has; neither: there is none."""

    def __init__(self, *, fixed: str | None = None, path: Path | None = None) -> None:
        self._path = path
        self._value = fixed
        self._seen: tuple[int, int, int] | None = None

    def current(self) -> str | None:
        """The token at the moment; None where there is none, or the file has none that can be used."""
        if self._path is None:
            return self._value
        try:
            status = self._path.stat()
        except OSError:
            self._seen = self._value = None
            return None
        if not stat.S_ISREG(status.st_mode):
            # What a pipe has can be read once, and the whole service would wait for it.
            self._seen = self._value = None
            return None
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._seen, self._value = seen, None
            with contextlib.suppress(SettingsError):
                self._value = check_token(read_secret(self._path, "the token"), "the token")
        return self._value


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Both tokens of a service."""

    full: Token
    read: Token

    def level_of(self, presented: bytes) -> Level | None:
        """What the bearer of that may do; None: nothing. It takes as long whatever is presented."""
        digest = sha256(presented).digest()
        found: Level | None = None
        # The one that may less decides, should they be the same.
        for level in ("full", "read"):
            key = self.key_of(level)
            if compare_digest(digest, key or bytes(len(digest))) and key is not None:
                found = level
        return found

    def key_of(self, level: Level) -> bytes | None:
        """What follows from the token of that level, another one after each change; None: there is none."""
        token = (self.full if level == "full" else self.read).current()
        return None if token is None else sha256(token.encode()).digest()


def provide_token(path: Path) -> str:
    """The token in the file, which is made (0600) where it is missing.

    StateError where it can't be made, or has no token.
    """
    try:
        if not path.exists():
            # What another process has made meanwhile is left alone.
            with contextlib.suppress(FileExistsError):
                write_private(path, f"{_new_token()}\n", durable=True, replace=False)
        return check_token(read_secret(path, "the state directory"), str(path))
    except OSError as error:
        raise StateError(
            f"{path} can't be written ({error.strerror}): make its directory writable."
        ) from error
    except SettingsError as error:
        raise StateError(f"{error} `muster token rotate` makes a new one.") from error


def rotate_token(path: Path) -> str:
    """Put a new token into the file, whole or not at all, and return it; StateError where that can't be."""
    token = _new_token()
    try:
        write_private(path, f"{token}\n", durable=True)
    except OSError as error:
        raise StateError(
            f"{path} can't be written ({error.strerror}): make its directory writable."
        ) from error
    return token


def _new_token() -> str:
    import secrets  # here: every command reads the settings, and few make a token

    return secrets.token_urlsafe(_RANDOM_BYTES)
