"""TLS as devices and the service speak it: whom they trust, and what they say of a failure."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.connection import (
    BrokerAddress,
    BrokerConnection,
    BrokerTlsError,
    ConnectionOptions,
    Delivery,
    TlsFiles,
)
from broker.tls import explain
from devices import packets
from devices.certificates import DeviceTls
from devices.client import DeviceClient
from devices.errors import ConnectionLostError, FleetStartError
from provisioning.certificates import Authority
from provisioning.certificates.authority import write_private

CONNACK = b"\x20\x02\x00\x00"
SUBSCRIBE = 8


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


@asynccontextmanager
async def serving(
    authority: Authority, *, file: Path | None = None, then: bytes = b""
) -> AsyncIterator[BrokerAddress]:
    """A broker that wants certificates of ``authority`` and says CONNACK.

    To what it is told next it answers ``then``, in one piece, or it repeats that and all that comes.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file or authority.broker_file())
    context.load_verify_locations(authority.certificate_file)
    context.load_verify_locations(authority.list_file)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    context.verify_mode = ssl.CERT_REQUIRED

    # In a thread: asyncio closes a connection that it refuses without saying why.
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            there = context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
            with contextlib.suppress(OSError), there:
                try:
                    there.do_handshake()
                except OSError:
                    # A reset, as for what was not read, could overtake the reason. The client may be one
                    # that has given up and not closed its socket yet.
                    there.settimeout(0.3)
                    while socket.socket.recv(there, 1024):
                        pass
                    return
                there.recv(1024)
                there.sendall(CONNACK)
                while data := there.recv(65_536):
                    if not then:
                        there.sendall(data)
                    elif data[0] >> 4 == SUBSCRIBE:
                        there.sendall(then)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield BrokerAddress(host="127.0.0.1", port=server.server_address[1], tls=True)
        finally:
            await asyncio.to_thread(server.shutdown)
            thread.join()


def client_of(on_message: Callable[[str, bytes], None] = lambda *_: None) -> DeviceClient:
    return DeviceClient(
        connect=packets.connect("a", keepalive_s=60, will_topic="w", will_payload=b""),
        keepalive_s=60,
        confirm_timeout_s=30,
        on_message=on_message,
    )


async def open_as_device(address: BrokerAddress, files: TlsFiles) -> str:
    """Connect as a device does; what it says when it fails."""
    with pytest.raises(ConnectionLostError) as caught:
        await client_of().open(address, tls=files.context(), timeout_s=20)
    return str(caught.value)


async def open_as_service(address: BrokerAddress, files: TlsFiles, caplog: pytest.LogCaptureFixture) -> str:
    """Connect as the service does; what it logs when it fails."""
    caplog.clear()
    url = f"mqtts://{address.host}:{address.port}"
    async with BrokerConnection(url=url, client_id="s", on_message=lambda _: None, tls=files) as connection:
        while not caplog.messages:  # noqa: ASYNC110 - the logger has no event to wait for
            await asyncio.sleep(0.01)
        assert not connection.connected
    return caplog.messages[0]


def certificate_file(directory: Path, authority: Authority, *, days: int = 90) -> Path:
    (issued,) = authority.issue(["a"], days=days)
    write_private(path := directory / f"{issued.serial}.pem", issued.pem)
    return path


async def test_much_goes_both_ways(tmp_path: Path, authority: Authority) -> None:
    files = TlsFiles(
        ca_file=authority.certificate_file, certificate_file=certificate_file(tmp_path, authority)
    )
    taken: asyncio.Queue[bytes] = asyncio.Queue()
    client = client_of(lambda _, payload: taken.put_nowait(payload))
    async with serving(authority) as address:
        await client.open(address, tls=files.context(), timeout_s=20)
        payloads = [bytes([n]) * 100_000 for n in range(10)]
        for payload in payloads:
            client.publish("t", payload)
        assert [await taken.get() for _ in payloads] == payloads
        client.finish()
        with pytest.raises(ConnectionLostError):
            await client.wait_closed()


