"""What the engine wants of its storage, apart from how that is done.

The engine changes state in memory and hands over one :class:`Batch` at a time; a batch is on disk
whole or not at all, and batches get there in the order in which they were handed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from provisioning.engine.records import ActivityCall, HistoryEvent, InstanceRow, Message, Outline


class StoredTimer(NamedTuple):
    """A timer on disk; ``task_id`` 0 is the delayed start of the instance."""

    instance_id: str
    instance_key: int
    task_id: int
    due: int


HistoryRow = tuple[int, int, int, int, int, str | None, str | None, str | None]
"""Instance key, sequence number, then the fields of a HistoryEvent."""

MessageRow = tuple[int, int, int, int, str | None, str | None, str | None, int]
"""Message id, instance key, kind, task id, name, ref, data, execution."""


class Batch:
    """The changes of one transaction."""

    __slots__ = (
        "custom_statuses",
        "detached",
        "detached_gone",
        "history",
        "instances",
        "messages",
        "messages_gone",
        "purged",
        "timers",
        "timers_gone",
        "trims",
    )

    def __init__(self) -> None:
        self.instances: list[InstanceRow] = []
        #: (instance key, time, custom status) of instances whose row is otherwise as it was.
        self.custom_statuses: list[tuple[int, int, str | None]] = []
        self.history: list[HistoryRow] = []
        #: (instance key, first sequence number that stays): applied after ``history`` is added.
        self.trims: list[tuple[int, int]] = []
        #: Due time by (instance key, task id). Task ids start anew with each execution, so a key that
        #: is dropped and added again must end as added: it is in one of the two at most.
        self.timers: dict[tuple[int, int], int] = {}
        self.timers_gone: set[tuple[int, int]] = set()
        self.messages: list[MessageRow] = []
        #: Applied after ``messages``: one that is kept and taken in the same transaction is in both.
        self.messages_gone: list[tuple[int]] = []
        self.detached: list[tuple[int, int, int, str, str | None]] = []
        self.detached_gone: list[tuple[int, int, int]] = []
        #: Keys of instances to remove with all that is theirs. Applied before all else: an id, or a key, that
        #: is used again in the same transaction ends as used.
        self.purged: list[tuple[int]] = []

    def add_timer(self, instance_key: int, task_id: int, due: int) -> None:
        self.timers_gone.discard((instance_key, task_id))
        self.timers[instance_key, task_id] = due

    def drop_timer(self, instance_key: int, task_id: int) -> None:
        self.timers.pop((instance_key, task_id), None)
        self.timers_gone.add((instance_key, task_id))


class Store(Protocol):
    """Durable state of one engine. ``commit`` has a thread of its own; all else is the loop's.

    Reads see what has been committed. Errors other than those named are defects of the machine or
    of the file, and end the engine.
    """

    def open(self) -> None:
        """Take ownership, create or migrate.

        Raises StateInUseError, StateFormatError where the file is not ours or too new, and StateError
        where it can't be opened or written.
        """

    def close(self) -> None:
        """Give up ownership. Nothing may be under way."""

    def commit(self, batch: Batch) -> None:
        """Make the batch durable, all of it or nothing.

        Raises OSError where the disk is full or can't be written now: the same batch may be tried
        again. Any other error is final.
        """

    def find(self, instance_id: str) -> InstanceRow | None:
        """The instance, or None."""

    def existing(self, instance_ids: Sequence[str]) -> set[str]:
        """Those of the ids that instances have."""

    def last_event(self, key: int) -> tuple[int, int] | None:
        """Sequence number and time of the last history event, None where there is none."""

    def history(self, key: int, first_seq: int, limit: int | None = None) -> list[HistoryEvent]:
        """The events from ``first_seq`` on, in order: all, or the first ``limit``."""

    def next_key(self) -> int:
        """The first instance key that is free, as are all after it."""

    def next_message_id(self) -> int:
        """The first message id that is free, as are all after it."""

    def ready_starts(self) -> list[str]:
        """Ids of instances to begin, in order of creation: pending ones whose start is not delayed, and
        running ones without history, which continue as new."""

    def unfinished_activities(self) -> Iterator[ActivityCall]:
        """Activities that were asked for and have no result, detached ones too."""

    def timers(self, after: int, until: int) -> Iterable[StoredTimer]:
        """Timers with ``after < due <= until``, in order of their due time."""

    def messages(self) -> list[tuple[str, Message]]:
        """All waiting messages with their instances' ids, in order of arrival."""

    def count_by_status(self) -> dict[int, int]:
        """Number of instances by ``records.Status``."""

    def outlines(self, after: int, limit: int) -> list[Outline]:
        """The next ``limit`` instances with a key over ``after``, in order of their keys."""

    def children(self, key: int, after: int, limit: int) -> list[tuple[int, str]]:
        """Sequence number and child's id of the next ``limit`` sub-orchestrations that the history of the
        instance shows after sequence number ``after``; those tried again show more than once."""

    def detached(self, key: int) -> list[tuple[int, int]]:
        """Execution and task id of the instance's detached activities."""
