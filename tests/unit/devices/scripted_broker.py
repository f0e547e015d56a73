"""A broker that does what the test says, packet by packet."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.connection import BrokerAddress
from devices import packets

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ = 1, 3, 4, 8, 12
CONNACK = b"\x20\x02\x00\x00"
CONNACK_KNOWN = b"\x20\x02\x01\x00"
PINGRESP = b"\xd0\x00"


def suback(packet_id: bytes, *codes: int) -> bytes:
    """SUBACK for the SUBSCRIBE whose body begins with ``packet_id``."""
    return b"\x90" + bytes((2 + len(codes),)) + packet_id[:2] + bytes(codes)


class Broker:
    """The other end: `receive` gives packets one by one, `send` takes bytes."""

    def __init__(self) -> None:
        self._packets: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self.reads: list[bytes] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer, rest = writer, b""
        try:
            while data := await reader.read(65_536):
                self.reads.append(data)
                whole, rest = packets.split(rest + data)
                for packet in whole:
                    self._packets.put_nowait(packet)
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()

    @property
    def quiet(self) -> bool:
        """Whether all that has come was received."""
        return self._packets.empty()

    async def receive(self, kind: int) -> bytes:
        """The next packet's body; it must be of that kind."""
        first, body = await self._packets.get()
        assert first >> 4 == kind, (first, body)
        return body

    def send(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)

    def close(self) -> None:
        assert self._writer is not None
        self._writer.close()


@asynccontextmanager
async def listening(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Broker, BrokerAddress]]:
    """A broker and its address; it serves one connection at a time."""
    broker = Broker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield broker, BrokerAddress(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
