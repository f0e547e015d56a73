"""Fleets as processes: the `FleetLauncher` that the command line gives to the service.

A fleet is as many ``python -m devices`` processes as its size asks for, which share its devices. They
outlive the service: `restore` adopts those that live, and starts the others again from the record, with the
same seed and changes and therefore as the same devices. While the launcher is entered (``async with``) it
also starts processes again that die. Their devices register as fresh ones, and the service sends again what
they had been sent, so that their provisioning completes. A process that dies again and again stays down, and
the fleet's record says so: that is a finding, not an outage.

A change is checked against all the fleet's devices, then written down if it lasts, then told to each process
that lives. One that does not take it is killed: it is started again with the record, which has the change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from broker.identity import DEFAULT_TOKEN_LIFETIME_S
from devices.errors import FleetSpecError
from devices.errors import FleetStartError as TooLargeError
from devices.roster import Change, Roster
from devices.spec import FleetSpec
from provisioning.cli.behaviour_list import behaviour_list
from provisioning.cli.fleet_certificates import FleetCertificates
from provisioning.cli.fleet_groups import completed
from provisioning.cli.fleet_limits import check_machine, processes_for
from provisioning.cli.fleet_metrics import prometheus
from provisioning.cli.fleet_processes import FleetProcesses, FleetStartError, shard_of
from provisioning.cli.fleet_records import FleetBook, FleetEntry
from provisioning.cli.fleet_refusals import FleetRefusedError, explained, writing
from provisioning.cli.fleet_statistics import FleetStatistics
from provisioning.cli.known_fleet import KnownFleet, owner_of, roster_of
from provisioning.cli.supervisor import Part, Supervisor
from provisioning.errors import RequestError, UnknownFleetError, name_some
from provisioning.settings import MAX_FLEET_PROCESSES

if TYPE_CHECKING:
    from provisioning.fleets import FleetDevice, FleetRecord, FleetRequest

__all__ = ["FleetRefusedError", "FleetStartError", "ProcessFleetLauncher", "Restored", "process_count"]

DEVICES_PER_PROCESS: Final = 2_500
MAX_FLEETS: Final = 100

Json = dict[str, Any]


async def _nobody_asks(_device_ids: Sequence[str], _fleet_id: str) -> None:
    """For a broker that does not ask who is enrolled."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What `restore` did with one fleet on record; ``problem`` says why it does not run."""

    fleet_id: str
    devices: int
    adopted: bool
    problem: str | None = None


