"""Fleets as processes: the `FleetLauncher` that the command line gives to the service.

A fleet is as many ``python -m devices`` processes as its size asks for, each in a session of its own, so
that neither a Ctrl-C nor a ``kill -9`` of the service reaches the devices. `restore` adopts those that
live; those that don't (the machine was restarted, or the service was stopped in order) are started again
from the record, with the same seed and therefore as the same devices. A process that dies while the service
runs is shown as such and not started again: devices that crash are a finding, not an outage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from devices.arguments import FleetArguments, to_argv
from devices.plan import DEFAULT_BEHAVIOURS, FleetSpec, FleetSpecError
from provisioning.cli.fleet_records import FleetBook, FleetEntry, Member, living, open_private
from provisioning.errors import RequestError, UnknownFleetError

if TYPE_CHECKING:
    from provisioning.fleets import FleetRecord, FleetRequest

DEVICES_PER_PROCESS = 2_500
MAX_PROCESSES = 64
MAX_FLEETS = 100
START_TIMEOUT_S = 20.0
# The devices say goodbye for up to 15 s (FleetOptions.stop_timeout_s).
STOP_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.02


class FleetRefusedError(RequestError):
    """A fleet that can't be launched as it was asked for."""

    status = 409
    title = "Fleet refused"


class FleetStartError(RequestError):
    """A fleet whose processes did not come up; the message holds their last words."""

    status = 503
    title = "Fleet not started"


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What `restore` did with one fleet on record."""

    fleet_id: str
    count: int
    adopted: bool


class ProcessFleetLauncher:
    """Launches, lists, stops, restores the fleets of one state directory; one service at a time uses it.

    ``trust`` gives the base64 public key that packages are signed with; it is asked when a fleet starts,
    because the service makes the key on its first start.
    """

    def __init__(self, *, state_dir: Path, broker_url: str, trust: Callable[[], str]) -> None:
        self._book = FleetBook(state_dir)
        self._broker_url = broker_url
        self._trust = trust
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = asyncio.Lock()

    async def launch(self, request: FleetRequest) -> FleetRecord:
        """Start a fleet and return when its processes run their devices.

        Raises FleetRefusedError where its device ids are another fleet's, FleetStartError with the reason.
        """
        async with self._lock:
            entries = self._book.entries()
            twin = next((e for e in entries if e.request["prefix"] == request.prefix), None)
            if twin is not None:
                raise FleetRefusedError(
                    f"{twin.fleet_id} has devices named {request.prefix}-…: stop it first"
                    f" (`muster fleet stop {twin.fleet_id}`), or choose another --prefix"
                )
            if len(entries) >= MAX_FLEETS:
                raise FleetRefusedError(
                    f"there are {MAX_FLEETS} fleets: stop some first (`muster fleet stop`)"
                )
            entry = FleetEntry(
                fleet_id=self._book.next_id(),
                request=request.model_dump(),
                processes=request.processes or process_count(request.count),
                broker_url=self._broker_url,
                trust=self._trust(),
                started_at=datetime.now(UTC).isoformat(),
                members=(),
            )
            try:
                return self._record(await self._start(entry, range(1, entry.processes + 1)))
            except BaseException:
                # A launch that failed leaves nothing that would come back later.
                self._book.remove(entry.fleet_id)
                raise

    async def list(self) -> Sequence[FleetRecord]:
        """Return all fleets on record, the latest first."""
        return [self._record(entry) for entry in reversed(self._book.entries())]

    async def stop(self, fleet_id: str) -> FleetRecord:
        """Stop a fleet's processes and forget it; UnknownFleetError where there is none of that id."""
        async with self._lock:
            entry = self._book.entry(fleet_id)
            if entry is None:
                raise UnknownFleetError(fleet_id)
            await self._end(living(entry.members))
            self._book.remove(fleet_id)
            return self._record(replace(entry, members=()))

    async def stop_all(self) -> None:
        """Stop the processes of all fleets; the fleets stay on record, for `restore`."""
        async with self._lock:
            entries = self._book.entries()
            await self._end([process for entry in entries for process in living(entry.members)])
            for entry in entries:
                self._book.write(replace(entry, members=()))

    async def restore(self) -> Sequence[Restored]:
        """Bring all fleets on record to life: adopt the processes that live, start the others.

        Devices that were started with another broker or another signing key are started anew.
        """
        restored = []
        async with self._lock:
            for entry in self._book.entries():
                current = replace(entry, broker_url=self._broker_url, trust=self._trust())
                alive = tuple(member for member in entry.members if member.process() is not None)
                if current != entry:
                    await self._end(living(alive))
                    alive = ()
                missing = set(range(1, entry.processes + 1)) - {member.shard for member in alive}
                if missing:
                    await self._start(replace(current, members=alive), sorted(missing))
                restored.append(
                    Restored(fleet_id=entry.fleet_id, count=entry.request["count"], adopted=not missing)
                )
        return restored

    async def _start(self, entry: FleetEntry, shards: Iterable[int]) -> FleetEntry:
        """Start the processes of ``shards`` beside those that ``entry`` names; return it with all of them."""
        spec = _spec(entry.request)
        self._book.write(entry)
        started: list[tuple[subprocess.Popen[bytes], Path]] = []
        try:
            for shard in shards:
                child, statistics = self._spawn(entry, spec, shard)
                started.append((child, statistics))
                member = Member(
                    shard=shard, pid=child.pid, created_at=psutil.Process(child.pid).create_time()
                )
                entry = replace(entry, members=(*entry.members, member))
                # After each one: a service that is killed now must find what it started.
                self._book.write(entry)
            await self._wait_started(entry, started)
        except BaseException:
            await self._end([psutil.Process(child.pid) for child, _ in started if child.poll() is None])
            raise
        return entry

    def _spawn(self, entry: FleetEntry, spec: FleetSpec, shard: int) -> tuple[subprocess.Popen[bytes], Path]:
        statistics = self._book.directory / f"{entry.fleet_id}-{shard}.stats"
        statistics.unlink(missing_ok=True)
        arguments = FleetArguments(
            spec=spec,
            broker_url=entry.broker_url,
            trust=(entry.trust,),
            shard=(shard, entry.processes),
            stats_file=statistics,
        )
        with open_private(self._book.log_path(entry.fleet_id), "a") as log:
            child = subprocess.Popen(
                # -P: a directory of the user's that is called "devices" must not be taken for ours.
                [sys.executable, "-P", "-m", "devices", *to_argv(arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return child, statistics

    async def _wait_started(
        self, entry: FleetEntry, started: Sequence[tuple[subprocess.Popen[bytes], Path]]
    ) -> None:
        """Wait until each process has written its statistics once: then its devices are under way."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(statistics.exists() for _, statistics in started):
            ended = next((child for child, _ in started if child.poll() is not None), None)
            if ended is not None:
                words = self._book.last_words(entry.fleet_id).removeprefix("devices: ")
                raise FleetStartError(
                    f"{entry.fleet_id} did not start: {words or f'exit status {ended.returncode}'}"
                )
            if time.monotonic() > deadline:
                raise FleetStartError(
                    f"{entry.fleet_id} did not start within {START_TIMEOUT_S:g} s: see"
                    f" {self._book.log_path(entry.fleet_id)}, or launch a smaller fleet"
                )
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _end(self, processes: Sequence[psutil.Process]) -> None:
        """SIGTERM to all at once, SIGKILL to those that take too long; returns when none lives."""
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        if not await self._wait_ended(processes, STOP_TIMEOUT_S):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await self._wait_ended(processes, KILL_TIMEOUT_S)

    async def _wait_ended(self, processes: Sequence[psutil.Process], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while any(self._lives(process) for process in processes):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_INTERVAL_S)
        return True

    def _lives(self, process: psutil.Process) -> bool:
        child = self._children.get(process.pid)
        if child is not None:
            if child.poll() is None:
                return True
            del self._children[process.pid]
            return False
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _record(self, entry: FleetEntry) -> FleetRecord:
        from provisioning.fleets import FleetRecord

        for child in self._children.values():
            child.poll()  # reaps what has ended
        alive = living(entry.members)
        dead = len(entry.members) - len(alive)
        words = self._book.last_words(entry.fleet_id) if dead else ""
        error = f"{dead} of {entry.processes} processes ended by themselves: {words}" if dead else None
        more: dict[str, Any] = {"processes": entry.processes, "error": error}
        return FleetRecord(
            fleet_id=entry.fleet_id,
            count=entry.request["count"],
            seed=entry.request["seed"],
            behaviours=entry.request["behaviours"],
            model=entry.request["model"],
            firmware_version=entry.request["firmware_version"],
            tags=entry.request["tags"],
            prefix=entry.request["prefix"],
            pids=[process.pid for process in alive],
            running=bool(alive) and not dead,
            started_at=entry.started_at,
            **more,
        )


def process_count(count: int) -> int:
    """Return how many processes share ``count`` devices by default: no more than the machine has cores."""
    return max(1, min(-(-count // DEVICES_PER_PROCESS), os.cpu_count() or 1, MAX_PROCESSES))


def _spec(request: dict[str, Any]) -> FleetSpec:
    try:
        return FleetSpec(
            count=request["count"],
            seed=request["seed"],
            behaviours=request["behaviours"] or DEFAULT_BEHAVIOURS,
            model=request["model"],
            firmware_version=request["firmware_version"],
            tags=request["tags"],
            prefix=request["prefix"],
        )
    except FleetSpecError as error:
        refused = FleetRefusedError(str(error))
        refused.status = 422
        raise refused from error
