"""Sessions of browsers: what a cookie holds instead of the token.

A value is signed with a key that follows from the token and from this life of the service: another token, or
another life, is the end of all sessions. Nothing is kept of them but those that were ended early.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from provisioning.api_tokens import Level, Tokens

SESSION_S: Final = 12 * 3_600
MAX_ENDED: Final = 4_096
"""Sessions that were ended early and are remembered; one more ends them all."""
_MAX_VALUE_CHARS: Final = 200


@dataclass(frozen=True, kw_only=True)
class Session:
    """Who has logged in with a token."""

    level: Level
    nonce: str
    ends_at: int
    """On the clock of the service's."""


class Sessions:
    """The sessions of one service."""

    def __init__(self, tokens: Tokens, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._ended: dict[str, int] = {}

    def begin(self, level: Level) -> str | None:
        """The value of a new session's cookie; None where there is no token of that level any more."""
        said = f"{level}.{int(self._clock()) + SESSION_S}.{secrets.token_urlsafe(12)}"
        signature = self._signature(level, said)
        return None if signature is None else f"{said}.{signature}"

    def find(self, value: str) -> Session | None:
        """The session of that value; None where it is none, or has ended."""
        said, _, signature = value[:_MAX_VALUE_CHARS].rpartition(".")
        level: Level = "read" if said.startswith("read.") else "full"
        expected = self._signature(level, said)
        if expected is None or not hmac.compare_digest(
            expected.encode(), signature.encode("utf-8", "replace")
        ):
            return None
        _, ends_at, nonce = said.split(".")
        session = Session(level=level, nonce=nonce, ends_at=int(ends_at))
        return session if self.holds(session) else None

    def holds(self, session: Session) -> bool:
        """Whether it goes on, as far as it is not the token's."""
        return session.ends_at > self._clock() and session.nonce not in self._ended

    def left_s(self, session: Session) -> int:
        """For how many seconds it goes on."""
        return max(0, session.ends_at - int(self._clock()))

    def end(self, session: Session) -> None:
        """End it before its time, for whoever else has its cookie, too."""
        now = self._clock()
        self._ended = {nonce: ends_at for nonce, ends_at in self._ended.items() if ends_at > now}
        self._ended[session.nonce] = session.ends_at
        if len(self._ended) > MAX_ENDED:
            self._secret = secrets.token_bytes(32)
            self._ended = {session.nonce: session.ends_at}

    def _signature(self, level: Level, said: str) -> str | None:
        key = self._tokens.key_of(level)
        if key is None:
            return None
        return hmac.new(self._secret + key, said.encode("utf-8", "replace"), "sha256").hexdigest()
