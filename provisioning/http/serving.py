"""The HTTP server: uvicorn, with its signals left to whoever runs the service, connections that can be cut,
and an end that is told instead of looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

ABORT: Final = "muster.abort"
"""In the state of a request's scope: what ends its connection at once, without what is not sent yet."""

_DATE_INTERVAL_S: Final = 1.0
"""How often the clock of the answers' headers is set."""
_POLL_INTERVAL_S: Final = 0.005
"""How often it is looked whether the last calls have been answered, which uvicorn has no event for."""


class Connection(H11Protocol):
    """One connection, which its requests may cut: a reader that takes nothing would else keep it for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}


class Server(uvicorn.Server):
    """For the service's API."""

    def __init__(self, app: ASGIApp, *, last_calls_s: int) -> None:
        self._end = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                # Nobody is to say for the caller where it is and by which scheme it came.
                proxy_headers=False,
                timeout_graceful_shutdown=last_calls_s,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def end(self) -> None:
        """Take no more calls, and end when those under way are answered, or the time for that has passed."""
        self.should_exit = True
        self._end.set()

    async def main_loop(self) -> None:
        """Until `end`; uvicorn's own looks ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_INTERVAL_S):
                    await self._end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's own, which waits for a tenth of a second at least."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while state.connections or state.tasks:  # noqa: ASYNC110 -- nobody tells
                    await asyncio.sleep(_POLL_INTERVAL_S)
                for server in self.servers:
                    await server.wait_closed()
        except TimeoutError:
            for task in state.tasks:
                task.cancel()