async def test_what_tls_holds_back_is_read_when_reading_goes_on(tmp_path: Path, authority: Authority) -> None:
    # One record of TLS with more messages than may be unacknowledged: the socket has nothing more to tell.
    count = 50
    messages = b"".join(packets.publish(number, "t", b"%d" % number) for number in range(1, count + 1))
    files = TlsFiles(
        ca_file=authority.certificate_file, certificate_file=certificate_file(tmp_path, authority)
    )
    taken: asyncio.Queue[Delivery] = asyncio.Queue()
    async with (
        serving(authority, then=b"\x90\x03\x00\x01\x01" + messages) as address,
        BrokerConnection(
            url=f"mqtts://{address.host}:{address.port}",
            client_id="s",
            on_message=taken.put_nowait,
            subscriptions=("t",),
            tls=files,
            options=ConnectionOptions(max_unacked=4),
        ),
    ):
        for number in range(1, count + 1):
            delivery = await taken.get()
            assert delivery.payload == b"%d" % number
            delivery.ack()


async def test_why_a_broker_is_not_trusted_or_does_not_trust_is_told(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "foreign").mkdir()
    foreign = Authority.create(tmp_path / "foreign")
    past = time.time() - 500 * 86_400
    (tmp_path / "past").mkdir()
    # The same authority, in the past: what it issued then has expired.
    earlier = Authority.open(tmp_path, clock=lambda: past)
    good = certificate_file(tmp_path, authority)
    revoked = certificate_file(tmp_path, authority)
    expired = certificate_file(tmp_path, earlier, days=1)
    old_broker = tmp_path / "old-broker.pem"
    authority.directory.joinpath("broker.pem").unlink(missing_ok=True)
    old_broker.write_bytes(earlier.broker_file().read_bytes())
    authority.directory.joinpath("broker.pem").unlink()
    ca_file = authority.certificate_file

    async def check(files: TlsFiles, expected: str, *, broker: Path | None = None) -> None:
        async with serving(authority, file=broker) as address:
            assert expected in await open_as_device(address, files)
            assert expected in await open_as_service(address, files, caplog)

    await check(TlsFiles(ca_file=foreign.certificate_file), "authority that is not trusted here")
    await check(TlsFiles(), "authority that is not trusted here")
    await check(TlsFiles(ca_file=ca_file), "the broker's certificate has expired", broker=old_broker)
    await check(TlsFiles(ca_file=ca_file), "wants a client certificate")
    await check(
        TlsFiles(ca_file=ca_file, certificate_file=certificate_file(tmp_path, foreign)), "not trusted there"
    )
    await check(TlsFiles(ca_file=ca_file, certificate_file=expired), "the client certificate has expired")
    authority.revoke(["a"])
    await check(TlsFiles(ca_file=ca_file, certificate_file=revoked), "the client certificate was revoked")
    await check(TlsFiles(ca_file=ca_file, certificate_file=good), "the client certificate was revoked")


async def test_a_broker_with_another_name_is_not_trusted(authority: Authority) -> None:
    async with serving(authority) as address:
        context = TlsFiles(ca_file=authority.certificate_file).context()
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname="127.0.0.2"
            )
    assert "for another address" in explain(caught.value)


async def test_what_speaks_no_tls_is_told(authority: Authority) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        address = BrokerAddress(host="127.0.0.1", port=server.sockets[0].getsockname()[1], tls=True)
        told = await open_as_device(address, TlsFiles(ca_file=authority.certificate_file))
    assert "does not speak TLS" in told


async def test_a_broker_that_is_silent_in_the_handshake_is_given_up(authority: Authority) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1024):
                pass
        except ConnectionError:
            pass
        ended.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        address = BrokerAddress(host="127.0.0.1", port=server.sockets[0].getsockname()[1], tls=True)
        context = TlsFiles(ca_file=authority.certificate_file).context()
        with pytest.raises(ConnectionLostError, match="no answer"):
            await client_of().open(address, tls=context, timeout_s=0.05)
        await ended.wait()


def test_files_that_are_of_no_use_are_named(tmp_path: Path, authority: Authority) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no PEM")
    for path in (bad, tmp_path / "missing.pem"):
        with pytest.raises(BrokerTlsError, match=rf"{path.name}.*MUSTER_BROKER_CA_FILE"):
            TlsFiles(ca_file=path).context()
        with pytest.raises(BrokerTlsError, match=rf"{path.name}.*muster ca issue"):
            TlsFiles(certificate_file=path).context()
    with pytest.raises(FleetStartError, match="muster ca issue a --out"):
        DeviceTls(ca_file=authority.certificate_file, certificates=tmp_path).check(["a"])
