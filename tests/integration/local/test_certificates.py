"""Devices that come in by certificate, at both brokers: who may, as whom, and until when."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from broker import topics
from broker.address import BrokerAddress
from broker.connection import BrokerConnection, ConnectionOptions, Delivery
from broker.identity import device_key
from broker.local import AccessControl, BrokerKind, LocalBroker, TlsFilesOfBroker, start_broker
from broker.local.mosquitto import find_mosquitto
from broker.private_files import write_private
from broker.tls import TlsFiles
from devices import packets
from devices.client import DeviceClient
from devices.errors import ConnectionLostError
from provisioning.certificates import SERVICE_NAME, Authority
from provisioning.certificates.access import CertificateAccess
from tests.conftest import missing

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_S = 86_400
GROUP_KEY = b"k" * 32


class Peer:
    """A connection by certificate, and the topics of what has come on it."""

    def __init__(self, address: BrokerAddress, files: TlsFiles, client_id: str) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self._address, self._files = address, files
        self.client = DeviceClient(
            connect=packets.connect(
                client_id, keepalive_s=60, will_topic=topics.presence(client_id), will_payload=b"{}"
            ),
            keepalive_s=60,
            confirm_timeout_s=10,
            on_message=lambda topic, _: self.heard.put_nowait(topic),
        )

    async def __aenter__(self) -> Peer:
        await self.client.open(self._address, tls=self._files.context(), timeout_s=10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.finish()

    async def say(self, topic: str) -> None:
        """Publish; a broker may end the connection of who must not, or take it and drop it."""
        with contextlib.suppress(ConnectionLostError):
            await self.client.publish(topic, b"{}")


@dataclass
class Gate:
    """A broker with a listener for certificates, and those who issue them."""

    broker: LocalBroker
    access: CertificateAccess
    authority: Authority
    directory: Path

    def peer(self, device_id: str, file: Path | None = None, *, client_id: str | None = None) -> Peer:
        """As ``device_id``, with a certificate of its own where no other one is given."""
        if file is None:
            self.authority.issue_into(self.directory, [device_id])
            file = self.directory / f"{device_id}.pem"
        files = TlsFiles(ca_file=self.authority.certificate_file, certificate_file=file)
        assert self.broker.tls_url is not None
        return Peer(BrokerAddress.parse(self.broker.tls_url), files, client_id or device_id)

    def file(self, subject: str, *, by: Authority | None = None, days: int = 90) -> Path:
        (issued,) = (by or self.authority).issue([subject], days=days)
        write_private(path := self.directory / f"{issued.serial:x}.pem", issued.pem)
        return path

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[Peer]:
        """Somebody with the service's certificate, who reads all that devices say from now on."""
        async with self.peer(SERVICE_NAME, self.file(SERVICE_NAME)) as service:
            await service.client.subscribe((topics.ALL_EVENTS, topics.ALL_REGISTER, topics.ALL_PRESENCE))
            yield service


async def refused(peer: Peer) -> str | None:
    """Why the broker does not let it in; None where it does."""
    try:
        async with peer:
            return None
    except ConnectionLostError as error:
        return str(error)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["mosquitto", "aedes"])
async def gate(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gate]:
    kind: BrokerKind = request.param
    if kind == "mosquitto" and find_mosquitto() is None:
        missing("Mosquitto is not installed (Debian: apt-get install mosquitto)")
    accounts = AccessControl()
    directory = tmp_path_factory.mktemp("gate")
    authority = Authority.create(directory)
    tls = TlsFilesOfBroker(
        ca_file=authority.certificate_file,
        certificate_file=authority.broker_file(),
        revoked_file=authority.write_list(),
    )
    async with await start_broker(
        state_dir=directory, kind=kind, port=0, access=accounts, tls=tls, tls_port=0
    ) as broker:
        assert broker.tls_url is not None
        address = BrokerAddress.parse(broker.tls_url)
        access = CertificateAccess(
            authority,
            accounts=accounts,
            reload=accounts.reload,
            directory=directory / "devices",
            in_fleet=lambda device_id: device_id.endswith("-in-fleet"),
            address=(address.host, address.port),
            unfinished_s=0.2,
        )
        (directory / "devices").mkdir()
        await access.set({}, revoked=())
        yield Gate(broker, access, authority, directory / "devices")
        await access.close()


