"""The bridge acknowledges a message when its effect is on disk, and lets none block the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from broker import messages, topics
from broker.connection import Delivery
from provisioning.bridge import Bridge
from provisioning.engine import EngineStoppedError, OrchestrationNotFoundError
from provisioning.errors import EngineAwayError
from provisioning.registry import Registry
from provisioning.states import DeviceState

INSTANCE = "run-1:dev-1"


class Link:
    """Stands for the connection: says when something was acknowledged."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    def settle(self) -> None:
        self.changed.set()

    def delivery(self, topic: str, payload: bytes) -> Delivery:
        return Delivery(
            link=self,  # type: ignore[arg-type]  # all that a delivery asks of its link is settle()
            mid=1,
            topic=topic,
            payload=payload,
            retained=False,
            duplicate=False,
        )

    async def wait_settled(self, *deliveries: Delivery) -> None:
        async with asyncio.timeout(10):
            while not all(delivery.settled for delivery in deliveries):
                self.changed.clear()
                await self.changed.wait()


class Sink:
    """Stands for the engine: its disk is as slow, or as broken, as the test says."""

    def __init__(self) -> None:
        self.raised: list[tuple[str, str, Any, str | None]] = []
        self.on_disk = asyncio.Event()
        self.errors: list[Exception] = []

    async def raise_orchestration_event(
        self, instance_id: str, event_name: str, *, data: Any = None, idempotency_key: str | None = None
    ) -> None:
        self.raised.append((instance_id, event_name, data, idempotency_key))
        if self.errors:
            raise self.errors.pop(0)
        await self.on_disk.wait()


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with Registry(tmp_path / "registry.db", linger_s=0.001) as opened:
        yield opened


@pytest.fixture
async def parts(registry: Registry) -> AsyncIterator[tuple[Bridge, Sink, Link]]:
    sink = Sink()
    bridge = Bridge(registry=registry, sink=sink)
    bridge.open()
    yield bridge, sink, Link()
    await bridge.close()


Parts = tuple[Bridge, Sink, Link]


def _ack(link: Link, *, device_id: str = "dev-1", instance_id: str = INSTANCE, attempt: int = 1) -> Delivery:
    event = messages.DownloadCompletedAck(
        instance_id=instance_id, package_id="p", attempt=attempt, size_bytes=1, sha256="a" * 64
    )
    return link.delivery(topics.event(device_id, "DownloadCompletedAck"), event.to_json())


async def _turns_until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110 (turns of the loop are what is waited for)
            await asyncio.sleep(0)


async def test_an_event_is_acknowledged_only_when_it_is_on_disk(parts: Parts) -> None:
    bridge, sink, link = parts
    delivery = _ack(link)
    bridge.take(delivery)
    await _turns_until(lambda: bool(sink.raised))
    assert not delivery.settled
    sink.on_disk.set()
    await link.wait_settled(delivery)
    instance_id, name, data, key = sink.raised[0]
    assert (instance_id, name) == (INSTANCE, "DownloadCompletedAck")
    assert data == {"package_id": "p", "attempt": 1, "size_bytes": 1, "sha256": "a" * 64}
    assert key


async def test_the_same_message_has_the_same_key_and_another_has_another(parts: Parts) -> None:
    bridge, sink, link = parts
    sink.on_disk.set()
    deliveries = [_ack(link), _ack(link), _ack(link, attempt=2)]
    for delivery in deliveries:
        bridge.take(delivery)
        await link.wait_settled(delivery)
    keys = [key for *_, key in sink.raised]
    assert keys[0] == keys[1] != keys[2]


async def test_a_message_delivered_again_before_it_is_on_disk_is_raised_once(parts: Parts) -> None:
    bridge, sink, link = parts
    first, again = _ack(link), _ack(link)
    bridge.take(first)
    bridge.take(again)
    await _turns_until(lambda: bool(sink.raised))
    assert not first.settled
    assert not again.settled
    sink.on_disk.set()
    await link.wait_settled(first, again)
    assert len(sink.raised) == 1
    assert bridge.statistics().duplicates == 1


async def test_many_events_are_on_their_way_at_once(parts: Parts) -> None:
    bridge, sink, link = parts
    deliveries = [_ack(link, attempt=n) for n in range(1, 101)]
    for delivery in deliveries:
        bridge.take(delivery)
    await _turns_until(lambda: len(sink.raised) == 100)
    assert bridge.statistics().in_flight == 100
    sink.on_disk.set()
    await link.wait_settled(*deliveries)


