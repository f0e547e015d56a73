"""The bridge: what devices say over MQTT becomes registry entries and external events.

A message is acknowledged only when its effect is on disk, so a crash at any moment makes the broker deliver
it again; and since an event carries a key made of its topic and bytes, delivered again is as delivered once.
Telemetry (how far a download is) is acknowledged at once: it may be lost, and the next one says more.

What breaks the contract is counted, logged and dropped: a message that can never be handled must not block
those behind it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from broker import messages, topics
from broker.connection import Delivery
from broker.errors import ContractError

from .engine.errors import EngineStoppedError, OrchestrationNotFoundError, PayloadTooLargeError
from .registry import Registry
from .states import DeviceState

_LOG = logging.getLogger(__name__)

SUBSCRIPTIONS = (topics.ALL_PRESENCE, topics.ALL_REGISTER, topics.ALL_EVENTS)
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 5.0
# Broken devices repeat themselves: after so many lines the rest is only counted.
_MAX_COMPLAINTS = 20


class EventSink(Protocol):
    """Where external events go: the client of either engine, or nearly."""

    async def raise_orchestration_event(
        self,
        instance_id: str,
        event_name: str,
        *,
        data: Any | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Return when the event is on disk."""
        ...


@dataclass(frozen=True, kw_only=True)
class BridgeStatistics:
    """Messages since the start, by what became of them."""

    registrations: int = 0
    presences: int = 0
    telemetry: int = 0
    events: int = 0
    duplicates: int = 0
    """Delivered again while the first delivery was not on disk yet."""
    malformed: int = 0
    foreign: int = 0
    """Events of a device for an instance that is about another."""
    unknown: int = 0
    """Events for an instance that does not exist."""
    retries: int = 0
    in_flight: int = 0


