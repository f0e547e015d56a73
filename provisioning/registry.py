"""The registry: devices, runs and outcomes in one SQLite file, with an asynchronous face.

Writes are gathered: those of up to 20 ms go to disk in one transaction (WAL, synchronous=FULL), made by one
thread that owns the write connection. News of one device are merged, so that a batch holds one row for it.
A write that something depends on names a callback or is awaited, and goes on only after COMMIT.

What the table in `states` does not allow has no effect, decided in SQL at the time of the write: news come
late, twice and out of order, and a rule that looks at memory would be wrong after a restart.

The registry knows nothing of engines: it is told what happens.

    RegistryError
    ├── RegistryFormatError   not a registry, damaged, or of a newer version
    ├── RegistryOpenError     the file can't be opened or written: full, read-only, locked
    └── RegistryClosedError   closed while a write waited
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from . import changes
from .errors import ProvisioningError, SettingsError
from .settings import RunOptions
from .states import WORKING, DeviceState, transition_rows

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

SCHEMA_VERSION = 5
_APPLICATION_ID = 0x4D555354  # "MUST"
# What each version of the format adds to the one before it.
_SCHEMAS = (
    "registry_schema.sql",
    "rollouts/schema.sql",
    "rollouts/schema_overlap.sql",
    "releases/schema.sql",
    "enrolment/schema.sql",
)
assert len(_SCHEMAS) == SCHEMA_VERSION
_RETRY_INTERVAL_S = 0.5
_BUSY_TIMEOUT_S = 10.0
_RANK = {state: rank for rank, state in enumerate(WORKING)}
# Percentiles sort every outcome of a run: at most this share of the time goes into them.
_PERCENTILE_DUTY = 0.05

STEPS = ("packaging", "notifying", "downloading", "activating")
"""The steps of one device, as they are timed."""

Then = Callable[[BaseException | None], None]
"""Called on the loop after COMMIT with None, or with the error if the write can never succeed."""


class RegistryError(ProvisioningError):
    """Base of the registry's errors."""


class RegistryFormatError(RegistryError):
    """The file is no registry, is damaged, or was written by a newer version."""


class RegistryOpenError(RegistryError):
    """The file can't be opened or written; what is in it may be sound."""


class RegistryClosedError(RegistryError):
    """The registry was closed while a write waited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRecord:
    """One device as the registry has it. Times are seconds since the epoch."""

    device_id: str
    model: str
    firmware_version: str
    tags: dict[str, str]
    registered_at: float
    online: bool
    state: DeviceState
    run_id: str | None
    attempt: int
    progress: float | None
    error: str | None
    updated_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run. `status` is running, completed, failed or terminated."""

    run_id: str
    started_at: float
    ended_at: float | None
    status: str
    devices: int
    options: dict[str, Any]
    release: str | None = None
    """None: the one that comes with the service."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a device has got to in the latest run that has claimed it; `run_id` is None where none has."""

    state: DeviceState
    run_id: str | None
    error: str | None
    options: RunOptions | None
    """The run's."""
    run_started_at: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a device ended in a run; `steps_s` has the seconds spent per step, all attempts together."""

    run_id: str
    device_id: str
    state: DeviceState
    attempts: int
    error: str | None
    ended_at: float
    device_s: float | None
    steps_s: Mapping[str, float]
    firmware_version: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A device that did not get provisioned in a run."""

    device_id: str
    state: DeviceState
    error: str | None
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatistics:
    """What a run has come to."""

    counts: dict[DeviceState, int]
    failures: tuple[Failure, ...]
    percentiles: dict[str, dict[int, float]]
    """By "device" or step: percent → seconds."""


@dataclass(frozen=True, kw_only=True)
class RegistryStatistics:
    """Counters since the start."""

    commits: int
    rows_written: int
    rows_merged: int
    commit_failures: int
    pending_rows: int
    slowest_commit_s: float


@dataclass(slots=True)
class _Batch:
    """Writes that go to disk together."""

    registrations: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    presences: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    progress: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], tuple[Any, ...]] = field(default_factory=dict)
    then: list[Then] = field(default_factory=list)

    def rows(self) -> int:
        return len(self.registrations) + len(self.presences) + len(self.progress) + len(self.outcomes)


