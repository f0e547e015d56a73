"""When to connect and when to try again: a ramp shared by a fleet, and jittered backoff."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from devices.errors import FleetSpecError


class Ramp:
    """Lets ``rate_per_s`` callers through each second, in order of their coming.

    It paces reconnects as well as first connections: after a broker's restart ten thousand devices
    must not knock at once.
    """

    def __init__(self, rate_per_s: float, clock: Callable[[], float]) -> None:
        if not 0 < rate_per_s <= 100_000:
            raise FleetSpecError(
                "connects_per_s", f"{rate_per_s} is out of range", "give a number up to 100,000"
            )
        self._interval_s = 1 / rate_per_s
        self._clock = clock
        self._next_slot_s = 0.0

    def take_slot(self) -> float:
        """Reserve the next slot; returns the seconds until it begins."""
        now = self._clock()
        slot = max(now, self._next_slot_s)
        self._next_slot_s = slot + self._interval_s
        return slot - now

    async def wait_turn(self) -> None:
        """Wait for a slot."""
        if (delay_s := self.take_slot()) > 0:
            await asyncio.sleep(delay_s)


def backoff_s(*, seed: int, failures: int, first_s: float, max_s: float) -> float:
    """How long to wait after the ``failures``-th failure in a row (1, 2, …).

    Exponential with "equal jitter": half of it is fixed, so that no device hammers, and half is drawn,
    so that no two keep step. The same seed gives the same delays; no generator is kept per device
    (Python's holds 2.5 KB).
    """
    ceiling = min(max_s, first_s * 2.0 ** min(failures - 1, 32))
    return ceiling * (0.5 + 0.5 * Random(seed ^ failures).random())