async def test_only_who_has_a_good_certificate_comes_in(gate: Gate, unique: str, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path)
    past = Authority.open(gate.directory.parent, clock=lambda: time.time() - 10 * DAY_S)
    assert await refused(gate.peer(unique)) is None
    assert await refused(gate.peer(unique, gate.file(unique, by=foreign)))
    assert await refused(gate.peer(unique, gate.file(unique, by=past, days=1)))
    nothing = TlsFiles(ca_file=gate.authority.certificate_file)
    assert gate.broker.tls_url is not None
    assert await refused(Peer(BrokerAddress.parse(gate.broker.tls_url), nothing, unique))


async def test_a_device_says_and_hears_what_is_its_own_and_nothing_else(gate: Gate, unique: str) -> None:
    a, b = f"{unique}-a", f"{unique}-b"
    async with gate.service() as service, gate.peer(a) as device:
        await device.client.subscribe(
            (topics.package(a), topics.package(b), topics.command(b, "+"), "devices/#", "#")
        )
        if not device.client.connected:
            pytest.fail("a subscription that is not granted ends no connection")
        await service.say(topics.package(b))
        await service.say(topics.command(b, "Activate"))
        await service.say(topics.package(a))
        assert await device.heard.get() == topics.package(a)
        assert device.heard.empty()
        await device.say(topics.event(a, "DownloadStarted"))
        assert await service.heard.get() == topics.event(a, "DownloadStarted")
    for forbidden in (topics.event(b, "DownloadCompletedAck"), topics.register(b), topics.package(a), "else"):
        async with gate.service() as service:
            async with gate.peer(a) as device:
                await device.say(forbidden)
            async with gate.peer(b) as other:
                await other.say(topics.event(b, "Last"))
            heard = [await service.heard.get()]
            while heard[-1] != topics.event(b, "Last"):
                heard.append(await service.heard.get())
            assert forbidden not in heard


async def test_nobody_takes_the_session_of_another_device(gate: Gate, unique: str) -> None:
    a, b = f"{unique}-a", f"{unique}-b"
    async with gate.peer(b) as device:
        # Mosquitto lets it in, as itself; Aedes does not.
        await refused(gate.peer(a, client_id=b))
        await device.client.publish(topics.event(b, "DownloadStarted"), b"{}")
        assert device.client.connected


async def test_a_revoked_device_is_disconnected_and_refused_and_gets_in_by_a_new_certificate(
    gate: Gate, unique: str
) -> None:
    a, b = f"{unique}-in-fleet", f"{unique}-b"
    keys = {device_id: device_key(GROUP_KEY, device_id) for device_id in (a, b)}
    await gate.access.admit(keys)
    old = gate.file(a)
    async with gate.peer(a) as device, gate.peer(b) as other:
        await gate.access.dismiss([a])
        with pytest.raises(ConnectionLostError):
            await device.client.wait_closed()
        assert await refused(gate.peer(a, old))
        assert await refused(gate.peer(a, gate.directory / f"{a}.pem"))
        await other.client.publish(topics.event(b, "DownloadStarted"), b"{}")
        await gate.access.admit({a: keys[a]})
        assert await refused(gate.peer(a, old)), "what was revoked stays so"
        assert await refused(gate.peer(a, gate.directory / f"{a}.pem")) is None


async def test_a_fleet_s_device_that_was_revoked_before_it_had_a_certificate_gets_one(
    gate: Gate, unique: str
) -> None:
    device_id = f"{unique}-in-fleet"
    await gate.access.dismiss([device_id])
    gate.authority.issue_into(gate.directory, [device_id])
    assert not (gate.directory / f"{device_id}.pem").exists()
    await gate.access.admit({device_id: device_key(GROUP_KEY, device_id)})
    assert await refused(gate.peer(device_id, gate.directory / f"{device_id}.pem")) is None