class Registry:
    """The registry in the file `path`; `async with` opens it and flushes it at the end."""

    def __init__(
        self,
        path: Path,
        *,
        linger_s: float = 0.02,
        max_batch: int = 1_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._linger_s = linger_s
        self._max_batch = max_batch
        self._clock = clock
        self._sql = statements(__package__, "registry_statements.sql")
        self._batch = _Batch()
        self._writing: _Batch | None = None
        self._wake = asyncio.Event()
        self._full = asyncio.Event()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop
        self._write_db: sqlite3.Connection | None = None
        self._read_db: sqlite3.Connection | None = None
        # One thread: transactions of batches, claims and ends never overlap.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="registry-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="registry-reader")
        self._flusher: asyncio.Task[None] | None = None
        self._broken: asyncio.Future[BaseException] | None = None
        self._look_up_db: sqlite3.Connection | None = None
        self._percentiles: dict[str, tuple[float, float, dict[str, dict[int, float]]]] = {}
        self.on_registered: Callable[[Collection[str]], None] = lambda device_ids: None
        """Called with devices that have registered, when that is on disk."""
        self._watcher: changes.Watcher | None = None
        self._commits = 0
        self._rows_written = 0
        self._rows_merged = 0
        self._commit_failures = 0
        self._slowest_commit_s = 0.0

    # -- opening and closing -------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open or create the file; RegistryFormatError and RegistryOpenError name what is wrong with it."""
        loop = self._loop = asyncio.get_running_loop()
        self._broken = loop.create_future()
        try:
            self._write_db = await loop.run_in_executor(self._writer, self._open_for_writing)
            self._read_db = await loop.run_in_executor(self._reader, self._open_for_reading)
            self._look_up_db = self._open_for_reading()
        except (OSError, sqlite3.OperationalError) as error:
            await self._close_connections()
            reason = getattr(error, "strerror", None) or error
            raise RegistryOpenError(
                f"{self._path} can't be opened or written ({reason}). See that its disk has room, that it "
                f"may be written and that no other program holds it, or choose another state directory."
            ) from error
        except BaseException:
            await self._close_connections()
            raise
        self._flusher = asyncio.create_task(self._keep_flushing(), name="registry-flusher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._wake.set()
        self._full.set()
        if self._flusher is not None:
            await asyncio.wait([self._flusher])
        await self._close_connections()

    async def _close_connections(self) -> None:
        loop = asyncio.get_running_loop()
        for database, executor in ((self._read_db, self._reader), (self._write_db, self._writer)):
            if database is not None:
                await loop.run_in_executor(executor, database.close)
            executor.shutdown(wait=False)
        if self._look_up_db is not None:
            self._look_up_db.close()
        self._read_db = self._write_db = self._look_up_db = None

    def _open_for_writing(self) -> sqlite3.Connection:
        # Created by us, so that it is private from its first byte; SQLite gives the WAL the same mode.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        # Autocommit, so that this module alone says where transactions begin and end.
        database = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            application = database.execute("PRAGMA application_id").fetchone()[0]
            tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if tables and application != _APPLICATION_ID:
                raise RegistryFormatError(
                    f"{self._path} is a database, but no registry of ours. Choose another state directory."
                )
            if version > SCHEMA_VERSION:
                raise RegistryFormatError(
                    f"{self._path} was written by a newer version (format {version}; this one reads "
                    f"{SCHEMA_VERSION}). Use that version, or another state directory."
                )
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            # Temporary tables are small, and no full disk is to fail a write by them.
            database.execute("PRAGMA temp_store = MEMORY")
            for number, schema in enumerate(_SCHEMAS[version:], start=version + 1):
                text = files(__package__).joinpath(schema).read_text(encoding="utf-8")
                database.executescript(
                    f"BEGIN IMMEDIATE; {text} PRAGMA application_id = {_APPLICATION_ID};"
                    f"PRAGMA user_version = {number}; COMMIT;"
                )
            database.execute(self._sql["create_transitions"])
            database.executemany(self._sql["add_transition"], transition_rows())
        except sqlite3.OperationalError:  # the machine's fault, not the file's
            database.close()
            raise
        except sqlite3.DatabaseError as error:
            database.close()
            raise RegistryFormatError(
                f"{self._path} can't be used as the registry: {error}. If it is not Muster's, choose another "
                f"state directory; if it is damaged, start fresh."
            ) from error
        except BaseException:
            database.close()
            raise
        return database

    def _open_for_reading(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        database.execute("PRAGMA query_only = ON")
        return database

    # -- news, gathered ------------------------------------------------------------------------------

    def register(
        self,
        device_id: str,
        *,
        model: str,
        firmware_version: str,
        tags: Mapping[str, str],
        then: Then | None = None,
    ) -> None:
        """A device says what it is; one that is not known yet becomes `new`."""
        row = (device_id, model, firmware_version, json.dumps(tags, sort_keys=True), self._clock())
        self._note(self._batch.registrations, device_id, row, then)

    def presence(self, device_id: str, *, online: bool, then: Then | None = None) -> None:
        """A device is connected, or not."""
        self._note(self._batch.presences, device_id, (device_id, int(online)), then)

    def progress(
        self,
        run_id: str,
        device_id: str,
        state: DeviceState,
        *,
        attempt: int,
        progress: float | None = None,
        error: str | None = None,
    ) -> None:
        """A device has come to a working state in a run. Lost if the process dies within the next batch."""
        before = self._batch.progress.get(device_id)
        if before is not None and before[1] == run_id:
            # The later attempt counts, then the later state: merging follows the order of the table.
            if (before[2], _RANK[before[3]]) > (attempt, _RANK[state]):
                self._rows_merged += 1
                return
            if progress is None and before[2] == attempt:
                progress = before[4]
        row = (device_id, run_id, attempt, state, progress, error, self._clock())
        self._note(self._batch.progress, device_id, row, None)

    async def record_outcome(self, outcome: Outcome) -> None:
        """How a device ended in a run; on disk when this returns. Twice is as once."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        row = (
            outcome.run_id,
            outcome.device_id,
            outcome.state,
            outcome.attempts,
            outcome.error,
            outcome.ended_at,
            outcome.device_s,
            *(outcome.steps_s.get(step) for step in STEPS),
            outcome.firmware_version,
        )
        self._note(self._batch.outcomes, (outcome.run_id, outcome.device_id), row, _resolver(done))
        await done

    def _note(
        self, rows: dict[Any, tuple[Any, ...]], key: Any, row: tuple[Any, ...], then: Then | None
    ) -> None:
        if self._closing:
            if then is not None:
                then(RegistryClosedError("The registry is closed; nothing was written."))
            return
        if key in rows:
            self._rows_merged += 1
        rows[key] = row
        if then is not None:
            self._batch.then.append(then)
        self._wake.set()
        if self._batch.rows() >= self._max_batch:
            self._full.set()

    # -- the flusher ---------------------------------------------------------------------------------

    async def _keep_flushing(self) -> None:
        loop = asyncio.get_running_loop()
        written = -math.inf
        while True:
            await self._wake.wait()
            # Not a pause before each write, but a distance between them: what comes alone goes at once.
            pause_s = max(written + self._linger_s - time.monotonic(), 0.0)
            if not self._closing and self._batch.rows() < self._max_batch:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._full.wait()
            written = time.monotonic()
            self._wake.clear()
            self._full.clear()
            batch, self._batch = self._batch, _Batch()
            if batch.rows():
                self._writing = batch
                await self._write_until_done(loop, batch)
                self._writing = None
            if self._closing and not self._batch.rows():
                return

    async def _write_until_done(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> None:
        failed: BaseException | None = None
        warned = False
        while True:
            try:
                took_s = await loop.run_in_executor(self._writer, self._write, batch)
            except sqlite3.OperationalError as error:
                # A full or slow disk may recover, and nothing that waits may go on before it has.
                self._commit_failures += 1
                if not warned:
                    _LOG.error("the registry %s can't be written (%s); trying on", self._path, error)
                    warned = True
                if self._closing:
                    failed = RegistryError(f"The registry {self._path} can't be written: {error}.")
                    break
                await asyncio.sleep(_RETRY_INTERVAL_S)
            except Exception as error:
                self._commit_failures += 1
                _LOG.exception("a batch of %d rows can't be written to %s", batch.rows(), self._path)
                failed = error
                if self._broken is not None and not self._broken.done():
                    self._broken.set_result(error)
                break
            else:
                self._commits += 1
                self._rows_written += batch.rows()
                self._slowest_commit_s = max(self._slowest_commit_s, took_s)
                break
        if failed is None and batch.registrations:
            self.on_registered(batch.registrations.keys())
        for then in batch.then:
            then(failed)

    def _write(self, batch: _Batch) -> float:
        started = time.monotonic()
        arguments = [
            (name, json.dumps(list(rows.values())))
            for name, rows in (
                ("register", batch.registrations),
                ("presence", batch.presences),
                ("progress", batch.progress),
                ("outcomes", batch.outcomes),
                ("finish", batch.outcomes),
            )
            if rows
        ]

        def apply(database: sqlite3.Connection) -> None:
            for name, rows in arguments:
                database.execute(self._sql[name], (rows,))

        self._transact(apply)
        return time.monotonic() - started

    def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        database = self._write_db
        if database is None:
            raise RegistryClosedError("The registry is closed.")
        database.execute("BEGIN IMMEDIATE")
        try:
            result = work(database)
            changed = None if self._watcher is None else changes.take(database)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        if changed is not None:
            self._tell(changed)
        return result

    def _tell(self, changed: changes.Changes) -> None:
        def tell() -> None:
            if self._watcher is not None:
                self._watcher(changed)

        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody is there to hear it
            self._loop.call_soon_threadsafe(tell)

    async def watch(self, watcher: changes.Watcher | None) -> None:
        """From now on tell ``watcher`` on the loop what each transaction has changed, when it is on disk.

        None: nobody any more. There is one at most.
        """

        def work() -> None:
            if self._write_db is not None:
                (changes.end if watcher is None else changes.begin)(self._write_db)
                self._watcher = watcher

        await self._write_now(work)

    async def wait_broken(self) -> BaseException:
        """Return if the registry can write no more and never will: a damaged file, a defect."""
        assert self._broken is not None, "enter the registry first"
        return await asyncio.shield(self._broken)

    async def flush(self) -> None:
        """Wait until all that was noted so far is on disk."""
        batch = self._batch if self._batch.rows() else self._writing
        if batch is not None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            batch.then.append(_resolver(done))
            self._full.set()
            await done

    # -- runs ----------------------------------------------------------------------------------------

    async def claim(
        self,
        run_id: str,
        device_ids: Sequence[str] | None,
        *,
        options: Mapping[str, Any],
        limit: int,
        release: str | None = None,
    ) -> list[str]:
        """Give a run its devices, `queued` from now on, and return them in order.

        `device_ids` names them; None means all that are new, up to `limit`. Those that another run is
        provisioning, or that never registered, are left out. A second call for the same run changes
        nothing and returns the same devices.
        """
        await self.flush()
        now = self._clock()

        def work(database: sqlite3.Connection) -> list[str]:
            created = database.execute(
                self._sql["create_run"], (run_id, now, json.dumps(dict(options)), release)
            ).rowcount
            if created == 1:
                if device_ids is None:
                    cursor = database.execute(self._sql["claim_new"], (run_id, now, limit))
                else:
                    cursor = database.execute(
                        self._sql["claim_named"], (run_id, now, json.dumps(list(device_ids)))
                    )
                database.execute(self._sql["count_run"], (run_id, cursor.rowcount))
            return [row[0] for row in database.execute(self._sql["claimed"], (run_id,))]

        return await self._write_now(lambda: self._transact(work))

    async def end_run(self, run_id: str, *, status: str, left_over: DeviceState, reason: str) -> None:
        """Close a run; devices that it leaves unfinished end as `left_over`. Twice is as once."""
        await self.flush()
        now = self._clock()

        def work(database: sqlite3.Connection) -> None:
            if database.execute(self._sql["end_run"], (run_id, now, status)).rowcount == 0:
                return
            rows = json.dumps(
                [
                    (run_id, device_id, left_over, attempt, reason, now, *[None] * 6)
                    for device_id, attempt in database.execute(self._sql["left_over"], (run_id,))
                ]
            )
            database.execute(self._sql["outcomes"], (rows,))
            database.execute(self._sql["finish"], (rows,))

        await self._write_now(lambda: self._transact(work))

    async def identity(self, key: str, make: Callable[[], str]) -> str:
        """A value made once per registry and kept, such as this installation's MQTT client id."""

        def work(database: sqlite3.Connection) -> str:
            database.execute(self._sql["write_identity"], (key, make()))
            return str(database.execute(self._sql["read_identity"], (key,)).fetchone()[0])

        return await self._write_now(lambda: self._transact(work))

    async def replace_identity(self, key: str, value: str) -> None:
        """Give such a value anew."""

        def work(database: sqlite3.Connection) -> None:
            database.execute(self._sql["replace_identity"], (key, value))

        await self._write_now(lambda: self._transact(work))

    def sql(self, name: str) -> str:
        """One of the registry's own statements."""
        return self._sql[name]

    async def transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do ``work`` in one transaction; on disk when this returns. What it raises rolls back.

        For what else is kept in this file. It runs in the writer's thread. What it must see of what was noted
        before, `flush` first.
        """
        return await self._write_now(lambda: self._transact(work))

    async def ask(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Let ``work`` read, in the reader's thread; it sees one state of the file in each statement."""

        def asked() -> _T:
            if self._read_db is None:
                raise RegistryClosedError("The registry is closed.")
            return work(self._read_db)

        return await asyncio.get_running_loop().run_in_executor(self._reader, asked)

    async def _write_now(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    # -- questions -----------------------------------------------------------------------------------

    async def device(self, device_id: str) -> DeviceRecord | None:
        """One device, or None."""
        rows = await self._ask("device", device_id)
        return _device(rows[0]) if rows else None

    def look_up(self, device_id: str) -> DeviceRecord | None:
        """One device, or None, at once: a row by its key costs less here than the way to another thread.

        Raises RegistryClosedError.
        """
        if self._look_up_db is None:
            raise RegistryClosedError("The registry is closed.")
        row = self._look_up_db.execute(self._sql["device"], (device_id,)).fetchone()
        return None if row is None else _device(row)

    async def devices(
        self,
        *,
        state: DeviceState | None = None,
        run_id: str | None = None,
        after: str | None = None,
        limit: int,
    ) -> list[DeviceRecord]:
        """Up to `limit` devices in the order of their ids, from the one that follows `after`."""
        return [_device(row) for row in await self._ask("devices", state, run_id, after, limit)]

    async def run_devices(
        self, run_id: str, *, after: str | None = None, limit: int
    ) -> list[tuple[Any, ...]]:
        """Up to `limit` devices of a run, as the statement has them: how each ended in it, or where it is."""
        return await self._ask("run_devices", run_id, after, limit)

    async def count_devices(self, *, state: DeviceState | None = None, run_id: str | None = None) -> int:
        """How many devices there are."""
        return int((await self._ask("count_devices", state, run_id))[0][0])

    async def states(self) -> dict[DeviceState, int]:
        """How many devices are in each state."""
        counts = dict.fromkeys(DeviceState, 0)
        counts.update({DeviceState(state): count for state, count in await self._ask("states")})
        return counts

    async def known_states(self, device_ids: Sequence[str]) -> dict[str, DeviceState]:
        """The states of those of the devices that are known."""
        rows = await self._ask("known_states", json.dumps(list(device_ids)))
        return {device_id: DeviceState(state) for device_id, state in rows}

    async def standings(self, device_ids: Sequence[str]) -> dict[str, Standing]:
        """Where those of the devices that are known have got to, in one query."""
        rows = await self._ask("standings", json.dumps(list(device_ids)))
        return {
            device_id: Standing(
                state=DeviceState(state),
                run_id=run_id,
                error=error,
                options=None if options is None else _options(options),
                run_started_at=started_at,
            )
            for device_id, state, run_id, error, options, started_at in rows
        }

    async def run(self, run_id: str) -> RunRecord | None:
        """One run, or None."""
        rows = await self._ask("run", run_id)
        return _run(rows[0]) if rows else None

    async def runs(self, *, limit: int) -> list[RunRecord]:
        """The latest runs first."""
        return [_run(row) for row in await self._ask("runs", limit)]

    async def unfinished(self, run_id: str) -> list[str]:
        """The devices that a run is working on, or is to."""
        await self.flush()
        return await self.transact(
            lambda database: [row[0] for row in database.execute(self._sql["left_over"], (run_id,))]
        )

    async def open_runs(self) -> list[str]:
        """The runs that have not ended, the oldest first."""
        return [row[0] for row in await self._ask("open_runs")]

    async def shown_runs(self, *, ended: int) -> list[str]:
        """All runs that have not ended and the latest few that have, the latest first; no rollouts."""
        return [row[0] for row in await self._ask("shown_runs", ended)]

    async def run_statistics(
        self, run_id: str, *, max_failures: int = 5, with_percentiles: bool = True
    ) -> RunStatistics:
        """Counts, last failures and times of a run."""
        counts: dict[DeviceState, int] = {state: 0 for state in DeviceState if state is not DeviceState.NEW}
        for state, count in await self._ask("run_counts", run_id):
            counts[DeviceState(state)] += count
        failures = tuple(
            Failure(device_id=device_id, state=DeviceState(state), error=error, at=at)
            for device_id, state, error, at in await self._ask("run_failures", run_id, max_failures)
        )
        percentiles = await self._run_percentiles(run_id, counts) if with_percentiles else {}
        return RunStatistics(counts=counts, failures=failures, percentiles=percentiles)

    async def _run_percentiles(
        self, run_id: str, counts: Mapping[DeviceState, int]
    ) -> dict[str, dict[int, float]]:
        provisioned = counts[DeviceState.PROVISIONED]
        under_way = any(counts[state] for state in WORKING)
        known = self._percentiles.get(run_id)
        started = time.monotonic()
        # Older ones will do while there are more to come; the last word on a run is whole.
        if known is not None and (known[1] == provisioned or (under_way and known[0] > started)):
            return known[2]
        percentiles: dict[str, dict[int, float]] = {}
        for kind, percent, seconds in await self._ask("run_percentiles", run_id):
            percentiles.setdefault(kind, {})[percent] = seconds
        ended = time.monotonic()
        fresh_until = ended + (ended - started) / _PERCENTILE_DUTY if under_way else ended
        if len(self._percentiles) > 100:
            self._percentiles.clear()
        self._percentiles[run_id] = (fresh_until, provisioned, percentiles)
        return percentiles

    async def _ask(self, name: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return await self.ask(lambda database: database.execute(self._sql[name], arguments).fetchall())

    def statistics(self) -> RegistryStatistics:
        """A snapshot of the counters."""
        return RegistryStatistics(
            commits=self._commits,
            rows_written=self._rows_written,
            rows_merged=self._rows_merged,
            commit_failures=self._commit_failures,
            pending_rows=self._batch.rows(),
            slowest_commit_s=self._slowest_commit_s,
        )


def _resolver(done: asyncio.Future[None]) -> Then:
    def then(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    return then


def statements(package: str, file: str) -> dict[str, str]:
    """The statements of a file of SQL, by name."""
    text = files(package).joinpath(file).read_text(encoding="utf-8")
    named = {}
    for part in text.split("-- name: ")[1:]:
        name, _, body = part.partition("\n")
        named[name.strip()] = body.strip()
    return named


def _device(row: tuple[Any, ...]) -> DeviceRecord:
    return DeviceRecord(
        device_id=row[0],
        model=row[1],
        firmware_version=row[2],
        tags=json.loads(row[3]),
        registered_at=row[4],
        online=bool(row[5]),
        state=DeviceState(row[6]),
        run_id=row[7],
        attempt=row[8],
        progress=row[9],
        error=row[10],
        updated_at=row[11],
    )


@lru_cache(maxsize=64)
def _options(text: str) -> RunOptions | None:
    """The options of a run, read once for all its devices; None where they are of another version."""
    try:
        return RunOptions.from_json(json.loads(text))
    except SettingsError:
        return None


def _run(row: tuple[Any, ...]) -> RunRecord:
    return RunRecord(
        run_id=row[0],
        started_at=row[1],
        ended_at=row[2],
        status=row[3],
        devices=row[4],
        options=json.loads(row[5]),
        release=row[6],
    )
