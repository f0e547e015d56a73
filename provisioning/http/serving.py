"""The HTTP server: uvicorn, with its signals left to whoever runs the service, and connections that can be
cut.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

ABORT: Final = "muster.abort"
"""In the state of a request's scope: what ends its connection at once, without what is not sent yet."""


class Connection(H11Protocol):
    """One connection, which its requests may cut: a reader that takes nothing would else keep it for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}


class Server(uvicorn.Server):
    """For the service's API."""

    def __init__(self, app: ASGIApp, *, last_calls_s: int) -> None:
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
