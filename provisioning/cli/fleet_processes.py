"""The processes of fleets: started, waited for, told of changes, ended.

Each runs in a session of its own, so that neither a Ctrl-C nor a ``kill -9`` of the service reaches the
devices. Those that this process has started are its children, and are asked as such; those that an earlier
one has left are known by pid and time of creation.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from broker.address import BrokerAddress
from devices.arguments import FleetArguments, to_argv
from devices.control import ControlAddress, ControlError
from devices.roster import Change, parse_shard, part_of
from provisioning.cli.fleet_records import FleetBook, FleetEntry, Member, open_private
from provisioning.errors import RequestError

START_TIMEOUT_S: Final = 20.0
# The devices say goodbye for up to 15 s (FleetOptions.stop_timeout_s).
STOP_TIMEOUT_S: Final = 20.0
KILL_TIMEOUT_S: Final = 5.0
TELL_TIMEOUT_S: Final = 30.0
POLL_INTERVAL_S: Final = 0.02


class FleetStartError(RequestError):
    """A fleet whose processes did not come up; the message holds their last words."""

    status = 503
    title = "Fleet not started"


class FleetProcesses:
    """The processes of the fleets of one book."""

    def __init__(self, book: FleetBook, *, owned: bool = False) -> None:
        """``owned``: they end when this process does, however it ends."""
        self._book = book
        self._owned = owned
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def living(self, entry: FleetEntry) -> dict[int, Member]:
        """The processes of a fleet that live, by part; what has ended is reaped."""
        return {member.part: member for member in entry.members if self.lives(member)}

    def lives(self, member: Member) -> bool:
        """Whether a process lives."""
        child = self._children.get(member.pid)
        if child is None:
            return member.process() is not None
        if child.poll() is None:
            return True
        del self._children[member.pid]
        return False

    def spawn(self, entry: FleetEntry, part: int) -> Member:
        """Start the process of ``part``; `FleetBook.write_inputs` comes before.

        It does nothing until `release`, before which it is to be put on record: where this process dies in
        between it ends, as nobody would find it.
        """
        book, fleet_id = self._book, entry.fleet_id
        statistics = book.statistics_path(fleet_id, part)
        control = book.control_path(fleet_id, part)
        for path in (statistics, control):
            path.unlink(missing_ok=True)
        key = entry.group_key_file
        arguments = FleetArguments(
            fleet=book.fleet_path(fleet_id),
            broker_url=entry.broker_url,
            broker_file=book.broker_path(fleet_id),
            trust_file=Path(entry.trust_file),
            shard=part_of(shard_of(entry), part, entry.processes),
            # Credentials in the broker's URL are meant for all devices.
            group_key_file=None if key is None or _has_credentials(entry.broker_url) else Path(key),
            token_lifetime_s=entry.token_lifetime_s,
            ca_file=None if entry.ca_file is None else Path(entry.ca_file),
            certificates=None if entry.certificates is None else Path(entry.certificates),
            stats_file=statistics,
            control_file=control,
            owned=self._owned,
            held=True,
        )
        with open_private(book.log_path(fleet_id), "a") as log:
            child = subprocess.Popen(
                # -P: a directory of the user's that is called "devices" must not be taken for ours.
                [sys.executable, "-P", "-m", "devices", *to_argv(arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return Member(part=part, pid=child.pid, created_at=psutil.Process(child.pid).create_time())

    def release(self, member: Member) -> None:
        """Let a process begin that was spawned."""
        pipe = self._children[member.pid].stdin
        assert pipe is not None
        # One that has died already is found so by whoever waits for it.
        with contextlib.suppress(OSError):
            pipe.write(b"\n")
            pipe.flush()
        if not self._owned:
            with contextlib.suppress(OSError):
                pipe.close()

    async def wait_started(self, entry: FleetEntry, members: Sequence[Member]) -> None:
        """Wait until each has written its statistics once: its devices are under way, and it takes changes.

        Raises FleetStartError with the last words of one that has ended, or when it takes too long.
        """
        fleet_id = entry.fleet_id
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(self._book.statistics_path(fleet_id, member.part).exists() for member in members):
            if not all(self.lives(member) for member in members):
                words = self._book.last_words(fleet_id).removeprefix("devices: ")
                raise FleetStartError(f"{fleet_id} did not start: {words or 'a process of it has ended'}")
            if time.monotonic() > deadline:
                raise FleetStartError(
                    f"{fleet_id} did not start within {START_TIMEOUT_S:g} s: see"
                    f" {self._book.log_path(fleet_id)}, or launch a smaller fleet"
                )
            await asyncio.sleep(POLL_INTERVAL_S)

    async def tell(
        self, entry: FleetEntry, members: Sequence[Member], change: Change, *, number: int | None
    ) -> list[Member]:
        """Tell processes of a change, and return those that did not take it."""

        async def one(member: Member) -> bool:
            address = ControlAddress.read(self._book.control_path(entry.fleet_id, member.part))
            if address is None or address.pid != member.pid:
                return False
            try:
                await address.tell(change, number=number, timeout_s=TELL_TIMEOUT_S)
            except ControlError:
                return False
            return True

        taken = await asyncio.gather(*(one(member) for member in members))
        return [member for member, took in zip(members, taken, strict=True) if not took]

    async def end(self, members: Sequence[Member]) -> None:
        """SIGTERM to all at once, SIGKILL to those that take too long; returns when none lives."""
        living = self._signal(members, "terminate")
        if not await self._wait_ended(living, STOP_TIMEOUT_S):
            await self.kill(living)

    async def kill(self, members: Sequence[Member]) -> None:
        """SIGKILL to all; returns when none lives."""
        await self._wait_ended(self._signal(members, "kill"), KILL_TIMEOUT_S)

    def _signal(self, members: Sequence[Member], method: str) -> list[Member]:
        living = [member for member in members if self.lives(member)]
        for member in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(psutil.Process(member.pid), method)()
        return living

    async def _wait_ended(self, members: Sequence[Member], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while any(self.lives(member) for member in members):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_INTERVAL_S)
        return True


def shard_of(entry: FleetEntry) -> tuple[int, int]:
    """The part of the whole fleet that is this host's."""
    shard = entry.request.get("shard")
    return (1, 1) if shard is None else parse_shard(shard)


def _has_credentials(broker_url: str) -> bool:
    address = BrokerAddress.parse(broker_url)
    return address.username is not None or address.password is not None
