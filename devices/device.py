"""One emulated device: what it does about the service's messages, and how it misbehaves.

- A package seen again is answered at once, without a second download: the same attempt with the same
  bytes, a newer attempt of the same content with a fresh acknowledgement.
- A package is checked when it has arrived, as `devices.manifest` says, and is not activated before; what a
  device runs is the version that the package's manifest says.
- One download at a time, and the newest attempt wins.
- What the service sends and the contract refuses is counted and dropped.

Its behaviours (`devices.behaviours`) are asked at each step. Connecting, registering and repeating what may
have been lost is `devices.link`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
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
    PackageRejected,
    Register,
    device_id_of,
    parse_command,
    parse_package,
)
from devices.behaviours import Combined, Failure, Refusal, Step
from devices.behaviours.base import Way
from devices.behaviours.combined import Powerless
from devices.controls import DeviceControls
from devices.delays import Delays
from devices.dice import Dice
from devices.download import Download, Interrupted
from devices.errors import DownloadError
from devices.link import Link, Outgoing
from devices.manifest import examine
from devices.roster import DevicePlan
from devices.spec import Group
from devices.surroundings import Surroundings
from devices.verify import Verifier

_LOG = logging.getLogger(__name__)

# Progress goes out at these shares of the package, and not before so many seconds.
_PROGRESS_SHARES: Final = (0.25, 0.5, 0.75)
_PROGRESS_AFTER_S: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What the device answered to one message of the service; None: nothing, and it stays at that."""

    asked: tuple[str, str, int]
    outgoing: Outgoing | None


