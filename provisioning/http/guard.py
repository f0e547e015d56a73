"""That whoever asks is answered, and finds the way to what the answer names."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import GRANT, Grant
from .origin import is_authority, is_loopback_name
from .problems import problem


def base_url(scope: Scope, own_url: str) -> str:
    """Where the caller finds this service: by the name it called it by, if that can be believed.

    One of this machine's can, and any that somebody with a token or a session uses. Another is not repeated:
    links in the answer would lead to wherever it says.
    """
    authority = Headers(scope=scope).get("host", "")
    grant: Grant | None = scope.get(GRANT)
    known = grant is not None and grant.by != "loopback"
    if authority and (is_loopback_name(authority.encode("latin-1")) or (known and is_authority(authority))):
        return f"{scope.get('scheme', 'http')}://{authority.lower()}"
    return own_url


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
