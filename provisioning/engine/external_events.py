"""The external events of one execution: who waits, what came too early, and which keys were applied."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from durabletask import task

from provisioning.engine.records import HistoryEvent

Waiter = tuple[task.CancellableTask[Any], Any]
"""A task that waits for an event, and the type that the event's data is rebuilt to."""


class ExternalEvents:
    """Matches events with waiters by their case-folded names, the earliest with the earliest.

    ``limit`` is how many events may wait for a waiter, those that a suspension holds back included.
    What few executions have costs the others nothing: a million of them may be in memory.
    """

    __slots__ = ("_arrivals", "_asked", "_buffers", "_keys", "_waiters", "held", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Events in the buffers, and events that a suspension holds back.
        self.waiting = self.held = 0
        self._arrivals = self._asked = 0
        self._waiters: dict[str, dict[int, Waiter]] | None = None
        self._buffers: dict[str, deque[tuple[int, HistoryEvent]]] | None = None
        self._keys: dict[str, None] | None = None

    # Waiters

    def wait(self, name: str, waiter: Waiter) -> int:
        """Note a waiter behind all others of that name; the number is what :meth:`forget` knows it by."""
        if self._waiters is None:
            self._waiters = {}
        self._asked += 1
        self._waiters.setdefault(name, {})[self._asked] = waiter
        return self._asked

    def forget(self, name: str, number: int) -> None:
        """Let go of a waiter that was cancelled; one that is not there is no error."""
        if self._waiters is not None and name in self._waiters:
            self._waiters[name].pop(number, None)

    def next_waiter(self, name: str) -> Waiter | None:
        """Take the earliest waiter of that name."""
        waiters = self._waiters.get(name) if self._waiters is not None else None
        return waiters.pop(next(iter(waiters))) if waiters else None

    def let_go(self) -> None:
        """Forget all waiters, and let them forget this: nobody will resume them."""
        for waiters in (self._waiters or {}).values():
            for wait, _ in waiters.values():
                wait.set_cancel_handler(_nothing)
        self._waiters = None

    # Events that came before their waiters

    @property
    def full(self) -> bool:
        return self.waiting + self.held >= self.limit

    def keep(self, name: str, event: HistoryEvent) -> None:
        """Keep an event until somebody waits for it."""
        if self._buffers is None:
            self._buffers = {}
        self._arrivals += 1
        self.waiting += 1
        self._buffers.setdefault(name, deque()).append((self._arrivals, event))

    def take(self, name: str) -> HistoryEvent | None:
        """Take the earliest event of that name which nobody has taken."""
        buffer = self._buffers.get(name) if self._buffers is not None else None
        if not buffer:
            return None
        self.waiting -= 1
        event = buffer.popleft()[1]
        if not buffer and self._buffers is not None:
            del self._buffers[name]
        return event

    def left(self) -> list[HistoryEvent]:
        """All that nobody has taken, in order of arrival."""
        if not self.waiting or self._buffers is None:
            return []
        entries = [entry for buffer in self._buffers.values() for entry in buffer]
        return [event for _, event in sorted(entries, key=lambda entry: entry[0])]

    # Idempotency keys

    def knows(self, key: str) -> bool:
        """Whether an event with that key was applied."""
        return self._keys is not None and key in self._keys

    def note(self, keys: Iterable[str]) -> None:
        """These keys' events were applied."""
        if self._keys is None:
            self._keys = {}
        self._keys.update(dict.fromkeys(keys))

    def keys(self) -> list[str]:
        """All keys that were applied, the earliest first."""
        return list(self._keys or ())

    def snapshot(self) -> dict[str, Any]:
        """All that later turns depend on, comparable."""
        waiters = {name: len(waiting) for name, waiting in (self._waiters or {}).items() if waiting}
        return {"waiters": waiters, "buffered": self.left(), "held": self.held, "keys": self.keys()}


def _nothing() -> None:
    """Where cancelling changes nothing any more."""
