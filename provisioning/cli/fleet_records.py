"""What is remembered of a fleet: ``<state>/fleets/<fleet_id>.json`` and its log beside it.

A record says what the fleet is and which processes run it, so that a service that comes back after a
``kill -9`` finds its devices, and `muster down` can end them without a service. A fleet stays on record,
and so comes back with the next `muster up`, until someone stops it by name.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import psutil

FORMAT = 1
MAX_RECORD_BYTES = 256 * 1024
LOG_TAIL_BYTES = 8 * 1024
# A creation time is derived from the boot time, which shifts by a little when the clock is set.
CREATION_TOLERANCE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process of a fleet: it runs shard ``shard`` of as many as the fleet has processes."""

    shard: int
    pid: int
    created_at: float

    def process(self) -> psutil.Process | None:
        """Return the living process, or None; a pid given to another program is told by its creation time."""
        try:
            process = psutil.Process(self.pid)
            ours = abs(process.create_time() - self.created_at) <= CREATION_TOLERANCE_S
            return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


@dataclass(frozen=True, kw_only=True)
class FleetEntry:
    """A fleet on record. ``request`` is what was asked for, as the API takes it."""

    fleet_id: str
    request: dict[str, Any]
    processes: int
    broker_url: str
    trust: str
    started_at: str
    members: tuple[Member, ...]


class FleetBook:
    """The records of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir.absolute() / "fleets"

    def entries(self) -> list[FleetEntry]:
        """Return all fleets on record, the first one first; files that can't be read are passed over."""
        found = [self._read(path) for path in self.directory.glob("*.json")]
        return sorted((entry for entry in found if entry is not None), key=_number)

    def entry(self, fleet_id: str) -> FleetEntry | None:
        """Return the fleet of that id, or None."""
        return next((entry for entry in self.entries() if entry.fleet_id == fleet_id), None)

    def next_id(self) -> str:
        """Return an id that no fleet on record has."""
        return f"fleet-{max((_number(entry) for entry in self.entries()), default=0) + 1}"

    def write(self, entry: FleetEntry) -> None:
        """Put ``entry`` on record, in one step; for its owner only: a broker URL can hold a password."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(entry.fleet_id)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open_private(temporary, "w") as file:
            json.dump({"format": FORMAT, **asdict(entry)}, file, indent=1)
        temporary.replace(path)

    def remove(self, fleet_id: str) -> None:
        """Forget a fleet; its log stays."""
        with contextlib.suppress(FileNotFoundError):
            self._path(fleet_id).unlink()

    def log_path(self, fleet_id: str) -> Path:
        """Return the file with the output of the fleet's processes."""
        return self.directory / f"{fleet_id}.log"

    def last_words(self, fleet_id: str) -> str:
        """Return the last line of the fleet's log, or an empty string."""
        try:
            with self.log_path(fleet_id).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def living(self) -> Iterator[tuple[FleetEntry, psutil.Process]]:
        """Yield each living process on record."""
        for entry in self.entries():
            for process in living(entry.members):
                yield entry, process

    def _path(self, fleet_id: str) -> Path:
        return self.directory / f"{fleet_id}.json"

    def _read(self, path: Path) -> FleetEntry | None:
        try:
            with path.open("rb") as file:
                data = json.loads(file.read(MAX_RECORD_BYTES))
            if data.pop("format") != FORMAT:
                return None
            members = tuple(Member(**member) for member in data.pop("members"))
            return FleetEntry(members=members, **data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def living(members: Iterable[Member]) -> list[psutil.Process]:
    """Return the processes among ``members`` that live."""
    return [process for member in members if (process := member.process()) is not None]


def open_private(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """Open a text file to append to or to write anew; nobody but its owner may read it."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_TRUNC)
    return os.fdopen(os.open(path, flags, 0o600), mode, encoding="utf-8")


def _number(entry: FleetEntry) -> int:
    _, _, number = entry.fleet_id.rpartition("-")
    return int(number) if number.isdigit() else 0