class Device:
    """One emulated device; `run` until cancelled, `say_goodbye` before that for a graceful end.

    The public attributes but for those of a fleet's (`run`, `connected`, …) are for `DeviceControls`.
    """

    __slots__ = (
        "_activation_answer",
        "_combined",
        "_controls",
        "_delays",
        "_download",
        "_firmware_version",
        "_group",
        "_hung",
        "_package_answer",
        "_plan",
        "_side",
        "_stored",
        "_verified",
        "_version",
        "_work",
        "_working_on",
        "around",
        "dice",
        "link",
        "package",
    )

    def __init__(self, plan: DevicePlan, group: Group, combined: Combined, around: Surroundings) -> None:
        """``combined`` is how it behaves, made with the dice of ``plan``'s seed."""
        self._plan = plan
        self._group = group
        self.around = around
        self.dice = Dice(plan.seed, device_id=plan.device_id, trace=around.trace)
        self._firmware_version = group.firmware_version
        self._hung = False
        self.link = Link(
            plan.device_id,
            plan.seed,
            around,
            describe=self._describe,
            on_registered=self._on_registered,
            on_message=self._arrive,
        )
        # The newest package message; the content that was verified; the download or activation under way,
        # and a download that a reboot has cut off.
        self.package: Package | None = None
        self._verified: Package | None = None
        self._version = group.firmware_version
        self._download: Download | None = None
        self._stored: Download | None = None
        self._work: asyncio.Task[None] | None = None
        self._working_on: tuple[str, str, int] | None = None
        self._package_answer: _Answer | None = None
        self._activation_answer: _Answer | None = None
        # What goes on beside the work: behaviours' own lives, answers that are late.
        self._side: set[asyncio.Task[None]] | None = None
        self._take_on(combined)

    @property
    def device_id(self) -> str:
        """The device's id, which is its MQTT client id too."""
        return self._plan.device_id

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it has not been lost since."""
        return self.link.connected

    @property
    def registered(self) -> bool:
        """Whether it has ever registered."""
        return self.link.registered

    @property
    def downloading(self) -> bool:
        """Whether a download is under way."""
        return self._download is not None

    @property
    def busy(self) -> bool:
        """Whether a download or an activation is under way."""
        return self._work is not None

    async def run(self) -> None:
        """Live, for ever, until cancelled."""
        self._start_lives()
        try:
            await self.link.run()
        finally:
            self._stop_work()
            self._stop_lives()

    async def say_goodbye(self) -> None:
        """Stop working and say ``offline``; then `run` is to be cancelled."""
        self._stop_work()
        self._stop_lives()
        await self.link.say_goodbye()

    def behave(self, combined: Combined) -> None:
        """Behave otherwise from now on; a device that hangs answers again. What is under way goes on."""
        if self._delays is not None:
            # It was sent before, and nobody would send it again.
            self._delays.hurry()
        self._stop_lives()
        self._hung = False
        self._take_on(combined)
        self._start_lives()
        if self.connected:
            self._on_registered()

    def lose_power(self, seconds: float, *, keep_download: bool) -> bool:
        """Forget everything and be back after ``seconds``; True when it was the work under way that asked."""
        self.around.counters.reboots += 1
        mine = self._work is not None and asyncio.current_task() is self._work
        self._stored = self._download if keep_download else None
        self._stop_work(spare_caller=mine)
        self.package = self._verified = None
        self._package_answer = self._activation_answer = None
        if self._delays is not None:
            self._delays.forget()
        self.link.reboot(seconds)
        return mine

    def hang(self) -> bool:
        """Answer nothing any more; True when it was the work under way that asked."""
        self.around.counters.hangs += 1
        self._hung = True
        mine = self._work is not None and asyncio.current_task() is self._work
        self._stop_work(spare_caller=mine)
        self.link.forget_unanswered()
        return mine

    def publish_raw(self, device_id: str, kind: str, payload: bytes) -> None:
        """Publish whatever a behaviour likes below the topics of a device, which may be another one."""
        self.link.tell(Outgoing(topic=f"devices/{device_id}/{kind}", payload=payload))

    def _describe(self) -> Register:
        group = self._group
        return Register(model=group.model, firmware_version=self._firmware_version, tags=dict(group.tags))

    def _on_registered(self) -> None:
        if self._combined.interferes:
            self._beside(self._at(Step.REGISTERED))

    def _take_on(self, combined: Combined) -> None:
        self._combined = combined
        self._controls = DeviceControls(self)
        self._delays = Delays(combined, self.dice, speed=self.around.speed) if combined.delays else None

    # -- what the service says ------------------------------------------------------------------------

    def _arrive(self, topic_text: str, payload: bytes) -> None:
        if self._delays is None:
            self._take(topic_text, payload)
        else:
            self._delays.later("in", lambda: self._take(topic_text, payload))

    def _take(self, topic_text: str, payload: bytes) -> None:
        counters = self.around.counters
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
            self.around.report(f"{self.device_id} dropped a message: {error}")
            return
        if isinstance(message, Package):
            counters.packages += 1
        else:
            counters.commands += 1
        if self._hung:
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
        newest = self.package
        if (
            newest is not None
            and newest.instance_id == package.instance_id
            and (newest.attempt > package.attempt or _asked(newest) == asked)
        ):
            self.around.counters.duplicates += 1
            if (
                self._download is not None
                and _asked(newest) == asked
                and package.expires_at > newest.expires_at
            ):
                # Said again, by a fresh URL: the one in use may have been revoked.
                self.package = self._download.package = package
            return
        self.package = package
        self.link.forget_unanswered()
        if self._download is not None and _same_content(self._download.package, package):
            # A newer attempt at what is coming already: its bytes count, its URL and number are used.
            self.around.counters.duplicates += 1
            self._download.package = package
        elif (present := self._present()) is not None and _same_content(present, package):
            self.around.counters.duplicates += 1
            self._stop_work()
            self._acknowledge(package, self.around.true_clock())
        else:
            if self._download is not None:
                self.around.counters.downloads_replaced += 1
            self._begin(package)

    def _on_activate(self, command: Activate) -> None:
        asked = _asked(command)
        if self._activation_answer is not None and self._activation_answer.asked == asked:
            self._repeat(self._activation_answer)
        elif self._working_on == asked and self._download is None:
            self.around.counters.duplicates += 1
        elif self._combined.interferes:
            self.link.forget_unanswered()
            self._start(lambda: self._activate_by_steps(command), asked)
        else:
            self._activate(command)

    def _on_cancel(self, command: Cancel) -> None:
        if self.package is not None and self.package.instance_id == command.instance_id:
            self._stop_work()
            self.link.forget_unanswered()

    # -- what the device does about it ----------------------------------------------------------------

    def _begin(self, package: Package) -> None:
        """Download ``package``, instead of whatever was being done."""
        download, self._stored = self._stored, None
        if download is not None and _same_content(download.package, package):
            # What had arrived before the device lost its power.
            download.package = package
        else:
            download = self._new_download(package)
        began_s = self.around.true_clock()
        self._start(lambda: self._obtain(download, began_s), _asked(package))
        self._download = download

    def _new_download(self, package: Package) -> Download:
        around, combined = self.around, self._combined
        caps = [cap for cap in (combined.rate_bytes_per_s, self._group.bandwidth_bytes_per_s) if cap]
        return Download(
            package,
            seed=self._plan.seed,
            clock=around.true_clock,
            limits=around.limits,
            on_progress=self._progress_reporter(),
            rate_bytes_per_s=min(caps) * around.speed if caps else None,
            combined=combined,
            delay=self._late if combined.delays else None,
        )

    async def _late(self, way: Way) -> None:
        if (delay_s := self._combined.delay_s(way, self.dice)) > 0:
            await self.around.sleep(delay_s)

    async def _at(self, step: Step, attempt: int = 0, *, share: float | None = None) -> None:
        if self._combined.interferes:
            # Controls of its own: while one step waits, another may come, of another attempt.
            await self._combined.at(step, DeviceControls(self, attempt), share=share)

    async def _obtain(self, download: Download, began_s: float) -> None:
        around = self.around
        counters = around.counters
        before = (download.retries, download.restarts, download.fetched_bytes)
        try:
            await self._at(Step.NOTIFIED, download.package.attempt)
            counters.downloads_started += 1
            self._tell(DownloadStarted(**_about(download.package), size_bytes=download.package.size_bytes))
            while True:
                try:
                    await download.run(around.http)
                    break
                except Interrupted as pause:
                    await self._at(Step.DOWNLOADING, download.package.attempt, share=pause.share)
            manifest = examine(
                download.archive,
                download.package,
                self._verifier,
                device_id=self.device_id,
                model=self._group.model,
                running=self._firmware_version,
            )
            await self._at(Step.DOWNLOADED, download.package.attempt)
        except Refusal as refusal:
            counters.rejections += 1
            self._give_up(PackageRejected, download.package, refusal.reason, refusal.detail)
        except (DownloadError, Failure) as error:
            counters.downloads_failed += 1
            counters.hash_failures += error.reason == "hash-mismatch"
            self._give_up(DownloadFailed, download.package, error.reason, error.detail)
        else:
            counters.downloads_completed += 1
            around.latencies.download.observe(around.true_clock() - began_s)
            self._version = manifest.version
            self._acknowledge(download.package, began_s)
        finally:
            counters.download_retries += download.retries - before[0]
            counters.download_restarts += download.restarts - before[1]
            counters.downloaded_bytes += download.fetched_bytes - before[2]
            if self._download is download:
                self._download = None

    def _give_up(
        self, kind: type[DownloadFailed | PackageRejected], package: Package, reason: str, detail: str
    ) -> None:
        event = kind(**_about(package), at=self._now(), reason=reason, detail=detail)
        self._package_answer = self._answer(_asked(package), event)

    async def _activate_by_steps(self, command: Activate) -> None:
        try:
            await self._at(Step.ACTIVATING, command.attempt)
        except (Failure, Refusal) as failure:
            self._fail_activation(command, failure.reason, failure.detail)
            return
        self._activate(command)
        await self._at(Step.ACTIVATED, command.attempt)

    @property
    def _verifier(self) -> Verifier:
        return self.around.verifier if self._combined.trusts else self.around.distrustful

    def _present(self) -> Package | None:
        """The package that is here and may be activated: none any more whose key was retired since."""
        if self._verified is not None and not self._verifier.trusts(self._verified.key_id):
            self._verified = None
        return self._verified

    def _activate(self, command: Activate) -> None:
        verified = self._present()
        if verified is None or verified.package_id != command.package_id:
            self._fail_activation(
                command, "package-not-present", "this package is not here, or its key is trusted no more"
            )
            return
        self.around.counters.activations += 1
        self._firmware_version = self._version
        event = ActivationCompleted(
            **_about(command), at=self._now(), firmware_version=self._firmware_version
        )
        self._activation_answer = self._answer(_asked(command), event)

    def _fail_activation(self, command: Activate, reason: str, detail: str) -> None:
        self.around.counters.activations_failed += 1
        event = ActivationFailed(**_about(command), at=self._now(), reason=reason, detail=detail)
        self._activation_answer = self._answer(_asked(command), event)

    def _acknowledge(self, package: Package, began_s: float) -> None:
        self._verified = package
        # Whatever was activated before: what is asked from now on is about this acknowledgement.
        self._activation_answer = None
        ack = DownloadCompletedAck(
            **_about(package), at=self._now(), size_bytes=package.size_bytes, sha256=package.sha256
        )
        self._package_answer = self._answer(_asked(package), ack, since_s=began_s)

    def _progress_reporter(self) -> Callable[[int], None]:
        """Telemetry at 25, 50 and 75 % of downloads that take long enough for anyone to look."""
        began_s, due = self.around.true_clock(), list(_PROGRESS_SHARES)

        def report(received_bytes: int) -> None:
            package = self._download.package if self._download is not None else None
            if package is None or not due or received_bytes < due[0] * package.size_bytes:
                return
            while due and received_bytes >= due[0] * package.size_bytes:
                due.pop(0)
            long = self.around.true_clock() - began_s >= _PROGRESS_AFTER_S
            if received_bytes < package.size_bytes and long:
                progress = DownloadProgress(
                    **_about(package), received_bytes=received_bytes, size_bytes=package.size_bytes
                )
                self._tell(progress)

        return report

    # -- tasks ----------------------------------------------------------------------------------------

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]], asked: tuple[str, str, int]) -> None:
        """Do ``work`` in a task, instead of whatever was being done."""
        self._stop_work()
        self._working_on = asked
        self._work = asyncio.create_task(self._guard(work()), name=f"work of {self.device_id}")

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        mine = asyncio.current_task()
        try:
            await work
        except Powerless:
            return
        except Exception:
            # A bug in one device must not end the fleet, and must not hide either.
            self.around.counters.crashed += 1
            _LOG.exception("%s: its work crashed: this is a bug", self.device_id)
        finally:
            if self._work is mine:
                self._work = self._working_on = None

    def _stop_work(self, *, spare_caller: bool = False) -> None:
        if self._work is not None and not spare_caller:
            self._work.cancel()
        self._work = self._working_on = self._download = None

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Let ``work`` go on beside all else, until it ends or the device does."""
        if self._side is None:
            self._side = set()
        task = asyncio.create_task(self._guard(work), name=f"beside {self.device_id}")
        self._side.add(task)
        task.add_done_callback(self._side.discard)

    def _start_lives(self) -> None:
        for life in self._combined.lives(self._controls):
            self._beside(life)

    def _stop_lives(self) -> None:
        for task in tuple(self._side or ()):
            task.cancel()
        if self._delays is not None:
            self._delays.forget()

    # -- publishing -----------------------------------------------------------------------------------

    def _now(self) -> datetime:
        """What its clock says."""
        now, skew_s = self.around.now(), self._combined.clock_skew_s
        return now + timedelta(seconds=skew_s) if skew_s else now

    def _answer(self, asked: tuple[str, str, int], event: Event, *, since_s: float | None = None) -> _Answer:
        """Publish a durable event, again and again, until the service has moved on.

        ``since_s`` is when the message came that it acknowledges.
        """
        if not self._combined.answers:
            outgoing = Outgoing.of(self.device_id, event, since_s=since_s)
            self._publish(self.link.answer, outgoing)
            return _Answer(asked=asked, outgoing=outgoing)
        said: Outgoing | None = None
        for sending in self._combined.outgoing(event, self._controls):
            outgoing = Outgoing.of(self.device_id, sending.event, since_s=since_s)
            if sending.after_s > 0:
                self._beside(self._say_later(outgoing, sending.after_s))
            elif said is None:
                said = outgoing
                self._publish(self.link.answer, outgoing)
            else:
                self._publish(self.link.tell, outgoing)
        return _Answer(asked=asked, outgoing=said)

    async def _say_later(self, outgoing: Outgoing, after_s: float) -> None:
        await self.around.sleep(after_s)
        if not self._hung:
            self._publish(self.link.repeat, outgoing)

    def _repeat(self, answer: _Answer) -> None:
        """Answer a message that came again with the same bytes as before."""
        self.around.counters.duplicates += 1
        if answer.outgoing is not None:
            self._publish(self.link.repeat, answer.outgoing)

    def _tell(self, event: Event) -> None:
        self._publish(self.link.tell, Outgoing.of(self.device_id, event))

    def _publish(self, how: Callable[[Outgoing], None], outgoing: Outgoing) -> None:
        if self._delays is None:
            how(outgoing)
        else:
            self._delays.later("out", lambda: how(outgoing))


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
    """Whether what was done about one counts for the other: of the same run, as each is begun anew."""
    return (one.instance_id, one.package_id, one.sha256) == (
        other.instance_id,
        other.package_id,
        other.sha256,
    )