class ProcessFleetLauncher:
    """Launches, changes, lists, stops, restores the fleets of one state directory; one at a time uses it.

    ``trust_file`` holds the public keys that packages are signed with; devices follow it, and the service
    writes it before the first fleet starts. ``group_key_file`` holds what devices derive their credentials
    from, where the broker's URL has none. ``certificates``: they log in by these instead. ``ca_file`` is whom
    they trust at another broker, where that is not for the system to say. ``enrol`` lets devices in at the
    broker, before they connect: their ids, and the fleet's. ``broker_files`` is how many files the broker may
    open, None where it is not of this machine. ``owned``: the fleets end with this process, however it ends.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        broker_url: str,
        trust_file: Path,
        group_key_file: Path | None = None,
        token_lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S,
        ca_file: Path | None = None,
        certificates: FleetCertificates | None = None,
        enrol: Callable[[Sequence[str], str], Awaitable[object]] = _nobody_asks,
        broker_files: int | None = None,
        owned: bool = False,
    ) -> None:
        self._book = FleetBook(state_dir)
        self._broker_url = broker_url
        self._trust_file = str(trust_file.absolute())
        self._group_key_file = None if group_key_file is None else str(group_key_file)
        self._token_lifetime_s = token_lifetime_s
        self._certificates = certificates
        if certificates is not None:
            ca_file = certificates.authority.certificate_file
        self._ca_file = None if ca_file is None else str(ca_file.absolute())
        self._enrol = enrol
        self._broker_files = broker_files
        self._processes = FleetProcesses(self._book, owned=owned)
        self._statistics = FleetStatistics(self._book)
        self._supervisor = Supervisor(dead=self._dead, restart=self._restart)
        self._fleets: dict[str, KnownFleet] | None = None
        self._loading = asyncio.Lock()
        # One thing at a time is done to processes: so each has all changes that its record has.
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Begin to start processes again that die."""
        await self._known()
        self._supervisor.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._supervisor.close()

    # -- launch, list, stop ------------------------------------------------------------------------------

    async def launch(self, request: FleetRequest) -> FleetRecord:
        """Start a fleet and return when its processes run their devices.

        Raises FleetRefusedError with the reason, FleetStartError with the processes' last words.
        """
        async with self._lock:
            fleets = await self._known()
            if len(fleets) >= MAX_FLEETS:
                raise FleetRefusedError(
                    f"there are {MAX_FLEETS} fleets: stop some first (`muster fleet stop`)"
                )
            with explained():
                roster = await asyncio.to_thread(roster_of, request.spec, request.shard)
            devices = len(roster.entries)
            if not devices:
                raise FleetRefusedError.unprocessable(
                    f"shard: {request.shard} of {roster.spec.count:,} devices has none; use fewer shards"
                )
            self._check_distinct(roster.entries)
            processes = request.processes or max(process_count(devices), processes_for(devices))
            self._check_machine(devices=devices, more=devices, processes=processes)
            entry = FleetEntry(
                fleet_id=self._book.next_id(),
                request={"spec": roster.spec.to_document(), "processes": processes, "shard": request.shard},
                processes=processes,
                broker_url=self._broker_url,
                trust_file=self._trust_file,
                started_at=datetime.now(UTC).isoformat(),
                group_key_file=self._group_key_file,
                token_lifetime_s=self._token_lifetime_s,
                ca_file=self._ca_file,
                certificates=self._certificates_path(),
            )
            fleet = KnownFleet.of(entry, roster)
            await self._let_in(list(roster.entries), entry.fleet_id)
            # Known only when it is there: nobody is to look after it before.
            try:
                with writing():
                    await self._start(fleet, range(1, processes + 1))
            except BaseException:
                # A launch that failed leaves nothing that would come back later.
                self._book.remove(entry.fleet_id)
                raise
            fleets[entry.fleet_id] = fleet
            return self._record(fleet)

    async def list(self) -> Sequence[FleetRecord]:
        """Return all fleets on record, the latest first."""
        return [self._record(fleet) for fleet in reversed((await self._known()).values())]

    async def show(self, fleet_id: str) -> FleetRecord:
        """Return one fleet with its statistics."""
        fleet = await self._fleet(fleet_id)
        return self._record(fleet, statistics=self._counted(fleet))

    async def stop(self, fleet_id: str) -> FleetRecord:
        """Stop a fleet's processes and forget it; returns its last statistics too."""
        async with self._lock:
            fleet = await self._fleet(fleet_id)
            fleet.stopped = True
            await self._processes.end(fleet.entry.members)
            statistics = self._counted(fleet)
            self._book.remove(fleet_id)
            if self._certificates is not None and fleet.roster is not None:
                await asyncio.to_thread(self._certificates.remove, list(fleet.roster.entries))
            del (await self._known())[fleet_id]
            self._supervisor.forget(fleet_id)
            return self._record(fleet, statistics=statistics)

    async def stop_all(self) -> None:
        """Stop the processes of all fleets; the fleets stay on record, for `restore`."""
        async with self._lock:
            fleets = list((await self._known()).values())
            for fleet in fleets:
                fleet.stopped = True
            await self._processes.end([member for fleet in fleets for member in fleet.entry.members])
            for fleet in fleets:
                fleet.entry = replace(fleet.entry, members=())
                # On a full disk the record names processes that are gone, which does no harm.
                with contextlib.suppress(OSError):
                    self._book.write(fleet.entry)

    async def restore(self) -> Sequence[Restored]:
        """Bring all fleets on record to life: adopt the processes that live, start the others.

        Devices that were started with another broker, trust file or group key are started anew.
        """
        async with self._lock:
            restored = [await self._bring_back(fleet) for fleet in (await self._known()).values()]
        return restored + [
            Restored(
                fleet_id=path.stem,
                devices=0,
                adopted=False,
                problem=f"{path} can't be read; delete it, and launch the fleet anew",
            )
            for path in self._book.unreadable()
        ]

    def last_words(self, fleet_id: str) -> str:
        """Return the last message of a fleet's processes, or an empty string."""
        # Without its time, level and logger.
        return self._book.last_words(fleet_id).rpartition(" devices.fleet: ")[2]

    def behaviours(self, *, max_attempts: int) -> Sequence[Json]:
        """Return the behaviours that devices may have."""
        return behaviour_list(max_attempts=max_attempts)

    async def metrics(self, fleet_id: str | None = None) -> str:
        """Return the statistics of one fleet, or all, in Prometheus' text format."""
        known = (await self._known()).values() if fleet_id is None else [await self._fleet(fleet_id)]
        return prometheus((self._record(fleet).model_dump(), self._counted(fleet)) for fleet in known)

    # -- devices and changes -----------------------------------------------------------------------------

    async def devices(self, fleet_id: str) -> Sequence[FleetDevice]:
        """Return the devices of a fleet on this host, group after group."""
        fleet = await self._fleet(fleet_id)
        self._roster_of(fleet)
        return fleet.devices()

    async def change(self, fleet_id: str, change: Mapping[str, Any]) -> Json:
        """Change devices of a fleet while it runs.

        Raises FleetRefusedError, and then nothing has changed.
        """
        async with self._lock:
            fleet = await self._fleet(fleet_id)
            roster = self._roster_of(fleet)
            now = time.time()
            with explained():
                understood = Change.from_document(completed(change, fleet_id, await self._specs()))
                self._check_change(fleet, roster, understood)
                understood = replace(understood, which=roster.exact(understood.which))
                # What changes nothing is not kept, and no reason not to judge devices. It is told all the
                # same: devices may be offline for a while, or processes given up.
                if understood.group is not None:
                    await self._let_in(list(understood.group.device_ids()), fleet.fleet_id)
                new = not roster.is_so(understood)
                entry = fleet.recorded(understood, at=now) if new else fleet.entry
                affected = len(fleet.apply(understood, at=now) if new else roster.select(understood.which))
            if understood.lasts and new:
                try:
                    with writing():
                        self._book.write_inputs(entry)
                        self._book.write(entry)
                except RequestError:
                    fleets = await self._known()
                    fleets[fleet_id] = await asyncio.to_thread(KnownFleet.load, fleet.entry)
                    raise
                fleet.entry = entry
            if understood.do == "start":
                # Processes that were given up, too.
                self._supervisor.forget(fleet_id)
                fleet.problem, fleet.stopped = None, False
            living = list(self._processes.living(entry).values())
            missed = await self._processes.tell(
                entry, living, understood, number=entry.number if understood.lasts and new else None
            )
            if understood.lasts:
                await self._processes.kill(missed)
        answer: Json = {
            "fleet_id": fleet_id,
            "do": understood.do,
            "affected": affected,
            "processes": len(living),
            "missed": len(missed),
            "lasts": understood.lasts,
        }
        return answer if understood.group is None else {**answer, "group": understood.group.to_document()}

    def _check_change(self, fleet: KnownFleet, roster: Roster, change: Change) -> None:
        """Check what a part of the devices, which is all that a process has, can't tell."""
        if (ids := change.which.devices) is not None:
            unknown = [device_id for device_id in ids if device_id not in roster.entries]
            if unknown:
                raise FleetSpecError(
                    "which.devices",
                    f"{fleet.fleet_id} has no {name_some(unknown)} here",
                    f"`muster fleet show {fleet.fleet_id} --devices` lists what it has",
                )
        if (behaviour := change.which.behaviour) is not None:
            roster.spec.catalogue.check(behaviour, key="which.behaviour")
        if change.group is not None:
            self._check_distinct(change.group.device_ids(), besides=fleet)
            _, parts = shard_of(fleet.entry)
            more = -(-change.group.count // parts)
            self._check_machine(devices=fleet.size + more, more=more, processes=fleet.entry.processes)

    async def _let_in(self, device_ids: Sequence[str], fleet_id: str) -> None:
        """Devices that are about to connect."""
        await self._enrol(device_ids, fleet_id)
        if self._certificates is not None:
            with writing():
                await asyncio.to_thread(self._certificates.provide, device_ids)

    async def renew_certificates(self) -> None:
        """Make those anew that end soon; raises CertificateError."""
        if self._certificates is not None:
            for fleet in list((await self._known()).values()):
                if fleet.roster is not None:
                    await asyncio.to_thread(self._certificates.provide, list(fleet.roster.entries))

    def _certificates_path(self) -> str | None:
        return None if self._certificates is None else str(self._certificates.directory)

    # -- processes ---------------------------------------------------------------------------------------

    async def _bring_back(self, fleet: KnownFleet) -> Restored:
        entry, processes = fleet.entry, self._processes
        current = replace(
            entry,
            broker_url=self._broker_url,
            trust_file=self._trust_file,
            group_key_file=self._group_key_file,
            token_lifetime_s=self._token_lifetime_s,
            ca_file=self._ca_file,
            certificates=self._certificates_path(),
        )
        if fleet.roster is not None:
            await self._let_in(list(fleet.roster.entries), fleet.fleet_id)
        living = processes.living(entry)
        if current != entry or fleet.roster is None:
            await processes.end(list(living.values()))
            living = {}
        elif entry.changes:
            # A service that was killed in the midst of a change may not have told all of them.
            last, _ = fleet.lasting()[-1]
            missed = await processes.tell(entry, list(living.values()), last, number=entry.number)
            await processes.kill(missed)
            living = processes.living(entry)
        fleet.entry = replace(current, members=tuple(living.values()))
        fleet.stopped = False
        missing = [part for part in range(1, entry.processes + 1) if part not in living]
        if fleet.roster is not None and missing:
            try:
                self._check_machine(devices=fleet.size, more=0, processes=entry.processes)
                with writing():
                    await self._start(fleet, missing)
            except RequestError as error:
                fleet.problem, fleet.stopped = str(error), True
        return Restored(
            fleet_id=fleet.fleet_id, devices=fleet.size, adopted=not missing, problem=fleet.problem
        )

    def _dead(self) -> Iterator[Part]:
        """The processes that should live and don't."""
        for fleet in list((self._fleets or {}).values()):
            if not fleet.stopped and fleet.roster is not None and not self._lock.locked():
                living = self._processes.living(fleet.entry)
                for part in range(1, fleet.entry.processes + 1):
                    if part not in living:
                        yield fleet.fleet_id, part

    async def _restart(self, part: Part) -> None:
        fleet_id, number = part
        async with self._lock:
            fleet = (await self._known()).get(fleet_id)
            if fleet is None or fleet.stopped or number in self._processes.living(fleet.entry):
                return
            fleet.entry = replace(fleet.entry, restarts=fleet.entry.restarts + 1)
            await self._start(fleet, [number])

    async def _start(self, fleet: KnownFleet, parts: Iterable[int]) -> None:
        """Start the processes of ``parts`` beside those that live; on record, all or none of them."""
        self._book.write(fleet.entry)
        self._book.write_inputs(fleet.entry)
        started = []
        try:
            for part in parts:
                self._statistics.retire(fleet.entry, part)
                member = self._processes.spawn(fleet.entry, part)
                started.append(member)
                fleet.entry = fleet.entry.with_member(member)
                # Before it does anything: a service that is killed now must find what it started.
                self._book.write(fleet.entry)
                self._processes.release(member)
            await self._processes.wait_started(fleet.entry, started)
        except BaseException:
            await self._processes.end(started)
            raise

    # -- what is known -----------------------------------------------------------------------------------

    async def _known(self) -> dict[str, KnownFleet]:
        async with self._loading:
            if self._fleets is None:
                fleets = [await asyncio.to_thread(KnownFleet.load, entry) for entry in self._book.entries()]
                self._fleets = {fleet.fleet_id: fleet for fleet in fleets}
            return self._fleets

    async def _fleet(self, fleet_id: str) -> KnownFleet:
        fleet = (await self._known()).get(fleet_id)
        if fleet is None:
            raise UnknownFleetError(fleet_id)
        return fleet

    async def _specs(self) -> dict[str, FleetSpec]:
        """All fleets, as they are after their changes."""
        known = await self._known()
        return {name: fleet.roster.spec for name, fleet in known.items() if fleet.roster is not None}

    def _roster_of(self, fleet: KnownFleet) -> Roster:
        if fleet.roster is None:
            raise FleetRefusedError(f"{fleet.fleet_id}: {fleet.problem}")
        return fleet.roster

    def _check_distinct(self, device_ids: Iterable[str], besides: KnownFleet | None = None) -> None:
        others = [fleet for fleet in (self._fleets or {}).values() if fleet is not besides]
        if (owner := owner_of(device_ids, others)) is not None:
            device_id, fleet_id = owner
            raise FleetRefusedError(
                f"{device_id} is a device of {fleet_id} already: stop that one first"
                f" (`muster fleet stop {fleet_id}`), or choose another --prefix"
            )

    def _check_machine(self, *, devices: int, more: int, processes: int) -> None:
        there = sum(fleet.size for fleet in (self._fleets or {}).values())
        try:
            check_machine(
                devices=devices,
                processes=processes,
                devices_in_all=there + more,
                broker_files=self._broker_files,
            )
        except TooLargeError as error:
            raise FleetRefusedError(str(error)) from error

    def _counted(self, fleet: KnownFleet) -> Json:
        living = self._processes.living(fleet.entry)
        return self._statistics.of(fleet.entry, living=living, devices=fleet.counts)

    def _record(self, fleet: KnownFleet, **more: Any) -> FleetRecord:
        from provisioning.fleets import FleetGroup, FleetRecord

        entry = fleet.entry
        living = self._processes.living(entry)
        return FleetRecord(
            fleet_id=entry.fleet_id,
            devices=fleet.size,
            connected=self._statistics.connected(entry, living),
            seed=entry.request["spec"].get("seed", 1),
            groups=[FleetGroup(**group) for group in fleet.groups],
            processes=entry.processes,
            shard=entry.request.get("shard"),
            pids=[member.pid for member in living.values()],
            running=len(living) == entry.processes,
            restarts=entry.restarts,
            changes=len(entry.changes),
            started_at=entry.started_at,
            error=self._error(fleet, entry.processes - len(living)),
            **more,
        )

    def _error(self, fleet: KnownFleet, dead: int) -> str | None:
        """Why processes are down and stay so; None where all is well, or will be in a moment."""
        if fleet.problem is not None or not dead or fleet.stopped:
            return fleet.problem
        if self._supervisor.watching and not self._supervisor.given_up(fleet.fleet_id):
            return None
        words = self._book.last_words(fleet.fleet_id) or "they said nothing, as where they are killed"
        return (
            f"{dead} of {fleet.entry.processes} processes ended by themselves and stay down"
            f" (`muster fleet start {fleet.fleet_id}` tries again): {words}"
        )


def process_count(count: int) -> int:
    """Return how many processes share ``count`` devices by default: no more than the machine has cores."""
    return max(1, min(-(-count // DEVICES_PER_PROCESS), os.cpu_count() or 1, MAX_FLEET_PROCESSES))
