"""How large the body of a request may be, by its path: counted as it comes in, whatever its length claims."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from provisioning.releases.api import MAX_UPLOAD_BYTES
from provisioning.releases.api import PATH as RELEASES_PATH
from provisioning.releases.records import MAX_FIRMWARE_BYTES

from .problems import TOO_LARGE_TITLE, BodyTooLargeError, problem

_MIB: Final = 1024 * 1024

BODY_LIMITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "/": 16 * _MIB,
        RELEASES_PATH: MAX_UPLOAD_BYTES,
    }
)
"""Bytes at most, by the beginning of the path; the longest that fits counts. More needs a line here."""


_INSTEAD: Final = {
    RELEASES_PATH: f"A firmware may have {MAX_FIRMWARE_BYTES:,} bytes at most: give a smaller one.",
}
"""What is said of a body that is too large, where it can be said better."""


class BodyLimits:
    """Refuses what is too large with 413: at once where its length says so, else when it gets so long."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, int] = BODY_LIMITS) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = limit_of(scope["path"], self._limits)
        claimed = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not claimed.isdigit() or int(claimed[:20]) > limit:
            refusal = problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                TOO_LARGE_TITLE,
                _too_large(limit, scope["path"]),
                scope=scope,
            )
            await refusal(scope, receive, send)
            return
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # Answered by the application's own handler, whatever it is that reads.
                raise BodyTooLargeError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(limit, scope["path"]))
            return message

        await self._app(scope, counting, send)


def limit_of(path: str, limits: Mapping[str, int] = BODY_LIMITS) -> int:
    """Bytes that the body of a request for ``path`` may have."""
    # What is no path (`*`, or a whole URL) has the limit of all.
    return limits[max((prefix for prefix in limits if path.startswith(prefix)), key=len, default="/")]


def _too_large(limit: int, path: str) -> str:
    if path in _INSTEAD:
        return _INSTEAD[path]
    return f"This request may have {limit:,} bytes at most. Split it into smaller ones."
