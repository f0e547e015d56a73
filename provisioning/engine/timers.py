"""Timers that are due soon, in memory; later ones stay on disk until their window comes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from provisioning.engine.store import StoredTimer


class TimerQueue:
    """Armed timers in the order in which they are due, equal ones in the order of arming.

    Times are microseconds. ``horizon`` is the end of the window: timers due after it are on disk
    only, until :meth:`extend` brings the next window.
    """

    def __init__(self) -> None:
        #: Due times are never negative: the first window takes all that is past.
        self.horizon = -1
        self._heap: list[tuple[int, int, str, int, int]] = []
        self._armed: dict[tuple[int, int], int] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._armed)

    def add(self, timer: StoredTimer) -> None:
        """Arm a timer, if its window has come."""
        if timer.due > self.horizon:
            return
        self._count += 1
        self._armed[timer.instance_key, timer.task_id] = self._count
        heapq.heappush(
            self._heap, (timer.due, self._count, timer.instance_id, timer.instance_key, timer.task_id)
        )

    def cancel(self, instance_key: int, task_id: int) -> None:
        """Disarm a timer; one that is not armed is no error."""
        self._armed.pop((instance_key, task_id), None)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._armed):
            self._heap = [e for e in self._heap if self._armed.get((e[3], e[4])) == e[1]]
            heapq.heapify(self._heap)

    def extend(self, horizon: int, timers: Iterable[StoredTimer]) -> None:
        """Move the window's end to ``horizon``; ``timers`` are those that come into it by that."""
        self.horizon = horizon
        for timer in timers:
            if (timer.instance_key, timer.task_id) not in self._armed:
                self.add(timer)

    def next_due(self) -> int | None:
        """When the first armed timer is due."""
        heap = self._heap
        while heap and self._armed.get((heap[0][3], heap[0][4])) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: int, most: int) -> list[StoredTimer]:
        """Take at most ``most`` timers that are due at ``now``."""
        due: list[StoredTimer] = []
        while len(due) < most:
            first = self.next_due()
            if first is None or first > now:
                break
            when, _, instance_id, key, task_id = heapq.heappop(self._heap)
            del self._armed[key, task_id]
            due.append(StoredTimer(instance_id, key, task_id, when))
        return due
