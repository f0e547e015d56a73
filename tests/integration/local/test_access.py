"""Who may do what at a local broker with access control, on both brokers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from broker import topics
from broker.address import BrokerAddress
from broker.identity import device_key, expiry_of, make_token
from broker.local import AccessControl, BrokerKind, LocalBroker, StackInUseError, start_broker
from broker.local.mosquitto import find_mosquitto
from devices import packets
from devices.client import DeviceClient
from devices.errors import ConnectionLostError, NotAuthorisedError
from tests.conftest import missing

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP_KEY = b"k" * 32
OFFLINE = b'{"v":1,"state":"offline"}'


class Peer:
    """A connection, and the topics of what has come on it."""

    def __init__(
        self,
        address: BrokerAddress,
        username: str | None,
        password: str | None,
        *,
        client_id: str,
        will_topic: str | None = None,
    ) -> None:
        self.heard: list[str] = []
        self._news = asyncio.Event()
        self._address = address
        connect = packets.connect(
            client_id,
            keepalive_s=60,
            will_topic=will_topic or topics.presence(client_id),
            will_payload=OFFLINE,
            username=username,
            password=password,
        )
        self.client = DeviceClient(
            connect=connect, keepalive_s=60, confirm_timeout_s=10, on_message=self._on_message
        )

    def _on_message(self, topic: str, payload: bytes) -> None:
        self.heard.append(topic)
        self._news.set()

    async def __aenter__(self) -> Peer:
        await self.client.open(self._address, tls=None, timeout_s=10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.finish()

    async def subscribe(self, *filters: str) -> bytes:
        return await self.client.subscribe(filters)

    async def say(self, topic: str, *, retain: bool = False) -> None:
        """Publish; a broker may end the connection of who must not, or take it and drop it."""
        with contextlib.suppress(ConnectionLostError):
            await self.client.publish(topic, b"{}", retain=retain)

    async def until_heard(self, topic: str) -> None:
        while topic not in self.heard:
            self._news.clear()
            await self._news.wait()


@dataclass
class Gate:
    """A broker, and how to come in."""

    broker: LocalBroker
    access: AccessControl

    def token(self, device_id: str, *, key: str | None = None, expires_at: int | None = None) -> str:
        """The token of the device's period, but for what a test wants otherwise."""
        key = key or device_key(GROUP_KEY, device_id)
        return make_token(
            key, device_id, expiry_of(device_id, now=time.time()) if expires_at is None else expires_at
        )

    def device(
        self,
        device_id: str,
        password: str | None = None,
        *,
        client_id: str | None = None,
        will_topic: str | None = None,
    ) -> Peer:
        return Peer(
            BrokerAddress.parse(self.broker.url),
            device_id,
            self.token(device_id) if password is None else password,
            client_id=client_id or device_id,
            will_topic=will_topic,
        )

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[Peer]:
        """The service's account, which reads all that devices say from now on."""
        async with self.device(self.access.username, self.access.password) as service:
            await service.subscribe(topics.ALL_EVENTS, topics.ALL_REGISTER, topics.ALL_PRESENCE)
            yield service

    async def admit(self, *device_ids: str) -> None:
        """Let devices in; the broker reads its files a moment after it was told to."""
        await self.access.admit({device_id: device_key(GROUP_KEY, device_id) for device_id in device_ids})
        for device_id in device_ids:
            while await refused(self.device(device_id)):  # noqa: ASYNC110 - nothing tells when it has
                await asyncio.sleep(0.02)


async def refused(peer: Peer) -> bool:
    """Whether the broker does not let it in."""
    try:
        async with peer:
            return False
    except NotAuthorisedError:
        return True


def about(test: str, heard: Iterable[str]) -> set[str]:
    """Without what other tests have left."""
    return {topic for topic in heard if test in topic}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["mosquitto", "aedes"])
async def gate(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gate]:
    kind: BrokerKind = request.param
    if kind == "mosquitto" and find_mosquitto() is None:
        missing("Mosquitto is not installed (Debian: apt-get install mosquitto)")
    access = AccessControl()
    directory = tmp_path_factory.mktemp("gate")
    async with await start_broker(state_dir=directory, kind=kind, port=0, access=access) as broker:
        await access.set({})
        yield Gate(broker, access)


async def test_only_who_has_a_token_of_its_own_comes_in(gate: Gate, unique: str) -> None:
    a, b, stranger = f"{unique}-a", f"{unique}-b", f"{unique}-c"
    await gate.admit(a, b)
    assert not await refused(gate.device(a))
    assert await refused(Peer(BrokerAddress.parse(gate.broker.url), None, None, client_id=a))
    assert await refused(gate.device(stranger))
    assert await refused(gate.device(a, "guess"))
    assert await refused(gate.device(a, gate.token(b)))
    assert await refused(gate.device(a, gate.token(a, key=device_key(b"another" * 5, a))))
    assert await refused(gate.device(gate.access.username, "guess"))
    assert await refused(gate.device(gate.access.username, gate.token(a), client_id=a))


async def test_an_expired_token_is_refused_and_its_expiry_cant_be_changed(gate: Gate, unique: str) -> None:
    await gate.admit(unique)
    expired = gate.token(unique, expires_at=int(time.time()) - 1)
    assert await refused(gate.device(unique, expired))
    later = expired.rpartition("=")[0] + f"={expiry_of(unique, now=time.time())}"
    assert await refused(gate.device(unique, later))


