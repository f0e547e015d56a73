"""Stores of the simulation: one in memory, and one that holds it against the real one read by read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from provisioning.engine.errors import StateError, StateInUseError
from provisioning.engine.records import (
    ActivityCall,
    HistoryEvent,
    InstanceRow,
    Kind,
    Message,
    Outline,
    Status,
)
from provisioning.engine.sqlite_store import SqliteStore
from provisioning.engine.store import Batch, Store, StoredTimer
from provisioning.engine.watched_store import WatchedStore

T = TypeVar("T")

_ANSWERS = frozenset({Kind.TASK_COMPLETED, Kind.TASK_FAILED})


class Disk:
    """What survives the process: the tables of schema.sql as Python's own."""

    def __init__(self) -> None:
        self.owned = False
        self.instances: dict[int, InstanceRow] = {}
        self.keys: dict[str, int] = {}
        self.history: dict[int, dict[int, HistoryEvent]] = {}
        self.messages: dict[int, tuple[int, Message]] = {}
        self.timers: dict[tuple[int, int], int] = {}
        self.detached: dict[tuple[int, int, int], tuple[str, str | None]] = {}


class MemoryStore:
    """:class:`provisioning.engine.store.Store` on a :class:`Disk`, as strict as the real one."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._open = False

    def open(self) -> None:
        if self.disk.owned:
            raise StateInUseError("memory", None)
        self.disk.owned = self._open = True

    def close(self) -> None:
        if self._open:
            self.disk.owned = self._open = False

    def commit(self, batch: Batch) -> None:
        assert self._open, "a commit to a store that is closed"
        disk = self.disk
        self._check(batch)
        for (key,) in batch.purged:
            self._purge(key)
        for row in batch.instances:
            disk.instances[row.key] = row
            disk.keys[row.id] = row.key
        for key, at, text in batch.custom_statuses:
            if key in disk.instances:
                disk.instances[key] = disk.instances[key]._replace(updated_at=at, custom_status=text)
        for added in batch.history:
            disk.history.setdefault(added[0], {})[added[1]] = HistoryEvent(*added[2:])
        for key, first_seq in batch.trims:
            kept = disk.history.get(key, {})
            disk.history[key] = {seq: event for seq, event in kept.items() if seq >= first_seq}
        for stored_id, key, kind, task_id, name, ref, data, execution in batch.messages:
            message = Message(Kind(kind), task_id=task_id, name=name, ref=ref, data=data, execution=execution)
            disk.messages[stored_id] = key, message
        for (stored_id,) in batch.messages_gone:
            disk.messages.pop(stored_id, None)
        disk.timers.update(batch.timers)
        for timer in batch.timers_gone:
            disk.timers.pop(timer, None)
        for *identity, name, data in batch.detached:
            disk.detached.setdefault((identity[0], identity[1], identity[2]), (name, data))
        for gone in batch.detached_gone:
            disk.detached.pop(gone, None)

    def _purge(self, key: int) -> None:
        disk = self.disk
        row = disk.instances.pop(key, None)
        if row is not None:
            del disk.keys[row.id]
        disk.history.pop(key, None)
        disk.timers = {timer: due for timer, due in disk.timers.items() if timer[0] != key}
        disk.detached = {left: call for left, call in disk.detached.items() if left[0] != key}

    def _check(self, batch: Batch) -> None:
        """What the real one refuses, so that nothing of the batch is applied."""
        disk, purged = self.disk, {key for (key,) in batch.purged}
        for row in batch.instances:
            if disk.keys.get(row.id, row.key) not in {row.key, *purged}:
                raise sqlite3.IntegrityError(f"two instances of the id {row.id!r}")
        added = [(key, seq) for key, seq, *_ in batch.history]
        there = [(key, seq) for key, seq in added if key not in purged and seq in disk.history.get(key, ())]
        if len(set(added)) < len(added) or there:
            raise sqlite3.IntegrityError(f"a history row is there already: {added}")
        ids = [message[0] for message in batch.messages]
        if len(set(ids)) < len(ids) or any(stored_id in disk.messages for stored_id in ids):
            raise sqlite3.IntegrityError(f"a message is there already: {ids}")

    def find(self, instance_id: str) -> InstanceRow | None:
        key = self.disk.keys.get(instance_id)
        return None if key is None else self.disk.instances[key]

    def existing(self, instance_ids: Sequence[str]) -> set[str]:
        return self.disk.keys.keys() & set(instance_ids)

    def last_event(self, key: int) -> tuple[int, int] | None:
        events = self.disk.history.get(key)
        if not events:
            return None
        seq = max(events)
        return seq, events[seq].at

    def history(self, key: int, first_seq: int, limit: int | None = None) -> list[HistoryEvent]:
        return [event for _, event in self._events(key, first_seq)][:limit]

    def _events(self, key: int, first_seq: int) -> list[tuple[int, HistoryEvent]]:
        return [entry for entry in sorted(self.disk.history.get(key, {}).items()) if entry[0] >= first_seq]

    def next_key(self) -> int:
        return max(self.disk.instances, default=0) + 1

    def next_message_id(self) -> int:
        return max(self.disk.messages, default=0) + 1

    def ready_starts(self) -> list[str]:
        disk = self.disk
        ready = []
        for key, row in sorted(disk.instances.items()):
            delayed = row.status == Status.PENDING and (key, 0) in disk.timers
            continues = row.status == Status.RUNNING and not self._events(key, row.first_seq)
            if (row.status == Status.PENDING and not delayed) or continues:
                ready.append(row.id)
        return ready

    def unfinished_activities(self) -> Iterator[ActivityCall]:
        for key, row in sorted(self.disk.instances.items()):
            if row.status not in (Status.RUNNING, Status.SUSPENDED):
                continue
            asked: dict[int, HistoryEvent] = {}
            for _, event in self._events(key, row.first_seq):
                if event.kind == Kind.TASK_SCHEDULED:
                    asked[event.task_id] = event
                elif event.kind in _ANSWERS:
                    asked.pop(event.task_id, None)
            for task_id, event in asked.items():
                yield ActivityCall(row.id, key, row.execution, task_id, event.name or "", event.data)
        for (key, execution, task_id), (name, data) in sorted(self.disk.detached.items()):
            yield ActivityCall(self.disk.instances[key].id, key, execution, task_id, name, data)

    def timers(self, after: int, until: int) -> Iterable[StoredTimer]:
        due = sorted((due, key) for key, due in self.disk.timers.items() if after < due <= until)
        return [StoredTimer(self.disk.instances[k].id, k, task_id, when) for when, (k, task_id) in due]

    def messages(self) -> list[tuple[str, Message]]:
        found = []
        for stored_id, (key, kept) in sorted(self.disk.messages.items()):
            message = Message(
                kept.kind,
                task_id=kept.task_id,
                name=kept.name,
                ref=kept.ref,
                data=kept.data,
                execution=kept.execution,
            )
            message.stored_id = stored_id
            found.append((self.disk.instances[key].id, message))
        return found

    def count_by_status(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for row in self.disk.instances.values():
            counts[row.status] = counts.get(row.status, 0) + 1
        return counts

    def outlines(self, after: int, limit: int) -> list[Outline]:
        rows = [row for key, row in sorted(self.disk.instances.items()) if key > after]
        return [Outline(r.key, r.id, r.status, r.created_at, r.updated_at) for r in rows[:limit]]

    def children(self, key: int, after: int, limit: int) -> list[tuple[int, str]]:
        events = self._events(key, after + 1)
        return [(seq, e.ref or "") for seq, e in events if e.kind == Kind.CHILD_CREATED][:limit]

    def detached(self, key: int) -> list[tuple[int, int]]:
        return [(left[1], left[2]) for left in sorted(self.disk.detached) if left[0] == key]


class Layer(WatchedStore):
    """Another store, as it is. What is put around a store derives from this."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner, _raise)


