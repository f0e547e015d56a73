"""The behaviours of one device, as one: who has a say in what is found out once, not at each step.

A behaviour of a user's may fail. It is then told of, once for each kind of failure, and passed over: the
device goes on as if that behaviour had nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from devices.behaviours.base import (
    NO_LIMITS,
    Behaviour,
    Controls,
    Outcome,
    Sending,
    Step,
    Verdict,
    Way,
    outcome_of,
)
from devices.behaviours.network import Healthy
from devices.dice import Dice

if TYPE_CHECKING:
    from broker.messages import Event, Package

Complaint = Callable[[Behaviour, str, Exception], None]
"""Told of a behaviour that failed: which, in which of its methods, how."""


class Powerless(Exception):  # noqa: N818 (no error: it ends the work of a device)
    """Ends the work that a behaviour has cut off: the device has lost power, or hangs."""


class Combined:
    """Several behaviours as one; made for one device, except that the healthy share one."""

    __slots__ = (
        "_at",
        "_complain",
        "_delay",
        "_live",
        "_outgoing",
        "_received",
        "_url",
        "behaviours",
        "clock_skew_s",
        "rate_bytes_per_s",
        "trusts",
    )

    def __init__(self, behaviours: Sequence[Behaviour], complain: Complaint) -> None:
        """Of behaviours that are prepared."""
        self._complain = complain
        self.behaviours = tuple(behaviours)
        self._at = _who(behaviours, "at")
        self._delay = _who(behaviours, "delay_s")
        self._live = _who(behaviours, "live")
        self._outgoing = _who(behaviours, "outgoing")
        self._received = _who(behaviours, "received")
        self._url = _who(behaviours, "url")
        rates = [float(rate) for rate in self._asked("rate_bytes_per_s") if rate]
        self.rate_bytes_per_s: float | None = min(rates, default=None)
        self.clock_skew_s: float = sum(float(skew_s) for skew_s in self._asked("clock_skew_s"))
        self.trusts: bool = all(self._asked("trusts"))

    @property
    def delays(self) -> bool:
        """Whether anything is late."""
        return bool(self._delay)

    @property
    def answers(self) -> bool:
        """Whether it has a say in what the device says."""
        return bool(self._outgoing)

    @property
    def damages(self) -> bool:
        """Whether what is received may be changed."""
        return bool(self._received)

    @property
    def interferes(self) -> bool:
        """Whether anything happens at the steps."""
        return bool(self._at)

    def expected_outcome(self, *, max_attempts: int, limits: Mapping[str, int] = NO_LIMITS) -> Outcome:
        """How the service should end this device, when it tries so many times; see `outcome_of`."""
        costs = []
        for behaviour in self.behaviours:
            try:
                spoils = behaviour.costs()
            except Exception as error:
                self._complain(behaviour, "costs", error)
                continue
            if spoils is not None:
                if spoils.share is None and (pauses := self._pauses_of(behaviour)):
                    spoils = replace(spoils, share=min(pauses))
                costs.append(spoils)
        return outcome_of(costs, max_attempts=max_attempts, limits=limits)

    def pauses(self) -> list[float]:
        """The shares of the package at which `Step.DOWNLOADING` comes, ascending, each once."""
        return sorted({share for behaviour in self._at for share in self._pauses_of(behaviour)})

    def lives(self, device: Controls) -> Iterator[Coroutine[Any, Any, None]]:
        """What goes on beside the device's work, each to be run in a task of its own."""
        for behaviour in self._live:
            yield self._living(behaviour, device)

    async def at(self, step: Step, device: Controls, *, share: float | None = None) -> None:
        """Let what is due at ``step`` happen; at `Step.DOWNLOADING` to those that asked for ``share``."""
        for behaviour in self._at:
            if step is Step.DOWNLOADING and share not in self._pauses_of(behaviour):
                continue
            try:
                await behaviour.at(step, device)
            except (Verdict, Powerless):
                raise
            except Exception as error:
                self._complain(behaviour, "at", error)

    def outgoing(self, event: Event, device: Controls) -> list[Sending]:
        """What is published instead of ``event``, each behaviour changing what the one before it left."""
        sendings = [Sending(event=event)]
        for behaviour in self._outgoing:
            changed: list[Sending] = []
            for sending in sendings:
                try:
                    made = list(behaviour.outgoing(sending.event, device))
                except Exception as error:
                    self._complain(behaviour, "outgoing", error)
                    made = [Sending(event=sending.event)]
                changed += [Sending(event=one.event, after_s=sending.after_s + one.after_s) for one in made]
            sendings = changed
        return sendings

    def received(self, chunk: bytes, offset: int, package: Package) -> bytes:
        """What the device makes of bytes of the package."""
        for behaviour in self._received:
            try:
                made = behaviour.received(chunk, offset, package)
                if len(made) != len(chunk):
                    raise ValueError(f"it made {len(made)} bytes of {len(chunk)}")
                chunk = made
            except Exception as error:
                self._complain(behaviour, "received", error)
        return chunk

    def delay_s(self, way: Way, dice: Dice) -> float:
        """How late something is."""
        delay_s = 0.0
        for behaviour in self._delay:
            try:
                delay_s += max(0.0, behaviour.delay_s(way, dice))
            except Exception as error:
                self._complain(behaviour, "delay_s", error)
        return delay_s

    def url(self, package: Package) -> str:
        """The address that the package is asked for at."""
        for behaviour in self._url:
            try:
                if (url := behaviour.url(package)) != package.url:
                    if not isinstance(url, str):
                        # Not what it is: whatever it is may hold the URL's secret.
                        raise TypeError(f"a {type(url).__name__} is no text")
                    return url
            except Exception as error:
                self._complain(behaviour, "url", error)
        return package.url

    def _pauses_of(self, behaviour: Behaviour) -> list[float]:
        try:
            return [float(share) for share in behaviour.pauses()]
        except Exception as error:
            self._complain(behaviour, "pauses", error)
            return []

    def _asked(self, method: str) -> list[Any]:
        """What those say that have a method of their own which takes nothing, without those that fail."""
        said = []
        for behaviour in _who(self.behaviours, method):
            try:
                said.append(getattr(behaviour, method)())
            except Exception as error:
                self._complain(behaviour, method, error)
        return said

    async def _living(self, behaviour: Behaviour, device: Controls) -> None:
        try:
            await behaviour.live(device)
        except (Verdict, Powerless):
            return
        except Exception as error:
            self._complain(behaviour, "live", error)


def _who(behaviours: Iterable[Behaviour], method: str) -> tuple[Behaviour, ...]:
    """Those that have a method of their own."""
    return tuple(b for b in behaviours if getattr(type(b), method) is not getattr(Behaviour, method))


def _never(behaviour: Behaviour, method: str, error: Exception) -> None:
    raise AssertionError(f"{type(behaviour).__name__}.{method} failed") from error


HEALTHY: Final = Combined([Healthy()], _never)
"""What all healthy devices share."""