async def test_registering_is_acknowledged_when_the_registry_has_it(parts: Parts, registry: Registry) -> None:
    bridge, _, link = parts
    register = link.delivery(
        topics.register("dev-1"), messages.Register(model="m", firmware_version="1").to_json()
    )
    presence = link.delivery(topics.presence("dev-1"), messages.Presence(state="offline").to_json())
    bridge.take(register)
    bridge.take(presence)
    assert not register.settled
    await link.wait_settled(register, presence)
    device = await registry.device("dev-1")
    assert device is not None
    assert (device.state, device.online) == (DeviceState.NEW, False)


def _fresh(link: Link, token: str = "a") -> Delivery:
    register = messages.Register(model="m", firmware_version="1", fresh=token)
    return link.delivery(topics.register("dev-1"), register.to_json())


async def _in_mid_run(registry: Registry, state: DeviceState, *device_ids: str) -> None:
    for device_id in device_ids:
        registry.register(device_id, model="m", firmware_version="1", tags={})
    await registry.claim("run-1", None, options={}, limit=10)
    for device_id in device_ids:
        registry.progress("run-1", device_id, state, attempt=1)
    await registry.flush()


async def test_a_device_that_returns_in_mid_run_is_made_known_before_it_is_acknowledged(
    parts: Parts, registry: Registry
) -> None:
    bridge, sink, link = parts
    await _in_mid_run(registry, DeviceState.NOTIFIED, "dev-1")
    delivery = _fresh(link)
    bridge.take(delivery)
    await _turns_until(lambda: bool(sink.raised))
    assert sink.raised[0][:2] == (INSTANCE, "DeviceReturned")
    assert not delivery.settled
    sink.on_disk.set()
    await link.wait_settled(delivery)
    bridge.take(again := _fresh(link))
    bridge.take(later := _fresh(link, "b"))
    await link.wait_settled(again, later)
    keys = [key for *_, key in sink.raised]
    assert keys[0] == keys[1] != keys[2]


async def test_a_device_that_nothing_was_sent_to_has_nothing_to_hear_again(
    parts: Parts, registry: Registry
) -> None:
    bridge, sink, link = parts
    for state in (None, DeviceState.PACKAGING):
        if state is not None:
            await _in_mid_run(registry, state, "dev-1")
        bridge.take(delivery := _fresh(link, str(state)))
        await link.wait_settled(delivery)
    assert sink.raised == []


async def test_when_the_broker_has_lost_our_session_every_device_that_is_waited_for_hears_again(
    registry: Registry,
) -> None:
    sink = Sink()
    sink.on_disk.set()
    bridge = Bridge(registry=registry, sink=sink)
    await _in_mid_run(registry, DeviceState.NOTIFIED, "dev-1", "dev-2", "dev-3")
    registry.progress("run-1", "dev-3", DeviceState.ACTIVATING, attempt=1)
    await registry.flush()
    bridge.session_is_new()
    assert sink.raised == [], "not before the engine runs"
    bridge.open()
    await _turns_until(lambda: len(sink.raised) == 3)
    assert {instance for instance, *_ in sink.raised} == {f"run-1:dev-{n}" for n in (1, 2, 3)}
    assert len({key for *_, key in sink.raised}) == 1
    bridge.session_is_new()
    await _turns_until(lambda: len(sink.raised) == 6)
    assert len({key for *_, key in sink.raised}) == 2
    await bridge.close()


async def test_progress_is_telemetry(parts: Parts, registry: Registry) -> None:
    bridge, sink, link = parts
    registry.register("dev-1", model="m", firmware_version="1", tags={})
    await registry.claim("run-1", None, options={}, limit=1)
    event = messages.DownloadProgress(
        instance_id=INSTANCE, package_id="p", attempt=1, received_bytes=25, size_bytes=100
    )
    delivery = link.delivery(topics.event("dev-1", "DownloadProgress"), event.to_json())
    bridge.take(delivery)
    assert delivery.settled
    assert sink.raised == []
    await registry.flush()
    device = await registry.device("dev-1")
    assert device is not None
    assert (device.state, device.progress) == (DeviceState.DOWNLOADING, 0.25)


