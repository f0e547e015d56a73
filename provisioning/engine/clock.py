"""The engine's time: microseconds since the epoch, UTC, never back."""

from __future__ import annotations

import time
from collections.abc import Callable


def wall_clock() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1_000


class EngineClock:
    """The time of one engine; it never goes back while the engine runs."""

    def __init__(self, read: Callable[[], int]) -> None:
        self.read = read
        #: The time of the last tick: all that one step does happens at the same time.
        self.now = 0

    def tick(self) -> int:
        self.now = max(self.now, self.read())
        return self.now
