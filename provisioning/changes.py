"""What transactions change in the registry's file, for those who watch it.

SQLite notes it itself, by triggers of the writing connection alone: so that what other triggers do is seen
too (a rollout that hands a device on), and nothing that was rolled back. While nobody watches there are none
of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What one transaction has changed, as it is on disk now."""

    devices: Mapping[str, tuple[str | None, str]]
    """By id: the run that has it, and the row for people to see as a JSON list."""
    runs: tuple[str, ...]
    """Runs, rollouts too, of which anything may look otherwise now."""


Watcher = Callable[[Changes], None]

_BEGIN, _END, _DEVICES, _RUNS, _FORGET_DEVICES, _FORGET_RUNS = (
    part.partition("\n")[2]
    for part in files(__package__).joinpath("changes.sql").read_text(encoding="utf-8").split("-- part: ")[1:]
)
COLUMNS: Final = ("device_id", "state", "run_id", "attempt", "progress", "online", "error")
"""Of the list that is shown of a device."""


def begin(database: sqlite3.Connection) -> None:
    """Note changes from now on; twice is as once."""
    database.executescript(_BEGIN)


def end(database: sqlite3.Connection) -> None:
    """Note nothing any more."""
    database.executescript(_END)


def take(database: sqlite3.Connection) -> Changes | None:
    """What the transaction under way has changed; None: nothing. To be called last in it."""
    devices = {row[0]: (row[1], row[2]) for row in database.execute(_DEVICES)}
    runs = tuple(row[0] for row in database.execute(_RUNS))
    if devices:
        database.execute(_FORGET_DEVICES)
    if runs:
        database.execute(_FORGET_RUNS)
    return Changes(devices=devices, runs=runs) if devices or runs else None
