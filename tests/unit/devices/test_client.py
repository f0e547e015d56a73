"""A device's connection against a broker that does what the test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.connection import BrokerAddress
from devices import packets
from devices.client import DeviceClient
from devices.errors import ConnectionLostError
from tests.conftest import free_port
from tests.unit.devices.scripted_broker import (
    CONNACK,
    CONNACK_KNOWN,
    CONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    Broker,
    listening,
    suback,
)

NEVER_S = 600.0
SOON_S = 0.05


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
async def connected(
    client: DeviceClient, connack: bytes = CONNACK, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
) -> AsyncIterator[Broker]:
    servers, clients = tls if tls is not None else (None, None)
    async with listening(servers) as (broker, address):
        opening = asyncio.create_task(client.open(address, tls=clients, timeout_s=5))
        await broker.receive(CONNECT)
        broker.send(connack)
        await opening
        yield broker
        client.sever()


def tls_of(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for 127.0.0.1, and a client's that trusts it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "broker.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


@pytest.mark.parametrize("known", [False, True])
async def test_it_knows_whether_the_broker_knew_the_session(known: bool) -> None:
    client = client_of()
    async with connected(client, CONNACK_KNOWN if known else CONNACK):
        assert client.connected
        assert client.session_present is known


class RecordingTransport(asyncio.Transport):
    """Keeps what is written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


def on_recording_transport(client: DeviceClient) -> RecordingTransport:
    """``client`` connected without a broker."""
    transport = RecordingTransport()
    client.connection_made(transport)
    client.data_received(CONNACK)
    transport.writes.clear()
    return transport


async def test_what_is_published_in_one_turn_leaves_in_one_write_and_in_order() -> None:
    client = client_of()
    transport = on_recording_transport(client)
    published = [client.publish("a", b"1", retain=True), client.publish("b", b"2")]
    await asyncio.sleep(0)
    assert transport.writes == [packets.publish(1, "a", b"1", retain=True) + packets.publish(2, "b", b"2")]
    assert client.unconfirmed == 2
    client.data_received(packets.puback(2) + packets.puback(1))
    await asyncio.gather(*published)
    assert client.unconfirmed == 0


async def test_an_id_is_given_out_again_only_when_it_has_been_confirmed() -> None:
    client = client_of()
    transport = on_recording_transport(client)
    slow = client.publish("slow", b"")
    for number in range(2, 0x10000):
        client.publish("t", b"")
        client.data_received(packets.puback(number))
    await asyncio.sleep(0)
    transport.writes.clear()
    client.publish("t", b"")
    await asyncio.sleep(0)
    assert transport.writes == [packets.publish(2, "t", b"")]
    assert not slow.done()


async def test_once_it_has_cut_the_connection_it_takes_nothing_more_of_what_came() -> None:
    heard: list[bytes] = []

    def leave(_: str, payload: bytes) -> None:
        heard.append(payload)
        client.sever()

    client = DeviceClient(connect=b"", keepalive_s=NEVER_S, confirm_timeout_s=NEVER_S, on_message=leave)
    transport = on_recording_transport(client)
    client.data_received(packets.publish(1, "t", b"first") + packets.publish(2, "t", b"second"))
    await asyncio.sleep(0)
    assert heard == [b"first"]
    assert transport.aborted
    # No PUBACK either: the message comes again.
    assert not transport.writes


async def test_a_subscription_brings_its_codes() -> None:
    client = client_of()
    async with connected(client) as broker:
        asking = client.subscribe(["a", "b"])
        broker.send(suback(await broker.receive(SUBSCRIBE), 1, packets.REFUSED))
        assert list(await asking) == [1, packets.REFUSED]


async def test_a_message_is_acknowledged_after_it_was_handled_also_in_the_connacks_own_breath() -> None:
    heard: list[tuple[str, bytes]] = []
    client = client_of(heard=heard)
    async with connected(client, CONNACK + packets.publish(7, "t", b"hi")) as broker:
        assert await broker.receive(PUBACK) == b"\x00\x07"
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
            await broker.receive(PINGREQ)
            broker.send(PINGRESP)
        await broker.receive(PINGREQ)
        with pytest.raises(ConnectionLostError, match="ping"):
            await client.wait_closed()


async def test_it_speaks_tls_to_whom_it_trusts_and_to_nobody_else(tmp_path: Path) -> None:
    server, trusting = tls_of(tmp_path)
    client = client_of()
    async with connected(client, tls=(server, trusting)) as broker:
        published = client.publish("t", b"hi")
        await broker.receive(PUBLISH)
        broker.send(packets.puback(1))
        await published
        client.finish()
        await broker.ended.wait()
        assert broker.reads[-1] == packets.DISCONNECT
    async with listening(server) as (_, address):
        with pytest.raises(ConnectionLostError, match="certificate"):
            await client_of().open(address, tls=ssl.create_default_context(), timeout_s=5)


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
        await broker.receive(CONNECT)
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
        await broker.receive(CONNECT)
        if cancelled:
            opening.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else ConnectionLostError):
            await opening
        await broker.ended.wait()


async def test_an_attempt_that_is_given_up_in_the_turn_of_its_connack_leaves_no_socket_either() -> None:
    client = client_of()
    async with listening() as (broker, address):
        opening = asyncio.create_task(client.open(address, tls=None, timeout_s=NEVER_S))
        await broker.receive(CONNECT)
        client.data_received(CONNACK)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await broker.ended.wait()
        assert not client.connected


async def test_nobody_there_is_an_error_with_the_reason() -> None:
    with pytest.raises(ConnectionLostError, match=r"refused|failed"):
        await client_of().open(BrokerAddress(host="127.0.0.1", port=free_port()), tls=None, timeout_s=5)
