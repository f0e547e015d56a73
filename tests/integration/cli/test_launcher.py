"""Fleets as real processes: launched, listed, changed, stopped, adopted and started again from their records.

Where a test does not say otherwise their broker does not answer: devices keep trying, and that is all that
the launcher needs of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiomqtt
import psutil
import pytest
import pytest_asyncio

from broker.local import LocalBroker
from broker.local.ports import any_free_port
from provisioning.cli import fleet_processes, supervisor
from provisioning.cli.fleet_records import FleetBook, Member
from provisioning.cli.launcher import (
    DEVICES_PER_PROCESS,
    FleetRefusedError,
    FleetStartError,
    ProcessFleetLauncher,
    process_count,
)
from provisioning.errors import UnknownFleetError
from provisioning.fleets import FleetRecord, FleetRequest
from provisioning.signing import TRUSTED_KEYS, KeyRing

PATIENCE_S = 60.0


class Workshop:
    """One state directory, and as many launchers on it as a test asks for, one after the other."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.book = FleetBook(state_dir)
        self.broker_url = f"mqtt://127.0.0.1:{any_free_port()}"
        KeyRing.open(state_dir)
        self.trust_file = state_dir / TRUSTED_KEYS

    def launcher(self, *, broker_url: str | None = None) -> ProcessFleetLauncher:
        """A launcher that knows nothing but the records, as after a restart of the service."""
        return ProcessFleetLauncher(
            state_dir=self.state_dir, broker_url=broker_url or self.broker_url, trust_file=self.trust_file
        )

    def pids(self) -> set[int]:
        return {process.pid for _, process in self.book.living()}


@pytest_asyncio.fixture
async def workshop(tmp_path: Path) -> AsyncIterator[Workshop]:
    workshop = Workshop(tmp_path)
    yield workshop
    await workshop.launcher().stop_all()
    assert not workshop.pids()


def a_fleet(count: int, *, processes: int | None = None, seed: int = 1, **group: Any) -> FleetRequest:
    """A request for a fleet of one group of healthy devices."""
    group = {"behaviours": {"healthy": 1.0}, **group, "count": count}
    return FleetRequest(spec={"seed": seed, "groups": [group]}, processes=processes)


async def statistics(launcher: ProcessFleetLauncher, fleet_id: str = "fleet-1") -> dict[str, Any]:
    found: dict[str, Any] = (await launcher.show(fleet_id)).model_dump()["statistics"]
    return found


