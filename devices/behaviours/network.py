"""Behaviours of the network between a device and the rest: slow, lossy, flaky, gone for a while, asleep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from devices.behaviours.base import STEPS, Behaviour, Controls, Step, Way
from devices.dice import Dice

_SLOW_BYTES_PER_S: Final = (16 * 1024, 64 * 1024)
_OUTAGE_S: Final = (1.0, 4.0)
_SHARES: Final = (0.2, 0.8)
_FIRST_RETRANSMISSION_S: Final = 0.3
_MAX_RETRANSMISSIONS: Final = 4


def check(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError, with the parameter's name and bounds, for what is outside of them."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value:g}")


@dataclass(kw_only=True)
class Healthy(Behaviour):
    """Does what it should."""


@dataclass(kw_only=True)
class Slow(Behaviour):
    """Downloads at a low rate."""

    bandwidth_bytes_per_s: int = 0
    """0: drawn for each device, 16 to 64 KiB/s."""

    def __post_init__(self) -> None:
        check("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s, 0, 1e12)

    def prepare(self, dice: Dice) -> None:
        self.bandwidth_bytes_per_s = self.bandwidth_bytes_per_s or dice.whole("bandwidth", *_SLOW_BYTES_PER_S)

    def rate_bytes_per_s(self) -> float | None:
        return self.bandwidth_bytes_per_s


@dataclass(kw_only=True)
class Lossy(Behaviour):
    """Has latency, jitter and loss on the way of all it sends and gets.

    MQTT and HTTP run over TCP, which sends again what was lost: so loss is further lateness, of 0.3 s and
    twice as long each time, and nothing overtakes anything.
    """

    latency_s: float = 0.2
    jitter_s: float = 0.2
    loss: float = 0.05
    """The share of what is sent that is lost."""

    def __post_init__(self) -> None:
        check("latency_s", self.latency_s, 0, 60)
        check("jitter_s", self.jitter_s, 0, 60)
        check("loss", self.loss, 0, 0.9)

    def delay_s(self, way: Way, dice: Dice) -> float:
        # A body is a stream: its pieces follow each other, and only what is lost holds up the rest.
        delay_s = 0.0
        if way != "chunk":
            delay_s = self.latency_s + dice.uniform(f"jitter of {way}", 0.0, self.jitter_s)
        wait_s = _FIRST_RETRANSMISSION_S
        for _ in range(_MAX_RETRANSMISSIONS):
            if not dice.chance(f"loss of {way}", self.loss):
                break
            delay_s += wait_s
            wait_s *= 2
        return delay_s


@dataclass(kw_only=True)
class Flaky(Behaviour):
    """Loses its connection to the broker every so often."""

    every_s: float = 8.0
    """On average; half as long to one and a half times as long."""

    def __post_init__(self) -> None:
        check("every_s", self.every_s, 0.1, 86_400)

    async def live(self, device: Controls) -> None:
        while True:
            await device.sleep(device.dice.uniform("flaky", 0.5 * self.every_s, 1.5 * self.every_s))
            device.drop_connection()


@dataclass(kw_only=True)
class Offline(Behaviour):
    """Is without network for a while, once, at a step of its provisioning."""

    step: str = ""
    """registered, notified, downloading, downloaded or activating; empty: drawn for each device."""
    for_s: float = 0.0
    """0: drawn for each device, 1 to 4 s."""
    at_fraction: float = 0.0
    """The share of the package that has arrived, where it strikes while downloading; 0: drawn."""
    _done: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.step and self.step not in STEPS[:-1]:
            raise ValueError(f"step must be one of {', '.join(STEPS[:-1])}, not {self.step!r}")
        check("for_s", self.for_s, 0, 7 * 86_400)
        check("at_fraction", self.at_fraction, 0, 1)

    def prepare(self, dice: Dice) -> None:
        self.step = self.step or dice.choice("offline at", STEPS[:-1])
        self.for_s = self.for_s or dice.uniform("offline for", *_OUTAGE_S)
        self.at_fraction = self.at_fraction or dice.uniform("offline at share", *_SHARES)

    def pauses(self) -> Sequence[float]:
        return (self.at_fraction,) if self.step == Step.DOWNLOADING and not self._done else ()

    async def at(self, step: Step, device: Controls) -> None:
        if step == self.step and not self._done:
            self._done = True
            await device.go_offline(self.for_s)


@dataclass(kw_only=True)
class Sleepy(Behaviour):
    """Sleeps, disconnected in order, and wakes at intervals to see whether there is something to do."""

    awake_s: float = 2.0
    asleep_s: float = 8.0

    def __post_init__(self) -> None:
        check("awake_s", self.awake_s, 0.1, 86_400)
        check("asleep_s", self.asleep_s, 0.1, 7 * 86_400)

    async def live(self, device: Controls) -> None:
        while True:
            await device.sleep(device.dice.uniform("awake", 0.5 * self.awake_s, 1.5 * self.awake_s))
            if device.connected and not device.busy:
                await device.doze(device.dice.uniform("asleep", 0.5 * self.asleep_s, 1.5 * self.asleep_s))
