"""How fast a rollout goes of late: what has ended, looked at again and again while it runs; not on disk.

Since its start would not do: a night's pause, or a wait for an approval, is no sign of what is to come.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0
SHORTEST_S: Final = 5.0
"""Over less than this nothing can be said."""
_APART_S: Final = 1.0
_MAX_ROLLOUTS: Final = 1_000

Samples = deque[tuple[float, int]]


class Rates:
    """The samples of all rollouts. Noted and asked in different threads: each step is one of the deque."""

    def __init__(self) -> None:
        self._samples: dict[str, Samples] = {}

    def note(self, rollout_id: str, now: float, ended: int) -> None:
        """So many of its devices have ended by now."""
        samples = self._samples.get(rollout_id)
        if samples is None:
            if len(self._samples) >= _MAX_ROLLOUTS:
                self._samples.clear()
            samples = self._samples[rollout_id] = deque(maxlen=int(WINDOW_S / _APART_S) + 1)
        if not samples or now - samples[-1][0] >= _APART_S:
            samples.append((now, ended))

    def of_late(self, rollout_id: str, now: float, ended: int) -> float | None:
        """Devices a second, up to now; None where it was not looked at for long enough."""
        for at, before in list(self._samples.get(rollout_id, ())):
            if now - at <= WINDOW_S:
                return (ended - before) / (now - at) if now - at >= SHORTEST_S else None
        return None
