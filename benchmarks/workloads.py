"""The workloads of ``python -m benchmarks.engine``: their names, units and sizes.

Every contestant carries the same ones, each in its own words (benchmarks/embedded.py, benchmarks/peers/).
This module wants nothing but Python: peers run in an environment of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EVENT = "DownloadCompletedAck"
MAX_IN_FLIGHT = 1_000
"""Events that a contestant's sender has under way at once."""

WARM_UP = 3
"""Samples of a latency that are taken first and left out: connections are made, code is loaded."""

Values = dict[str, float]
"""What one run measured, by name; which of them counts is the workload's ``value``."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One workload. ``sizes`` are Muster's own; at ``peer_size`` it is compared with its peers."""

    name: str
    title: str
    sizes: tuple[int, ...]
    peer_size: int
    quick_size: int
    unit: str = "/s"
    value: str = "per_s"
    """The value that counts: a rate, or a time where ``unit`` is one."""

    @property
    def is_rate(self) -> bool:
        return self.value == "per_s"


# Two activities and one external event per device, each awaited; one parent for all.
SEED = Workload(
    name="seed",
    title="the seed's workflow, devices",
    sizes=(1_000, 10_000, 100_000),
    peer_size=1_000,
    quick_size=500,
)
CHAIN = Workload(
    name="chain",
    title="a chain of activities in one orchestration",
    sizes=(1_000,),
    peer_size=1_000,
    quick_size=100,
)
# What the timers wait is taken off.
TIMERS = Workload(
    name="timers",
    title="timers at once, one per sub-orchestration",
    sizes=(10_000,),
    peer_size=1_000,
    quick_size=500,
)
# Each is durable before its sender hears of it.
EVENTS = Workload(
    name="events",
    title="external events to one instance",
    sizes=(50_000,),
    peer_size=1_000,
    quick_size=1_000,
)
# Start, two activities, done; one after another.
LATENCY = Workload(
    name="latency",
    title="one orchestration on an idle engine",
    sizes=(500,),
    peer_size=50,
    quick_size=50,
    unit=" ms",
    value="p50_ms",
)
# Until it is durable; one after another, to an instance that waits for them.
RAISE = Workload(
    name="raise",
    title="raising one event on an idle engine",
    sizes=(500,),
    peer_size=50,
    quick_size=50,
    unit=" ms",
    value="p50_ms",
)
WORKLOADS = (SEED, CHAIN, TIMERS, EVENTS, LATENCY, RAISE)


def timer_delay_s(size: int) -> float:
    """How long the timers of that size wait: long enough that all of Muster's wait at the same time."""
    return 5.0 if size >= 1_000 else 0.2


def rate(count: int, seconds: float) -> Values:
    return {"per_s": count / seconds, "seconds": seconds}


def percentiles(samples_s: list[float]) -> Values:
    """The usual percentiles, in milliseconds, each the nearest sample at or above its rank."""
    ordered = sorted(samples_s)
    ranks = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99}
    return {name: ordered[math.ceil(rank * len(ordered)) - 1] * 1_000 for name, rank in ranks.items()}
