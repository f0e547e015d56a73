"""When to connect and when to try again: a ramp shared by a fleet, and jittered backoff."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from random import Random

from devices.spec import RampSpec


class Ramp:
    """Lets callers through one by one, in order of their coming, by the stages of a `RampSpec`.

    It paces reconnects as well as first connections: after a broker's restart ten thousand devices
    must not knock at once. ``share`` is the part of the fleet that passes here: so many of its devices a
    second may connect.
    """

    def __init__(
        self, spec: RampSpec, clock: Callable[[], float], *, share: float = 1.0, seed: int = 0
    ) -> None:
        self._clock = clock
        self._jitter_s = spec.jitter_s
        self._random = Random(seed)
        began_s = clock()
        # Ends of the stages, and the time between two slots until then.
        self._stages: list[tuple[float, float]] = []
        for stage in spec.stages:
            began_s += stage.for_s
            self._stages.append((began_s, 1 / (stage.devices_per_s * share)))
        self._interval_s = 1 / (spec.devices_per_s * share)
        self._next_slot_s = 0.0
        # Slots of callers that have gone, the earliest first.
        self._given_back: list[float] = []

    def take_slot(self) -> float:
        """Reserve the next slot; returns the seconds until it begins."""
        return self._wait_s(self._reserve())

    async def wait_turn(self) -> None:
        """Wait for a slot; who is cancelled meanwhile leaves it to others."""
        slot = self._reserve()
        if (delay_s := self._wait_s(slot)) > 0:
            try:
                await asyncio.sleep(delay_s)
            except asyncio.CancelledError:
                heapq.heappush(self._given_back, slot)
                raise

    def _reserve(self) -> float:
        now = self._clock()
        while self._given_back:
            if (slot := heapq.heappop(self._given_back)) >= now:
                return slot
        slot = max(now, self._next_slot_s)
        while self._stages and slot >= self._stages[0][0]:
            self._stages.pop(0)
        self._next_slot_s = slot + (self._stages[0][1] if self._stages else self._interval_s)
        return slot

    def _wait_s(self, slot: float) -> float:
        jitter_s = self._random.uniform(0.0, self._jitter_s) if self._jitter_s else 0.0
        return slot - self._clock() + jitter_s


def backoff_s(*, seed: int, failures: int, first_s: float, max_s: float) -> float:
    """How long to wait after the ``failures``-th failure in a row (1, 2, …).

    Exponential with "equal jitter": half of it is fixed, so that no device hammers, and half is drawn,
    so that no two keep step. The same seed gives the same delays; no generator is kept per device
    (Python's holds 2.5 KB).
    """
    ceiling = min(max_s, first_s * 2.0 ** min(failures - 1, 32))
    return ceiling * (0.5 + 0.5 * Random(seed ^ failures).random())
