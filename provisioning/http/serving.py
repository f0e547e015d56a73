"""The HTTP server: uvicorn, with its signals left to whoever runs the service, and connections with bounds,
and an end that is told instead of looked for.

| a connection | at most |
|---|---|
| from elsewhere: of one peer, of all | 32, 256; a further one is closed |
| until a handshake of TLS is over; until the head of a request is there | 10 s; 10 s, 16 KiB |
| without another byte of a body | 60 s |
| after an answer that came before the end of the body | 5 s |
| that takes nothing of what is sent | 60 s; of events 20 s |
| between two requests | 5 s |
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from provisioning.errors import PortBusyError, SettingsError

from .peers import Peer, peer_of
from .security_headers import SECURITY_HEADERS

ABORT: Final = "muster.abort"
"""In the state of a request's scope: what ends its connection at once, without what is not sent yet."""

MAX_PEER_CONNECTIONS: Final = 32
MAX_ELSEWHERE_CONNECTIONS: Final = 256
"""Of all peers that are not on this machine, for which there is always room."""
HEAD_S: Final = 10.0
BODY_IDLE_S: Final = 60.0
LINGER_S: Final = 5.0
WRITE_STALL_S: Final = 60.0
KEEP_ALIVE_S: Final = 5
MAX_HEAD_BYTES: Final = 16 * 1024

_DATE_INTERVAL_S: Final = 1.0
"""How often the clock of the answers' headers is set."""
_POLL_INTERVAL_S: Final = 0.005
"""How often it is looked whether the last calls have been answered, which uvicorn has no event for."""


class Connection(H11Protocol):
    """One connection: its requests may cut it, and it is cut when the peer keeps it waiting."""

    head_s = HEAD_S
    body_idle_s = BODY_IDLE_S
    linger_s = LINGER_S
    write_stall_s = WRITE_STALL_S

    _owed = ""
    """What the peer is waited for."""
    _patience: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._patience, self._stall):
            if timer is not None:
                timer.cancel()
        self._patience = self._stall = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(more=True)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(self.write_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def send_400_response(self, msg: str) -> None:
        """The answer to what is no HTTP: uvicorn's, with the headers of all answers."""
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"connection", b"close"),
            *SECURITY_HEADERS,
        ]
        if self.cycle is not None:
            # Its request gets no other answer: to try one would be a trace in the log, of anybody's making.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        with contextlib.suppress(h11.LocalProtocolError):  # in the midst of an answer there is no other
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=msg.encode("ascii")),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self, *, more: bool = False) -> None:
        """Give the peer its time for what it owes; ``more``: some of it has come."""
        owed, seconds = self._what_is_owed()
        if owed == self._owed and not (more and owed == "body"):
            return
        self._owed = owed
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if owed and not self.transport.is_closing():
            self._patience = self.loop.call_later(seconds, self._lose_patience)

    def _what_is_owed(self) -> tuple[str, float]:
        if self.conn.their_state is h11.IDLE:
            return "head", self.head_s
        if self.conn.their_state is not h11.SEND_BODY:
            return "", 0.0
        if self.cycle.response_complete:
            return "rest", self.linger_s
        return "body", self.body_idle_s

    def _lose_patience(self) -> None:
        self._patience = None
        if self._owed == "body" and self.flow.read_paused:
            # It is the service that takes its time.
            self._owed = ""
            self._watch()
        else:
            self.transport.abort()


class Server(uvicorn.Server):
    """For the service's API; by TLS where there is a ``certificate`` with its ``key``."""

    def __init__(
        self, app: ASGIApp, *, last_calls_s: int, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        self._end = asyncio.Event()
        self.servers: list[asyncio.Server] = []
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                log_config=None,
                # Its warnings are of requests that are no HTTP: anybody could fill the log with them.
                log_level="error",
                access_log=False,
                lifespan="off",
                ws="none",
                # Nobody is to say for the caller where it is and by which scheme it came.
                proxy_headers=False,
                # Nobody is told which server this is.
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=last_calls_s,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def end(self) -> None:
        """Take no more calls, and end when those under way are answered, or the time for that has passed."""
        self.should_exit = True
        self._end.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's own, which gives a handshake of TLS a minute."""
        config = self.config
        for listener in sockets or ():
            server = await asyncio.get_running_loop().create_server(
                lambda: Connection(config=config, server_state=self.server_state, app_state={}),
                sock=listener,
                ssl=config.ssl,
                ssl_handshake_timeout=HEAD_S if config.ssl else None,
                backlog=config.backlog,
            )
            self.servers.append(server)
        self.started = True

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


class _Listener(socket.socket):
    """Takes so many connections from elsewhere, and closes a further one, before any TLS."""

    def __init__(self, family: socket.AddressFamily) -> None:
        # With the protocol: else asyncio sets no TCP_NODELAY, and an answer waits 40 ms for an ACK.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._elsewhere: list[tuple[socket.socket, Peer]] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; ConnectionAbortedError where it is one too many."""
        connection, address = super().accept()
        peer = peer_of(address[0])
        if not peer.loopback:
            self._elsewhere = [known for known in self._elsewhere if known[0].fileno() >= 0]
            of_peer = sum(other == peer for _, other in self._elsewhere)
            if len(self._elsewhere) >= MAX_ELSEWHERE_CONNECTIONS or of_peer >= MAX_PEER_CONNECTIONS:
                connection.close()
                raise ConnectionAbortedError(errno.ECONNABORTED, "too many connections from there")
            self._elsewhere.append((connection, peer))
        return connection, address


def listen(host: str, ports: tuple[int, ...]) -> socket.socket:
    """A socket that listens on the first of ``ports`` that is free (0: any).

    Raises PortBusyError, and SettingsError where the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        listener = _Listener(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            # Now and not only in uvicorn: without it a second service could bind the same port too.
            listener.listen(128)
        except OSError as error:
            listener.close()
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise SettingsError(
                    f"MUSTER_HOST is {host}, which is no address of this machine: give one that is, "
                    f"or 0.0.0.0 for all."
                ) from error
            if error.errno != errno.EADDRINUSE:
                raise SettingsError(
                    f"The API can't listen on port {port} of {host} ({error.strerror}): choose another with "
                    f"--port, or another address with --host."
                ) from error
            busy = error
            continue
        return listener
    raise PortBusyError(host=host, port=ports[0]) from busy


def url_of(listener: socket.socket, *, tls: bool) -> str:
    """Where the service on that socket is found from this machine."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"
