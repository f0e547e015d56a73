"""Fleets as real processes: launched, listed, stopped, adopted and started again from their records.

Their broker does not answer: devices keep trying, and that is all that the launcher needs of them.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from broker.local.ports import any_free_port
from provisioning.cli.fleet_records import FleetBook
from provisioning.cli.launcher import (
    DEVICES_PER_PROCESS,
    FleetRefusedError,
    FleetStartError,
    ProcessFleetLauncher,
    process_count,
)
from provisioning.errors import UnknownFleetError
from provisioning.fleets import FleetRequest
from provisioning.packages import SigningKey


class Workshop:
    """One state directory, and as many launchers on it as a test asks for, one after the other."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.book = FleetBook(state_dir)
        self.broker_url = f"mqtt://127.0.0.1:{any_free_port()}"
        self.key = SigningKey.load_or_create(state_dir / "signing.key").public_key

    def launcher(self, *, broker_url: str | None = None) -> ProcessFleetLauncher:
        """A launcher that knows nothing but the records, as after a restart of the service."""
        return ProcessFleetLauncher(
            state_dir=self.state_dir, broker_url=broker_url or self.broker_url, trust=lambda: self.key
        )

    def pids(self) -> set[int]:
        return {process.pid for _, process in self.book.living()}


@pytest_asyncio.fixture
async def workshop(tmp_path: Path) -> AsyncIterator[Workshop]:
    workshop = Workshop(tmp_path)
    yield workshop
    await workshop.launcher().stop_all()
    assert not workshop.pids()


async def test_launch_list_stop(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    record = await launcher.launch(FleetRequest(count=4, processes=2, tags={"site": "lab"}))
    assert (record.fleet_id, record.count, record.running) == ("fleet-1", 4, True)
    assert set(record.pids) == workshop.pids()
    assert len(record.pids) == 2
    assert [fleet.fleet_id for fleet in await launcher.list()] == ["fleet-1"]

    stopped = await launcher.stop("fleet-1")
    assert not stopped.running
    assert not any(map(psutil.pid_exists, record.pids))
    assert await launcher.list() == []
    with pytest.raises(UnknownFleetError, match="fleet-1"):
        await launcher.stop("fleet-1")


async def test_two_fleets_cannot_have_the_same_devices(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    await launcher.launch(FleetRequest(count=1))
    with pytest.raises(FleetRefusedError, match="choose another --prefix"):
        await launcher.launch(FleetRequest(count=1))
    assert (await launcher.launch(FleetRequest(count=1, prefix="lab"))).fleet_id == "fleet-2"


async def test_a_fleet_that_cannot_be_is_refused_and_leaves_no_record(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    with pytest.raises(FleetRefusedError, match="unknown behaviour 'evil'") as caught:
        await launcher.launch(FleetRequest(count=1, behaviours={"evil": 1.0}))
    assert caught.value.status == 422
    assert await launcher.list() == []


async def test_a_fleet_that_does_not_start_says_why_and_leaves_no_record(workshop: Workshop) -> None:
    workshop.key = "no key"
    launcher = workshop.launcher()
    with pytest.raises(FleetStartError, match="fleet-1 did not start"):
        await launcher.launch(FleetRequest(count=1))
    assert await launcher.list() == []
    assert not workshop.pids()


async def test_living_fleets_are_adopted_after_a_restart(workshop: Workshop) -> None:
    record = await workshop.launcher().launch(FleetRequest(count=2))
    again = workshop.launcher()
    assert [(fleet.fleet_id, fleet.adopted) for fleet in await again.restore()] == [("fleet-1", True)]
    assert workshop.pids() == set(record.pids)
    await again.stop("fleet-1")
    assert not workshop.pids()


async def test_fleets_that_were_stopped_with_the_service_come_back(workshop: Workshop) -> None:
    first = workshop.launcher()
    record = await first.launch(FleetRequest(count=3, seed=9, behaviours={"slow": 1.0}, processes=2))
    await first.stop_all()
    assert not workshop.pids()

    again = workshop.launcher()
    assert [fleet.adopted for fleet in await again.restore()] == [False]
    (restored,) = await again.list()
    assert restored.running
    assert len(restored.pids) == 2
    assert not set(restored.pids) & set(record.pids)
    assert (restored.seed, restored.behaviours) == (9, {"slow": 1.0})


async def test_only_the_dead_part_of_a_fleet_is_started_again(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    record = await launcher.launch(FleetRequest(count=4, processes=2))
    os.kill(record.pids[0], signal.SIGKILL)
    psutil.Process(record.pids[0]).wait(timeout=10)
    (damaged,) = await launcher.list()
    assert not damaged.running
    assert "1 of 2 processes ended by themselves" in (damaged.model_extra or {})["error"]

    await workshop.launcher().restore()
    assert record.pids[1] in workshop.pids()
    assert len(workshop.pids()) == 2


async def test_devices_of_another_broker_are_started_anew(workshop: Workshop) -> None:
    record = await workshop.launcher().launch(FleetRequest(count=1))
    moved = f"mqtt://127.0.0.1:{any_free_port()}"
    await workshop.launcher(broker_url=moved).restore()
    assert not workshop.pids() & set(record.pids)
    (entry,) = workshop.book.entries()
    assert entry.broker_url == moved


async def test_a_reused_pid_is_nobodys_device(workshop: Workshop) -> None:
    launcher = workshop.launcher()
    await launcher.launch(FleetRequest(count=1))
    path = workshop.state_dir / "fleets" / "fleet-1.json"
    await launcher.stop_all()
    record = json.loads(path.read_text())
    record["members"] = [{"shard": 1, "pid": os.getpid(), "created_at": 1.0}]
    path.write_text(json.dumps(record))
    assert workshop.pids() == set()


async def test_records_are_for_their_owner_only(workshop: Workshop) -> None:
    await workshop.launcher().launch(FleetRequest(count=1))
    modes = {
        path.name: path.stat().st_mode & 0o077 for path in (workshop.state_dir / "fleets").glob("fleet-1.*")
    }
    assert modes == {"fleet-1.json": 0, "fleet-1.log": 0}


def test_a_large_fleet_is_shared_by_processes() -> None:
    assert process_count(1) == 1
    assert process_count(100_000) == min(100_000 // DEVICES_PER_PROCESS, os.cpu_count() or 1)
