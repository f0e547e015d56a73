"""What must hold at every commit and at the end, and the books that are kept to see it.

The books are written from what gets to disk and from nothing else; what the engine does in the world (an
activity begins, a caller hears that its event is safe) is held against them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from provisioning.engine import failures
from provisioning.engine.execution import Execution
from provisioning.engine.functions import Functions
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import ENDED, HistoryEvent, InstanceRow, Kind, Status
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER
from provisioning.engine.store import Batch
from tests.simulation.store import Disk

_ANSWERS = frozenset({Kind.TASK_COMPLETED, Kind.TASK_FAILED})
_TASK = tuple[int, int, int]
"""Instance key, execution, task id."""


class BrokenPromiseError(Exception):
    """The engine has done what it never may."""


def _must(holds: object, message: str) -> None:
    if not holds:
        raise BrokenPromiseError(message)


class Audit:
    """The books of one run, over all lives of its engine."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        #: By instance key: its executions, each with all that its history ever had.
        self.archive: dict[int, list[list[HistoryEvent]]] = {}
        self._next_seq: Counter[int] = Counter()
        self._paths: dict[int, str] = {}
        #: Activities by the label in their input: how often asked for, how often done with.
        self._asked: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._open: dict[_TASK, str] = {}
        self._timers: dict[_TASK, int] = {}
        self._keys: set[tuple[int, int, str]] = set()
        self._events: Counter[tuple[int, str]] = Counter()
        #: How often an activity, by label, or an instance, by path, has failed.
        self.failures: Counter[str] = Counter()
        #: How each instance has ended, once all is quiet. What was purged after that is in it too.
        self.ends: dict[str, tuple[Any, ...]] | None = None

    # At each commit

    def committed(self, batch: Batch) -> None:
        """The batch is on disk."""
        detached = {(key, execution, task_id) for key, execution, task_id, *_ in batch.detached}
        for key, seq, *fields in batch.history:
            event = HistoryEvent(*fields)  # type: ignore[arg-type]  # its own fields
            _must(seq == self._next_seq[key], f"history of {key}: {seq} follows {self._next_seq[key] - 1}")
            self._next_seq[key] += 1
            self._record(key, event, detached)
        for message in batch.messages:
            if message[2] == Kind.EVENT_RAISED:
                self._events[message[1], message[6] or ""] += 0
        for gone in batch.detached_gone:
            self._answer(gone)

    def _record(self, key: int, event: HistoryEvent, detached: set[_TASK]) -> None:
        executions = self.archive.setdefault(key, [[]])
        executions[-1].append(event)
        number = len(executions)
        this = key, number, event.task_id
        match event.kind:
            case Kind.EXECUTION_STARTED:
                self._paths[key] = json.loads(event.data or "{}").get("path", "")
            case Kind.TASK_SCHEDULED:
                label = _label(event.data)
                self._asked[label] += 1
                self._open[this] = label
            case Kind.TASK_COMPLETED | Kind.TASK_FAILED:
                _must(this in self._open, f"activity {this} has two answers")
                self.failures[self._open[this]] += event.kind == Kind.TASK_FAILED
                self._answer(this)
            case Kind.TIMER_CREATED:
                self._timers[this] = int(event.ref or 0)
            case Kind.TIMER_FIRED:
                due = self._timers.pop(this, None)
                _must(due is not None, f"timer {this} fired twice")
                _must(due is None or event.at >= due, f"timer {this} fired at {event.at}, before {due}")
            case Kind.EVENT_RAISED:
                if event.ref is not None:
                    keyed = key, number, event.ref
                    _must(keyed not in self._keys, f"event {keyed} was applied twice")
                    self._keys.add(keyed)
                self._events[key, event.data or ""] += 1
            case Kind.EXECUTION_COMPLETED:
                self.failures[self._paths.get(key, "")] += event.name == "FAILED"
                for left in [t for t in self._open if t[:2] == (key, number) and t not in detached]:
                    self._answer(left)  # its answer came with the end
                executions.append([])

    def _answer(self, this: _TASK) -> None:
        label = self._open.pop(this, None)
        if label is not None:
            self._answered[label] += 1

    # What the world sees

    def begins(self, data: dict[str, Any]) -> None:
        """An activity begins."""
        label = data["label"]
        _must(self._asked[label], f"activity {data} began before it was on disk that it was asked for")
        again = self._asked[label] > self._answered[label]
        _must(again, f"activity {data} began again after its end was on disk")

    def has_event(self, instance_id: str, payload: str | None) -> bool:
        """Whether the event is, or was, on disk."""
        key = self._disk.keys.get(instance_id)
        return key is not None and (key, json.dumps(payload)) in self._events

    def event_acknowledged(self, instance_id: str, payload: str | None) -> None:
        row = self._row(instance_id)
        _must(row is not None, f"event {payload!r} was acknowledged, and {instance_id} is not on disk")
        safe = self.has_event(instance_id, payload) or (row is not None and row.status in ENDED)
        _must(safe, f"event {payload!r} for {instance_id} was acknowledged, and is not on disk")

    def start_acknowledged(self, instance_id: str) -> None:
        _must(self._row(instance_id), f"{instance_id} was acknowledged, and is not on disk")

    def end_seen(self, instance_id: str) -> None:
        row = self._row(instance_id)
        _must(row is not None and row.status in ENDED, f"a caller saw the end of {instance_id} too early")

    def _row(self, instance_id: str) -> InstanceRow | None:
        key = self._disk.keys.get(instance_id)
        return None if key is None else self._disk.instances[key]

    # At the end

    def settled(self) -> bool:
        """Whether all has ended and nothing waits."""
        disk = self._disk
        if disk.messages or disk.detached:
            return False
        return all(row.status in ENDED for row in disk.instances.values())

    def check_ends(self, functions: Functions, options: EngineOptions) -> None:
        """All has ended: each history must lead to its end. Notes how each instance has ended."""
        if self.ends is not None:
            return
        ends: dict[str, tuple[Any, ...]] = {}
        for key, row in self._disk.instances.items():
            executions = self.archive[key]
            _must(executions[-1] == [], f"{row.id} has ended, and its history has not")
            kept = list(self._disk.history.get(key, {}).values())
            _must(kept == executions[-2], f"the history of {row.id} is not what was committed")
            for number, history in enumerate(executions[:-1], 1):
                _replay(row, number, history, functions, options)
            path = json.loads(row.input or "{}")["path"]
            _must(path not in ends, f"two instances at {path}")
            ends[path] = row.name, Status(row.status).name, row.output, _failure(row), row.custom_status
        for (key, payload), times in self._events.items():
            most = len(self.archive[key]) - 1  # with continue_as_new it may be carried over
            _must(
                times <= most, f"event {payload} was applied {times} times to {self._disk.instances[key].id}"
            )
        self.ends = dict(sorted(ends.items()))

    def purge_acknowledged(self, root: str) -> None:
        """The root and all below it are gone."""
        left = [id for id in self._disk.keys if id == root or id.startswith((f"{root}/", f"{root}:"))]
        _must(not left, f"{root} was purged, and {left} are left")

    def close(self) -> None:
        """Nothing may be left over."""
        disk = self._disk
        _must(self.ends is not None, "the scenario is over before all has ended")
        _must(not disk.messages, f"messages are left: {disk.messages}")
        _must(not disk.timers, f"timers are left: {disk.timers}")
        _must(not disk.detached, f"activities are left: {disk.detached}")
        _must(disk.history.keys() <= disk.instances.keys(), "history of purged instances is left")


