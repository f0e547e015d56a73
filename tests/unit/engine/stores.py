"""Stores that misbehave on purpose, and a clock that is moved by hand."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from provisioning.engine import Engine, interpreter
from provisioning.engine.records import Kind
from provisioning.engine.sqlite_store import SqliteStore
from provisioning.engine.store import Batch
from provisioning.engine.threads import ThreadPool
from tests.unit.engine.driving import SECOND, START


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


class DiedError(Exception):
    """The process is supposed to have died here."""


class DyingStore(SqliteStore):
    """Dies at commit number ``dies_at`` (from 1), before or after it is on disk; 0 for never.

    ``completed`` gathers the results of the activities whose completion was committed.
    """

    def __init__(self, path: Path, *, dies_at: int = 0, after: bool = False) -> None:
        super().__init__(path)
        self.dies_at, self.after = dies_at, after
        self.commits = 0
        self.dead = False
        self.completed: list[str] = []

    def commit(self, batch: Batch) -> None:
        if self.dead:
            raise DiedError
        self.commits += 1
        dies = self.commits == self.dies_at
        if not dies or self.after:
            super().commit(batch)
            done = (row for row in batch.history if row[2] == Kind.TASK_COMPLETED)
            self.completed += [json.loads(row[7]) for row in done if row[7] is not None]
        if dies:
            self.dead = True
            raise DiedError


class FullDiskStore(SqliteStore):
    """Has no room for the next ``full_for`` commits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.full_for = 0
        self.refused = 0

    def commit(self, batch: Batch) -> None:
        if self.full_for > 0:
            self.full_for -= 1
            self.refused += 1
            raise OSError(28, "No space left on device")
        super().commit(batch)


_GATE_S = 10.0
"""A gate opens by itself after this, so that a test that fails does not hang."""


class GatedStore(SqliteStore):
    """Commits only while its gate is open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()

    def commit(self, batch: Batch) -> None:
        self.gate.wait(_GATE_S)
        super().commit(batch)


class BreakingStore(SqliteStore):
    """Fails for good, in ``commit`` or a read, once told to. ``written`` counts commits after it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.commit_error: Exception | None = None
        self.find_error: Exception | None = None
        self.history_error: Exception | None = None
        self.broke = False
        self.written = 0

    def commit(self, batch: Batch) -> None:
        if self.commit_error is not None:
            error, self.commit_error = self.commit_error, None
            self.broke = True
            raise error
        self.written += self.broke
        super().commit(batch)

    def find(self, instance_id: str):  # type: ignore[no-untyped-def]  # as inherited
        if self.find_error is not None:
            raise self.find_error
        return super().find(instance_id)

    def history(self, key: int, first_seq: int, limit: int | None = None):  # type: ignore[no-untyped-def]  # as inherited
        if self.history_error is not None:
            raise self.history_error
        return super().history(key, first_seq, limit)


def abandon(engine: Engine) -> None:
    """What the end of the process does to an engine: no stop(), files closed, nothing runs on."""
    engine._health.failed = engine._health.failed or DiedError()
    engine._timers.disarm()
    runner = engine._activities
    runner.begin_no_more()
    for worker in list(runner._tasks):
        worker.cancel()
    writer = engine._commits.writer
    writer._given_up = True
    if writer._retry is not None:
        writer._retry.cancel()
    for pool in (runner._pool, writer._pool):
        assert isinstance(pool, ThreadPool)
        pool.clear()
        for _ in pool._threads:
            pool._waiting.put(None)
        for thread in pool._threads:
            thread.join()
    engine._store.close()
    interpreter.restore()
