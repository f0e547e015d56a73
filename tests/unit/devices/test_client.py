"""A device's connection against a broker that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.connection import BrokerAddress
from devices import packets
from devices.client import DeviceClient
from devices.errors import ConnectionLostError
from tests.conftest import free_port

CONNACK = b"\x20\x02\x00\x00"
PINGRESP = b"\xd0\x00"
NEVER_S = 600.0
SOON_S = 0.05


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
        finally:
            self.ended.set()
            writer.close()

    async def receive(self, kind: int) -> bytes:
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
async def listening() -> AsyncIterator[tuple[Broker, BrokerAddress]]:
    broker = Broker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    async with server:
        yield broker, BrokerAddress(host="127.0.0.1", port=server.sockets[0].getsockname()[1])


def client_of(
    *,
    keepalive_s: float = NEVER_S,
    confirm_timeout_s: float = NEVER_S,
    heard: list[tuple[str, bytes]] | None = None,
) -> DeviceClient:
    taken = heard if heard is not None else []
    return DeviceClient(
        connect=packets.connect("dev", keepalive_s=60, will_topic="w", will_payload=b"gone"),
        keepalive_s=keepalive_s,
        confirm_timeout_s=confirm_timeout_s,
        on_message=lambda topic, payload: taken.append((topic, payload)),
    )


@asynccontextmanager
async def connected(client: DeviceClient, connack: bytes = CONNACK) -> AsyncIterator[Broker]:
    async with listening() as (broker, address):
        opening = asyncio.create_task(client.open(address, tls=None, timeout_s=5))
        await broker.receive(1)
        broker.send(connack)
        await opening
        yield broker
        client.sever()


@pytest.mark.parametrize("known", [False, True])
async def test_it_knows_whether_the_broker_knew_the_session(known: bool) -> None:
    client = client_of()
    async with connected(client, b"\x20\x02" + bytes((known, 0))):
        assert client.connected
        assert client.session_present is known


async def test_what_is_published_in_one_turn_leaves_in_one_write_and_in_order() -> None:
    client = client_of()
    async with connected(client) as broker:
        broker.reads.clear()
        first, second = client.publish("a", b"1", retain=True), client.publish("b", b"2")
        assert (await broker.receive(3))[:3] == b"\x00\x01a"
        assert (await broker.receive(3))[:3] == b"\x00\x01b"
        assert len(broker.reads) == 1
        assert not first.done()
        broker.send(packets.puback(1) + packets.puback(2))
        await asyncio.gather(first, second)
        assert client.unconfirmed == 0


async def test_a_subscription_brings_its_codes() -> None:
    client = client_of()
    async with connected(client) as broker:
        asking = client.subscribe(["a", "b"])
        packet_id = (await broker.receive(8))[:2]
        broker.send(b"\x90\x04" + packet_id + b"\x01\x80")
        assert list(await asking) == [1, packets.REFUSED]


async def test_a_message_is_acknowledged_after_it_was_handled_also_in_the_connacks_own_breath() -> None:
    heard: list[tuple[str, bytes]] = []
    client = client_of(heard=heard)
    async with connected(client, CONNACK + packets.publish(7, "t", b"hi")) as broker:
        assert await broker.receive(4) == b"\x00\x07"
        assert heard == [("t", b"hi")]


async def test_what_handling_a_message_raises_is_raised_to_who_waits_and_the_message_not_acknowledged() -> (
    None
):
    client = DeviceClient(
        connect=packets.connect("dev", keepalive_s=60, will_topic="w", will_payload=b""),
        keepalive_s=NEVER_S,
        confirm_timeout_s=NEVER_S,
        on_message=lambda topic, payload: [][1],
    )
    async with connected(client) as broker:
        broker.send(packets.publish(7, "t", b"hi"))
        with pytest.raises(IndexError):
            await client.wait_closed()
        await broker.ended.wait()
        assert len(broker.reads) == 1


async def test_a_publish_that_is_not_confirmed_in_time_ends_the_connection_also_when_later_ones_are() -> None:
    client = client_of(confirm_timeout_s=SOON_S)
    async with connected(client) as broker:
        lost, confirmed = client.publish("a", b""), client.publish("b", b"")
        broker.send(packets.puback(2))
        await confirmed
        with pytest.raises(ConnectionLostError, match="no confirmation"):
            await lost
        with pytest.raises(ConnectionLostError, match="no confirmation"):
            await client.wait_closed()
        await broker.ended.wait()
        assert not client.connected
        with pytest.raises(ConnectionLostError):
            client.publish("c", b"")


async def test_it_pings_when_it_has_nothing_to_say_and_leaves_a_broker_that_does_not_answer() -> None:
    client = client_of(keepalive_s=SOON_S)
    async with connected(client) as broker:
        for _ in range(2):
            await broker.receive(12)
            broker.send(PINGRESP)
        await broker.receive(12)
        with pytest.raises(ConnectionLostError, match="ping"):
            await client.wait_closed()


async def test_finishing_says_disconnect_and_severing_does_not() -> None:
    for graceful in (True, False):
        client = client_of()
        async with connected(client) as broker:
            broker.reads.clear()
            (client.finish if graceful else client.sever)()
            await broker.ended.wait()
            assert broker.reads == ([packets.DISCONNECT] if graceful else [])
            with pytest.raises(ConnectionLostError):
                await client.wait_closed()


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x05", b"\x50\x00", b"\xff\xff\xff\xff\xff", None])
async def test_a_broker_that_refuses_talks_nonsense_or_hangs_up_fails_the_attempt(
    answer: bytes | None,
) -> None:
    client = client_of()
    async with listening() as (broker, address):
        opening = asyncio.create_task(client.open(address, tls=None, timeout_s=5))
        await broker.receive(1)
        if answer is None:
            broker.close()
        else:
            broker.send(answer)
        with pytest.raises(ConnectionLostError, match="the broker"):
            await opening
        await broker.ended.wait()


@pytest.mark.parametrize("cancelled", [True, False])
async def test_an_attempt_that_is_given_up_leaves_no_socket_behind(cancelled: bool) -> None:
    client = client_of()
    async with listening() as (broker, address):
        opening = asyncio.create_task(
            client.open(address, tls=None, timeout_s=NEVER_S if cancelled else SOON_S)
        )
        await broker.receive(1)
        if cancelled:
            opening.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else ConnectionLostError):
            await opening
        await broker.ended.wait()


async def test_an_attempt_that_is_given_up_in_the_turn_of_its_connack_leaves_no_socket_either() -> None:
    client = client_of()
    async with listening() as (broker, address):
        opening = asyncio.create_task(client.open(address, tls=None, timeout_s=NEVER_S))
        await broker.receive(1)
        client.data_received(CONNACK)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await broker.ended.wait()
        assert not client.connected


async def test_nobody_there_is_an_error_with_the_reason() -> None:
    with pytest.raises(ConnectionLostError, match=r"refused|failed"):
        await client_of().open(BrokerAddress(host="127.0.0.1", port=free_port()), tls=None, timeout_s=5)