async def wait_record(
    launcher: ProcessFleetLauncher, condition: Callable[[FleetRecord], bool], fleet_id: str = "fleet-1"
) -> FleetRecord:
    """Wait until the fleet's record is as it should be, and return it."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition(record := await launcher.show(fleet_id)):  # noqa: ASYNC110 (files tell nobody)
            await asyncio.sleep(0.02)
    return record


async def wait_gauge(launcher: ProcessFleetLauncher, gauge: str, value: int) -> None:
    """Wait until so many devices of the fleet are so."""
    await wait_record(launcher, lambda record: record.model_dump()["statistics"][gauge] == value)


def kill(pid: int) -> None:
    """`kill -9`, and wait for the end."""
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)


# -- launch, list, stop -------------------------------------------------------------------------------------


async def test_launch_list_stop(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    record = await launcher.launch(a_fleet(4, processes=2, tags={"site": "lab"}))
    assert (record.fleet_id, record.devices, record.running) == ("fleet-1", 4, True)
    assert (record.groups[0].name, record.groups[0].tags) == ("devices", {"site": "lab"})
    assert set(record.pids) == workshop.pids()
    assert len(record.pids) == 2
    assert [fleet.fleet_id for fleet in await launcher.list()] == ["fleet-1"]

    stopped = await launcher.stop("fleet-1")
    assert not stopped.running
    assert stopped.model_dump()["statistics"]["devices"] == 4
    assert not any(map(psutil.pid_exists, record.pids))
    assert await launcher.list() == []
    with pytest.raises(UnknownFleetError, match="fleet-1"):
        await launcher.stop("fleet-1")
    assert [path.name for path in workshop.book.directory.iterdir()] == ["fleet-1.log"]


async def test_two_fleets_cannot_have_the_same_devices(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    await launcher.launch(a_fleet(2))
    with pytest.raises(FleetRefusedError, match=r"dev-00002 is a device of fleet-1 .*another --prefix"):
        await launcher.launch(a_fleet(3, first=2))
    assert (await launcher.launch(a_fleet(1, first=3))).fleet_id == "fleet-2"
    with pytest.raises(FleetRefusedError, match="dev-00003 is a device of fleet-2"):
        await launcher.change("fleet-1", {"do": "add", "group": {"name": "x", "count": 2, "first": 3}})
    assert (await launcher.show("fleet-1")).devices == 2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (a_fleet(1, behaviours={"evil": 1.0}), r"groups\[0\].behaviours.evil: unknown behaviour 'evil'"),
        (a_fleet(0), r"groups\[0\].count: 0 is out of range; give"),
        (FleetRequest(spec={}), "groups: there is none; write"),
        (FleetRequest(spec={"groups": [{"count": 1}]}, shard="3/2"), "shard: 3/2 can't be"),
        (FleetRequest(spec={"groups": [{"count": 1}]}, shard="2/2"), "2/2 of 1 devices has none"),
    ],
)
async def test_a_fleet_that_cannot_be_is_refused_and_leaves_no_record(
    workshop: Workshop, request_: FleetRequest, words: str
) -> None:
    launcher = workshop.launcher()
    with pytest.raises(FleetRefusedError, match=words) as caught:
        await launcher.launch(request_)
    assert caught.value.status == 422
    assert await launcher.list() == []


async def test_a_fleet_that_fits_no_process_is_refused_before_anything_starts(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (300, 300))
    with pytest.raises(FleetRefusedError, match=r"open files and the hard limit is 300") as caught:
        await workshop.launcher().launch(a_fleet(100, processes=1))
    assert caught.value.status == 409
    assert not workshop.pids()


async def test_a_fleet_that_does_not_start_says_why_and_leaves_no_record(workshop: Workshop) -> None:
    workshop.trust_file.write_text("no key")
    launcher = workshop.launcher()
    with pytest.raises(FleetStartError, match="fleet-1 did not start"):
        await launcher.launch(a_fleet(1))
    assert await launcher.list() == []
    assert not workshop.pids()


async def test_hosts_share_a_fleet_by_shards(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    spec = {"groups": [{"count": 5}]}
    ids = set()
    for shard, count in (("1/2", 3), ("2/2", 2)):
        record = await launcher.launch(FleetRequest(spec=spec, shard=shard, processes=2))
        assert (record.devices, record.shard, record.groups[0].count) == (count, shard, 5)
        found = await launcher.devices(record.fleet_id)
        assert len(found) == count
        ids |= {device.device_id for device in found}
        in_processes = (await statistics(launcher, record.fleet_id))["running"]
        assert in_processes == count
    assert len(ids) == 5


# -- restarts of the service --------------------------------------------------------------------------------


async def test_living_fleets_are_adopted_after_a_restart(workshop: Workshop) -> None:
    record = await workshop.launcher().launch(a_fleet(2))
    again = workshop.launcher()
    assert [(fleet.fleet_id, fleet.adopted) for fleet in await again.restore()] == [("fleet-1", True)]
    assert workshop.pids() == set(record.pids)
    await again.stop("fleet-1")
    assert not workshop.pids()


async def test_fleets_that_were_stopped_with_the_service_come_back_as_they_were(workshop: Workshop) -> None:
    first = workshop.launcher()
    record = await first.launch(a_fleet(4, processes=2, seed=9, behaviours={"slow": 1.0}))
    await first.change("fleet-1", {"do": "add", "group": {"count": 3}})
    await first.change("fleet-1", {"do": "kill", "which": {"devices": ["dev-00001"]}})
    await first.stop_all()
    assert not workshop.pids()

    again = workshop.launcher()
    assert [(fleet.adopted, fleet.devices) for fleet in await again.restore()] == [(False, 7)]
    (restored,) = await again.list()
    assert restored.running
    assert len(restored.pids) == 2
    assert not set(restored.pids) & set(record.pids)
    assert (restored.seed, restored.groups[0].behaviours) == (9, {"slow": 1.0})
    assert [group.name for group in restored.groups] == ["devices", "group-2"]
    assert (await statistics(again))["running"] == 6


async def test_only_the_dead_part_of_a_fleet_is_started_again(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    record = await launcher.launch(a_fleet(4, processes=2))
    kill(record.pids[0])
    (damaged,) = await launcher.list()
    assert not damaged.running
    assert damaged.error is not None
    assert "1 of 2 processes ended by themselves" in damaged.error

    await workshop.launcher().restore()
    assert record.pids[1] in workshop.pids()
    assert len(workshop.pids()) == 2


async def test_devices_of_another_broker_are_started_anew(workshop: Workshop) -> None:
    record = await workshop.launcher().launch(a_fleet(1))
    moved = f"mqtt://127.0.0.1:{any_free_port()}"
    await workshop.launcher(broker_url=moved).restore()
    assert not workshop.pids() & set(record.pids)
    (entry,) = workshop.book.entries()
    assert entry.broker_url == moved


async def test_a_fleet_of_an_earlier_version_comes_back(workshop: Workshop) -> None:
    workshop.book.directory.mkdir()
    old = {
        "format": 1,
        "fleet_id": "fleet-4",
        "request": {
            "count": 3,
            "seed": 9,
            "behaviours": None,
            "model": "demo-1",
            "firmware_version": "0.9.0",
            "tags": {},
            "processes": None,
            "prefix": "lab",
        },
        "processes": 1,
        "broker_url": workshop.broker_url,
        "trust": "AAAA",
        "started_at": "2026-01-01T00:00:00+00:00",
        "members": [],
    }
    (workshop.book.directory / "fleet-4.json").write_text(json.dumps(old))
    launcher = workshop.launcher()
    assert [(f.fleet_id, f.devices, f.problem) for f in await launcher.restore()] == [("fleet-4", 3, None)]
    assert [d.device_id for d in await launcher.devices("fleet-4")] == ["lab-00001", "lab-00002", "lab-00003"]


async def test_what_cannot_come_back_is_told_and_keeps_nothing_else_from_it(
    workshop: Workshop, tmp_path: Path
) -> None:
    code = tmp_path / "own.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from devices.behaviours import Behaviour\n"
        "@dataclass(kw_only=True)\n"
        "class Own(Behaviour):\n"
        '    "Own."\n'
    )
    first = workshop.launcher()
    spec = {
        "behaviours": {"own": {"is": f"{code}:Own"}},
        "groups": [{"count": 1, "prefix": "own", "behaviours": {"own": 1}}],
    }
    await first.launch(FleetRequest(spec=spec))
    await first.launch(a_fleet(1))
    await first.stop_all()
    code.unlink()
    (workshop.book.directory / "fleet-9.json").write_text("{")

    again = workshop.launcher()
    restored = {fleet.fleet_id: fleet.problem for fleet in await again.restore()}
    assert restored["fleet-2"] is None
    assert "own.py can't be read" in str(restored["fleet-1"])
    assert "fleet-9.json can't be read" in str(restored["fleet-9"])
    shown = await again.show("fleet-1")
    assert not shown.running
    assert "own.py" in str(shown.error)
    with pytest.raises(FleetRefusedError, match=r"own\.py"):
        await again.change("fleet-1", {"do": "stop"})
    await again.stop("fleet-1")


async def test_a_full_disk_keeps_neither_the_service_from_starting_nor_fleets_from_ending(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await workshop.launcher().launch(a_fleet(2))
    await workshop.launcher().stop_all()
    write = FleetBook.write_private
    launcher = workshop.launcher()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FleetBook, "write_private", full)
    (restored,) = await launcher.restore()
    assert "make room" in str(restored.problem)
    await launcher.stop_all()
    monkeypatch.setattr(FleetBook, "write_private", write)
    (restored,) = await workshop.launcher().restore()
    assert restored.problem is None
    launcher = workshop.launcher()
    monkeypatch.setattr(FleetBook, "write_private", full)
    await launcher.stop_all()
    monkeypatch.setattr(FleetBook, "write_private", write)
    assert not workshop.pids()


def lives(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_service_that_dies_before_a_process_is_on_record_leaves_none(workshop: Workshop) -> None:
    # Else the next service starts another one with the same devices, and the two fight for their sessions.
    program = """
