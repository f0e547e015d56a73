"""Ending what a state directory's records name, with and without a living service."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from provisioning.cli.client import SERVICE_RECORD, read_service_record
from provisioning.cli.fleet_records import CREATION_TOLERANCE_S, FleetBook

KILL_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.02


def service_process(state_dir: Path) -> psutil.Process | None:
    """Return the process of the service of ``state_dir``; None where it is gone.

    A pid that was given to another program since is told by that program having started later.
    """
    record = read_service_record(state_dir)
    if record is None:
        return None
    try:
        process = psutil.Process(record.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        started_at = _started_at_s(state_dir)
        if started_at is not None and process.create_time() > started_at + CREATION_TOLERANCE_S:
            return None
    except psutil.Error:
        return None
    return process


def recorded_processes(state_dir: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Yield a name and the process of everything of ``state_dir`` that lives, the service first."""
    from broker.local.records import stack_records

    service = service_process(state_dir)
    if service is not None:
        yield "service", service
    for entry, process in FleetBook(state_dir).living():
        yield entry.fleet_id, process
    for _, record in stack_records(state_dir):
        process_of_stack = record.process()
        if process_of_stack is not None:
            yield record.name, process_of_stack


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return ``process`` and all its descendants, itself first; empty where it is gone."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to all, in order, and wait until they are gone."""
    targets = list(processes)
    for process in targets:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_ended(targets, KILL_TIMEOUT_S)


def wait_ended(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for the end of all; return those that live on after ``timeout_s``.

    A zombie has ended: it holds nothing any more, and how soon its parent takes note is not ours.
    """
    deadline = time.monotonic() + timeout_s
    alive = list(processes)
    while alive := [process for process in alive if _lives(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_INTERVAL_S)
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_everything(state_dir: Path, also: Iterable[psutil.Process] = ()) -> None:
    """End, without asking, ``also`` and all that the records of ``state_dir`` name."""
    kill([*also, *(process for _, process in recorded_processes(state_dir))])
    (state_dir / SERVICE_RECORD).unlink(missing_ok=True)


def _started_at_s(state_dir: Path) -> float | None:
    from provisioning.cli.terminal import parse_timestamp

    try:
        moment = parse_timestamp(json.loads((state_dir / SERVICE_RECORD).read_text()).get("started_at"))
    except (OSError, ValueError, AttributeError):
        return None
    return None if moment is None else float(moment.timestamp())
