"""Behaviours of what a device says: nothing, too late, twice, something else, rubbish, with a wrong clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from devices.behaviours.base import (
    STEPS,
    Behaviour,
    Controls,
    Refusal,
    Sending,
    Spoils,
    Step,
    check_reason,
    strikes,
)
from devices.behaviours.downloads import check_attempts
from devices.behaviours.network import check
from devices.dice import Dice

if TYPE_CHECKING:
    from broker.messages import Event

_ACK: Final = "DownloadCompletedAck"
_MAX_SKEW_S: Final = 86_400.0
# What the service waits for an acknowledgement where a package does not say so.
_ACK_TIMEOUT_S: Final = 60.0
# The contract's payloads end at 64 KiB.
_OVERSIZED_BYTES: Final = 64 * 1024 + 512


@dataclass(kw_only=True)
class Hangs(Behaviour):
    """Stops answering for good after a step; its connection stays."""

    after: str = ""
    """registered, notified, downloading, downloaded, activating or activated; empty: drawn, not the last."""

    def __post_init__(self) -> None:
        if self.after and self.after not in STEPS:
            raise ValueError(f"after must be one of {', '.join(STEPS)}, not {self.after!r}")

    def prepare(self, dice: Dice) -> None:
        self.after = self.after or dice.choice("hangs after", STEPS[:-1])

    def costs(self) -> Spoils | None:
        step = Step(self.after)
        return None if step is Step.ACTIVATED else Spoils(outcome="timed_out", step=step)

    def pauses(self) -> tuple[float, ...]:
        return (0.5,) if self.after == Step.DOWNLOADING else ()

    async def live(self, device: Controls) -> None:
        # A package that the broker has kept comes before the registration is through.
        if self.after == Step.REGISTERED:
            await device.hang()

    async def at(self, step: Step, device: Controls) -> None:
        if step == self.after and step is not Step.REGISTERED:
            await device.hang()


@dataclass(kw_only=True)
class NeverAnswers(Hangs):
    """Is connected, and answers nothing."""

    after: str = Step.REGISTERED.value


@dataclass(kw_only=True)
class Rejects(Behaviour):
    """Rejects the package, as it is for another model."""

    reason: str = "wrong-model"

    def __post_init__(self) -> None:
        check_reason(self.reason)

    def costs(self) -> Spoils | None:
        return Spoils(outcome="rejected", step=Step.NOTIFIED)

    async def at(self, step: Step, device: Controls) -> None:
        if step is Step.NOTIFIED:
            raise Refusal(self.reason, "this package is not for this device")


@dataclass(kw_only=True)
class DuplicateAck(Behaviour):
    """Acknowledges its download several times: with the same bytes, and with others."""

    copies: int = 3
    spread_s: float = 1.0
    """The copies come within so many seconds."""

    def __post_init__(self) -> None:
        check("copies", self.copies, 2, 100)
        check("spread_s", self.spread_s, 0, 86_400)

    def outgoing(self, event: Event, device: Controls) -> Iterable[Sending]:
        yield Sending(event=event)
        if type(event).__name__ != _ACK:
            return
        for copy in range(1, self.copies):
            after_s = device.dice.uniform("copy after", 0.0, self.spread_s)
            again = event
            if copy % 2 == 0 and event.at is not None:
                again = event.model_copy(update={"at": event.at + timedelta(seconds=after_s)})
            yield Sending(event=again, after_s=after_s)


@dataclass(kw_only=True)
class LateAck(Behaviour):
    """Acknowledges its download after the deadline, when the service has sent the package again.

    That of the first attempt only. An acknowledgement that is late counts for a later attempt, so if others
    were late too, the outcome would depend on what else was spoilt, and on when the process was killed.
    """

    late_by_s: float = 1.0
    """By how many true seconds the deadline is missed."""

    def __post_init__(self) -> None:
        check("late_by_s", self.late_by_s, 0, 86_400)

    def costs(self) -> Spoils | None:
        return Spoils(outcome="timed_out", step=Step.DOWNLOADED, attempts=1)

    def outgoing(self, event: Event, device: Controls) -> Iterable[Sending]:
        after_s = 0.0
        if type(event).__name__ == _ACK and strikes(event.attempt, 1):
            package = device.package
            timeout_s = package.ack_timeout_s if package is not None else None
            after_s = device.true_s((timeout_s or _ACK_TIMEOUT_S) + self.late_by_s)
        yield Sending(event=event, after_s=after_s)


@dataclass(kw_only=True)
class LostAck(Behaviour):
    """Acknowledges its download, and nobody ever hears of it."""

    attempts: int = 1
    """How many attempts are spoilt; 0: all."""

    def __post_init__(self) -> None:
        check_attempts(self.attempts)

    def costs(self) -> Spoils | None:
        return Spoils(outcome="timed_out", step=Step.DOWNLOADED, attempts=self.attempts)

    def outgoing(self, event: Event, device: Controls) -> Iterable[Sending]:
        if type(event).__name__ == _ACK and strikes(event.attempt, self.attempts):
            return ()
        return (Sending(event=event),)


@dataclass(kw_only=True)
class WrongAck(Behaviour):
    """Acknowledges a package that it was never sent."""

    attempts: int = 1
    """How many attempts are spoilt; 0: all."""

    def __post_init__(self) -> None:
        check_attempts(self.attempts)

    def costs(self) -> Spoils | None:
        return Spoils(outcome="timed_out", step=Step.DOWNLOADED, attempts=self.attempts)

    def outgoing(self, event: Event, device: Controls) -> Iterable[Sending]:
        if type(event).__name__ == _ACK and strikes(event.attempt, self.attempts):
            event = event.model_copy(update={"package_id": f"not-{event.package_id}"[:200]})
        return (Sending(event=event),)


@dataclass(kw_only=True)
class Malformed(Behaviour):
    """Publishes rubbish besides what it should: no JSON, wrong fields, unknown events, far too much."""

    every_s: float = 1.0
    """One kind after the other, each once."""

    def __post_init__(self) -> None:
        check("every_s", self.every_s, 0.01, 86_400)

    async def live(self, device: Controls) -> None:
        for kind, payload in (
            (f"events/{_ACK}", b"\xff\x00{"),
            (f"events/{_ACK}", b'{"v": 1, "instance_id": 7}'),
            ("events/NoSuchEvent", b'{"v": 1}'),
            ("register", b'{"v": 1, "model": ["none"]}'),
            ("presence", b"online"),
            ("events/DownloadProgress", b" " * _OVERSIZED_BYTES),
        ):
            await device.sleep(device.dice.uniform("rubbish", 0.5 * self.every_s, 1.5 * self.every_s))
            await device.wait_connected()
            device.publish(kind, payload)


@dataclass(kw_only=True)
class Impostor(Behaviour):
    """Acknowledges downloads of other devices too, on its own topic and on theirs."""

    others: int = 2
    """For how many: those whose ids end in the next digits."""

    def __post_init__(self) -> None:
        check("others", self.others, 1, 9)

    async def at(self, step: Step, device: Controls) -> None:
        package = device.package
        if step is not Step.NOTIFIED or package is None:
            return
        # Here, because commands that only name behaviours need no messages, which take long to import.
        from broker.messages import DownloadCompletedAck

        run_id = package.instance_id.rpartition(":")[0]
        acks = {
            other: DownloadCompletedAck(
                instance_id=f"{run_id}:{other}",
                package_id=package.package_id,
                attempt=package.attempt,
                size_bytes=package.size_bytes,
                sha256=package.sha256,
            ).to_json()
            for other in (_neighbour(device.device_id, offset) for offset in range(1, self.others + 1))
        }
        for ack in acks.values():
            device.publish(f"events/{_ACK}", ack)
        for other, ack in acks.items():
            # A broker that does not let it through may end the connection.
            await device.wait_connected()
            device.publish(f"events/{_ACK}", ack, as_device=other)


def _neighbour(device_id: str, offset: int) -> str:
    """Another device: with another last digit, or with one more where there is none."""
    last = device_id[-1]
    return device_id[:-1] + str((int(last) + offset) % 10) if last.isdigit() else f"x{offset}{device_id}"[:64]


@dataclass(kw_only=True)
class ClockSkew(Behaviour):
    """Has a clock that is wrong, and puts its time into what it says."""

    skew_s: float = 0.0
    """How far it is ahead; 0: drawn for each device, up to a day either way."""

    def __post_init__(self) -> None:
        check("skew_s", self.skew_s, -1e9, 1e9)

    def prepare(self, dice: Dice) -> None:
        self.skew_s = self.skew_s or dice.uniform("clock skew", -_MAX_SKEW_S, _MAX_SKEW_S)

    def clock_skew_s(self) -> float:
        return self.skew_s
