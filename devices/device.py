"""One emulated device: a persistent MQTT session, a download, an activation, and its behaviour.

Rules of the contract that it keeps:

- stable client id, persistent session, will; it subscribes, says ``online`` and registers on **every**
  connection;
- after a reconnect it publishes again, byte for byte, its last durable event, unless something newer
  has come from the service since: the service applies the same bytes once;
- a package seen again is answered at once, without a second download: the same attempt with the same
  bytes, a newer attempt of the same content with a fresh acknowledgement;
- one download at a time, and the newest attempt wins;
- what the service sends and the contract refuses is counted and dropped.

Publishing never blocks the device's work: each publish is a small task of its own, ordered by paho's
queue; if the connection breaks before the PUBACK, the repetition above makes up for it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from aiomqtt import MqttError, Will
from paho.mqtt.reasoncodes import ReasonCode

from broker import topics
from broker.connection import BrokerAddress
from broker.errors import BadIdError, ContractError
from broker.messages import (
    Activate,
    ActivationCompleted,
    ActivationFailed,
    Cancel,
    Command,
    DownloadCompletedAck,
    DownloadFailed,
    DownloadProgress,
    DownloadStarted,
    Event,
    Package,
    Presence,
    Register,
    device_id_of,
    parse_command,
    parse_package,
)
from devices.behaviours import Outage, Step, behaviour
from devices.download import Download, DownloadLimits, Interrupted
from devices.errors import DownloadError
from devices.link import DeviceClient
from devices.pacing import Ramp, backoff_s
from devices.plan import DevicePlan
from devices.statistics import Counters
from devices.verify import Verifier

_LOG = logging.getLogger(__name__)

_MAX_INCOMING: Final = 32
_MAX_PENDING_PUBLISHES: Final = 16
# Progress goes out at these shares of the package, and not before so many seconds.
_PROGRESS_SHARES: Final = (0.25, 0.5, 0.75)
_PROGRESS_AFTER_S: Final = 0.5
# A connection that held so long was a good one: the backoff begins anew after it.
_STABLE_AFTER_S: Final = 5.0
_KEEPALIVE_SPREAD_S: Final = 15
# A PUBACK and an event often follow each other: Nagle would hold the second for 40 ms.
_NO_DELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """Times of a device's connection to the broker."""

    keepalive_s: int = 60
    connect_timeout_s: float = 15.0
    publish_timeout_s: float = 30.0
    goodbye_timeout_s: float = 5.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the devices of one process share."""

    address: BrokerAddress
    http: aiohttp.ClientSession
    verifier: Verifier
    counters: Counters
    ramp: Ramp
    clock: Callable[[], float]
    """Monotonic seconds: the event loop's."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    """Wall-clock time that goes into messages."""
    report: Callable[[str], None] = _LOG.warning
    """Told of trouble that all devices share; a fleet repeats it once in a while, not for each."""
    tls: ssl.SSLContext | None = None
    link: LinkOptions = field(default_factory=LinkOptions)
    limits: DownloadLimits = field(default_factory=DownloadLimits)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outgoing:
    """An event as published: repeated, it must be the same bytes."""

    topic: str
    payload: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What the device answered to one message of the service."""

    asked: tuple[str, str, int]
    outgoing: _Outgoing


class Device:
    """One emulated device; `run` until cancelled, `say_goodbye` before that for a graceful end."""

    __slots__ = (
        "_activation_answer",
        "_around",
        "_away_until_s",
        "_behaviour",
        "_client",
        "_connection_failures",
        "_download",
        "_firmware_version",
        "_model",
        "_newest",
        "_outage",
        "_package_answer",
        "_pending",
        "_plan",
        "_tags",
        "_unanswered",
        "_verified",
        "_work",
        "_working_on",
        "registered",
    )

    def __init__(
        self,
        plan: DevicePlan,
        around: Surroundings,
        *,
        model: str,
        firmware_version: str,
        tags: Mapping[str, str],
    ) -> None:
        self._plan = plan
        self._around = around
        self._model = model
        self._firmware_version = firmware_version
        self._tags = tags
        self._behaviour = behaviour(plan.behaviour, plan.seed)
        self._outage = self._behaviour.outage
        self._away_until_s = 0.0
        self._connection_failures = 0
        self._client: DeviceClient | None = None
        self._pending: set[asyncio.Task[None]] | None = None
        # The newest package message; the content that was verified; the download or activation under way.
        self._newest: Package | None = None
        self._verified: Package | None = None
        self._download: Download | None = None
        self._work: asyncio.Task[None] | None = None
        self._working_on: tuple[str, str, int] | None = None
        self._package_answer: _Answer | None = None
        self._activation_answer: _Answer | None = None
        self._unanswered: _Outgoing | None = None
        self.registered = False

    @property
    def device_id(self) -> str:
        """The device's id, which is its MQTT client id too."""
        return self._plan.device_id

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it has not been lost since."""
        return self._client is not None

    @property
    def downloading(self) -> bool:
        """Whether a download is under way."""
        return self._download is not None

    # -- the connection ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live: connect, serve, reconnect with jittered backoff; for ever, until cancelled."""
        around = self._around
        try:
            while True:
                await around.ramp.wait_turn()
                began_s = around.clock()
                try:
                    await self._connect_and_serve()
                except MqttError as error:
                    _LOG.debug("%s: %s", self.device_id, error)
                if around.clock() - began_s > _STABLE_AFTER_S:
                    self._connection_failures = 0
                self._connection_failures += 1
                await asyncio.sleep(self._reconnect_delay_s())
        finally:
            self._stop_work()

    async def say_goodbye(self) -> None:
        """Publish ``offline`` as a device does that is switched off in order; never raises `MqttError`."""
        self._stop_work()
        if (client := self._client) is not None:
            try:
                await client.publish(
                    topics.presence(self.device_id),
                    Presence(state="offline", at=self._around.now()).to_json(),
                    qos=topics.QOS,
                    retain=True,
                    timeout=self._around.link.goodbye_timeout_s,
                )
            except MqttError:
                # The broker is away: its will says the same.
                self._around.counters.publish_failures += 1

    async def _connect_and_serve(self) -> None:
        counters = self._around.counters
        client = self._new_client()
        try:
            await client.open()
        except MqttError as error:
            counters.connect_failures += 1
            self._around.report(f"can't connect to {self._around.address.url}: {error}")
            raise
        counters.connects += 1
        self._client = client
        announcing = asyncio.create_task(self._announce(client))
        try:
            # Reading begins at once: the iterator is also what notices that the connection is lost.
            async for message in client.messages:
                self._take(message.topic.value, message.payload)
        finally:
            self._client = None
            counters.disconnects += 1
            announcing.cancel()
            for task in self._pending or ():
                task.cancel()
            self._pending = None
            await client.finish()

    def _new_client(self) -> DeviceClient:
        address, link = self._around.address, self._around.link
        return DeviceClient(
            address.host,
            address.port,
            identifier=self.device_id,
            username=address.username,
            password=address.password,
            tls_context=self._around.tls,
            clean_session=False,
            # Spread, so that the pings of ten thousand idle devices don't come together.
            keepalive=link.keepalive_s + self._plan.seed % _KEEPALIVE_SPREAD_S,
            timeout=link.connect_timeout_s,
            max_queued_incoming_messages=_MAX_INCOMING,
            socket_options=_NO_DELAY,
            will=Will(
                topic=topics.presence(self.device_id),
                payload=Presence(state="offline").to_json(),
                qos=topics.QOS,
                retain=True,
            ),
        )

    async def _announce(self, client: DeviceClient) -> None:
        """Subscribe, say ``online``, register, repeat what may have been lost."""
        around, device_id = self._around, self.device_id
        try:
            granted = await client.subscribe(
                [(topics.package(device_id), topics.QOS), (topics.command(device_id, "+"), topics.QOS)]
            )
            if any(isinstance(code, ReasonCode) and code.is_failure for code in granted):
                around.report(f"the broker refuses the subscriptions of {device_id}: check its ACL")
                client.sever()
                return
            online = Presence(state="online", at=around.now())
            self._send(client, topics.presence(device_id), online.to_json(), retain=True)
            register = Register(
                model=self._model, firmware_version=self._firmware_version, tags=dict(self._tags)
            )
            await client.publish(topics.register(device_id), register.to_json(), qos=topics.QOS)
        except MqttError:
            around.counters.publish_failures += 1
            client.sever()
            return
        around.counters.registrations += 1
        self.registered = True
        if (unanswered := self._unanswered) is not None:
            around.counters.events_repeated += 1
            self._send(client, unanswered.topic, unanswered.payload, needed=True)
        if (outage := self._take_outage(Step.REGISTERED)) is not None:
            self._leave(outage)

    def _reconnect_delay_s(self) -> float:
        link = self._around.link
        delay_s = backoff_s(
            seed=self._plan.seed,
            failures=self._connection_failures,
            first_s=link.first_backoff_s,
            max_s=link.max_backoff_s,
        )
        return max(delay_s, self._away_until_s - self._around.clock())

    # -- what the service says ------------------------------------------------------------------------

    def _take(self, topic_text: str, payload: Any) -> None:
        counters = self._around.counters
        try:
            topic = topics.parse(topic_text)
            message: Package | Command
            if topic.kind == "package":
                message = parse_package(topic, payload)
            else:
                message = parse_command(topic, payload)
            if device_id_of(message.instance_id) != self.device_id:
                raise BadIdError(message.instance_id, f"it is not about {self.device_id}")
        except ContractError as error:
            counters.malformed += 1
            _LOG.warning("%s: dropped a message: %s", self.device_id, error)
            return
        if isinstance(message, Package):
            counters.packages += 1
        else:
            counters.commands += 1
        if not self._behaviour.answers:
            counters.ignored += 1
            return
        match message:
            case Package():
                self._on_package(message)
            case Activate():
                self._on_activate(message)
            case Cancel():
                self._on_cancel(message)

    def _on_package(self, package: Package) -> None:
        asked = _asked(package)
        if self._package_answer is not None and self._package_answer.asked == asked:
            # The same attempt again: the same answer. What is still unanswered may be newer; it stays.
            self._around.counters.duplicates += 1
            self._repeat(self._package_answer)
            return
        newest = self._newest
        if (
            newest is not None
            and newest.instance_id == package.instance_id
            and (newest.attempt > package.attempt or _asked(newest) == asked)
        ):
            self._around.counters.duplicates += 1
            return
        self._newest = package
        self._unanswered = None
        if self._download is not None and _same_content(self._download.package, package):
            # A newer attempt at what is coming already: its bytes count, its URL and number are used.
            self._around.counters.duplicates += 1
            self._download.package = package
        elif self._verified is not None and _same_content(self._verified, package):
            self._around.counters.duplicates += 1
            self._stop_work()
            self._acknowledge(package)
        else:
            if self._download is not None:
                self._around.counters.downloads_replaced += 1
            self._begin(package)

    def _on_activate(self, command: Activate) -> None:
        asked = _asked(command)
        if self._activation_answer is not None and self._activation_answer.asked == asked:
            self._around.counters.duplicates += 1
            self._repeat(self._activation_answer)
        elif self._working_on == asked and self._download is None:
            self._around.counters.duplicates += 1
        elif self._outage is not None and self._outage.step is Step.ACTIVATING:
            self._unanswered = None
            self._start(lambda: self._activate_later(command), asked)
        else:
            self._activate(command)

    def _on_cancel(self, command: Cancel) -> None:
        if self._newest is not None and self._newest.instance_id == command.instance_id:
            self._stop_work()
            self._unanswered = None

    # -- what the device does about it ----------------------------------------------------------------

    def _begin(self, package: Package) -> None:
        """Download ``package``, instead of whatever was being done."""
        outage = self._outage
        download = Download(
            package,
            seed=self._plan.seed,
            clock=self._around.clock,
            limits=self._around.limits,
            on_progress=self._progress_reporter(),
            rate_bytes_per_s=self._behaviour.bandwidth_bytes_per_s,
            interrupt_at=outage.at_fraction if outage and outage.step is Step.DOWNLOADING else None,
        )
        self._start(lambda: self._obtain(download), _asked(package))
        self._download = download

    async def _obtain(self, download: Download) -> None:
        around = self._around
        try:
            await self._maybe_leave(Step.NOTIFIED)
            around.counters.downloads_started += 1
            self._tell(DownloadStarted(**_about(download.package), size_bytes=download.package.size_bytes))
            while True:
                try:
                    await download.run(around.http)
                    break
                except Interrupted:
                    await self._maybe_leave(Step.DOWNLOADING)
            around.verifier.verify(download.package)
            await self._maybe_leave(Step.DOWNLOADED)
        except DownloadError as error:
            around.counters.downloads_failed += 1
            failed = DownloadFailed(
                **_about(download.package), at=around.now(), reason=error.reason, detail=error.detail
            )
            self._package_answer = self._answer(_asked(download.package), failed)
        else:
            around.counters.downloads_completed += 1
            self._acknowledge(download.package)
        finally:
            around.counters.download_retries += download.retries
            around.counters.download_restarts += download.restarts
            around.counters.downloaded_bytes += download.received_bytes
            if self._download is download:
                self._download = None

    async def _activate_later(self, command: Activate) -> None:
        await self._maybe_leave(Step.ACTIVATING)
        self._activate(command)

    def _activate(self, command: Activate) -> None:
        around, verified = self._around, self._verified
        about = _about(command)
        event: Event
        if verified is None or verified.package_id != command.package_id:
            around.counters.activations_failed += 1
            event = ActivationFailed(
                **about,
                at=around.now(),
                reason="package-not-present",
                detail="this package was not downloaded by this device",
            )
        else:
            around.counters.activations += 1
            self._firmware_version = command.release
            event = ActivationCompleted(**about, at=around.now(), firmware_version=command.release)
        self._activation_answer = self._answer(_asked(command), event)

    def _acknowledge(self, package: Package) -> None:
        self._verified = package
        ack = DownloadCompletedAck(
            **_about(package), at=self._around.now(), size_bytes=package.size_bytes, sha256=package.sha256
        )
        self._package_answer = self._answer(_asked(package), ack)

    def _progress_reporter(self) -> Callable[[int], None]:
        """Telemetry at 25, 50 and 75 % of downloads that take long enough for anyone to look."""
        began_s, due = self._around.clock(), list(_PROGRESS_SHARES)

        def report(received_bytes: int) -> None:
            package = self._download.package if self._download is not None else None
            if package is None or not due or received_bytes < due[0] * package.size_bytes:
                return
            while due and received_bytes >= due[0] * package.size_bytes:
                due.pop(0)
            if received_bytes < package.size_bytes and self._around.clock() - began_s >= _PROGRESS_AFTER_S:
                progress = DownloadProgress(
                    **_about(package), received_bytes=received_bytes, size_bytes=package.size_bytes
                )
                self._tell(progress)

        return report

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]], asked: tuple[str, str, int]) -> None:
        """Do ``work`` in a task, instead of whatever was being done."""
        self._stop_work()
        self._working_on = asked
        self._work = asyncio.create_task(self._guard(work), name=f"work of {self.device_id}")

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        mine = asyncio.current_task()
        try:
            await work()
        except Exception:
            # A bug in one device must not end the fleet, and must not hide either.
            self._around.counters.crashed += 1
            _LOG.exception("%s: its work crashed: this is a bug", self.device_id)
        finally:
            if self._work is mine:
                self._work = self._working_on = None

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
        self._work = self._working_on = self._download = None

    # -- outages --------------------------------------------------------------------------------------

    def _take_outage(self, step: Step) -> Outage | None:
        """The planned outage, if it is due at ``step``: it happens once."""
        outage = self._outage
        if outage is None or outage.step is not step:
            return None
        self._outage = None
        return outage

    async def _maybe_leave(self, step: Step) -> None:
        """Where an outage is planned for ``step``: lose the network, and go on when it is back."""
        if (outage := self._take_outage(step)) is not None:
            self._leave(outage)
            await asyncio.sleep(outage.duration_s)

    def _leave(self, outage: Outage) -> None:
        self._around.counters.planned_outages += 1
        self._away_until_s = self._around.clock() + outage.duration_s
        self._connection_failures = 0
        if self._client is not None:
            self._client.sever()

    # -- publishing -----------------------------------------------------------------------------------

    def _answer(self, asked: tuple[str, str, int], event: Event) -> _Answer:
        """Publish a durable event and keep it until the service has moved on."""
        answer = _Answer(asked=asked, outgoing=self._outgoing(event))
        self._unanswered = answer.outgoing
        if self._client is not None:
            self._send(self._client, answer.outgoing.topic, answer.outgoing.payload, needed=True)
        return answer

    def _repeat(self, answer: _Answer) -> None:
        self._around.counters.events_repeated += 1
        if self._unanswered is None:
            self._unanswered = answer.outgoing
        if self._client is not None:
            self._send(self._client, answer.outgoing.topic, answer.outgoing.payload)

    def _tell(self, event: Event) -> None:
        """Publish telemetry, if the broker is there: nobody waits for it."""
        if self._client is not None:
            outgoing = self._outgoing(event)
            self._send(self._client, outgoing.topic, outgoing.payload)

    def _outgoing(self, event: Event) -> _Outgoing:
        return _Outgoing(topic=topics.event(self.device_id, type(event).__name__), payload=event.to_json())

    def _send(
        self, client: DeviceClient, topic: str, payload: bytes, *, retain: bool = False, needed: bool = False
    ) -> None:
        if self._pending is None:
            self._pending = set()
        if len(self._pending) >= _MAX_PENDING_PUBLISHES and not needed:
            self._around.counters.publish_failures += 1
            return
        task = asyncio.create_task(self._deliver(client, topic, payload, retain=retain, needed=needed))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _deliver(
        self, client: DeviceClient, topic: str, payload: bytes, *, retain: bool, needed: bool
    ) -> None:
        try:
            await client.publish(
                topic, payload, qos=topics.QOS, retain=retain, timeout=self._around.link.publish_timeout_s
            )
        except MqttError:
            self._around.counters.publish_failures += 1
            if needed and client is self._client:
                # No PUBACK in all that time: this connection is no good. The next repeats the event.
                client.sever()
        else:
            self._around.counters.events_published += 1


def _asked(message: Package | Activate) -> tuple[str, str, int]:
    return message.instance_id, message.package_id, message.attempt


def _about(message: Package | Activate) -> dict[str, Any]:
    """The fields that tie an event to what it answers."""
    return {
        "instance_id": message.instance_id,
        "package_id": message.package_id,
        "attempt": message.attempt,
    }


def _same_content(one: Package, other: Package) -> bool:
    return one.package_id == other.package_id and one.sha256 == other.sha256
