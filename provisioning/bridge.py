"""The bridge: what devices say over MQTT becomes registry entries and external events.

A message is acknowledged only when its effect is on disk, or the engine's backend has it, so a crash at any
moment makes the broker deliver it again; and since an event carries a key made of its topic and bytes,
delivered again is as delivered once. (An engine that knows no keys takes it twice, and the orchestrations
allow for that.)
Telemetry (how far a download is) is acknowledged at once: it may be lost, and the next one says more.

A device that has come back and remembers nothing, or all of them where the broker has lost our session, may
have missed what was sent: the orchestrations that wait for an answer hear `DeviceReturned` and say it again.

What breaks the contract is counted, logged and dropped: a message that can never be handled must not block
those behind it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

from broker import messages, topics
from broker.connection import Delivery
from broker.errors import ContractError
from broker.masking import masked

from .engines import EngineStoppedError, EventSink, OrchestrationNotFoundError, PayloadTooLargeError
from .errors import EngineAwayError
from .orchestrations import DEVICE_RETURNED
from .registry import DeviceRecord, Registry
from .states import DeviceState

_LOG = logging.getLogger(__name__)

SUBSCRIPTIONS = (topics.ALL_PRESENCE, topics.ALL_REGISTER, topics.ALL_EVENTS)
# Something was sent and is not answered. Before that there is nothing to say again.
_WAITED_FOR = frozenset(
    {DeviceState.NOTIFIED, DeviceState.DOWNLOADING, DeviceState.DOWNLOADED, DeviceState.ACTIVATING}
)
_PAGE = 500
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 5.0
# Broken devices repeat themselves: after so many lines the rest is only counted.
_MAX_COMPLAINTS = 5


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
    revoked: int = 0
    """Of devices that were revoked, at a broker that lets them in all the same."""
    returned: int = 0
    """Devices in mid-run that may have missed what was sent."""
    retries: int = 0
    in_flight: int = 0


class Bridge:
    """Takes deliveries from a `BrokerConnection` (`take` is its `on_message`).

    Until `open()` what arrives is kept, not handled; the connection's limit on unacknowledged messages
    bounds it, as it bounds what is in flight.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        sink: EventSink,
        is_revoked: Callable[[str], bool] = lambda device_id: False,
    ) -> None:
        self._is_revoked = is_revoked
        self._registry = registry
        self._sink = sink
        self._early: list[Delivery] | None = []
        self._closed = False
        self._new_session = False
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
        if self._new_session:
            self._spawn(self._all_returned())
        for delivery in early or ():
            self.take(delivery)

    def session_is_new(self) -> None:
        """The broker has lost our session, and with it what it had not delivered, in either direction."""
        self._new_session = True
        if self._early is None and not self._closed:
            self._spawn(self._all_returned())

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
            elif self._is_revoked(topic.device_id) and not _is_goodbye(topic, delivery):
                self._drop(delivery, "revoked", f"{topic.device_id} was revoked")
            else:
                handler(topic, delivery)
        except ContractError as error:
            self._drop(delivery, "malformed", str(error))

    def _register(self, topic: topics.Topic, delivery: Delivery) -> None:
        message = messages.parse_register(topic, delivery.payload)
        self._counts["registrations"] += 1
        if message.fresh is None:
            self._note(topic.device_id, message, delivery)
        else:
            self._spawn(self._register_fresh(topic.device_id, message, delivery))

    def _note(self, device_id: str, message: messages.Register, delivery: Delivery) -> None:
        self._registry.register(
            device_id,
            model=message.model,
            firmware_version=message.firmware_version,
            tags=message.tags,
            then=_acknowledge(delivery),
        )

    async def _register_fresh(self, device_id: str, message: messages.Register, delivery: Delivery) -> None:
        """Acknowledged when both are on disk: that the device is back, and what it is."""
        device = self._registry.look_up(device_id)
        if device is None or await self._returned(device, _key(delivery)):
            self._note(device_id, message, delivery)

    async def _all_returned(self) -> None:
        """Tell every orchestration that waits for a device: what was sent may have been lost."""
        session = uuid.uuid4().hex
        for state in sorted(_WAITED_FOR):
            after: str | None = None
            while devices := await self._registry.devices(state=state, after=after, limit=_PAGE):
                for device in devices:
                    await self._returned(device, f"session {session}")
                after = devices[-1].device_id

    async def _returned(self, device: DeviceRecord, key: str) -> bool:
        """True when its orchestration knows, or there is nothing to know."""
        if device.state not in _WAITED_FOR or device.run_id is None:
            return True
        self._counts["returned"] += 1
        instance_id = topics.instance_id_of(device.run_id, device.device_id)
        return await self._raise_until_done(instance_id, DEVICE_RETURNED, None, key)

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
        key = _key(delivery)
        if (under_way := self._under_way.get(key)) is not None:
            # Delivered again, after a reconnect, before the first was on disk: one raise serves both.
            self._counts["duplicates"] += 1
            under_way.append(delivery)
            return
        self._under_way[key] = [delivery]
        self._spawn(self._raise(topic.name, event, key))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Many at once, each in a task of its own, so that one commit takes them all."""
        task = asyncio.create_task(work)
        self._raising.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._raising.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Not acknowledged: what it was about comes again, or is asked for again.
            _LOG.warning("a device's message waits for the next start: %s", error)

    async def _raise(self, name: str, event: messages.Event, key: str) -> None:
        data = event.model_dump(mode="json", exclude={"v", "instance_id"}, exclude_none=True)
        if (detail := data.get("detail")) is not None:
            # Free text of a device's, such as an error with its URL: no history gets to hold that.
            data["detail"] = masked(detail)
        try:
            if await self._raise_until_done(event.instance_id, name, data, key):
                for delivery in self._under_way[key]:
                    delivery.ack()
        finally:
            del self._under_way[key]

    async def _raise_until_done(self, instance_id: str, name: str, data: Any, key: str) -> bool:
        """True when the message is dealt with; False when it has to come again."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                await self._sink.raise_orchestration_event(instance_id, name, data=data, idempotency_key=key)
            except OrchestrationNotFoundError:
                self._complain("unknown", f"{name} for {instance_id}, which does not exist")
            except (PayloadTooLargeError, ValueError) as error:
                self._complain("malformed", f"{name} for {instance_id}: {error}")
            except EngineStoppedError:
                # Not acknowledged: it comes again when an engine runs.
                return False
            except Exception as error:
                self._counts["retries"] += 1
                # An engine that is away has said so itself, once and not for each message.
                level = logging.DEBUG if isinstance(error, EngineAwayError) else logging.WARNING
                _LOG.log(level, "%s for %s could not be raised (%s); trying on", name, instance_id, error)
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


def _is_goodbye(topic: topics.Topic, delivery: Delivery) -> bool:
    """Whether it says that a device is gone: the will of one that the broker has cut off does."""
    return topic.kind == "presence" and messages.parse_presence(topic, delivery.payload).state == "offline"


def _key(delivery: Delivery) -> str:
    """The same for the same message delivered again, and for no other."""
    return hashlib.sha256(b"\0".join((delivery.topic.encode(), delivery.payload))).hexdigest()


def _acknowledge(delivery: Delivery) -> Callable[[BaseException | None], None]:
    def then(error: BaseException | None) -> None:
        # Not written, because the registry closed or broke: it comes again after the next start.
        if error is None:
            delivery.ack()

    return then
