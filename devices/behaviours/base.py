"""What a behaviour is: the base class of all, those of users too.

A behaviour sets a device apart from a healthy one. It is a dataclass: its fields are its parameters, which
a fleet file may set, and each device that behaves so has an instance of its own. The device asks it at
each `Step` of its life, and it acts through `Controls`. What it does not override costs nothing.

Only the standard library is imported here: the command line knows all behaviours within its 0.3 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, Protocol

from devices.dice import Dice

if TYPE_CHECKING:
    from broker.messages import Event, Package

Outcome = Literal["provisioned", "failed", "timed_out", "rejected"]

FailureKind = Literal[
    "no_ack",
    "download_failed",
    "bad_ack",
    "rejected",
    "package_lost",
    "activation_failed",
    "activation_timeout",
]
"""How an attempt fails, in the service's words: it may try some kinds less often than others."""

Way = Literal["in", "out", "request", "chunk"]
"""What is on its way: a message from the broker, one to it, a request for the package, a piece of it."""

ALWAYS: Final = 0
"""As a number of attempts: all there are."""

NO_LIMITS: Final[Mapping[str, int]] = MappingProxyType({"rejected": 1})
"""The attempts by kind of a service that was told nothing of kinds."""


class Step(StrEnum):
    """The moments of a device's life at which a behaviour may strike, in their order."""

    REGISTERED = "registered"
    """It is connected and has registered; after each reconnect too."""
    NOTIFIED = "notified"
    """A package message has come; nothing was asked of blob storage yet."""
    DOWNLOADING = "downloading"
    """One of `Behaviour.pauses` of the package has arrived."""
    DOWNLOADED = "downloaded"
    """The package is there and verified; nothing was said of it yet."""
    ACTIVATING = "activating"
    """The command to activate it has come."""
    ACTIVATED = "activated"
    """It was activated, and the service told so."""


STEPS: Final[tuple[Step, ...]] = tuple(Step)


MAX_DETAIL_CHARS: Final = 1_000
_REASON: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MAX_REASON_CHARS: Final = 64


def check_reason(reason: str) -> str:
    """Return ``reason`` where the contract takes it; ValueError for what can't be said to the service."""
    if len(reason) > _MAX_REASON_CHARS or not _REASON.fullmatch(reason):
        raise ValueError(
            f"reason must be lower-case words joined by hyphens, up to {_MAX_REASON_CHARS} characters, "
            f"not {reason!r}"
        )
    return reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoils:
    """What a behaviour costs: the first ``attempts`` (`ALWAYS`: all) end as ``outcome`` at ``step``."""

    outcome: Outcome
    step: Step
    attempts: int = ALWAYS
    share: float | None = None
    """At `Step.DOWNLOADING`, how much of the package has arrived by then. None: where it first pauses,
    or all of it where it does not pause, as for whoever checks the whole."""
    kind: FailureKind | None = None
    """What the service takes each of them for. None: what follows from ``outcome`` and ``step``."""

    @property
    def failure(self) -> FailureKind:
        """What the service takes each of the attempts for."""
        if self.kind is not None:
            return self.kind
        if self.outcome == "rejected":
            return "rejected"
        if self.step is Step.ACTIVATING:
            return "activation_timeout" if self.outcome == "timed_out" else "activation_failed"
        return "no_ack" if self.outcome == "timed_out" else "download_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sending:
    """An event to be published, ``after_s`` seconds from now."""

    event: Event
    after_s: float = 0.0


class Verdict(Exception):  # noqa: N818 (no error: it is what the device answers)
    """What a behaviour raises to end an attempt.

    ``reason`` is a slug (lower-case words joined by hyphens), ``detail`` a sentence for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = check_reason(reason)
        self.detail = detail[:MAX_DETAIL_CHARS]


class Refusal(Verdict):
    """The device will not have this package, whatever the attempt: `PackageRejected`."""


class Failure(Verdict):
    """This attempt has failed: `DownloadFailed`, or `ActivationFailed` at `Step.ACTIVATING`."""


class Controls(Protocol):
    """What a behaviour can do with its device. Times are seconds of the fleet's clock, which may be fast."""

    @property
    def device_id(self) -> str:
        """The device's id."""
        ...

    @property
    def dice(self) -> Dice:
        """The device's dice: whatever is random comes from them."""
        ...

    @property
    def package(self) -> Package | None:
        """The newest package message."""
        ...

    @property
    def attempt(self) -> int:
        """The attempt that the step is about, of the package or of the activation; else 0."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a download or an activation is under way."""
        ...

    @property
    def connected(self) -> bool:
        """Whether it is connected to the broker."""
        ...

    async def wait_connected(self) -> None:
        """Wait until it is connected to the broker."""
        ...

    def true_s(self, seconds: float) -> float:
        """``seconds`` of the service's clock as seconds of the fleet's."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Do nothing for a while; the connection stays."""
        ...

    async def go_offline(self, seconds: float) -> None:
        """Lose the network without a goodbye; returns when it is back."""
        ...

    async def doze(self, seconds: float) -> None:
        """Disconnect in order, as battery devices do; returns when it is to connect again."""
        ...

    def drop_connection(self) -> None:
        """Lose the connection to the broker; the device connects again by its backoff."""
        ...

    async def reboot(self, seconds: float, *, keep_download: bool) -> None:
        """Lose power: connection, memory and work are gone, with ``keep_download`` not what had arrived.

        Does not return into the work that it ends.
        """
        ...

    async def hang(self) -> None:
        """Stop answering, for ever; the connection stays, as its pings are another thread's.

        Does not return into the work that it ends.
        """
        ...

    def publish(self, kind: str, payload: bytes, *, as_device: str | None = None) -> None:
        """Publish any bytes below the device's own topics, as in ``events/DownloadCompletedAck``.

        ``as_device``: below those of another one, which a broker should not let through.
        """
        ...


