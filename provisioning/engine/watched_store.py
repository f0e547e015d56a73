"""The store as the engine's parts read it: where it can't be read, the engine hears of it first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn, TypeVar

from provisioning.engine.errors import StateError
from provisioning.engine.records import ActivityCall, HistoryEvent, InstanceRow, Message, Outline
from provisioning.engine.store import Batch, Store, StoredTimer

T = TypeVar("T")


class WatchedStore:
    """:class:`provisioning.engine.store.Store`: another one, whose StateErrors at reads go to ``unreadable``.

    That raises what the reader gets to see. So a file that is found damaged ends the engine whoever finds
    it, and a caller hears what all others do.
    """

    def __init__(self, inner: Store, unreadable: Callable[[StateError], NoReturn]) -> None:
        self.inner = inner
        self._unreadable = unreadable

    def __repr__(self) -> str:
        return repr(self.inner)

    def open(self) -> None:
        self.inner.open()

    def close(self) -> None:
        self.inner.close()

    def commit(self, batch: Batch) -> None:
        self.inner.commit(batch)

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except StateError as error:
            self._unreadable(error)

    def find(self, instance_id: str) -> InstanceRow | None:
        try:
            return self.inner.find(instance_id)
        except StateError as error:
            self._unreadable(error)

    def existing(self, instance_ids: Sequence[str]) -> set[str]:
        return self._read(lambda: self.inner.existing(instance_ids))

    def last_event(self, key: int) -> tuple[int, int] | None:
        return self._read(lambda: self.inner.last_event(key))

    def history(self, key: int, first_seq: int, limit: int | None = None) -> list[HistoryEvent]:
        return self._read(lambda: self.inner.history(key, first_seq, limit))

    def next_key(self) -> int:
        return self._read(self.inner.next_key)

    def next_message_id(self) -> int:
        return self._read(self.inner.next_message_id)

    def ready_starts(self) -> list[str]:
        return self._read(self.inner.ready_starts)

    def unfinished_activities(self) -> Iterator[ActivityCall]:
        """Read at the start alone, which hears of an error by itself."""
        return self.inner.unfinished_activities()

    def timers(self, after: int, until: int) -> Iterable[StoredTimer]:
        return self._read(lambda: self.inner.timers(after, until))

    def messages(self) -> list[tuple[str, Message]]:
        return self._read(self.inner.messages)

    def count_by_status(self) -> dict[int, int]:
        return self._read(self.inner.count_by_status)

    def outlines(self, after: int, limit: int) -> list[Outline]:
        return self._read(lambda: self.inner.outlines(after, limit))

    def children(self, key: int, after: int, limit: int) -> list[tuple[int, str]]:
        return self._read(lambda: self.inner.children(key, after, limit))

    def detached(self, key: int) -> list[tuple[int, int]]:
        return self._read(lambda: self.inner.detached(key))
