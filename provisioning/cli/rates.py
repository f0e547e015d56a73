"""How fast what a fleet counts grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

_COUNTERS = ("messages_in", "messages_out", "bytes_in", "bytes_out", "downloads_completed")


class Rates:
    """How fast counters grow, from one look to the next."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._before: tuple[float, dict[str, float]] | None = None

    def update(self, statistics: Mapping[str, Any]) -> dict[str, float]:
        """Return the growth per second since the last call; zeros at the first."""
        now_s = self._now()
        counters = {name: float(statistics.get(name, 0)) for name in _COUNTERS}
        then_s, before = self._before or (now_s, counters)
        self._before = (now_s, counters)
        passed_s = max(now_s - then_s, 0.001)
        return {name: max(0.0, (counters[name] - before[name]) / passed_s) for name in _COUNTERS}
