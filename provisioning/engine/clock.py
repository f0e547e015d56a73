"""The engine's time: microseconds since the epoch, UTC, never back."""

from __future__ import annotations

import time
from collections.abc import Callable


def wall_clock() -> int:
    """Microseconds since the epoch, as the machine has it now."""
    return time.time_ns() // 1_000


def monotonic_clock() -> int:
    """Microseconds since some moment."""
    return time.monotonic_ns() // 1_000


class SteadyClock:
    """The wall clock, except while that is behind itself.

    What is defined: when the wall clock is set forward, this one goes with it, and timers that are due by
    it fire. When it is set back, this one goes on at the pace of the monotonic clock until the wall clock
    has caught up: a timer "in 5 s" fires 5 s later, whether made before or after the change, and one
    for a time of day is early by as much as the clock was set back. A new process begins with the wall
    clock as it is then: timers on disk from before the change are late by what is left of it.
    """

    def __init__(
        self, *, wall: Callable[[], int] = wall_clock, monotonic: Callable[[], int] = monotonic_clock
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead = wall() - monotonic()

    def __call__(self) -> int:
        """The time in microseconds."""
        # The wall clock first: a pause between the two readings then makes the difference too small, and
        # the next call puts that right. Too large it would stay for ever.
        wall = self._wall()
        monotonic = self._monotonic()
        self._ahead = max(self._ahead, wall - monotonic)
        return monotonic + self._ahead


class EngineClock:
    """The time of one engine by whatever clock it was given; it never goes back while the engine runs."""

    def __init__(self, read: Callable[[], int]) -> None:
        self.read = read
        #: The time of the last tick: all that one step does happens at the same time.
        self.now = 0

    def tick(self) -> int:
        self.now = max(self.now, self.read())
        return self.now
