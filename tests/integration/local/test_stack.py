"""The local stack serves: both brokers deliver, Azurite stores, and what they keep survives a restart."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
import pytest
from azure.storage.blob.aio import BlobServiceClient
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from broker.local import BrokerKind, LocalBroker, MissingProgramError, start_broker
from broker.local import mosquitto as mosquitto_module
from broker.local.mosquitto import find_mosquitto
from broker.local.node import NodeStack
from provisioning.azurite import LocalAzurite, start_azurite
from tests.conftest import missing

pytestmark = pytest.mark.real

# More than Mosquitto keeps for a client that is away unless it is told otherwise (1,000).
BACKLOG = 1_500


async def test_a_message_of_quality_one_arrives(each_broker: LocalBroker, unique: str) -> None:
    async with (
        aiomqtt.Client(each_broker.host, each_broker.port) as subscriber,
        aiomqtt.Client(each_broker.host, each_broker.port) as publisher,
    ):
        await subscriber.subscribe(f"{unique}/+", qos=1)
        await publisher.publish(f"{unique}/a", b"hello", qos=1)
        async for message in subscriber.messages:
            assert (message.payload, message.qos) == (b"hello", 1)
            break


async def test_a_client_that_was_away_gets_all_it_missed_in_order(
    each_broker: LocalBroker, unique: str
) -> None:
    await asyncio.to_thread(Absentee(each_broker, unique).leave)
    await publish_numbered(each_broker, unique, BACKLOG)
    assert await asyncio.to_thread(Absentee(each_broker, unique).collect, BACKLOG) == numbers(BACKLOG)


async def test_what_was_not_acknowledged_is_delivered_again(each_broker: LocalBroker, unique: str) -> None:
    await asyncio.to_thread(Absentee(each_broker, unique).leave)
    await publish_numbered(each_broker, unique, 20)
    assert await asyncio.to_thread(Absentee(each_broker, unique, acknowledge=False).collect, 20) == numbers(
        20
    )
    assert await asyncio.to_thread(Absentee(each_broker, unique).collect, 20) == numbers(20)


async def test_a_client_that_comes_back_amid_traffic_is_not_dropped(
    each_broker: LocalBroker, unique: str
) -> None:
    await asyncio.to_thread(Absentee(each_broker, unique).leave)
    async with aiomqtt.Client(each_broker.host, each_broker.port) as publisher:
        for _ in range(20):
            await publish_numbered(each_broker, unique, 20)
            returned = Absentee(each_broker, unique)
            collecting = asyncio.create_task(asyncio.to_thread(returned.collect, 150))
            for number in numbers(130, first=20):
                await publisher.publish(f"{unique}/n", number, qos=1)
            assert sorted(await collecting) == numbers(150)
            assert not returned.dropped


async def test_sessions_queues_and_retained_messages_survive_a_restart(
    broker_kind: BrokerKind, tmp_path: Path, unique: str
) -> None:
    async with await start_broker(state_dir=tmp_path, kind=broker_kind, port=0) as broker:
        await asyncio.to_thread(Absentee(broker, unique).leave)
        await publish_numbered(broker, unique, 100)
        async with aiomqtt.Client(broker.host, broker.port) as publisher:
            await publisher.publish(f"{unique}-retained", b"kept", qos=1, retain=True)
    async with await start_broker(state_dir=tmp_path, kind=broker_kind) as again:
        assert again.url == broker.url
        assert await asyncio.to_thread(Absentee(again, unique).collect, 100) == numbers(100)
        async with aiomqtt.Client(again.host, again.port) as subscriber:
            await subscriber.subscribe(f"{unique}-retained", qos=1)
            async for message in subscriber.messages:
                assert message.payload == b"kept"
                break


async def test_aedes_publishes_no_wills_when_it_stops(
    tmp_path: Path, stack_cache: NodeStack, unique: str
) -> None:
    # (Mosquitto does; the devices say that they are online when they are back.)
    broker = await start_broker(state_dir=tmp_path, kind="aedes", port=0)
    await asyncio.to_thread(Absentee(broker, unique).leave)
    will = aiomqtt.Will(f"{unique}/will", b"dead", qos=1)
    with contextlib.suppress(aiomqtt.MqttError):  # its connection is gone when it leaves
        async with aiomqtt.Client(broker.host, broker.port, will=will):
            await broker.stop()
    async with await start_broker(state_dir=tmp_path, kind="aedes") as again:
        await publish_numbered(again, unique, 1)
        assert await asyncio.to_thread(Absentee(again, unique).collect, 1) == numbers(1)


async def test_the_other_broker_takes_over_the_address(tmp_path: Path, stack_cache: NodeStack) -> None:
    require_mosquitto()
    async with await start_broker(state_dir=tmp_path, kind="mosquitto", port=0) as first:
        pass
    async with await start_broker(state_dir=tmp_path, kind="aedes") as second:
        assert second.url == first.url


async def test_without_mosquitto_aedes_is_the_broker(
    tmp_path: Path, stack_cache: NodeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in (stack_cache.node, Path("/bin/sh")):
        (tmp_path / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mosquitto_module, "EXTRA_PLACES", (str(tmp_path),))
    assert find_mosquitto() is None
    async with await start_broker(state_dir=tmp_path, port=0) as broker:
        assert broker.kind == "aedes"
    with pytest.raises(MissingProgramError, match="apt-get install mosquitto"):
        await start_broker(state_dir=tmp_path, kind="mosquitto")


async def test_aedes_outlives_nonsense(aedes_broker: LocalBroker) -> None:
    reader, writer = await asyncio.open_connection(aedes_broker.host, aedes_broker.port)
    writer.write(b"\x10\xff\xff\xff\xff not MQTT at all")
    assert await reader.read() == b""
    writer.close()
    async with aiomqtt.Client(aedes_broker.host, aedes_broker.port) as client:
        await client.publish("anyone", b"there", qos=1)


async def test_a_blob_comes_back(azurite: LocalAzurite, unique: str) -> None:
    async with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        container = await service.create_container(unique)
        await container.upload_blob("b", b"x" * 70_000)
        assert await (await container.download_blob("b")).readall() == b"x" * 70_000


async def test_blobs_and_their_addresses_survive_a_restart_of_azurite(
    tmp_path: Path, stack_cache: NodeStack, unique: str
) -> None:
    async with (
        await start_azurite(state_dir=tmp_path, port=0) as first,
        BlobServiceClient.from_connection_string(first.connection_string) as service,
    ):
        await (await service.create_container(unique)).upload_blob("b", b"kept")
    async with (
        await start_azurite(state_dir=tmp_path) as second,
        BlobServiceClient.from_connection_string(second.connection_string) as service,
    ):
        assert second.blob_endpoint == first.blob_endpoint
        assert await (await service.get_blob_client(unique, "b").download_blob()).readall() == b"kept"


def test_the_account_key_is_not_shown(azurite: LocalAzurite) -> None:
    assert "AccountKey" not in repr(azurite)


@pytest.fixture(params=["mosquitto", "aedes"])
def broker_kind(request: pytest.FixtureRequest, stack_cache: NodeStack) -> BrokerKind:
    """Both kinds, for tests that start and stop a broker of their own."""
    kind: BrokerKind = request.param
    if kind == "mosquitto":
        require_mosquitto()
    return kind


def require_mosquitto() -> None:
    if find_mosquitto() is None:
        missing("Mosquitto is not installed (Debian: apt-get install mosquitto)")


def numbers(count: int, *, first: int = 0) -> list[bytes]:
    return [b"%06d" % number for number in range(first, first + count)]


async def publish_numbered(broker: LocalBroker, unique: str, count: int, *, first: int = 0) -> None:
    async with aiomqtt.Client(broker.host, broker.port, max_inflight_messages=count) as publisher:
        payloads = numbers(count, first=first)
        await asyncio.gather(*(publisher.publish(f"{unique}/n", payload, qos=1) for payload in payloads))


class Absentee:
    """A client with a persistent session on ``unique/#`` and acknowledgement by hand, like the bridge."""

    def __init__(self, broker: LocalBroker, unique: str, *, acknowledge: bool = True) -> None:
        self._broker = broker
        self._topic = f"{unique}/#"
        self._acknowledge = acknowledge
        self._expected = 0
        self._payloads: list[bytes] = []
        self._done = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, unique, clean_session=False, manual_ack=True)
        self._client.on_message = self._on_message
        self._client.on_disconnect = self._on_disconnect
        self.dropped = False

    def leave(self) -> None:
        """Make the session, subscribe, go away."""

        def subscribe(*_: Any) -> None:
            self._client.subscribe(self._topic, 1)

        self._client.on_connect = subscribe
        self._client.on_subscribe = lambda *_: self._done.set()
        self._run()

    def collect(self, expected: int) -> list[bytes]:
        """Come back, take ``expected`` messages, go away; a message that came twice is in it once."""
        self._expected = expected
        self._run()
        return list(dict.fromkeys(self._payloads))

    def _run(self) -> None:
        self._client.connect(self._broker.host, self._broker.port)
        self._client.loop_start()
        assert self._done.wait(20), f"{len(set(self._payloads))} of {self._expected} messages came"
        self._client.disconnect()
        self._client.loop_stop()

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        self.dropped = self.dropped or reason.is_failure

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._payloads.append(bytes(message.payload))
        if self._acknowledge:
            client.ack(message.mid, message.qos)
        if len(set(self._payloads)) == self._expected:
            self._done.set()