def _label(data: str | None) -> str:
    label: str = json.loads(data or "{}").get("label", "")
    return label


def _replay(
    row: InstanceRow, number: int, history: list[HistoryEvent], functions: Functions, options: EngineOptions
) -> None:
    """The history alone leads to the end that it says."""
    execution = Execution(
        instance_id=row.id,
        number=number,
        parent_id=row.parent_id,
        version=row.version,
        functions=functions,
        converter=DEFAULT_DATA_CONVERTER,
        options=options,
    )
    execution.replay(history)
    said, end = history[-1], execution.completion
    where = f"{row.id}, execution {number}"
    _must(end is not None, f"the replay of {where} does not end")
    assert end is not None
    _must(end.status.name == said.name, f"the replay of {where} ends {end.status.name}, not {said.name}")
    if end.failure is None:
        _must(end.output == said.data, f"the replay of {where} gives {end.output}, not {said.data}")
    execution.close()


def _failure(row: InstanceRow) -> list[tuple[str, str]] | None:
    """Type and message of a failure and of those within, less ids and numbers."""
    if row.failure is None:
        return None
    details, found = failures.decode(row.failure), []
    while details is not None:
        message = re.sub(r"#\d+|'[^']*'|^[^ ]*:|:[0-9a-f]{4}", "…", details.message)
        found.append((details.error_type, message))
        if details.inner_failure is None:
            break
        details = details.inner_failure
    return found
