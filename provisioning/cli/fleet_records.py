"""What is remembered of a fleet: ``<state>/fleets/<fleet_id>.json`` and its log beside it.

A record says what the fleet is, what was changed since its launch and which processes run it, so that a
service that comes back after a ``kill -9`` finds its devices, and `muster down` can end them without a
service. A fleet stays on record, and so comes back with the next `muster up`, until someone stops it by name.

Beside it are the files that its processes read and write:

| file | what |
|---|---|
| `<fleet_id>.fleet` | the fleet as a process is started with: its spec and the changes |
| `<fleet_id>.broker` | the broker's URL, which may hold a password |
| `<fleet_id>-<part>.stats` | what a process counts |
| `<fleet_id>-<part>.control` | where a process takes changes, and its token |
| `<fleet_id>.past` | what processes that are gone had counted |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import psutil

from broker.identity import DEFAULT_TOKEN_LIFETIME_S
from broker.masking import masked

FORMAT = 2
# A fleet may name its devices one by one.
MAX_RECORD_BYTES = 64 * 1024 * 1024
LOG_TAIL_BYTES = 8 * 1024
# A creation time is derived from the boot time, which shifts by a little when the clock is set.
CREATION_TOLERANCE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process of a fleet: it runs part ``part`` of as many as the fleet has processes."""

    part: int
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
    """A fleet on record. ``request`` is what was asked for, as the API takes it.

    ``changes`` are those that last: the ``change`` as `devices.roster.Change` has it, and ``at``, in seconds
    since the epoch. ``number`` counts all that there were of them, so that no process makes one twice.
    """

    fleet_id: str
    request: dict[str, Any]
    processes: int
    broker_url: str = field(repr=False)
    trust_file: str
    started_at: str
    members: tuple[Member, ...] = ()
    changes: tuple[dict[str, Any], ...] = ()
    number: int = 0
    restarts: int = 0
    group_key_file: str | None = None
    token_lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S
    ca_file: str | None = None
    certificates: str | None = None
    """The directory with the certificates by which devices log in; None: they have none."""

    def member(self, part: int) -> Member | None:
        """The process of that part; None where none was started."""
        return next((member for member in self.members if member.part == part), None)

    def with_member(self, member: Member) -> FleetEntry:
        """With ``member`` in the place of whichever ran its part."""
        others = (other for other in self.members if other.part != member.part)
        return replace(self, members=tuple(sorted((*others, member), key=lambda m: m.part)))


