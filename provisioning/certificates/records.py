"""What the authority has issued, to whom, and what of it is revoked: one SQLite file.

A certificate is on record before it is handed out, so that all of a device's can be revoked. Processes share
the file: the service, and `muster ca issue` beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY,
    subject TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS certificates_of_subject ON certificates (subject);
CREATE TABLE IF NOT EXISTS refused (subject TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lists (number INTEGER PRIMARY KEY, this_update INTEGER NOT NULL);
"""
# Those that may have a connection still which they began before they were revoked. Apart, as it came later.
_UNFINISHED: Final = "CREATE TABLE IF NOT EXISTS unfinished (subject TEXT PRIMARY KEY) WITHOUT ROWID"
_BUSY_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, kw_only=True)
class IssuedRecord:
    """One certificate; times in seconds since the epoch."""

    serial: int
    subject: str
    issued_at: int
    expires_at: int
    revoked_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """How many certificates there were for devices."""

    issued: int
    valid: int
    revoked: int
    devices: int


class Records:
    """The file at ``path``; each call is a transaction of its own, on a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Make the file, for its owner only."""
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))
        with self._open() as database:
            database.executescript(_SCHEMA)

    def add(self, records: Iterable[IssuedRecord]) -> list[str]:
        """Put certificates on record, all or none: none where it returns subjects, which are refused ones."""
        records = list(records)
        with self._open() as database, database:
            database.execute("BEGIN IMMEDIATE")
            names = json.dumps([record.subject for record in records])
            refused = database.execute(
                "SELECT subject FROM refused WHERE subject IN (SELECT value FROM json_each(?))", (names,)
            ).fetchall()
            if refused:
                return [row[0] for row in refused]
            database.executemany(
                "INSERT INTO certificates (serial, subject, issued_at, expires_at) VALUES (?, ?, ?, ?)",
                ((f"{r.serial:x}", r.subject, r.issued_at, r.expires_at) for r in records),
            )
        return []

    def revoke(self, subjects: Iterable[str], *, at: int) -> list[str]:
        """Revoke all certificates of ``subjects`` and refuse them more; returns those that had one.

        These are `unfinished` until `finish`.
        """
        names = json.dumps(list(subjects))
        with self._open() as database, database:
            database.execute("INSERT OR IGNORE INTO refused SELECT value FROM json_each(?)", (names,))
            rows = database.execute(
                "UPDATE certificates SET revoked_at = ? WHERE revoked_at IS NULL"
                " AND subject IN (SELECT value FROM json_each(?)) RETURNING subject",
                (at, names),
            ).fetchall()
            database.executemany("INSERT OR IGNORE INTO unfinished VALUES (?)", rows)
        return sorted({row[0] for row in rows})

    def finish(self, subjects: Iterable[str]) -> None:
        """These have no connection any more from before they were revoked."""
        with self._open() as database, database:
            database.execute(
                "DELETE FROM unfinished WHERE subject IN (SELECT value FROM json_each(?))",
                (json.dumps(list(subjects)),),
            )

    def allow(self, subjects: Iterable[str]) -> None:
        """Refuse these no more; what was revoked stays so."""
        with self._open() as database, database:
            database.execute(
                "DELETE FROM refused WHERE subject IN (SELECT value FROM json_each(?))",
                (json.dumps(list(subjects)),),
            )

    def refused(self) -> set[str]:
        """The subjects that get no certificate."""
        with self._open() as database:
            return {row[0] for row in database.execute("SELECT subject FROM refused")}

    def unfinished(self) -> list[str]:
        """Subjects that are refused and may have a connection from before."""
        with self._open() as database:
            return [
                row[0]
                for row in database.execute("SELECT subject FROM unfinished JOIN refused USING (subject)")
            ]

    def revoked(self, *, now: int) -> list[tuple[int, int]]:
        """Serial numbers and when each was revoked, of those that have not expired."""
        with self._open() as database:
            rows = database.execute(
                "SELECT serial, revoked_at FROM certificates WHERE revoked_at IS NOT NULL AND expires_at > ?"
                " ORDER BY revoked_at, serial",
                (now,),
            ).fetchall()
        return [(int(serial, 16), at) for serial, at in rows]

    def valid_until(self, *, now: int) -> dict[str, int]:
        """Until when each subject has a certificate that is good now; those that have none are not in it."""
        with self._open() as database:
            return dict(
                database.execute(
                    "SELECT subject, max(expires_at) FROM certificates"
                    " WHERE revoked_at IS NULL AND expires_at > ? GROUP BY subject",
                    (now,),
                )
            )

    def next_list(self, *, at: int) -> tuple[int, int]:
        """The number and time of the next revocation list: each list's time is after that of the one before.

        A TLS library that has two of an issuer's goes by the later one.
        """
        with self._open() as database, database:
            database.execute("BEGIN IMMEDIATE")
            number, last = database.execute("SELECT max(number), max(this_update) FROM lists").fetchone()
            number, at = (number or 0) + 1, at if last is None else max(at, last + 1)
            database.execute("DELETE FROM lists")
            database.execute("INSERT INTO lists VALUES (?, ?)", (number, at))
        return number, at

    def numbers(self, *, now: int, besides: Iterable[str]) -> Numbers:
        """Count the certificates of all but ``besides``."""
        with self._open() as database:
            row = database.execute(
                "SELECT count(*), coalesce(sum(revoked_at IS NULL AND expires_at > ?), 0),"
                " coalesce(sum(revoked_at IS NOT NULL), 0), count(DISTINCT subject)"
                " FROM certificates WHERE subject NOT IN (SELECT value FROM json_each(?))",
                (now, json.dumps(list(besides))),
            ).fetchone()
        return Numbers(issued=row[0], valid=row[1], revoked=row[2], devices=row[3])

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S)
        try:
            database.execute("PRAGMA synchronous=FULL")
            database.execute(_UNFINISHED)
            yield database
        finally:
            database.close()
