"""What is counted of a rollout's devices, one after the other: pure, and of a size that hardly grows.

A device costs the times that percentiles are taken of (8 bytes each) and nothing else; reasons, examples
and the slowest devices are bounded.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.masking import masked
from provisioning.cli.documents import RolloutDevice
from provisioning.cli.terminal import parse_timestamp
from provisioning.states import FINAL, WORKING, DeviceState

STEPS: Final = ("packaging", "notifying", "downloading", "activating")
PERCENTS: Final = (50, 95, 99)
MAX_REASONS: Final = 200
MAX_EXAMPLES: Final = 3
MAX_REASON_CHARS: Final = 300
MAX_SLOWEST: Final = 10
TAIL: Final = 2.0
"""A histogram ends at so many times the 99th percentile: a few slow devices would flatten all others."""
OTHER_REASONS: Final = "other reasons"
UNKNOWN_REASON: Final = "no reason is on record"


@dataclass(kw_only=True)
class Group:
    """Devices that ended otherwise than provisioned, for the same reason."""

    state: str
    reason: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Slow:
    """One of the devices that took longest."""

    device_id: str
    state: str
    attempts: int
    device_s: float
    steps_s: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """What lies between two bounds."""

    start: float
    end: float
    count: int
    missed: int = 0


class Figures:
    """All that is counted; ``add`` each device once."""

    def __init__(self) -> None:
        self.devices = 0
        self.counts: Counter[str] = Counter()
        self.waves: dict[int, Counter[str]] = {}
        self.attempts: Counter[int] = Counter()
        self.models: Counter[str] = Counter()
        self._groups: dict[tuple[str, str], Group] = {}
        self._device_s = array("d")
        self._steps_s = {step: array("d") for step in STEPS}
        self._provisioned_at = array("d")
        self._missed_at = array("d")
        self._slowest: list[tuple[float, str, Slow]] = []

    def add(self, device: RolloutDevice) -> None:
        """Count a device."""
        state = device["state"]
        self.devices += 1
        self.counts[state] += 1
        self.waves.setdefault(device.get("wave") or 0, Counter())[state] += 1
        if len(self.models) < MAX_REASONS or device.get("model") in self.models:
            self.models[device.get("model") or ""] += 1
        if state not in FINAL:
            return
        provisioned = state == DeviceState.PROVISIONED
        if attempts := device.get("attempts"):
            self.attempts[attempts] += 1
        if (ended_at := parse_timestamp(device.get("ended_at"))) is not None:
            (self._provisioned_at if provisioned else self._missed_at).append(ended_at.timestamp())
        if not provisioned:
            self._group(device)
        device_s = device.get("device_s")
        if device_s is None:
            return
        steps = {step: s for step, s in (device.get("steps_s") or {}).items() if s is not None}
        if provisioned:
            self._device_s.append(device_s)
            for step, seconds in steps.items():
                if step in self._steps_s:
                    self._steps_s[step].append(seconds)
        self._keep_slow(device, device_s, steps)

    def _keep_slow(self, device: RolloutDevice, device_s: float, steps: dict[str, float]) -> None:
        if len(self._slowest) == MAX_SLOWEST and device_s <= self._slowest[0][0]:
            return
        slow = Slow(
            device_id=device["device_id"],
            state=device["state"],
            attempts=device.get("attempts", 0),
            device_s=device_s,
            steps_s=steps,
        )
        heapq.heappush(self._slowest, (device_s, device["device_id"], slow))
        if len(self._slowest) > MAX_SLOWEST:
            heapq.heappop(self._slowest)

    def _group(self, device: RolloutDevice) -> None:
        reason = masked(device.get("error") or UNKNOWN_REASON)[:MAX_REASON_CHARS]
        key = (device["state"], reason)
        if key not in self._groups and len(self._groups) >= MAX_REASONS:
            key = (device["state"], OTHER_REASONS)
        group = self._groups.setdefault(key, Group(state=key[0], reason=key[1]))
        group.count += 1
        if len(group.examples) < MAX_EXAMPLES:
            group.examples.append(device["device_id"])

    @property
    def ended(self) -> int:
        return sum(self.counts[state] for state in FINAL)

    @property
    def provisioned(self) -> int:
        return self.counts[DeviceState.PROVISIONED]

    @property
    def in_flight(self) -> int:
        return sum(self.counts[state] for state in WORKING)

    @property
    def measured(self) -> int:
        """Of how many devices the times are: those that were provisioned."""
        return len(self._device_s)

    def groups(self) -> list[Group]:
        """Why devices were not provisioned, the most frequent reason first."""
        return sorted(self._groups.values(), key=lambda one: (-one.count, one.state, one.reason))

    def slowest(self) -> list[Slow]:
        """The devices that took longest, however they ended; the slowest first."""
        return [slow for _, _, slow in sorted(self._slowest, key=lambda one: (-one[0], one[1]))]

    def percentiles(self, step: str | None = None) -> dict[int, float]:
        """Of the whole device, or of one step; empty where nothing was measured."""
        values = sorted(self._device_s if step is None else self._steps_s[step])
        return {
            percent: values[max(math.ceil(len(values) * percent / 100) - 1, 0)]
            for percent in PERCENTS
            if values
        }

    def mean_steps(self) -> dict[str, float]:
        """How long each step takes, in the mean over the devices that were provisioned."""
        return {step: sum(values) / self.measured for step, values in self._steps_s.items() if values}

    def latencies(self, buckets: int) -> list[Bucket]:
        """How many devices took how long; the last bucket has those far beyond the others too."""
        if not self._device_s:
            return []
        return _histogram(self._device_s, (), buckets, 0.0, end=TAIL * self.percentiles()[99])

    @property
    def slowest_provisioned(self) -> float:
        """How long the slowest device took that was provisioned."""
        return max(self._device_s, default=0.0)

    @property
    def mean_device_s(self) -> float:
        """How long a device took that was provisioned, in the mean."""
        return sum(self._device_s) / len(self._device_s) if self._device_s else 0.0

    def throughput(self, buckets: int, since: float | None = None) -> list[Bucket]:
        """How many devices ended when, from the start to the last end; times in seconds since 1970."""
        times = (*self._provisioned_at[:1], *self._missed_at[:1])
        if not times:
            return []
        first = min(min(values) for values in (self._provisioned_at, self._missed_at) if values)
        start = first if since is None else min(first, since)
        return _histogram(self._provisioned_at, self._missed_at, buckets, start)


def _histogram(
    values: Sequence[float], missed: Sequence[float], buckets: int, start: float, *, end: float = math.inf
) -> list[Bucket]:
    end = min(end, max(max(one) for one in (values, missed) if one))
    width = nice((end - start) / buckets)
    number = min(int((end - start) / width) + 1, buckets + 1)
    good, bad = [0] * number, [0] * number
    for counts, given in ((good, values), (bad, missed)):
        for value in given:
            counts[min(int((value - start) / width), number - 1)] += 1
    return [
        Bucket(
            start=start + index * width, end=start + (index + 1) * width, count=good[index], missed=bad[index]
        )
        for index in range(number)
    ]


def nice(value: float, factors: Sequence[float] = (1, 2, 2.5, 5, 10)) -> float:
    """The next of ``factors`` (up to 10) times a power of ten that is not below ``value``."""
    if value <= 0:
        return 0.001
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in factors if factor * power >= value * (1 - 1e-9))