class FleetBook:
    """The records of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir.absolute() / "fleets"

    def entries(self) -> list[FleetEntry]:
        """Return all fleets on record, the first one first; files that can't be read are passed over."""
        found = [self._read(path) for path in self.directory.glob("*.json")]
        return sorted((entry for entry in found if entry is not None), key=_number)

    def unreadable(self) -> list[Path]:
        """Return the files that should hold a fleet and don't, or hold one of a newer version."""
        return sorted(path for path in self.directory.glob("*.json") if self._read(path) is None)

    def entry(self, fleet_id: str) -> FleetEntry | None:
        """Return the fleet of that id, or None."""
        return next((entry for entry in self.entries() if entry.fleet_id == fleet_id), None)

    def next_id(self) -> str:
        """Return an id that no fleet on record has."""
        numbers = [_number_of(path.stem) for path in self.directory.glob("*.json")]
        return f"fleet-{max(numbers, default=0) + 1}"

    def write(self, entry: FleetEntry) -> None:
        """Put ``entry`` on record, in one step; for its owner only: a broker URL can hold a password."""
        document = {"format": FORMAT, **_fields(entry)}
        document["members"] = [_fields(member) for member in entry.members]
        self.write_private(self._path(entry.fleet_id), json.dumps(document))

    def write_inputs(self, entry: FleetEntry) -> None:
        """Write what the processes of a fleet are started with."""
        changes = [one["change"] for one in entry.changes]
        fleet = {"spec": entry.request["spec"], "changes": changes, "number": entry.number}
        self.write_private(self.fleet_path(entry.fleet_id), json.dumps(fleet))
        self.write_private(self.broker_path(entry.fleet_id), entry.broker_url + "\n")

    def remove(self, fleet_id: str) -> None:
        """Forget a fleet; its log stays."""
        self._path(fleet_id).unlink(missing_ok=True)
        parts = (p for suffix in ("stats", "control") for p in self.directory.glob(f"{fleet_id}-*.{suffix}"))
        for path in (self.fleet_path(fleet_id), self.broker_path(fleet_id), self.past_path(fleet_id), *parts):
            path.unlink(missing_ok=True)

    def fleet_path(self, fleet_id: str) -> Path:
        """Return the file that the fleet's processes are started with."""
        return self.directory / f"{fleet_id}.fleet"

    def broker_path(self, fleet_id: str) -> Path:
        """Return the file with the URL of the fleet's broker."""
        return self.directory / f"{fleet_id}.broker"

    def past_path(self, fleet_id: str) -> Path:
        """Return the file with what processes that are gone had counted."""
        return self.directory / f"{fleet_id}.past"

    def statistics_path(self, fleet_id: str, part: int) -> Path:
        """Return the file with what the process of ``part`` counts."""
        return self.directory / f"{fleet_id}-{part}.stats"

    def control_path(self, fleet_id: str, part: int) -> Path:
        """Return the file that says where the process of ``part`` takes changes."""
        return self.directory / f"{fleet_id}-{part}.control"

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
        # What the interpreter itself has said in the log has gone by no formatter.
        return masked(lines[-1]) if lines else ""

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
            match data.pop("format"):
                case 1:
                    return _migrated(data)
                case 2:
                    members = tuple(Member(**member) for member in data.pop("members"))
                    # Earlier versions had a key here: processes that know no file are started anew.
                    if data.pop("trust", None) is not None:
                        data["trust_file"] = ""
                    return FleetEntry(members=members, changes=tuple(data.pop("changes")), **data)
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write_private(self, path: Path, text: str) -> None:
        """Write a file in one step, for its owner only."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open_private(temporary, "w") as file:
            file.write(text)
        temporary.replace(path)


def living(members: Iterable[Member]) -> list[psutil.Process]:
    """Return the processes among ``members`` that live."""
    return [process for member in members if (process := member.process()) is not None]


def open_private(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """Open a text file to append to or to write anew; nobody but its owner may read it."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_TRUNC)
    return os.fdopen(os.open(path, flags, 0o600), mode, encoding="utf-8")


def _migrated(data: dict[str, Any]) -> FleetEntry:
    """A record of the first format, of a fleet of one group.

    Its processes know nothing of changes: without a broker they fit no service, which starts them anew.
    """
    request = data["request"]
    group = {
        "name": "devices",
        **{name: request[name] for name in ("count", "model", "firmware_version", "tags", "prefix")},
    }
    if request.get("behaviours"):
        group["behaviours"] = request["behaviours"]
    return FleetEntry(
        fleet_id=data["fleet_id"],
        request={
            "spec": {"seed": request["seed"], "groups": [group]},
            "processes": request.get("processes"),
            "shard": None,
        },
        processes=data["processes"],
        broker_url="",
        trust_file="",
        started_at=data["started_at"],
        members=tuple(
            Member(part=member["shard"], pid=member["pid"], created_at=member["created_at"])
            for member in data["members"]
        ),
    )


def _fields(record: FleetEntry | Member) -> dict[str, Any]:
    # Not `asdict`, which copies every list: a spec may name a hundred thousand devices.
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _number(entry: FleetEntry) -> int:
    return _number_of(entry.fleet_id)


def _number_of(fleet_id: str) -> int:
    _, _, number = fleet_id.rpartition("-")
    return int(number) if number.isdigit() else 0
