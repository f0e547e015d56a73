"""Who may ask, and that whoever asked is answered: what stands before all routes."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import problem

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOOPBACK_AUTHORITY = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)


class Guard:
    """A page from elsewhere, reached through a name that resolves to loopback, must not drive the service."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            # Whoever sends none is no browser.
            host = headers.get("host", "localhost")
            origin = headers.get("origin")
            if not _LOOPBACK_AUTHORITY.fullmatch(host):
                refusal = problem(
                    HTTPStatus.FORBIDDEN,
                    "Forbidden host",
                    f"This API answers to 127.0.0.1 and localhost only, not to {host!r}.",
                    scope=scope,
                )
            elif origin is not None and not _is_own(origin, host):
                refusal = problem(
                    HTTPStatus.FORBIDDEN,
                    "Forbidden origin",
                    f"This API takes no calls from pages of {origin}.",
                    scope=scope,
                )
        await (self._app if refusal is None else refusal)(scope, receive, send)


def base_url(scope: Scope, own_url: str) -> str:
    """Where the caller finds this service: by the name it called it by, if that is one of this machine's.

    A name that is anything else is not repeated: links in the answer would lead to wherever it says.
    """
    authority = Headers(scope=scope).get("host", "")
    if _LOOPBACK_AUTHORITY.fullmatch(authority):
        return f"{scope.get('scheme', 'http')}://{authority.lower()}"
    return own_url


def _is_own(origin: str, host: str) -> bool:
    """Whether it is a page of this service: what is at another port of this machine is another's."""
    try:
        page, asked = urlsplit(origin), urlsplit(f"http://{host}")
        return page.hostname in _LOOPBACK and _port_of(page) == _port_of(asked)
    except ValueError:
        return False


def _port_of(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


class AnswersAtTheEnd:
    """Answers calls that the server cuts off when it stops: they would end as a traceback, with no answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = False

        async def sending(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            if answering:
                raise
            refusal = problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Stopping",
                "The service stopped before it could answer: `muster up` starts it again, and `muster watch` "
                "then shows whether a run has begun.",
                scope=scope,
            )
            await refusal(scope, receive, send)
