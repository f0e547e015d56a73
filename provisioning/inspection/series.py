"""A run over time: how many devices have ended how in each step of it, and how long they took."""

from __future__ import annotations

import math
import sqlite3
from typing import Any, Final

from provisioning.registry import Registry
from provisioning.state_directory import iso
from provisioning.states import FINAL, DeviceState

from .devices import SQL

MAX_POINTS: Final = 1_000
MIN_STEP_S: Final = 0.001

Json = dict[str, Any]


async def series_of(registry: Registry, run_id: str, *, points: int, now: float) -> Json | None:
    """``points`` steps from the start of a run, or a rollout, to its end, or to ``now``; None: there is none.

    A step in which nothing ended has null for its times.
    """

    def work(database: sqlite3.Connection) -> Json | None:
        span = database.execute(SQL["span"], (run_id,)).fetchone()
        if span is None:
            return None
        began, ended = span
        length_s = max((now if ended is None else ended) - began, 0.0)
        # In whole milliseconds, so that times of steps are what they are said to be.
        step_s = max(math.ceil(length_s / points * 1_000) / 1_000, MIN_STEP_S)
        arguments = (run_id, began, step_s, points - 1)
        counts = {str(state): [0] * points for state in DeviceState if state in FINAL}
        for state, step, count in database.execute(SQL["ended"], arguments):
            counts[state][step] = count
        times: dict[int, list[float | None]] = {50: [None] * points, 95: [None] * points}
        for step, percent, seconds in database.execute(SQL["times"], arguments):
            times[percent][step] = round(seconds, 3)
        return {
            "from": iso(began),
            "step_s": step_s,
            "ended": counts,
            "device_s": {f"p{percent}": values for percent, values in times.items()},
        }

    return await registry.ask(work)
