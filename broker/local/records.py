"""What is remembered of a process of the local stack, so that a later service finds it again.

One JSON file per program (``<state>/stack/<name>/process.json``), written atomically. It outlives the
process: a stopped program's record keeps its port, because devices and SAS URLs hold on to that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from broker.private_files import make_private_directory, write_private

RECORD_FILE: Final = "process.json"
FORMAT: Final = 1
MAX_RECORD_BYTES: Final = 64 * 1024
# A process's creation time is derived from the boot time, which shifts by a little when the clock is set.
CREATION_TOLERANCE_S: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """One program of the local stack: where it listens and, while it runs, which process it is.

    ``pid`` and ``created_at`` (seconds since the epoch, as psutil has it) are None once it was stopped.
    ``fingerprint`` stands for everything that a running process can't change any more: program, options,
    configuration. A process with another fingerprint is replaced, not adopted.
    """

    name: str
    port: int
    pid: int | None
    created_at: float | None
    argv: tuple[str, ...]
    fingerprint: str

    def process(self) -> psutil.Process | None:
        """The living process of this record, or None; a reused pid is told by its creation time."""
        if self.pid is None or self.created_at is None:
            return None
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created_at) > CREATION_TOLERANCE_S:
                return None
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.Error:
            return None
        return process


def stack_directory(state_dir: Path, name: str) -> Path:
    """Where the program ``name`` of a state directory's stack lives; made, readable by its owner only."""
    directory = state_dir.absolute() / "stack" / name
    for path in (state_dir, directory.parent, directory):
        make_private_directory(path)
    return directory


def read_record(directory: Path) -> ProcessRecord | None:
    """The record in ``directory``; None where there is none, or none that this version understands.

    An unreadable record is no error: the worst that follows is a program started on another port.
    """
    path = directory / RECORD_FILE
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MAX_RECORD_BYTES))
        if data.pop("format") != FORMAT:
            return None
        pid = None if data["pid"] is None else int(data["pid"])
        if pid is not None and pid <= 0:
            return None
        return ProcessRecord(
            name=str(data["name"]),
            port=int(data["port"]),
            pid=pid,
            created_at=None if data["created_at"] is None else float(data["created_at"]),
            argv=tuple(str(word) for word in data["argv"]),
            fingerprint=str(data["fingerprint"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def write_record(directory: Path, record: ProcessRecord) -> None:
    """Replace the record in ``directory`` in one step; readable by its owner only."""
    write_private(directory / RECORD_FILE, json.dumps({"format": FORMAT, **asdict(record)}, indent=1))


def forget_record(directory: Path) -> None:
    """Remove the record in ``directory``, if any."""
    (directory / RECORD_FILE).unlink(missing_ok=True)


def stack_records(state_dir: Path) -> Iterator[tuple[Path, ProcessRecord]]:
    """Every record of a state directory's local stack, with the directory that it is in."""
    for path in sorted((state_dir / "stack").glob(f"*/{RECORD_FILE}")):
        record = read_record(path.parent)
        if record is not None:
            yield path.parent, record
