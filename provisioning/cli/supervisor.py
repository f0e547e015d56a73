"""Starts processes of fleets again that have died, after a short while, until one dies too often."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

_LOG = logging.getLogger(__name__)

WATCH_INTERVAL_S: Final = 0.25
BACKOFF_S: Final = 0.2
"""Before the first start; twice that before the next, and so on."""
MAX_DEATHS: Final = 5
WITHIN_S: Final = 60.0
"""That often in that time, and a process stays down."""

Part = tuple[str, int]
"""A fleet's id and the number of one of its processes."""


class Deaths:
    """When the processes have died; pure, with times handed in."""

    def __init__(self) -> None:
        self._times: dict[Part, deque[float]] = {}
        self.given_up: set[Part] = set()

    def died(self, part: Part, now_s: float) -> float | None:
        """Note a death; returns how long to wait before the next start, None to give up."""
        times = self._times.setdefault(part, deque())
        times.append(now_s)
        while times[0] < now_s - WITHIN_S:
            times.popleft()
        if len(times) >= MAX_DEATHS:
            self.given_up.add(part)
            return None
        return float(BACKOFF_S * 2 ** (len(times) - 1))

    def passed(self, part: Part, seconds: float) -> None:
        """So long was spent on a start that failed: a process that did not run did not run well either."""
        if part in self._times:
            self._times[part] = deque(at_s + seconds for at_s in self._times[part])

    def forget(self, fleet_id: str) -> None:
        """Begin anew with a fleet."""
        self.given_up = {part for part in self.given_up if part[0] != fleet_id}
        self._times = {part: times for part, times in self._times.items() if part[0] != fleet_id}


class Supervisor:
    """Looks after processes while it is started.

    ``dead`` says which should run and don't; ``restart`` starts one again and returns when it is there, or
    raises, which counts as another death.
    """

    def __init__(
        self,
        *,
        dead: Callable[[], Iterable[Part]],
        restart: Callable[[Part], Awaitable[None]],
    ) -> None:
        self._dead = dead
        self._restart = restart
        self._deaths = Deaths()
        self._restarting: dict[Part, asyncio.Task[None]] = {}
        self._watcher: asyncio.Task[None] | None = None

    @property
    def watching(self) -> bool:
        """Whether it is started."""
        return self._watcher is not None

    def given_up(self, fleet_id: str) -> int:
        """How many processes of a fleet died too often and stay down."""
        return sum(part[0] == fleet_id for part in self._deaths.given_up)

    def forget(self, fleet_id: str) -> None:
        """Try those again that were given up; what is on its way goes on."""
        self._deaths.forget(fleet_id)

    def start(self) -> None:
        """Begin to watch; on the running loop."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(), name="fleet supervisor")

    async def close(self) -> None:
        """Watch no more; a start that is under way is given up, and its process ended."""
        tasks = [task for task in (self._watcher, *self._restarting.values()) if task is not None]
        self._watcher = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            for part in self._dead():
                if part not in self._restarting and part not in self._deaths.given_up:
                    task = asyncio.create_task(self._revive(part), name=f"restart {part[0]}/{part[1]}")
                    self._restarting[part] = task
                    task.add_done_callback(partial(self._ended, part))
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _ended(self, part: Part, _task: asyncio.Task[None]) -> None:
        self._restarting.pop(part, None)

    async def _revive(self, part: Part) -> None:
        fleet_id, number = part
        wait_s = self._deaths.died(part, time.monotonic())
        if wait_s is None:
            _LOG.error("%s: process %d has died too often and stays down", fleet_id, number)
            return
        _LOG.warning("%s: process %d has died; starting it again", fleet_id, number)
        await asyncio.sleep(wait_s)
        began_s = time.monotonic()
        try:
            await self._restart(part)
        except Exception as error:
            self._deaths.passed(part, time.monotonic() - began_s)
            # It is dead still, and the next look finds it so.
            _LOG.warning("%s: process %d could not be started again: %s", fleet_id, number, error)
