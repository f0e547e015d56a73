"""Instances in memory, and the transaction in which their changes are gathered."""

from __future__ import annotations

import asyncio

from provisioning.engine.execution import Execution
from provisioning.engine.records import ActivityCall, InstanceRow, Message, ParentLink, Status
from provisioning.engine.store import Batch


class Instance:
    """An orchestration instance in memory: the row to be, its messages, its live execution."""

    __slots__ = (
        "begun",
        "created_at",
        "custom_status",
        "dirty",
        "execution",
        "execution_number",
        "failure",
        "first_seq",
        "id",
        "inbox",
        "input",
        "key",
        "last_at",
        "last_batch",
        "name",
        "next_seq",
        "output",
        "parent",
        "queued",
        "status",
        "tags",
        "version",
    )

    def __init__(self, *, key: int, id: str, name: str, created_at: int) -> None:
        self.key = key
        self.id = id
        self.name = name
        self.created_at = created_at
        self.version: str | None = None
        self.status = Status.PENDING
        self.execution_number = 1
        self.first_seq = 0
        self.next_seq = 0
        self.last_at = created_at
        self.parent: ParentLink | None = None
        self.input: str | None = None
        self.output: str | None = None
        self.failure: str | None = None
        self.custom_status: str | None = None
        self.tags: str | None = None
        self.execution: Execution | None = None
        self.inbox: list[Message] = []
        #: In the queue of instances that wait for a turn.
        self.queued = False
        #: Its row differs from what was last handed to the writer.
        self.dirty = False
        #: Its first turn has been taken or is in the queue; until then messages wait on disk.
        self.begun = False
        #: The batch that holds its latest change: it may leave memory once that is on disk.
        self.last_batch = 0

    @classmethod
    def from_row(cls, row: InstanceRow, last_event: tuple[int, int] | None) -> Instance:
        """As it is on disk; ``last_event`` is its latest history event's sequence number and time."""
        instance = cls(key=row.key, id=row.id, name=row.name, created_at=row.created_at)
        instance.version = row.version
        instance.status = Status(row.status)
        instance.execution_number = row.execution
        instance.first_seq = row.first_seq
        instance.next_seq = max(row.first_seq, last_event[0] + 1 if last_event else 0)
        instance.last_at = last_event[1] if last_event else row.updated_at
        instance.parent = row.parent
        instance.input, instance.output, instance.failure = row.input, row.output, row.failure
        instance.custom_status, instance.tags = row.custom_status, row.tags
        # One that continues as new is running, and has no history before its next turn.
        instance.begun = instance.status != Status.PENDING and instance.next_seq > instance.first_seq
        return instance

    def row(self) -> InstanceRow:
        parent = self.parent
        return InstanceRow(
            self.key,
            self.id,
            self.name,
            self.version,
            self.status,
            self.execution_number,
            self.first_seq,
            parent.instance_id if parent else None,
            parent.execution if parent else 0,
            parent.task_id if parent else 0,
            self.created_at,
            self.last_at,
            self.input,
            self.output,
            self.failure,
            self.custom_status,
            self.tags,
        )


class Transaction:
    """A batch being gathered, and what may happen once it is on disk."""

    __slots__ = (
        "activities",
        "batch",
        "changed",
        "ended",
        "internal",
        "number",
        "rows",
        "started",
        "status_changed",
        "touched",
        "waiters",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.batch = Batch()
        #: Instances whose row is to be written.
        self.changed: list[Instance] = []
        #: By key: instances of whose row only the custom status is to be written, unless they are in both.
        self.status_changed: dict[int, Instance] = {}
        #: Instances that leave memory, if they rest, once this is on disk.
        self.touched: list[Instance] = []
        #: Messages from other instances: those that no turn takes in this transaction are written with it.
        self.internal: list[tuple[Instance, Message]] = []
        #: What begins once this is on disk.
        self.activities: list[ActivityCall] = []
        self.waiters: list[asyncio.Future[None]] = []
        self.started: list[Instance] = []
        self.ended: list[Instance] = []
        #: Rows of history, kept messages and clients' new instances: the measure of its size.
        self.rows = 0

    def __bool__(self) -> bool:
        batch = self.batch
        return bool(
            self.rows
            or self.changed
            or self.status_changed
            or self.waiters
            or self.internal
            or batch.messages
            or batch.messages_gone
            or batch.timers_gone
            or batch.detached_gone
        )
