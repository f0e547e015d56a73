"""How a fleet process is told of changes: a line of JSON each way, over loopback, with a token.

The process writes where it listens, and the token, into a file that only its owner can read: whoever may read
that file may drive the fleet. (A Unix socket would do too, but its path has a hundred characters at most.)

Changes are numbered by whoever keeps the fleet's record. A process that was started with the record knows
those up to a number, and does not make them twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from broker.private_files import write_private
from devices.errors import DevicesError, FleetSpecError
from devices.roster import Change

if TYPE_CHECKING:
    # Whoever only tells processes of changes needs nothing of what runs devices.
    from devices.fleet import Fleet

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
_HOST: Final = "127.0.0.1"
_TOKEN_BYTES: Final = 24
# Whoever has something to say says it at once; others hold a socket, and nothing else.
_ASK_TIMEOUT_S: Final = 10.0


class ControlError(DevicesError):
    """A fleet process can't be reached, or does not understand; the message says which."""


class ControlServer:
    """Takes changes for a fleet while the ``async with`` block lasts; ``path`` says where."""

    def __init__(self, fleet: Fleet, path: Path, *, number: int) -> None:
        """``number`` is that of the last change that the fleet was started with."""
        self._fleet = fleet
        self._path = path
        self._number = number
        self._token = secrets.token_hex(_TOKEN_BYTES)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, _HOST, 0, limit=MAX_LINE_BYTES)
        port = self._server.sockets[0].getsockname()[1]
        where = {"port": port, "token": self._token, "pid": os.getpid()}
        write_private(self._path, json.dumps(where))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._path.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
            # From Python 3.12 on the server waits for all connections, and anybody here may hold one.
            serving = [task for task in self._connections.values() if task is not None]
            for writer in self._connections:
                writer.transport.abort()
            await asyncio.gather(*serving, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = asyncio.current_task()
        try:
            # Whoever asks may have gone, have sent too much, or nothing: that is no trouble of the fleet's.
            with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_ASK_TIMEOUT_S):
                    line = await reader.readline()
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        finally:
            del self._connections[writer]

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not hmac.compare_digest(str(request["token"]).encode(), self._token.encode()):
                raise ControlError("the token is wrong")
            number, document = request["number"], request["change"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"error": "the request is no line of JSON with a token, a number and a change"}
        except ControlError as error:
            return {"error": str(error)}
        if number is not None and number <= self._number:
            return {"affected": 0}
        try:
            affected = self._fleet.apply(Change.from_document(document))
        except FleetSpecError as error:
            return {"error": str(error)}
        if number is not None:
            self._number = number
        return {"affected": affected}


@dataclass(frozen=True, kw_only=True)
class ControlAddress:
    """Where a fleet process takes changes, as it has written it down."""

    port: int
    token: str
    pid: int

    @classmethod
    def read(cls, path: Path) -> ControlAddress | None:
        """What is in the file; None where there is none to be read (yet)."""
        try:
            given = json.loads(path.read_text())
            return cls(port=int(given["port"]), token=str(given["token"]), pid=int(given["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    async def tell(self, change: Change, *, number: int | None, timeout_s: float = 30.0) -> int:
        """Tell the process of a change; returns how many of its devices it is about. Raises `ControlError`.

        ``number`` is the change's, or None for one that does not last.
        """
        request: Mapping[str, Any] = {
            "token": self.token,
            "number": number,
            "change": change.to_document(),
        }
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(_HOST, self.port, limit=MAX_LINE_BYTES)
                try:
                    writer.write(json.dumps(request).encode() + b"\n")
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, ValueError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise ControlError(f"the fleet process {self.pid} does not answer ({reason})") from error
        if "error" in answer:
            raise ControlError(f"the fleet process {self.pid} refuses: {answer['error']}")
        return int(answer["affected"])
