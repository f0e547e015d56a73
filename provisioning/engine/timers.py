"""Timers that are due soon, in memory; later ones stay on disk until their window comes."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from datetime import timedelta

from provisioning.engine.agenda import Agenda
from provisioning.engine.clock import EngineClock
from provisioning.engine.commits import Commits
from provisioning.engine.health import Health
from provisioning.engine.instances import Instance
from provisioning.engine.records import ENDED, Kind, Message
from provisioning.engine.store import Store, StoredTimer

_MICROSECONDS = 1_000_000
_LONGEST_SLEEP_S = 5.0
"""The clock is looked at again after at most this, so that a wall clock set forward is noticed."""
_TIMERS_AT_ONCE = 1_000


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


class Timers:
    """The timers of one engine: on disk with the turn that wants them, armed on the loop, fired.

    ``horizon`` of the queue moves by windows; each new one is read from disk and corrected by what
    is about to be written.
    """

    def __init__(
        self,
        store: Store,
        commits: Commits,
        agenda: Agenda,
        health: Health,
        clock: EngineClock,
        window: timedelta,
    ) -> None:
        self._store = store
        self._commits = commits
        self._agenda = agenda
        self._health = health
        self._clock = clock
        self._window = window // timedelta(microseconds=1)
        self._loop = asyncio.get_running_loop()
        self._queue = TimerQueue()
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for: int | None = None

    def __len__(self) -> int:
        """How many are armed."""
        return len(self._queue)

    def add(self, instance: Instance, task_id: int, due: int) -> None:
        self._commits.open.batch.add_timer(instance.key, task_id, due)
        self._queue.add(StoredTimer(instance.id, instance.key, task_id, due))
        self._arm()

    def drop(self, instance: Instance, task_id: int) -> None:
        self._commits.open.batch.drop_timer(instance.key, task_id)
        self._queue.cancel(instance.key, task_id)

    def disarm(self) -> None:
        """Fire no more; what is on disk stays there."""
        if self._handle is not None:
            self._handle.cancel()

    def extend(self) -> None:
        """Bring the timers of the next window into memory: those on disk, as they are about to be."""
        after, until = self._queue.horizon, self._clock.tick() + self._window
        timers = {(t.instance_key, t.task_id): t for t in self._store.timers(after, until)}
        for transaction in (self._commits.under_way, self._commits.open):
            if transaction is None:
                continue
            ids = {i.key: i.id for i in transaction.touched}
            for gone in transaction.batch.timers_gone:
                timers.pop(gone, None)
            for (key, task_id), due in transaction.batch.timers.items():
                timers.pop((key, task_id), None)
                if after < due <= until:
                    timers[key, task_id] = StoredTimer(ids[key], key, task_id, due)
        self._queue.extend(until, timers.values())
        self._arm()

    def _arm(self) -> None:
        """See to it that the next due timer, or the next window, is looked at in time."""
        extension = self._queue.horizon - self._window // 2
        first = self._queue.next_due()
        due = extension if first is None else min(first, extension)
        if due == self._armed_for and self._handle is not None:
            return
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = due
        wait_s = max(0.0, (due - self._clock.read()) / _MICROSECONDS)
        self._handle = self._loop.call_later(min(wait_s, _LONGEST_SLEEP_S), self.fire_due)

    def fire_due(self) -> None:
        """Fire what is due by now."""
        self._handle = None
        if not self._health.working:
            return
        now = self._clock.tick()
        try:
            for timer in self._queue.pop_due(now, _TIMERS_AT_ONCE):
                self._fire(timer)
            if now + self._window // 2 >= self._queue.horizon:
                self.extend()
        except Exception as error:  # a defect of ours: better to stop than to guess
            self._health.fail(error)
            return
        self._arm()

    def _fire(self, timer: StoredTimer) -> None:
        commits = self._commits
        instance = commits.look_up(timer.instance_id)
        if instance is None or instance.status in ENDED:
            commits.open.batch.drop_timer(timer.instance_key, timer.task_id)
            commits.schedule_step()
        elif timer.task_id == 0:
            commits.open.batch.drop_timer(timer.instance_key, 0)
            commits.touch(instance)
            self._agenda.add_start(instance.id)
            commits.schedule_step()
        else:
            fired = Message(Kind.TIMER_FIRED, task_id=timer.task_id, execution=instance.execution_number)
            self._agenda.deliver(instance, fired)
