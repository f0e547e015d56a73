"""One emulated device: what it does about the service's messages, and how it misbehaves.

- A package seen again is answered at once, without a second download: the same attempt with the same
  bytes, a newer attempt of the same content with a fresh acknowledgement.
- One download at a time, and the newest attempt wins.
- What the service sends and the contract refuses is counted and dropped.

Connecting, registering and repeating what may have been lost is `devices.link`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker import topics
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
    Register,
    device_id_of,
    parse_command,
    parse_package,
)
from devices.behaviours import Outage, Step, behaviour
from devices.download import Download, Interrupted
from devices.errors import DownloadError
from devices.link import Link, Outgoing
from devices.plan import DevicePlan
from devices.surroundings import Surroundings

_LOG = logging.getLogger(__name__)

# Progress goes out at these shares of the package, and not before so many seconds.
_PROGRESS_SHARES: Final = (0.25, 0.5, 0.75)
_PROGRESS_AFTER_S: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What the device answered to one message of the service."""

    asked: tuple[str, str, int]
    outgoing: Outgoing


class Device:
    """One emulated device; `run` until cancelled, `say_goodbye` before that for a graceful end."""

    __slots__ = (
        "_activation_answer",
        "_around",
        "_behaviour",
        "_download",
        "_firmware_version",
        "_link",
        "_model",
        "_newest",
        "_outage",
        "_package_answer",
        "_plan",
        "_tags",
        "_verified",
        "_work",
        "_working_on",
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
        self._link = Link(
            plan.device_id,
            plan.seed,
            around,
            describe=self._describe,
            on_registered=self._on_registered,
            on_message=self._take,
        )
        # The newest package message; the content that was verified; the download or activation under way.
        self._newest: Package | None = None
        self._verified: Package | None = None
        self._download: Download | None = None
        self._work: asyncio.Task[None] | None = None
        self._working_on: tuple[str, str, int] | None = None
        self._package_answer: _Answer | None = None
        self._activation_answer: _Answer | None = None

    @property
    def device_id(self) -> str:
        """The device's id, which is its MQTT client id too."""
        return self._plan.device_id

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it has not been lost since."""
        return self._link.connected

    @property
    def registered(self) -> bool:
        """Whether it has ever registered."""
        return self._link.registered

    @property
    def downloading(self) -> bool:
        """Whether a download is under way."""
        return self._download is not None

    async def run(self) -> None:
        """Live, for ever, until cancelled."""
        try:
            await self._link.run()
        finally:
            self._stop_work()

    async def say_goodbye(self) -> None:
        """Stop working and say ``offline``; then `run` is to be cancelled."""
        self._stop_work()
        await self._link.say_goodbye()

    def _describe(self) -> Register:
        return Register(model=self._model, firmware_version=self._firmware_version, tags=dict(self._tags))

    def _on_registered(self) -> None:
        if (outage := self._take_outage(Step.REGISTERED)) is not None:
            self._leave(outage)

    # -- what the service says ------------------------------------------------------------------------

    def _take(self, topic_text: str, payload: bytes) -> None:
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
            self._around.report(f"{self.device_id} dropped a message: {error}")
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
        self._link.forget_unanswered()
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
            self._repeat(self._activation_answer)
        elif self._working_on == asked and self._download is None:
            self._around.counters.duplicates += 1
        elif self._outage is not None and self._outage.step is Step.ACTIVATING:
            self._link.forget_unanswered()
            self._start(lambda: self._activate_later(command), asked)
        else:
            self._activate(command)

    def _on_cancel(self, command: Cancel) -> None:
        if self._newest is not None and self._newest.instance_id == command.instance_id:
            self._stop_work()
            self._link.forget_unanswered()

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
        # Whatever was activated before: what is asked from now on is about this acknowledgement.
        self._activation_answer = None
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
        self._link.leave(outage.duration_s)

    # -- publishing -----------------------------------------------------------------------------------

    def _answer(self, asked: tuple[str, str, int], event: Event) -> _Answer:
        """Publish a durable event, again and again, until the service has moved on."""
        answer = _Answer(asked=asked, outgoing=Outgoing.of(self.device_id, event))
        self._link.answer(answer.outgoing)
        return answer

    def _repeat(self, answer: _Answer) -> None:
        """Answer a message that came again with the same bytes as before."""
        self._around.counters.duplicates += 1
        self._link.repeat(answer.outgoing)

    def _tell(self, event: Event) -> None:
        self._link.tell(Outgoing.of(self.device_id, event))


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
