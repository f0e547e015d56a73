"""Defects that are planted on purpose: the simulation is worth something only if it finds them.

Each is a patch of one place of the engine, or a store in memory that does one thing wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import patch

from provisioning.engine.commits import Commits
from provisioning.engine.execution import Execution
from provisioning.engine.records import ActivityCall, HistoryEvent, Kind, Message
from provisioning.engine.store import Batch, StoredTimer
from provisioning.engine.timers import TimerQueue
from provisioning.engine.waiters import fulfil
from provisioning.engine.writer import Committed, Writer
from tests.simulation.store import Layer, MemoryStore
from tests.simulation.world import World

Planted = AbstractContextManager[Any]


class _LosesAMessage(Layer):
    def commit(self, batch: Batch) -> None:
        lost, batch.messages = batch.messages[-1:], batch.messages[:-1]
        self.inner.commit(batch)
        batch.messages += lost


class _KeepsMessages(Layer):
    def commit(self, batch: Batch) -> None:
        gone, batch.messages_gone = batch.messages_gone, []
        self.inner.commit(batch)
        batch.messages_gone = gone


class _TearsBatches(Layer):
    def commit(self, batch: Batch) -> None:
        instances, batch.instances = batch.instances, batch.instances[:1]
        self.inner.commit(batch)
        batch.instances = instances


class _LosesTimers(Layer):
    def timers(self, after: int, until: int) -> list[StoredTimer]:
        return [] if after < 0 else list(self.inner.timers(after, until))


class _ForgetsStarts(Layer):
    def ready_starts(self) -> list[str]:
        return []


class _RunsAgain(Layer):
    """Finds activities that were asked for, answered or not."""

    def unfinished_activities(self) -> Iterator[ActivityCall]:
        assert isinstance(self.inner, MemoryStore)
        for row in self.inner.disk.instances.values():
            for e in self.history(row.key, row.first_seq):
                if e.kind == Kind.TASK_SCHEDULED and row.output is None:
                    yield ActivityCall(row.id, row.key, row.execution, e.task_id, e.name or "", e.data)


class _LosesHistory(Layer):
    """Reads all of a long history but its last event."""

    def history(self, key: int, first_seq: int, limit: int | None = None) -> list[HistoryEvent]:
        found = self.inner.history(key, first_seq, limit)
        return found[:-1] if len(found) > 5 else found


class _LosesChildren(Layer):
    def children(self, key: int, after: int, limit: int) -> list[tuple[int, str]]:
        return []


def _store(layer: Callable[[MemoryStore], Layer]) -> Planted:
    return patch.object(World, "store", lambda world: layer(MemoryStore(world.disk)))


def _begins_before_the_commit() -> Planted:
    submit = Commits.submit

    def early(self: Commits) -> None:
        if self.under_way is None:
            for call in self.open.activities:
                self._begin_activity(call)
            self.open.activities = []
        submit(self)

    return patch.object(Commits, "submit", early)


def _answers_before_the_commit() -> Planted:
    submit = Commits.submit

    def early(self: Commits) -> None:
        for waiter in self.open.waiters:
            fulfil(waiter)
        submit(self)

    return patch.object(Commits, "submit", early)


def _applies_events_twice() -> Planted:
    wants = Execution._wants

    def all_events(self: Execution, message: Message) -> bool:
        return message.kind == Kind.EVENT_RAISED or wants(self, message)

    return patch.object(Execution, "_wants", all_events)


def _fires_early() -> Planted:
    pop_due = TimerQueue.pop_due
    return patch.object(TimerQueue, "pop_due", lambda self, now, most: pop_due(self, now + 50_000, most))


def _gives_a_batch_up() -> Planted:
    """Where the disk was full, the batch counts as written."""

    def skip(self: Writer, batch: Batch, committed: Committed) -> None:
        self._retry = self._refuse = None
        committed(None)

    return patch.object(Writer, "_try_again", skip)


def _drops_what_comes_late() -> Planted:
    """What comes in the turn that continues as new reaches nobody."""
    return patch.object(Execution, "_take_late", staticmethod(lambda completion, message: None))


def _forgets_who_is_touched() -> Planted:
    """An instance with a change under way may leave memory."""
    rest = Commits._rest

    def early(self: Commits, instance: Any, committed: int) -> None:
        instance.last_batch = min(instance.last_batch, committed)
        rest(self, instance, committed)

    return patch.object(Commits, "_rest", early)


MUTANTS: dict[str, Callable[[], Planted]] = {
    "a message is lost": partial(_store, _LosesAMessage),
    "a message that was taken comes again": partial(_store, _KeepsMessages),
    "a batch is written in part": partial(_store, _TearsBatches),
    "timers are lost at start-up": partial(_store, _LosesTimers),
    "starts are lost at start-up": partial(_store, _ForgetsStarts),
    "activities with an answer run again": partial(_store, _RunsAgain),
    "a history is read in part": partial(_store, _LosesHistory),
    "a purge leaves what is below": partial(_store, _LosesChildren),
    "activities begin before the commit": _begins_before_the_commit,
    "callers are answered before the commit": _answers_before_the_commit,
    "an event is applied twice": _applies_events_twice,
    "timers fire early": _fires_early,
    "a batch is given up for a full disk": _gives_a_batch_up,
    "what comes late is dropped": _drops_what_comes_late,
    "an instance leaves memory too early": _forgets_who_is_touched,
}
