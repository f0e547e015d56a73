"""What is late: messages on their way, in the order in which they were sent, as over one TCP connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from devices.behaviours.base import Way
from devices.behaviours.combined import Combined
from devices.dice import Dice

# Callbacks that are due at the same time may be called in any order.
_AFTER_EACH_OTHER_S: Final = 1e-6


class Delays:
    """The two directions of one device's connection to the broker."""

    __slots__ = ("_combined", "_dice", "_free_s", "_pending", "_speed")

    def __init__(self, combined: Combined, dice: Dice, *, speed: float) -> None:
        self._combined = combined
        self._dice = dice
        self._speed = speed
        self._free_s: dict[Way, float] = {}
        self._pending: dict[asyncio.TimerHandle, Callable[[], None]] = {}

    def later(self, way: Way, arrive: Callable[[], None]) -> None:
        """Call ``arrive`` when what was sent now is there."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._combined.delay_s(way, self._dice) / self._speed
        due_s = max(due_s, self._free_s.get(way, 0.0) + _AFTER_EACH_OTHER_S)
        self._free_s[way] = due_s

        def due() -> None:
            self._pending.pop(handle, None)
            arrive()

        handle = loop.call_at(due_s, due)
        self._pending[handle] = arrive

    def hurry(self) -> None:
        """What is on its way arrives at once."""
        pending = sorted(self._pending.items(), key=lambda item: item[0].when())
        self.forget()
        for _, arrive in pending:
            arrive()

    def forget(self) -> None:
        """What is on its way does not arrive any more."""
        for handle in self._pending:
            handle.cancel()
        self._pending.clear()
