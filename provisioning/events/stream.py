"""Events on their way to one reader, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from provisioning.http.serving import ABORT

from .hub import Hub, Reader

STALL_S: Final = 20.0
"""So long a reader may take nothing of what is sent to it."""
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_RETRY: Final = b"retry: 1000\n\n"
"""Milliseconds after which a browser comes back."""


class EventStream(Response):
    """The answer to one reader: it lasts until the reader goes, is too slow, or the service stops."""

    media_type = "text/event-stream"
    stall_s = STALL_S

    def __init__(self, hub: Hub, reader: Reader) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._hub = hub
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = self._reader
        cut = scope.get("state", {}).get(ABORT)
        if cut is not None:
            reader.abort = cut
        gone = asyncio.create_task(self._wait_gone(receive), name="event-reader-gone")
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            body = _RETRY
            while (found := await reader.next()) is not None:
                body += found
                if not await self._send(send, body):
                    return
                body = b""
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._hub.leave(reader)
            gone.cancel()
            await asyncio.wait([gone])

    async def _send(self, send: Send, body: bytes) -> bool:
        """False: it has not been taken for long, and the connection is cut."""
        reader, message = self._reader, _body(body)
        reader.sending = True
        try:
            async with asyncio.timeout(self.stall_s):
                await send(message)
        except TimeoutError:
            self._hub.drop(reader)
            return False
        finally:
            reader.sending = False
        return True

    async def _wait_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._reader.close()


def _body(body: bytes) -> MutableMapping[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