async def test_a_start_disconnects_whom_a_crash_has_left_and_nobody_twice(gate: Gate, unique: str) -> None:
    file = gate.file(unique)
    async with gate.peer(unique, file) as device:
        gate.authority.revoke([unique])  # and here the service was killed
        revoked = gate.authority.refused()
        await gate.access.set({}, revoked=revoked)
        with pytest.raises(ConnectionLostError):
            await device.client.wait_closed()
    while gate.authority.refuse_exactly(revoked):  # noqa: ASYNC110 - nothing tells when it has
        await asyncio.sleep(0.05)


async def test_a_device_that_nobody_has_enrolled_can_be_revoked_too(gate: Gate, unique: str) -> None:
    file = gate.file(unique)
    async with gate.peer(unique, file) as device:
        await gate.access.dismiss([unique])
        with pytest.raises(ConnectionLostError):
            await device.client.wait_closed()
    assert await refused(gate.peer(unique, file))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_revoked_device_resumes_no_session_of_tls(
    gate: Gate, unique: str, version: ssl.TLSVersion
) -> None:
    # A session that is resumed shows no certificate.
    files = TlsFiles(ca_file=gate.authority.certificate_file, certificate_file=gate.file(unique))
    context = files.context()
    context.maximum_version = version
    assert gate.broker.tls_url is not None
    address = BrokerAddress.parse(gate.broker.tls_url)
    connect = packets.connect(unique, keepalive_s=60, will_topic=topics.presence(unique), will_payload=b"{}")

    def attempt(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        plain = socket.create_connection((address.host, address.port))
        with context.wrap_socket(plain, server_hostname=address.host, session=session) as there:
            there.sendall(connect)
            return there.recv(4), there.session

    answer, session = await asyncio.to_thread(attempt, None)
    assert answer.startswith(b"\x20\x02")
    await gate.access.dismiss([unique])
    with contextlib.suppress(OSError):
        assert (await asyncio.to_thread(attempt, session))[0] == b""


async def test_a_connection_from_before_the_revocation_is_of_no_use_after_it(gate: Gate, unique: str) -> None:
    files = TlsFiles(ca_file=gate.authority.certificate_file, certificate_file=gate.file(unique))
    assert gate.broker.tls_url is not None
    address = BrokerAddress.parse(gate.broker.tls_url)
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=files.context())
    await gate.access.dismiss([unique])
    # Its certificate was looked at when it was good.
    writer.write(
        packets.connect(unique, keepalive_s=60, will_topic=topics.presence(unique), will_payload=b"{}")
    )
    with contextlib.suppress(OSError):
        while await reader.read(1024):
            pass
    writer.close()


async def test_the_service_s_own_connection_goes_by_tls_too(gate: Gate, unique: str) -> None:
    files = TlsFiles(ca_file=gate.authority.certificate_file, certificate_file=gate.file(SERVICE_NAME))
    taken: asyncio.Queue[Delivery] = asyncio.Queue()
    assert gate.broker.tls_url is not None
    async with BrokerConnection(
        url=gate.broker.tls_url,
        client_id=SERVICE_NAME,
        on_message=taken.put_nowait,
        subscriptions=(topics.event(unique, "+"),),
        tls=files,
        # So few that reading stops again and again, with more in the hands of TLS.
        options=ConnectionOptions(max_unacked=8),
    ) as service:
        await service.wait_connected()
        async with gate.peer(unique) as device:
            said = [topics.event(unique, f"E{number}") for number in range(300)]
            for topic in said:
                device.client.publish(topic, b"x" * 2_000)
            # The session may have subscriptions of other tests: more than once, and more than these.
            came: dict[str, None] = {}
            while said[-1] not in came:
                delivery = await taken.get()
                if unique in delivery.topic:
                    came[delivery.topic] = None
                delivery.ack()
            await service.publish(topics.package(unique), b"{}", timeout_s=10)
    assert [topic for topic in came if topic in set(said)] == said