@pytest.mark.parametrize(
    ("topic", "payload", "counter"),
    [
        ("devices/dev-1/events/DownloadCompletedAck", b"{not json", "malformed"),
        ("devices/dev-1/events/DownloadCompletedAck", b"{}", "malformed"),
        ("devices/dev-1/events/DownloadCompletedAck", b"\xff\xfe", "malformed"),
        ("devices/dev-1/events/SelfDestruct", b'{"v":1}', "malformed"),
        ("devices/dev-1/events/DownloadCompletedAck", b"x" * 70_000, "malformed"),
        ("devices/dev-1/register", b"", "malformed"),
        ("devices/dev-1/package", b"{}", "malformed"),
        ("devices/../../etc", b"{}", "malformed"),
        ("", b"{}", "malformed"),
    ],
)
async def test_what_breaks_the_contract_is_counted_and_dropped(
    parts: Parts, topic: str, payload: bytes, counter: str
) -> None:
    bridge, sink, link = parts
    delivery = link.delivery(topic, payload)
    bridge.take(delivery)
    assert delivery.settled
    assert sink.raised == []
    assert getattr(bridge.statistics(), counter) == 1


async def test_a_device_can_not_speak_for_another(parts: Parts) -> None:
    bridge, sink, link = parts
    delivery = _ack(link, device_id="dev-2", instance_id=INSTANCE)
    bridge.take(delivery)
    assert delivery.settled
    assert sink.raised == []
    assert bridge.statistics().foreign == 1


async def test_an_event_for_an_instance_that_does_not_exist_is_dropped(parts: Parts) -> None:
    bridge, sink, link = parts
    sink.errors = [OrchestrationNotFoundError(INSTANCE)]
    delivery = _ack(link)
    bridge.take(delivery)
    await link.wait_settled(delivery)
    assert bridge.statistics().unknown == 1


@pytest.mark.parametrize("error", [ConnectionError("gone"), EngineAwayError("the backend", "gone")])
async def test_an_engine_that_is_away_is_tried_again(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("provisioning.bridge._FIRST_RETRY_S", 0.001)
    bridge, sink, link = parts
    sink.errors = [error, error]
    delivery = _ack(link)
    bridge.take(delivery)
    await _turns_until(lambda: len(sink.raised) == 3)
    assert not delivery.settled
    sink.on_disk.set()
    await link.wait_settled(delivery)
    assert (bridge.statistics().retries, bridge.statistics().events) == (2, 1)


async def test_an_engine_that_has_stopped_leaves_the_message_to_the_broker(parts: Parts) -> None:
    bridge, sink, link = parts
    sink.errors = [EngineStoppedError("stopped")]
    delivery = _ack(link)
    bridge.take(delivery)
    await _turns_until(lambda: bridge.statistics().in_flight == 0)
    assert not delivery.settled


async def test_what_comes_before_the_start_is_kept_and_what_comes_after_the_end_is_not_acknowledged(
    registry: Registry,
) -> None:
    sink, link = Sink(), Link()
    sink.on_disk.set()
    bridge = Bridge(registry=registry, sink=sink)
    early, late = _ack(link), _ack(link, attempt=2)
    bridge.take(early)
    assert sink.raised == []
    bridge.open()
    await link.wait_settled(early)
    await bridge.close()
    bridge.take(late)
    assert not late.settled


async def test_what_a_revoked_device_says_is_dropped_but_for_its_goodbye(registry: Registry) -> None:
    sink, link = Sink(), Link()
    bridge = Bridge(registry=registry, sink=sink, is_revoked=lambda device_id: device_id == "dev-1")
    bridge.open()
    register = messages.Register(model="m", firmware_version="1").to_json()
    said = [link.delivery(topics.register(name), register) for name in ("dev-1", "dev-2")]
    said.append(link.delivery(topics.presence("dev-1"), messages.Presence(state="online").to_json()))
    said.append(
        link.delivery(
            topics.event("dev-1", "DownloadFailed"),
            messages.DownloadFailed(
                instance_id=INSTANCE, package_id="p", attempt=1, reason="timeout"
            ).to_json(),
        )
    )
    for delivery in said:
        bridge.take(delivery)
    await link.wait_settled(*said)
    await registry.flush()
    assert [device.device_id for device in await registry.devices(limit=10)] == ["dev-2"]
    assert (sink.raised, bridge.statistics().revoked) == ([], 3)
    goodbye = link.delivery(topics.presence("dev-1"), messages.Presence(state="offline").to_json())
    bridge.take(goodbye)
    await link.wait_settled(goodbye)
    assert (bridge.statistics().presences, bridge.statistics().revoked) == (1, 3)
    await bridge.close()
