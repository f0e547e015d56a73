"""What counts as damage of a state file, and how that is said: with its name, and what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from provisioning.engine.errors import StateError, StateFormatError
from provisioning.engine.records import ActivityCall, HistoryEvent, InstanceRow, Kind, Outline, Status
from provisioning.engine.store import StoredTimer

TROUBLE = (sqlite3.DatabaseError, TypeError, ValueError)
"""What SQLite raises for a file, and Python for what comes out of one that was damaged."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_STATUSES = frozenset(Status)
_KINDS = frozenset(Kind)
_LATEST = 253_402_300_799_999_999
"""The last microsecond that Python's dates know, in the year 9999."""


def damaged(path: Path, reason: str) -> StateFormatError:
    return StateFormatError(
        str(path),
        f"{path} can't be read as a state file ({reason}): "
        "choose another place for the state, or restore this file from a copy",
    )


def raise_trouble(path: Path, error: Exception) -> NoReturn:
    """Say what is wrong with the file; an error that is not the file's fault is raised as it is."""
    code, operational = getattr(error, "sqlite_errorcode", None), isinstance(error, sqlite3.OperationalError)
    if isinstance(error, UnicodeDecodeError) or (operational and code is None):
        raise damaged(path, "text in it is no UTF-8") from None  # the error's own words quote the text
    if isinstance(error, TypeError | ValueError):
        raise damaged(path, "its tables are not as they should be") from error
    if code is not None and code & 0xFF in _DAMAGED:
        raise damaged(path, str(error)) from error
    if operational:
        raise StateError(
            str(path),
            f"{path} can't be read or written any more ({error}): see that the file is still there "
            "and its disk is sound, then start again",
        ) from error
    raise error


# Whether rows make sense: SQLite's own checks end at the pages, and a column may hold anything


def _column_types(record: type) -> tuple[tuple[type, ...], ...]:
    """What the columns of a row may hold, as the record has its fields."""
    return tuple(get_args(hint) or (hint,) for hint in get_type_hints(record).values())


_ROW, _EVENT, _TIMER, _CALL, _OUTLINE = map(
    _column_types, (InstanceRow, HistoryEvent, StoredTimer, ActivityCall, Outline)
)


def _fits(row: Sequence[Any], types: tuple[tuple[type, ...], ...]) -> bool:
    return all(map(isinstance, row, types))


def is_row(row: InstanceRow) -> bool:
    """Whether it can be an instance."""
    times = (row.created_at, row.updated_at)
    return _fits(row, _ROW) and row.status in _STATUSES and min(times) >= 0 and max(times) <= _LATEST


def is_outline(row: Outline) -> bool:
    """Whether it can be an instance's outline."""
    times = (row.created_at, row.updated_at)
    return _fits(row, _OUTLINE) and row.status in _STATUSES and min(times) >= 0 and max(times) <= _LATEST


def is_event(row: Sequence[Any]) -> bool:
    """Whether it can be an event, or the fields of one that a message has."""
    return _fits(row, _EVENT) and row[0] in _KINDS and 0 <= row[1] <= _LATEST


def is_place(row: Sequence[Any]) -> bool:
    """Whether it can be an event's sequence number and time."""
    return _fits(row, ((int,), (int,))) and 0 <= row[1] <= _LATEST


def is_timer(row: StoredTimer) -> bool:
    """Whether it can be a timer."""
    return _fits(row, _TIMER)


def is_call(row: Sequence[Any]) -> bool:
    """Whether it can be an activity that was asked for."""
    return _fits(row, _CALL)
