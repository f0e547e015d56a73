"""The engine's records: history events, messages, instances, and the turn's outcome.

Times are microseconds since the epoch, UTC, as integers: they order and compare cheaply and
survive SQLite unchanged.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import NamedTuple

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (naive UTC, as the SDK's times)


class Status(IntEnum):
    """Runtime statuses, with the numbers of Durable Task's wire protocol."""

    RUNNING = 0
    COMPLETED = 1
    FAILED = 3
    CANCELLED = 4
    TERMINATED = 5
    CONTINUED_AS_NEW = 2
    PENDING = 6
    SUSPENDED = 7


RECURSIVE = "recursive"
"""``ref`` of a termination that reaches running sub-orchestrations too."""

ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.TERMINATED})


class Kind(IntEnum):
    """Kinds of history events. The numbers are on disk: never reuse one."""

    EXECUTION_STARTED = 1
    TASK_SCHEDULED = 2
    TASK_COMPLETED = 3
    TASK_FAILED = 4
    CHILD_CREATED = 5
    CHILD_COMPLETED = 6
    CHILD_FAILED = 7
    TIMER_CREATED = 8
    TIMER_FIRED = 9
    EVENT_RAISED = 10
    EVENT_SENT = 11
    SUSPENDED = 12
    RESUMED = 13
    TERMINATED = 14
    EXECUTION_COMPLETED = 15
    EVENT_KEYS = 17
    EXECUTION_REWOUND = 18


class HistoryEvent(NamedTuple):
    """One line of an instance's history.

    ``name`` is the orchestrator, activity or event; ``ref`` what it points to (child or target
    instance, time due, idempotency key, version); ``data`` its payload or failure as JSON.
    """

    kind: int
    at: int
    task_id: int = 0
    name: str | None = None
    ref: str | None = None
    data: str | None = None


class Message:
    """Something that waits for an instance's next turn, and becomes a history event there."""

    __slots__ = ("consumed", "data", "execution", "kind", "name", "ref", "stored_id", "task_id", "waiter")

    def __init__(
        self,
        kind: Kind,
        *,
        task_id: int = 0,
        name: str | None = None,
        ref: str | None = None,
        data: str | None = None,
        execution: int = 0,
    ) -> None:
        self.kind = kind
        self.task_id = task_id
        self.name = name
        self.ref = ref
        self.data = data
        #: Results carry the execution that asked for them; 0 fits any.
        self.execution = execution
        #: The row that keeps this message while no turn has taken it; 0 if none does.
        self.stored_id = 0
        self.consumed = False
        #: Done when the turn that takes the message is on disk.
        self.waiter: asyncio.Future[None] | None = None


class ActivityCall(NamedTuple):
    """An activity to run. ``(instance_id, execution, task_id)`` is its identity.

    ``new``: its execution has just begun, and nothing of it has run yet.
    """

    instance_id: str
    instance_key: int
    execution: int
    task_id: int
    name: str
    input: str | None
    new: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentLink:
    """Who waits for a sub-orchestration: instance, its execution, and the task there."""

    instance_id: str
    execution: int
    task_id: int


class InstanceRow(NamedTuple):
    """A row of the instances table, in its column order."""

    key: int
    id: str
    name: str
    version: str | None
    status: int
    execution: int
    first_seq: int
    parent_id: str | None
    parent_execution: int
    parent_task_id: int
    created_at: int
    updated_at: int
    input: str | None
    output: str | None
    failure: str | None
    custom_status: str | None
    tags: str | None

    @property
    def parent(self) -> ParentLink | None:
        if self.parent_id is None:
            return None
        return ParentLink(
            instance_id=self.parent_id, execution=self.parent_execution, task_id=self.parent_task_id
        )


class Outline(NamedTuple):
    """What filters ask of an instance; ``updated_at`` of an ended one is its end."""

    key: int
    id: str
    status: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceFilter:
    """Which instances are meant. Times are from the first, included, to the second, excluded."""

    statuses: frozenset[int] | None = None
    created_from: int | None = None
    created_to: int | None = None
    ended_from: int | None = None
    ended_to: int | None = None
    id_prefix: str = ""

    def fits(self, outline: Outline) -> bool:
        return (
            (self.statuses is None or outline.status in self.statuses)
            and _within(outline.created_at, self.created_from, self.created_to)
            and _within(outline.updated_at, self.ended_from, self.ended_to)
            and outline.id.startswith(self.id_prefix)
        )


def _within(at: int, first: int | None, end: int | None) -> bool:
    return (first is None or at >= first) and (end is None or at < end)


def to_datetime(at: int) -> datetime:
    """Naive UTC, as the Durable Task SDK has it."""
    return _EPOCH + timedelta(microseconds=at)


def to_microseconds(when: datetime) -> int:
    """From an aware time, or a naive one that is UTC."""
    aware = when.replace(tzinfo=UTC) if when.utcoffset() is None else when
    whole = int(aware.replace(microsecond=0).timestamp())
    return whole * 1_000_000 + aware.microsecond
