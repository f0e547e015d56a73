"""The engine's storage in one SQLite file: WAL, ``synchronous=FULL``, one writer.

Python's ``sqlite3`` lets go of the interpreter lock at each step of a statement and has to win it
back from the loop's thread after it; row by row that makes a writer beside a busy loop crawl. So a
batch goes down in few statements of many rows each.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

from provisioning.engine import damage
from provisioning.engine.errors import StateError, StateFormatError, StateInUseError
from provisioning.engine.records import (
    ActivityCall,
    HistoryEvent,
    InstanceRow,
    Kind,
    Message,
    Outline,
)
from provisioning.engine.store import Batch, StoredTimer

FORMAT = 2
"""``user_version`` of the files that this code writes; those of earlier formats are brought up to it."""
APPLICATION_ID = 0x4D535452
"""``application_id`` by which a file is known as ours ("MSTR")."""

_CHUNKS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
"""Rows per statement, largest first: a batch of any size is few statements, of forms that stay prepared."""
_WAL_PAGES = 16_000
_WRITER_CACHE_KIB = 32_768
_READER_CACHE_KIB = 8_192
"""Small: what the loop reads is what has left memory, each once; the system's own cache is behind it."""

_RETRYABLE = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
)

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def _load_statements(file: str) -> dict[str, str]:
    text = resources.files(__package__).joinpath(file).read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    return {name: body.strip().rstrip(";") for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _checked(
    method: Callable[Concatenate[SqliteStore, P], T],
) -> Callable[Concatenate[SqliteStore, P], T]:
    """What SQLite says of the file becomes a StateError that names it and what to do."""

    @wraps(method)
    def checked(store: SqliteStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(store, *args, **kwargs)
        except damage.TROUBLE as error:
            damage.raise_trouble(store.path, error)

    return checked


class SqliteStore:
    """:class:`provisioning.engine.store.Store` on a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sql = _load_statements("statements.sql")
        self._lock_fd: int | None = None
        #: Where the open file is, whatever becomes of the working directory; and its device and inode.
        self._place = path
        self._file = (0, 0)
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"SqliteStore({str(self.path)!r})"

    # Opening

    def open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock()
            # Histories hold SAS URLs: the file is its owner's alone from its first moment; SQLite
            # gives the WAL the same mode.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._place = self.path.absolute()
            self._file = self._find_file()
            self._writer = self._connect(_WRITER_CACHE_KIB)
            self._prepare(self._writer)
            self._reader = self._connect(_READER_CACHE_KIB)
            self._reader.execute("PRAGMA query_only=ON")
        except (OSError, sqlite3.OperationalError) as error:  # full, read-only, locked: the file may be sound
            self.close()
            reason = getattr(error, "strerror", None) or error
            if (where := getattr(error, "filename", None)) and Path(where) != self.path:
                reason = f"{reason}: {where}"  # its directory, or the lock beside it
            raise StateError(
                str(self.path),
                f"{self.path} can't be opened or written ({reason}): see that its disk has room, that it may "
                "be written and that no other program holds it, or choose another place for the state",
            ) from error
        except damage.TROUBLE as error:
            self.close()
            damage.raise_trouble(self.path, error)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        real = self.path.resolve()  # one lock for all names of a file
        path = real.with_name(real.name + ".lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise StateInUseError(str(self.path), int(owner) if owner.isdigit() else None) from error
        except OSError:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd
        _owning.add(self)

    def leave_to_parent(self) -> None:
        """In a fork of the owner: have no part in its lock, which would outlive it here."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _connect(self, cache_kib: int) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.execute(f"PRAGMA cache_size=-{cache_kib}")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application != APPLICATION_ID:
            raise StateFormatError(
                str(self.path),
                f"{self.path} is a database, but not a state file of Muster's engine: "
                "choose another place for the state",
            )
        if version > FORMAT:
            raise StateFormatError(
                str(self.path),
                f"{self.path} was written by a newer version of Muster (format {version}, this one reads "
                f"up to {FORMAT}): update Muster, or choose another place for the state",
            )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
        if not tables:
            ddl = resources.files(__package__).joinpath("schema.sql").read_text("utf-8")
            connection.executescript(
                f"BEGIN; {ddl} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}; COMMIT;"
            )
            return
        migrations = _load_statements("migrations.sql")
        for number in range(version + 1, FORMAT + 1):
            _log.info("bringing %s from format %d to %d", self.path, number - 1, number)
            step = migrations[f"to_{number}"]
            connection.executescript(f"BEGIN; {step}; PRAGMA user_version={number}; COMMIT;")

    def close(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None
        if self._lock_fd is not None:
            # By name, and not by closing alone: a process that was just forked may have it open too.
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            os.close(self._lock_fd)
            self._lock_fd = None

    # Writing

    def _find_file(self) -> tuple[int, int]:
        found = self._place.stat()
        return found.st_dev, found.st_ino

    def _check_place(self) -> None:
        """SQLite goes on writing to a file that was deleted or replaced, where nobody finds it again."""
        try:
            found = self._find_file()
        except FileNotFoundError:
            found = (0, 0)
        if found != self._file:
            raise StateError(
                str(self.path),
                f"{self.path} was moved, deleted or replaced while in use: put it back and start again",
            )

    def commit(self, batch: Batch) -> None:
        connection = self._writer
        assert connection is not None
        self._check_place()
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._write(connection, batch)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _RETRYABLE:
                raise OSError(f"{self.path} can't be written: {error}") from error
            if isinstance(error, sqlite3.DatabaseError):
                damage.raise_trouble(self.path, error)
            raise

    def _write(self, connection: sqlite3.Connection, batch: Batch) -> None:
        for table in ("instances", "history", "timers", "detached"):
            self._put(connection, f"purge_{table}", batch.purged)
        self._put(connection, "put_instances", batch.instances)
        self._put(connection, "set_custom_statuses", batch.custom_statuses)
        self._put(connection, "add_history", batch.history)
        if batch.trims:
            connection.executemany(self._sql["trim_history"], batch.trims)
        # In this order: a message may be kept and taken in one transaction. Their ids are never used again.
        self._put(connection, "add_messages", batch.messages)
        self._put(connection, "drop_messages", batch.messages_gone)
        self._put(connection, "add_timers", [(*key, due) for key, due in batch.timers.items()])
        self._put(connection, "drop_timers", list(batch.timers_gone))
        self._put(connection, "add_detached", batch.detached)
        self._put(connection, "drop_detached", batch.detached_gone)

    def _put(self, connection: sqlite3.Connection, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for statement, values in self._in_chunks(name, rows):
            connection.execute(statement, values)

    def _in_chunks(self, name: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The statement with as many rows at once as there are, and their values: see ``_CHUNKS``."""
        if not rows:
            return
        statement = self._sql[name]
        row = f"({','.join('?' * len(rows[0]))})"
        left = iter(rows)
        remaining = len(rows)
        for size in _CHUNKS:
            if remaining < size:
                continue
            text = statement.replace("{rows}", ",".join([row] * size))
            while remaining >= size:
                yield text, tuple(chain.from_iterable(islice(left, size)))
                remaining -= size

    # Reading

    def _nonsense(self, what: str) -> StateFormatError:
        return damage.damaged(self.path, f"{what} makes no sense")

    def _rows(self, name: str, *parameters: Any) -> sqlite3.Cursor:
        assert self._reader is not None
        return self._reader.execute(self._sql[name], parameters)

    @_checked
    def find(self, instance_id: str) -> InstanceRow | None:
        row = self._rows("find_instance", instance_id).fetchone()
        if row is None:
            return None
        found = InstanceRow(*row)
        if not damage.is_row(found):
            raise self._nonsense(f"what it has of instance {instance_id!r}")
        return found

    @_checked
    def existing(self, instance_ids: Sequence[str]) -> set[str]:
        assert self._reader is not None
        found: set[str] = set()
        for statement, values in self._in_chunks("existing", [(one,) for one in instance_ids]):
            found.update(one for (one,) in self._reader.execute(statement, values))
        return found

    @_checked
    def last_event(self, key: int) -> tuple[int, int] | None:
        row = self._rows("last_event", key).fetchone()
        if row is None:
            return None
        if not damage.is_place(row):
            raise self._nonsense(f"an event of instance {key}")
        return row[0], row[1]

    @_checked
    def history(self, key: int, first_seq: int, limit: int | None = None) -> list[HistoryEvent]:
        events = []
        for row in self._rows("read_history", key, first_seq, -1 if limit is None else limit):
            if not damage.is_event(row):
                raise self._nonsense(f"an event of instance {key}")
            events.append(HistoryEvent(*row))
        return events

    @_checked
    def next_key(self) -> int:
        return int(self._rows("next_key").fetchone()[0])

    @_checked
    def next_message_id(self) -> int:
        return int(self._rows("next_message").fetchone()[0])

    @_checked
    def ready_starts(self) -> list[str]:
        return [row[0] for row in self._rows("ready_starts")]

    def unfinished_activities(self) -> Iterator[ActivityCall]:
        try:
            yield from self._unfinished_activities()
        except damage.TROUBLE as error:
            damage.raise_trouble(self.path, error)

    def _unfinished_activities(self) -> Iterator[ActivityCall]:
        for instance_id, key, execution, task_id, asked, _ in self._rows("unfinished_activities"):
            name, data = self._rows("scheduled_activity", key, asked).fetchone()
            yield self._call(instance_id, key, execution, task_id, name, data)
        for row in self._rows("detached_activities"):
            yield self._call(*row)

    def _call(self, *row: Any) -> ActivityCall:
        if not damage.is_call(row):
            raise self._nonsense("an activity in it")
        return ActivityCall(*row)

    @_checked
    def timers(self, after: int, until: int) -> Iterable[StoredTimer]:
        timers = [StoredTimer(*row) for row in self._rows("due_timers", after, until)]
        if not all(map(damage.is_timer, timers)):
            raise self._nonsense("a timer in it")
        return timers

    @_checked
    def messages(self) -> list[tuple[str, Message]]:
        found = []
        for stored_id, instance_id, kind, task_id, name, ref, data, execution in self._rows(
            "waiting_messages"
        ):
            if not damage.is_event((kind, 0, task_id, name, ref, data)):
                raise self._nonsense(f"a message for instance {instance_id!r}")
            message = Message(Kind(kind), task_id=task_id, name=name, ref=ref, data=data, execution=execution)
            message.stored_id = stored_id
            found.append((instance_id, message))
        return found

    @_checked
    def count_by_status(self) -> dict[int, int]:
        return dict(self._rows("count_by_status").fetchall())

    @_checked
    def outlines(self, after: int, limit: int) -> list[Outline]:
        found = [Outline(*row) for row in self._rows("outlines", after, limit)]
        if not all(map(damage.is_outline, found)):
            raise self._nonsense("what it has of an instance")
        return found

    @_checked
    def children(self, key: int, after: int, limit: int) -> list[tuple[int, str]]:
        return self._rows("children", key, after, limit).fetchall()

    @_checked
    def detached(self, key: int) -> list[tuple[int, int]]:
        return self._rows("detached", key).fetchall()


_owning: WeakSet[SqliteStore] = WeakSet()


def _after_fork_in_child() -> None:
    for store in _owning:
        store.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
