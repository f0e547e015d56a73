"""The table of releases within one transaction of somebody's: read, and asked whom a release does not fit."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from provisioning.registry import statements

from .records import ReleaseRecord

_SQL: Final = statements(__package__, "statements.sql")


class ReleaseTables:
    """One connection to the registry's file."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def execute(self, name: str, arguments: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute the statement of that name."""
        return self._database.execute(_SQL[name], arguments)

    def all(self) -> list[ReleaseRecord]:
        """The latest first."""
        return [_record(row) for row in self.execute("all")]

    def release(self, name: str) -> ReleaseRecord | None:
        """One, or None."""
        row = self.execute("release", (name,)).fetchone()
        return None if row is None else _record(row)

    def add(self, record: ReleaseRecord) -> None:
        """One more."""
        configuration = record.configuration
        self.execute(
            "add",
            (
                *(record.name, record.version, json.dumps(record.models), record.sha256, record.size_bytes),
                None if configuration is None else json.dumps(configuration),
                *(record.notes, record.created_at),
            ),
        )

    def unfinished(self, name: str) -> list[str]:
        """The runs and rollouts under way that bring it, the oldest first."""
        return [row[0] for row in self.execute("unfinished", (name,))]

    def not_fitting(self, record: ReleaseRecord, device_ids: Sequence[str]) -> int:
        """How many of these devices it does not fit, as they are now; as `ReleaseRecord.misfit` says."""
        if not record.models and not record.tags:
            return 0
        models = json.dumps(record.models) if record.models else None
        arguments = (json.dumps(list(device_ids)), models, json.dumps(record.tags))
        return int(self.execute("not_fitting", arguments).fetchone()[0])


def _record(row: tuple[Any, ...]) -> ReleaseRecord:
    return ReleaseRecord(
        name=row[0],
        version=row[1],
        models=tuple(json.loads(row[2])),
        sha256=row[3],
        size_bytes=row[4],
        configuration=None if row[5] is None else json.loads(row[5]),
        notes=row[6],
        created_at=row[7],
    )