@dataclass(kw_only=True)
class Behaviour:
    """Base of all behaviours; by itself it is that of a healthy device.

    Subclasses are dataclasses (``@dataclass(kw_only=True)``) whose fields, of type ``int``, ``float``,
    ``str`` or ``bool``, are parameters with defaults. ``__post_init__`` may check them, and raises ValueError
    that begins with the parameter's name. The first line of the docstring is what `muster fleet behaviours`
    shows.
    """

    def costs(self) -> Spoils | None:
        """What it costs, from which follows how the provisioning should end; asked after `prepare`."""
        return None

    def prepare(self, dice: Dice) -> None:
        """Draw what is drawn once for a device; called before anything else."""

    async def live(self, device: Controls) -> None:
        """What goes on beside the device's work, from its start until it is stopped."""

    async def at(self, step: Step, device: Controls) -> None:
        """What happens at ``step``; may raise `Refusal` or `Failure`."""

    def pauses(self) -> Sequence[float]:
        """The shares of the package, between 0 and 1, at which `Step.DOWNLOADING` comes."""
        return ()

    def rate_bytes_per_s(self) -> float | None:
        """Cap on the speed of each download."""
        return None

    def clock_skew_s(self) -> float:
        """How far the device's clock is ahead of the true time."""
        return 0.0

    def trusts(self) -> bool:
        """Whether it has the right keys to verify packages with."""
        return True

    def outgoing(self, event: Event, device: Controls) -> Iterable[Sending]:
        """What is published instead of ``event``: nothing, something else, more than one."""
        return (Sending(event=event),)

    def received(self, chunk: bytes, offset: int, package: Package) -> bytes:
        """What the device makes of bytes of the package that begin at ``offset``; of the same length."""
        return chunk

    def delay_s(self, way: Way, dice: Dice) -> float:
        """How late something is that is on its ``way``."""
        return 0.0

    def url(self, package: Package) -> str:
        """The address that the package is asked for at."""
        return package.url


def strikes(attempt: int, attempts: int) -> bool:
    """Whether what strikes in the first ``attempts`` (`ALWAYS`: in all) does so in this one.

    By the number that the service gives to an attempt, so a device that was started anew in between
    behaves as if it had not been.
    """
    return attempts == ALWAYS or attempt <= attempts


def outcome_of(
    costs: Sequence[Spoils], *, max_attempts: int, limits: Mapping[str, int] = NO_LIMITS
) -> Outcome:
    """How the service ends a device whose behaviours cost that, when it tries ``max_attempts`` times.

    An attempt is spoilt by the first that strikes in it; what the last attempt came to is the outcome.
    ``limits`` are attempts by kind of failure, where they are fewer; without it a rejection is final.
    """
    in_order = sorted(costs, key=_when)
    for phase in (
        [spoils for spoils in in_order if spoils.step not in (Step.ACTIVATING, Step.ACTIVATED)],
        [spoils for spoils in in_order if spoils.step is Step.ACTIVATING],
    ):
        if (outcome := _spoilt(phase, max_attempts, limits)) is not None:
            return outcome
    return "provisioned"


def _when(spoils: Spoils) -> tuple[int, float]:
    """What strikes first in an attempt sorts first."""
    share = 1.0 if spoils.share is None else spoils.share
    return STEPS.index(spoils.step), share if spoils.step is Step.DOWNLOADING else 0.0


def _spoilt(costs: Sequence[Spoils], max_attempts: int, limits: Mapping[str, int]) -> Outcome | None:
    """The outcome if no attempt succeeds, else None."""
    outcome: Outcome | None = None
    failures: dict[str, int] = {}
    for attempt in range(1, max_attempts + 1):
        struck = next((spoils for spoils in costs if strikes(attempt, spoils.attempts)), None)
        if struck is None:
            return None
        outcome = struck.outcome
        kind = struck.failure
        failures[kind] = failures.get(kind, 0) + 1
        if failures[kind] >= limits.get(kind, max_attempts):
            break
    return outcome