async def test_a_device_speaks_for_itself_alone(gate: Gate, unique: str) -> None:
    a, b = f"{unique}-a", f"{unique}-b"
    await gate.admit(a, b)
    forbidden = [
        topics.event(b, "DownloadCompletedAck"),
        topics.register(b),
        topics.presence(b),
        topics.package(a),
        topics.command(a, "Activate"),
        f"devices/{a}/events/{b}/more",
    ]
    allowed = [topics.register(a), topics.presence(a), topics.event(a, "DownloadCompletedAck")]
    async with gate.service() as service:
        await service.subscribe("devices/#")
        service.heard.clear()
        for topic in forbidden:
            async with gate.device(a) as device:
                await device.say(topic)
        async with gate.device(a) as device:
            for topic in allowed:
                await device.say(topic)
        await service.until_heard(allowed[-1])
        assert about(unique, service.heard) == set(allowed)


async def test_a_device_leaves_no_will_about_another(gate: Gate, unique: str) -> None:
    a, b = f"{unique}-a", f"{unique}-b"
    await gate.admit(a, b)
    async with gate.service() as service:
        with contextlib.suppress(ConnectionLostError):
            async with gate.device(a, will_topic=topics.presence(b)) as liar:
                liar.client.sever()
        async with gate.device(a) as device:
            device.client.sever()
        await service.until_heard(topics.presence(a))
        assert topics.presence(b) not in service.heard


async def test_a_device_hears_of_itself_alone(gate: Gate, unique: str) -> None:
    a, b = f"{unique}-a", f"{unique}-b"
    await gate.admit(a, b)
    foreign = (topics.package(b), topics.command(b, "Activate"), topics.presence(b), topics.register(b))
    own = (topics.package(a), topics.command(a, "Activate"))
    async with gate.service() as service, gate.device(a) as device:
        for topic in foreign:
            await service.say(topic, retain=True)
        await device.subscribe("#", "devices/#", "devices/+/package", "$SYS/#", *foreign)
        await device.subscribe(topics.package(a), topics.command(a, "+"))
        for topic in (*foreign, *own):
            await service.say(topic)
        for topic in own:
            await device.until_heard(topic)
        assert set(device.heard) == set(own)


async def test_the_session_of_another_cant_be_taken(gate: Gate, unique: str) -> None:
    a, b = f"{unique}-a", f"{unique}-b"
    await gate.admit(a, b)
    async with gate.service() as service, gate.device(b) as victim:
        await victim.subscribe(topics.package(b))
        # Mosquitto lets it in under its own name, Aedes does not.
        await refused(gate.device(a, client_id=b))
        await service.say(topics.package(b))
        await victim.until_heard(topics.package(b))


async def test_who_is_dismissed_is_disconnected_and_refused_and_nobody_else(gate: Gate, unique: str) -> None:
    a, b = f"{unique}-a", f"{unique}-b"
    await gate.admit(a, b)
    async with gate.service() as service, gate.device(b) as other, gate.device(a) as device:
        await other.subscribe(topics.package(b))
        await gate.access.dismiss([a])
        with pytest.raises(ConnectionLostError):
            await device.client.wait_closed()
        assert await refused(gate.device(a))
        await service.say(topics.package(b))
        await other.until_heard(topics.package(b))
    await gate.admit(a)


async def test_a_second_service_leaves_the_accounts_of_the_first_alone(gate: Gate) -> None:
    state_dir = gate.broker.process.log_path.parents[2]
    with pytest.raises(StackInUseError):
        await start_broker(state_dir=state_dir, kind=gate.broker.kind, port=0, access=AccessControl())
    gate.broker.process.reload()
    await asyncio.sleep(0.2)
    async with gate.service():
        pass


async def test_devices_that_are_away_cost_nothing_when_accounts_change(tmp_path: Path) -> None:
    """Mosquitto looks at their sessions too, finds old passwords, and must not stumble over that later."""
    if find_mosquitto() is None:
        missing("Mosquitto is not installed (Debian: apt-get install mosquitto)")
    device_ids = [f"d{number}" for number in range(1_000)]
    access = AccessControl()
    async with await start_broker(state_dir=tmp_path, kind="mosquitto", port=0, access=access) as broker:
        gate = Gate(broker, access)
        await gate.admit(*device_ids)
        await access.set({device_id: device_key(b"z" * 32, device_id) for device_id in device_ids})
        while not await refused(gate.device(device_ids[0])):  # noqa: ASYNC110 - nothing tells when it has
            await asyncio.sleep(0.02)
        process = psutil.Process(broker.process.pid)
        before = process.memory_info().rss
        for _ in range(120):
            broker.process.reload()
            assert await refused(gate.device(device_ids[0]))
        # It was 32 KB each time.
        assert process.memory_info().rss - before < 2_000_000


@pytest.mark.parametrize("kind", ["mosquitto", "aedes"])
async def test_what_devices_say_while_the_service_is_away_outlives_a_restart_and_changes(
    tmp_path: Path, kind: BrokerKind
) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        missing("Mosquitto is not installed (Debian: apt-get install mosquitto)")
    topic = topics.event("a", "DownloadCompletedAck")
    for round_ in range(2):
        access = AccessControl(password_file=tmp_path / "broker.password")
        async with await start_broker(state_dir=tmp_path, kind=kind, port=0, access=access) as broker:
            gate, there = Gate(broker, access), round_ == 0
            access.service_connected = lambda: there  # noqa: B023
            change = asyncio.create_task(access.set({"a": device_key(GROUP_KEY, "a")}))
            if round_:
                # Its broker was started again, and knows its session and no password of it.
                await asyncio.sleep(0.1)
                async with gate.device("a") as device:
                    await device.say(topic)
            async with gate.service() as service:
                there = True
                await change
                if round_:
                    await service.until_heard(topic)
