"""``<state>/demo.json``: what a demo was told and how far it came, and what may be done with the state.

A demo replaces by itself only what a finished demo left; anything else in a state directory is somebody's
work, and is kept until the user says --fresh.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provisioning.cli.client import SERVICE_RECORD, read_service_record
from provisioning.cli.errors import UnfinishedRunError, UsageError

RECORD = "demo.json"
MARKER = "muster.json"
FORMAT = 1
# All that a state directory holds. Files of other names are not ours and stay, whatever the user says.
OWN_FILES = (
    RECORD,
    MARKER,
    SERVICE_RECORD,
    "service.log",
    "signing.key",
    "trusted.keys",
    "group.key",
    "engine.db*",
    "registry.db*",
    "*.lock",
    f"releases/{'[0-9a-f]' * 64}.bin",
    "releases/.staged-*",
)
OWN_DIRECTORIES = ("stack", "fleets")


@dataclass(frozen=True, kw_only=True)
class DemoRecord:
    """One demo; ``fleet_id`` and ``run_id`` are None until they exist."""

    devices: int
    seed: int
    behaviours: dict[str, float] | None
    options: dict[str, Any]
    fleet_id: str | None = None
    run_id: str | None = None
    finished: bool = False

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"{self.devices:,} device{'s' if self.devices != 1 else ''}, seed {self.seed}"


def read_demo(state_dir: Path) -> DemoRecord | None:
    """Return the demo on record, or None where there is none or none that this version understands."""
    try:
        data: dict[str, Any] = json.loads((state_dir / RECORD).read_text())
        if data.pop("format") != FORMAT:
            return None
        return DemoRecord(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_demo(state_dir: Path, record: DemoRecord) -> None:
    """Put ``record`` on record in one step; makes the directory where it is missing."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = state_dir / f".{RECORD}.{os.getpid()}"
        temporary.write_text(json.dumps({"format": FORMAT, **asdict(record)}, indent=1))
        temporary.replace(state_dir / RECORD)
    except OSError as error:
        raise UsageError(
            f"cannot write into the state directory {state_dir}: {error.strerror}; name another one"
        ) from error


def forget_finished_demo(state_dir: Path) -> None:
    """Take note that a finished demo's state is used further, so that no later demo replaces it by itself."""
    record = read_demo(state_dir)
    if record is not None and record.finished:
        with contextlib.suppress(OSError):
            (state_dir / RECORD).unlink()


@contextlib.contextmanager
def held(state_dir: Path) -> Iterator[None]:
    """Keep other demos and services off ``state_dir``; ends with the process, however that ends.

    The service has a lock of its own, but a demo clears a state before there is a service on it, and a
    service starts its stack before. Makes the directory where it is missing. Raises UsageError where
    another holds it.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state_dir, os.O_RDONLY)
    except OSError as error:
        raise UsageError(
            f"cannot use {state_dir} as the state directory: {error.strerror}; name another one"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another demo or service runs on the state directory {state_dir}: wait for it, stop it,"
                " or name another directory with --state-dir"
            ) from None
        yield
    finally:
        os.close(descriptor)


def demo_to_run(state_dir: Path, wanted: DemoRecord, *, fresh: bool, resume: bool) -> DemoRecord:
    """Return the demo to run: ``wanted`` on an empty state, or with ``resume`` the one on record.

    Raises UsageError (UnfinishedRunError) where the state and the flags don't fit together. Nothing is
    changed here; `clear_state` is for the caller, once this has returned.
    """
    if fresh and resume:
        raise UsageError("--fresh and --resume exclude each other: start over, or go on")
    service = read_service_record(state_dir)
    if service is not None and service.alive:
        raise UsageError(
            f"a service (process {service.pid}) runs on the state directory {state_dir}: stop it with"
            " `muster down`, or name another directory with --state-dir"
        )
    record = read_demo(state_dir)
    if resume:
        return _demo_to_resume(state_dir, record)
    if fresh or (record is not None and record.finished):
        return wanted
    if record is not None:
        raise UnfinishedRunError(
            f"{state_dir} holds an unfinished demo ({record.title}): go on with it by --resume, or start"
            " over with --fresh (with make: RESUME=1 or FRESH=1)"
        )
    if holds_state(state_dir):
        raise UnfinishedRunError(
            f"{state_dir} holds the state of a service that is no demo's: --fresh deletes it (with make:"
            " FRESH=1), --state-dir names another directory (with make: STATE=…)"
        )
    return wanted


def holds_state(state_dir: Path) -> bool:
    """Whether a service has kept its state here."""
    return any((state_dir / name).exists() for name in (MARKER, "engine.db", "registry.db"))


def clear_state(state_dir: Path) -> None:
    """Delete what Muster has put into ``state_dir``; the directory itself stays (it may be held)."""
    for pattern in OWN_FILES:
        for path in state_dir.glob(pattern):
            if not path.is_dir():
                path.unlink(missing_ok=True)
    for name in OWN_DIRECTORIES:
        if (state_dir / name).is_dir() and not (state_dir / name).is_symlink():
            shutil.rmtree(state_dir / name)
    # What a name like this holds may be somebody's own.
    with contextlib.suppress(OSError):
        (state_dir / "releases").rmdir()


def state_size_bytes(state_dir: Path) -> int:
    """Return how much room the state takes."""
    total = 0
    for path in state_dir.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


def _demo_to_resume(state_dir: Path, record: DemoRecord | None) -> DemoRecord:
    if record is None:
        raise UsageError(f"{state_dir} holds no demo to resume: start one without --resume")
    if record.finished:
        raise UsageError(
            f"the demo in {state_dir} has finished, there is nothing to resume: look at it with `muster up`"
            " and `muster devices`, or start a new one without --resume"
        )
    return record