class Bridge:
    """Takes deliveries from a `BrokerConnection` (`take` is its `on_message`).

    Until `open()` what arrives is kept, not handled; the connection's limit on unacknowledged messages
    bounds it, as it bounds what is in flight.
    """

    def __init__(self, *, registry: Registry, sink: EventSink) -> None:
        self._registry = registry
        self._sink = sink
        self._early: list[Delivery] | None = []
        self._closed = False
        self._raising: set[asyncio.Task[None]] = set()
        self._under_way: dict[str, list[Delivery]] = {}
        self._counts = {name: 0 for name in asdict(BridgeStatistics()) if name != "in_flight"}
        self._complaints = 0
        self._handlers: dict[str, Callable[[topics.Topic, Delivery], None]] = {
            "event": self._event,
            "presence": self._presence,
            "register": self._register,
        }

    def open(self) -> None:
        """Handle what has arrived and what arrives from now on: the engine runs."""
        early, self._early = self._early, None
        for delivery in early or ():
            self.take(delivery)

    async def close(self) -> None:
        """Handle nothing more. What was not acknowledged comes again after the next start."""
        self._closed = True
        for task in self._raising:
            task.cancel()
        if self._raising:
            await asyncio.wait(self._raising)

    def statistics(self) -> BridgeStatistics:
        """A snapshot of the counters."""
        return BridgeStatistics(**self._counts, in_flight=len(self._raising))

    def take(self, delivery: Delivery) -> None:
        """Handle one message; it is acknowledged when that is done."""
        if self._closed:
            return
        if self._early is not None:
            self._early.append(delivery)
            return
        try:
            topic = topics.parse(delivery.topic)
            handler = self._handlers.get(topic.kind)
            if handler is None:
                self._drop(delivery, "malformed", f"{delivery.topic!r} is no topic that devices publish to")
            else:
                handler(topic, delivery)
        except ContractError as error:
            self._drop(delivery, "malformed", str(error))

    def _register(self, topic: topics.Topic, delivery: Delivery) -> None:
        message = messages.parse_register(topic, delivery.payload)
        self._counts["registrations"] += 1
        self._registry.register(
            topic.device_id,
            model=message.model,
            firmware_version=message.firmware_version,
            tags=message.tags,
            then=_acknowledge(delivery),
        )

    def _presence(self, topic: topics.Topic, delivery: Delivery) -> None:
        message = messages.parse_presence(topic, delivery.payload)
        self._counts["presences"] += 1
        self._registry.presence(
            topic.device_id, online=message.state == "online", then=_acknowledge(delivery)
        )

    def _event(self, topic: topics.Topic, delivery: Delivery) -> None:
        event = messages.parse_event(topic, delivery.payload)
        run_id, _, device_id = event.instance_id.rpartition(":")
        if device_id != topic.device_id:
            self._drop(
                delivery,
                "foreign",
                f"{topic.device_id} sent {topic.name} for {event.instance_id}, not its own",
            )
            return
        match event:
            case messages.DownloadStarted():
                self._registry.progress(
                    run_id, device_id, DeviceState.DOWNLOADING, attempt=event.attempt, progress=0.0
                )
            case messages.DownloadProgress():
                share = min(1.0, event.received_bytes / event.size_bytes) if event.size_bytes else 1.0
                self._registry.progress(
                    run_id, device_id, DeviceState.DOWNLOADING, attempt=event.attempt, progress=share
                )
            case messages.DownloadCompletedAck():
                self._registry.progress(
                    run_id, device_id, DeviceState.DOWNLOADED, attempt=event.attempt, progress=1.0
                )
        assert topic.name is not None
        if topic.name not in messages.DURABLE_EVENTS:
            self._counts["telemetry"] += 1
            delivery.ack()
            return
        key = hashlib.sha256(b"\0".join((delivery.topic.encode(), delivery.payload))).hexdigest()
        if (under_way := self._under_way.get(key)) is not None:
            # Delivered again, after a reconnect, before the first was on disk: one raise serves both.
            self._counts["duplicates"] += 1
            under_way.append(delivery)
            return
        self._under_way[key] = [delivery]
        # Many at once, each in a task of its own, so that one commit takes them all.
        task = asyncio.create_task(self._raise(topic.name, event, key))
        self._raising.add(task)
        task.add_done_callback(self._raising.discard)

    async def _raise(self, name: str, event: messages.Event, key: str) -> None:
        try:
            if await self._raise_until_done(name, event, key):
                for delivery in self._under_way[key]:
                    delivery.ack()
        finally:
            del self._under_way[key]

    async def _raise_until_done(self, name: str, event: messages.Event, key: str) -> bool:
        """True when the message is dealt with; False when it has to come again."""
        data = event.model_dump(mode="json", exclude={"v", "instance_id"}, exclude_none=True)
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                await self._sink.raise_orchestration_event(
                    event.instance_id, name, data=data, idempotency_key=key
                )
            except OrchestrationNotFoundError:
                self._complain("unknown", f"{name} for {event.instance_id}, which does not exist")
            except (PayloadTooLargeError, ValueError) as error:
                self._complain("malformed", f"{name} for {event.instance_id}: {error}")
            except EngineStoppedError:
                # Not acknowledged: it comes again when an engine runs.
                return False
            except Exception as error:
                self._counts["retries"] += 1
                _LOG.warning("%s for %s could not be raised (%s); trying on", name, event.instance_id, error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _LONGEST_RETRY_S)
                continue
            else:
                self._counts["events"] += 1
            return True

    def _drop(self, delivery: Delivery, counter: str, complaint: str) -> None:
        self._complain(counter, complaint)
        delivery.ack()

    def _complain(self, counter: str, complaint: str) -> None:
        self._counts[counter] += 1
        self._complaints += 1
        if self._complaints <= _MAX_COMPLAINTS:
            _LOG.warning("dropped a message: %s", complaint)
            if self._complaints == _MAX_COMPLAINTS:
                _LOG.warning("further dropped messages are only counted")


def _acknowledge(delivery: Delivery) -> Callable[[BaseException | None], None]:
    def then(error: BaseException | None) -> None:
        # Not written, because the registry closed or broke: it comes again after the next start.
        if error is None:
            delivery.ack()

    return then