def _raise(error: StateError) -> NoReturn:
    raise error


class TwinStore:
    """The real store, with the one in memory beside it: each read is made from both and must be the same."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._real: Store = SqliteStore(path)
        self._model: Store = MemoryStore(disk)

    def open(self) -> None:
        self._real.open()
        self._model.open()

    def close(self) -> None:
        self._real.close()
        self._model.close()

    def commit(self, batch: Batch) -> None:
        self._real.commit(batch)
        self._model.commit(batch)

    def find(self, instance_id: str) -> InstanceRow | None:
        return _same("find", self._real.find(instance_id), self._model.find(instance_id))

    def existing(self, instance_ids: Sequence[str]) -> set[str]:
        return _same("existing", self._real.existing(instance_ids), self._model.existing(instance_ids))

    def last_event(self, key: int) -> tuple[int, int] | None:
        return _same("last_event", self._real.last_event(key), self._model.last_event(key))

    def history(self, key: int, first_seq: int, limit: int | None = None) -> list[HistoryEvent]:
        real, model = self._real.history(key, first_seq, limit), self._model.history(key, first_seq, limit)
        return _same("history", real, model)

    def next_key(self) -> int:
        return _same("next_key", self._real.next_key(), self._model.next_key())

    def next_message_id(self) -> int:
        return _same("next_message_id", self._real.next_message_id(), self._model.next_message_id())

    def ready_starts(self) -> list[str]:
        return _same("ready_starts", self._real.ready_starts(), self._model.ready_starts())

    def unfinished_activities(self) -> Iterator[ActivityCall]:
        real, model = list(self._real.unfinished_activities()), list(self._model.unfinished_activities())
        return iter(_same("unfinished_activities", real, model))

    def timers(self, after: int, until: int) -> Iterable[StoredTimer]:
        real, model = self._real.timers(after, until), self._model.timers(after, until)
        assert sorted(real) == sorted(model), f"timers: {real} and {model}"
        assert [t.due for t in real] == [t.due for t in model], "timers that are not in order"
        return model

    def messages(self) -> list[tuple[str, Message]]:
        real, model = self._real.messages(), self._model.messages()
        _same("messages", [_fields(*entry) for entry in real], [_fields(*entry) for entry in model])
        return real

    def count_by_status(self) -> dict[int, int]:
        return _same("count_by_status", self._real.count_by_status(), self._model.count_by_status())

    def outlines(self, after: int, limit: int) -> list[Outline]:
        return _same("outlines", self._real.outlines(after, limit), self._model.outlines(after, limit))

    def children(self, key: int, after: int, limit: int) -> list[tuple[int, str]]:
        real, model = self._real.children(key, after, limit), self._model.children(key, after, limit)
        return _same("children", real, model)

    def detached(self, key: int) -> list[tuple[int, int]]:
        return _same("detached", self._real.detached(key), self._model.detached(key))


def _same(what: str, real: T, model: T) -> T:
    assert real == model, f"{what}: the real store has {real}, the one in memory {model}"
    return real


def _fields(instance_id: str, message: Message) -> tuple[object, ...]:
    m = message
    return (instance_id, m.stored_id, m.kind, m.task_id, m.name, m.ref, m.data, m.execution)