import asyncio, os, subprocess, sys
from pathlib import Path
from provisioning.cli.fleet_records import FleetBook
from provisioning.cli.launcher import ProcessFleetLauncher
from provisioning.fleets import FleetRequest

write = FleetBook.write
popen = subprocess.Popen

def dies(self, entry):
    if entry.members:
        os._exit(7)
    write(self, entry)

def told(*args, **more):
    child = popen(*args, **more)
    print(child.pid, flush=True)
    return child

FleetBook.write, subprocess.Popen = dies, told
launcher = ProcessFleetLauncher(
    state_dir=Path(sys.argv[1]), broker_url=sys.argv[2], trust_file=Path(sys.argv[3])
)
spec = {"groups": [{"count": 1, "behaviours": {"healthy": 1.0}}]}
asyncio.run(launcher.launch(FleetRequest(spec=spec)))
"""
    service = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        str(workshop.state_dir),
        workshop.broker_url,
        str(workshop.trust_file),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await service.communicate()
    assert service.returncode == 7
    left = int(output)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while lives(left):  # noqa: ASYNC110 (it is nobody's child any more)
                await asyncio.sleep(0.05)
    except TimeoutError:
        os.kill(left, signal.SIGKILL)
        raise


async def test_a_reused_pid_is_nobodys_device(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    await launcher.launch(a_fleet(1))
    path = workshop.state_dir / "fleets" / "fleet-1.json"
    await launcher.stop_all()
    record = json.loads(path.read_text())
    record["members"] = [{"part": 1, "pid": os.getpid(), "created_at": 1.0}]
    path.write_text(json.dumps(record))
    assert workshop.pids() == set()


async def test_records_are_for_their_owner_only(workshop: Workshop) -> None:
    await workshop.launcher().launch(a_fleet(1))
    modes = {
        path.name: path.stat().st_mode & 0o077 for path in (workshop.state_dir / "fleets").glob("fleet-1.*")
    }
    assert modes == dict.fromkeys(("fleet-1.json", "fleet-1.log", "fleet-1.fleet", "fleet-1.broker"), 0)


# -- changes ------------------------------------------------------------------------------------------------


async def test_a_change_reaches_all_processes(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    await launcher.launch(a_fleet(8, processes=4))
    answer = await launcher.change("fleet-1", {"do": "stop", "which": {"share": 0.5}})
    assert (answer["processes"], answer["missed"]) == (4, 0)
    assert answer["affected"] == 4
    left = 4
    await wait_gauge(launcher, "running", left)
    devices = await launcher.devices("fleet-1")
    assert sum(device.running for device in devices) == left
    assert {
        device.expected_outcome(max_attempts=3, limits={}) for device in devices if not device.running
    } == {"timed_out"}

    assert (await launcher.change("fleet-1", {"do": "start"}))["affected"] == 8
    await wait_gauge(launcher, "running", 8)


async def test_devices_that_join_are_shared_among_the_processes(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    await launcher.launch(a_fleet(4, processes=4))
    answer = await launcher.change("fleet-1", {"do": "add", "group": {"count": 8, "model": "demo-2"}})
    assert (answer["affected"], answer["group"]["first"], answer["group"]["name"]) == (8, 5, "group-2")
    await wait_gauge(launcher, "running", 12)
    record = await launcher.show("fleet-1")
    assert (record.devices, record.changes, record.groups[1].model) == (12, 1, "demo-2")
    per_process = [
        json.loads(workshop.book.statistics_path("fleet-1", part).read_text())["devices"]
        for part in range(1, 5)
    ]
    assert per_process == [3, 3, 3, 3]


async def test_changes_that_overrule_each_other_are_kept_once(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    await launcher.launch(a_fleet(2))
    for _ in range(3):
        await launcher.change("fleet-1", {"do": "offline"})
        await launcher.change("fleet-1", {"do": "online"})
        await launcher.change("fleet-1", {"do": "storm"})
    assert (await launcher.show("fleet-1")).changes == 1
    (entry,) = workshop.book.entries()
    assert entry.number == 6


async def test_a_change_to_what_is_so_already_is_no_reason_not_to_judge(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    await launcher.launch(a_fleet(2))
    await launcher.change("fleet-1", {"do": "offline", "for_s": 60, "which": {"devices": ["dev-00001"]}})
    await wait_gauge(launcher, "offline", 1)
    assert (await launcher.change("fleet-1", {"do": "online"}))["affected"] == 2
    # It is told all the same, for the outage was none that lasts.
    await wait_gauge(launcher, "offline", 0)
    assert (await launcher.show("fleet-1")).changes == 0
    one, two = await launcher.devices("fleet-1")
    assert one.changed_at is not None
    assert two.changed_at is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do": "dance"}, "do: 'dance' is nothing to do"),
        ({}, "do: it is missing"),
        ({"do": "stop", "which": {"group": "ghost"}}, "there is no group 'ghost'"),
        ({"do": "stop", "which": {"devices": ["dev-00001", "dev-9"]}}, "fleet-1 has no dev-9 here"),
        ({"do": "stop", "which": {"behaviour": "evil"}}, "unknown behaviour 'evil'"),
        ({"do": "behave", "behaviour": "evil"}, "unknown behaviour 'evil'"),
        ({"do": "add", "group": {"count": 0}}, "group.count: 0 is out of range"),
        ({"do": "add", "group": {"count": 1, "name": "devices"}}, "is called 'devices' too"),
        ({"do": "add", "group": 3}, "group"),
    ],
)
async def test_a_change_that_does_not_fit_changes_nothing(
    workshop: Workshop, change: dict[str, Any], words: str
) -> None:
    launcher = workshop.launcher()
    await launcher.launch(a_fleet(2))
    before = workshop.book.entries()
    with pytest.raises(FleetRefusedError, match=words) as caught:
        await launcher.change("fleet-1", change)
    assert caught.value.status == 422
    assert workshop.book.entries() == before
    assert (await statistics(launcher))["running"] == 2


async def test_a_process_that_takes_no_change_is_started_again_with_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_processes, "TELL_TIMEOUT_S", 0.3)
    async with workshop.launcher() as launcher:
        record = await launcher.launch(a_fleet(4, processes=2))
        os.kill(record.pids[0], signal.SIGSTOP)
        answer = await launcher.change("fleet-1", {"do": "stop"})
        assert (answer["affected"], answer["missed"]) == (4, 1)
        again = await wait_record(launcher, lambda record: record.running and record.restarts == 1)
        assert record.pids[0] not in again.pids
        await wait_gauge(launcher, "running", 0)


async def test_a_service_that_was_killed_in_the_midst_of_a_change_makes_it_good(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    record = await launcher.launch(a_fleet(4, processes=2))
    (entry,) = workshop.book.entries()
    # On record, and told to nobody: as far as a service can come.
    fields = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
    kill_two = {"do": "kill", "which": {"devices": ["dev-00001", "dev-00002"]}}
    fields |= {"changes": ({"change": kill_two, "at": 1.0},), "number": 1}
    workshop.book.write(type(entry)(**fields))

    again = workshop.launcher()
    assert [fleet.adopted for fleet in await again.restore()] == [True]
    assert workshop.pids() == set(record.pids)
    await wait_gauge(again, "running", 2)


# -- supervision --------------------------------------------------------------------------------------------


async def online(broker: LocalBroker, prefix: str, expected: dict[str, bool]) -> None:
    """Wait until the broker has the presence of these devices so."""
    seen: dict[str, bool] = {}
    async with asyncio.timeout(PATIENCE_S), aiomqtt.Client(broker.host, broker.port) as client:
        await client.subscribe("devices/+/presence", qos=1)
        async for message in client.messages:
            device_id = str(message.topic).split("/")[1]
            if device_id.startswith(prefix):
                assert isinstance(message.payload, bytes)
                seen[device_id] = json.loads(message.payload)["state"] == "online"
                if seen == expected:
                    return


@pytest.mark.real
async def test_a_killed_process_of_four_comes_back_with_the_same_devices(
    workshop: Workshop, any_broker: LocalBroker, unique: str
) -> None:
    workshop.broker_url = any_broker.url
    everyone = {f"{unique}-{number:05d}": True for number in range(1, 21)}
    async with workshop.launcher() as launcher:
        record = await launcher.launch(a_fleet(20, processes=4, prefix=unique))
        await online(any_broker, unique, everyone)
        await launcher.change("fleet-1", {"do": "kill", "which": {"devices": [f"{unique}-00002"]}})
        everyone[f"{unique}-00002"] = False
        await online(any_broker, unique, everyone)
        connects = (await statistics(launcher))["connects"]

        kill(record.pids[1])
        again = await wait_record(launcher, lambda record: record.running and record.restarts == 1)
        assert len(set(again.pids) & set(record.pids)) == 3
        await online(any_broker, unique, everyone)
        await wait_gauge(launcher, "registered", 19)
        counted = await statistics(launcher)
        assert counted["running"] == 19
        assert counted["connects"] >= connects + 4, "what the dead one had counted stays"
        assert 'muster_fleet_restarts_total{fleet="fleet-1"} 1' in await launcher.metrics()
        assert again.error is None


async def test_a_process_that_was_adopted_is_looked_after_too(workshop: Workshop) -> None:
    record = await workshop.launcher().launch(a_fleet(2, processes=2))
    again = workshop.launcher()
    await again.restore()
    async with again:
        kill(record.pids[0])
        revived = await wait_record(again, lambda record: record.running and record.restarts == 1)
        assert record.pids[1] in revived.pids


async def test_a_process_that_dies_again_and_again_stays_down_until_it_is_started_by_hand(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MAX_DEATHS", 2)
    async with workshop.launcher() as launcher:
        record = await launcher.launch(a_fleet(4, processes=2))
        kill(record.pids[0])
        again = await wait_record(launcher, lambda record: record.running and record.restarts == 1)
        with workshop.book.log_path("fleet-1").open("a") as log:
            log.write("its last words\n")
        (newcomer,) = set(again.pids) - set(record.pids)
        kill(newcomer)
        down = await wait_record(launcher, lambda record: record.error is not None)
        assert "1 of 2 processes" in str(down.error)
        assert "`muster fleet start fleet-1` tries again" in str(down.error)
        assert "its last words" in str(down.error)
        assert down.pids == [record.pids[1]]

        await launcher.change("fleet-1", {"do": "start"})
        up = await wait_record(launcher, lambda record: record.running)
        assert (up.error, up.changes) == (None, 0)
        # So the devices are judged by what they come to.
        assert all(device.changed_at is None for device in await launcher.devices("fleet-1"))


async def test_nothing_is_started_again_that_was_stopped(workshop: Workshop) -> None:
    async with workshop.launcher() as launcher:
        await launcher.launch(a_fleet(1))
        await launcher.stop_all()
        await asyncio.sleep(supervisor.WATCH_INTERVAL_S * 2)  # one look at least
        assert not workshop.pids()


def test_a_large_fleet_is_shared_by_processes() -> None:
    assert process_count(1) == 1
    assert process_count(100_000) == min(100_000 // DEVICES_PER_PROCESS, os.cpu_count() or 1)


def test_a_process_is_known_by_its_birth(tmp_path: Path) -> None:
    processes = fleet_processes.FleetProcesses(FleetBook(tmp_path))
    born = psutil.Process().create_time()
    assert processes.lives(Member(part=1, pid=os.getpid(), created_at=born))
    assert not processes.lives(Member(part=1, pid=os.getpid(), created_at=born - 60))
