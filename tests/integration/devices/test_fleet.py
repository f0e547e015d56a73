"""A fleet against a real broker and a fake service: every behaviour, and the faults of the world around."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiomqtt import Client

from broker import topics
from broker.local import LocalBroker, start_broker
from broker.messages import (
    ActivationFailed,
    Cancel,
    DownloadCompletedAck,
    DownloadFailed,
    DownloadProgress,
    DownloadStarted,
    Package,
)
from devices.arguments import FleetArguments, to_argv
from devices.behaviours import STEPS, Step
from devices.fleet import FleetOptions
from devices.fleet_file import FleetFile
from devices.roster import Roster, plan
from devices.spec import FleetSpec
from devices.surroundings import LinkOptions
from devices.verify import Verifier
from tests.integration.devices.fake_service import RELEASE, FakeService, eventually
from tests.integration.devices.fleets import fleet_of, service_on

pytestmark = pytest.mark.real


@pytest_asyncio.fixture
async def service(any_broker: LocalBroker, unique: str) -> AsyncIterator[FakeService]:
    async with service_on(any_broker, unique) as fake:
        yield fake


async def test_a_mixed_fleet_ends_as_its_plan_says(each_broker: LocalBroker, unique: str) -> None:
    weights = {"healthy": 10, "slow": 3, "offline": 5, "never-answers": 2}
    roster = Roster(FleetSpec.of(count=20, prefix=unique, behaviours=weights))
    planned = [entry.plan for entry in roster.entries.values()]
    expected = {
        device_id
        for device_id, entry in roster.entries.items()
        if roster.expected_outcome(entry, max_attempts=3) == "provisioned"
    }
    silent = {device.device_id for device in planned} - expected
    assert (len(expected), len(silent)) == (18, 2)
    async with service_on(each_broker, unique) as service:
        async with fleet_of(service, each_broker, unique, count=20, behaviours=weights) as fleet:
            await service.until(lambda: set(service.provisioned) == expected)
            await eventually(lambda: fleet.statistics()["ignored"] == 2)
            counts = fleet.statistics()
        # Everyone said goodbye in order.
        await service.until(lambda: all(states[-1] == "offline" for states in service.presence.values()))
    assert set(service.provisioned.values()) == {RELEASE}
    assert not [heard for heard in service.heard if heard.device_id in silent]
    assert counts["planned_outages"] == 5
    assert counts["downloads_completed"] == 18
    assert (counts["malformed"], counts["crashed"], counts["downloads_failed"]) == (0, 0, 0)
    # One package each: telemetry and acks may repeat after an outage, downloads do not.
    assert counts["downloads_started"] == 18
    for device in planned:
        if device.behaviour == "slow":
            assert service.events(device.device_id, DownloadProgress)
        elif device.behaviour == "healthy":
            assert len(service.events(device.device_id)) == 3
    assert set(service.presence) == expected | silent


@pytest.mark.parametrize("step", STEPS[:-1])
async def test_a_device_that_drops_off_at_any_step_comes_back_and_goes_on(
    service: FakeService, any_broker: LocalBroker, unique: str, step: Step
) -> None:
    device_id = f"{unique}-00001"
    definitions = {"off": {"is": "offline", "step": str(step), "for_s": 0.5}}
    async with fleet_of(service, any_broker, unique, behaviours={"off": 1}, definitions=definitions) as fleet:
        await service.until(lambda: device_id in service.provisioned)
        counts = fleet.statistics()
        # Its will spoke for it while it was away.
        assert service.presence[device_id][:3] == ["online", "offline", "online"]
    assert counts["planned_outages"] == 1
    assert service.registrations == [device_id, device_id]
    # It remembers, and so does the broker: nothing needs to be said again.
    assert service.fresh[0] is not None
    assert service.fresh[1] is None
    if step is Step.DOWNLOADING:
        (_, first), (_, second) = service.blobs.requests
        assert first is None
        assert second is not None
    else:
        assert len(service.blobs.requests) == 1


async def test_a_package_seen_again_is_answered_without_a_second_download(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    device_id = f"{unique}-00001"
    service.answer_acks = False
    async with fleet_of(service, any_broker, unique) as fleet:
        await service.until(lambda: len(service.events(device_id, DownloadCompletedAck)) == 1)
        await service.send(device_id, service.packages[device_id])
        await service.until(lambda: len(service.events(device_id, DownloadCompletedAck)) == 2)
        await service.send(device_id, service.package_for(device_id, attempt=2))
        await service.until(lambda: len(service.events(device_id, DownloadCompletedAck)) == 3)
        # The first attempt once more, late: the service has moved on, so has the device.
        await service.send(device_id, service.package_for(device_id, attempt=1))
        await eventually(lambda: fleet.statistics()["duplicates"] == 3)
        await service.send(device_id, service.package_for(device_id, attempt=2))
        await service.until(lambda: len(service.events(device_id, DownloadCompletedAck)) == 4)
        await service.activate(device_id)
        await service.activate(device_id)
        await service.until(lambda: device_id in service.provisioned)
        await eventually(lambda: fleet.statistics()["duplicates"] == 5)
        assert fleet.statistics()["activations"] == 1
    acks = [heard for heard in service.heard if isinstance(heard.event, DownloadCompletedAck)]
    assert [heard.event.attempt for heard in acks] == [1, 1, 2, 2]
    assert acks[0].payload == acks[1].payload
    assert len(service.blobs.requests) == 1


async def test_the_newest_package_wins_and_no_two_downloads_run_at_once(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    device_id = f"{unique}-00001"
    service.blobs.gate = asyncio.Event()
    service.answer_registrations = False
    async with fleet_of(service, any_broker, unique) as fleet:
        await service.until(lambda: bool(service.registrations))
        await service.send(device_id, service.package_for(device_id, package_id="old", path="old"))
        await eventually(lambda: len(service.blobs.requests) == 1)
        await service.send(device_id, service.package_for(device_id, package_id="new", path="new", attempt=2))
        await eventually(lambda: len(service.blobs.requests) == 2)
        assert fleet.statistics()["downloading"] == 1
        assert fleet.statistics()["downloads_replaced"] == 1
        service.blobs.gate.set()
        await service.until(lambda: device_id in service.provisioned)
    assert [event.package_id for event in service.events(device_id, DownloadCompletedAck)] == ["new"]


async def test_a_second_attempt_at_what_is_coming_already_keeps_its_bytes(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    device_id = f"{unique}-00001"
    service.blobs.gate = asyncio.Event()
    async with fleet_of(service, any_broker, unique) as fleet:
        await eventually(lambda: len(service.blobs.requests) == 1)
        await service.send(device_id, service.package_for(device_id, attempt=2))
        await eventually(lambda: fleet.statistics()["duplicates"] == 1)
        service.blobs.gate.set()
        await service.until(lambda: device_id in service.provisioned)
    assert [event.attempt for event in service.events(device_id, DownloadCompletedAck)] == [2]
    assert len(service.blobs.requests) == 1


@pytest.mark.parametrize(
    ("changes", "faults", "reason"),
    [
        ({"sha256": "0" * 64}, [], "hash-mismatch"),
        ({"signature": "A" * 86 + "=="}, [], "bad-signature"),
        ({}, ["403"], "expired-url"),
        ({}, ["short"], "size-mismatch"),
    ],
)
async def test_a_package_that_cannot_be_trusted_fails_by_reason_and_the_next_attempt_succeeds(
    service: FakeService,
    any_broker: LocalBroker,
    unique: str,
    changes: dict[str, Any],
    faults: list[str],
    reason: str,
) -> None:
    device_id = f"{unique}-00001"
    service.answer_registrations = False
    service.blobs.faults[f"/{device_id}"] = faults
    async with fleet_of(service, any_broker, unique):
        await service.until(lambda: bool(service.registrations))
        await service.send(device_id, service.package_for(device_id, **changes))
        await service.until(lambda: bool(service.events(device_id, DownloadFailed)))
        (failed,) = service.events(device_id, DownloadFailed)
        assert isinstance(failed, DownloadFailed)
        assert failed.reason == reason
        await service.send(device_id, service.package_for(device_id, attempt=2, package_id="second"))
        await service.until(lambda: device_id in service.provisioned)


async def test_what_the_contract_refuses_is_counted_and_dropped(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    device_id = f"{unique}-00001"
    service.answer_registrations = False
    foreign = service.package_for(f"{unique}-00002")
    async with fleet_of(service, any_broker, unique) as fleet:
        await service.until(lambda: bool(service.registrations))
        await service.publish(topics.package(device_id), b"{")
        await service.publish(topics.package(device_id), foreign.to_json())
        await service.publish(topics.command(device_id, "Explode"), b"{}")
        await service.publish(topics.command(device_id, "Activate"), b"\xff" * 100)
        await service.send(device_id, service.package_for(device_id))
        await service.until(lambda: device_id in service.provisioned)
        assert fleet.statistics()["malformed"] == 4


async def test_activating_what_was_never_downloaded_fails_until_it_is(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    device_id = f"{unique}-00001"
    service.answer_registrations = False
    service.packages[device_id] = service.package_for(device_id)
    async with fleet_of(service, any_broker, unique):
        await service.until(lambda: bool(service.registrations))
        await service.activate(device_id)
        await service.until(lambda: bool(service.events(device_id, ActivationFailed)))
        # The same order after a download is a new one: the old answer is no answer to it.
        await service.send(device_id, service.package_for(device_id))
        await service.until(lambda: device_id in service.provisioned)


async def test_a_cancelled_download_stops_and_says_no_more(
    service: FakeService, any_broker: LocalBroker, unique: str
) -> None:
    device_id = f"{unique}-00001"
    service.blobs.gate = asyncio.Event()
    async with fleet_of(service, any_broker, unique) as fleet:
        await eventually(lambda: fleet.statistics()["downloading"] == 1)
        cancel = Cancel(instance_id=service.packages[device_id].instance_id, reason="operator")
        await service.publish(topics.command(device_id, "Cancel"), cancel.to_json())
        await eventually(lambda: fleet.statistics()["downloading"] == 0)
        service.blobs.gate.set()
    assert {type(event) for event in service.events(device_id)} <= {DownloadStarted}


async def test_after_a_broker_restart_devices_register_again_and_repeat_what_was_unanswered(
    tmp_path: Path, each_broker: LocalBroker, unique: str
) -> None:
    kind = each_broker.kind
    ids = {device.device_id for device in plan(FleetSpec.of(count=10, prefix=unique))}
    async with (
        await start_broker(state_dir=tmp_path, kind=kind, port=0) as broker,
        service_on(broker, unique) as service,
        fleet_of(service, broker, unique, count=10) as fleet,
    ):
        service.answer_acks = False
        await service.until(lambda: acks_of(service).keys() == ids)
        before = acks_of(service)
        service.heard.clear()
        service.registrations.clear()
        await broker.stop()
        await eventually(lambda: fleet.statistics()["connected"] == 0)
        await eventually(lambda: fleet.statistics()["connect_failures"] >= 10)
        async with await start_broker(state_dir=tmp_path, kind=kind, port=broker.port):
            await service.until(lambda: set(service.registrations) == ids)
            await service.until(lambda: acks_of(service).keys() == ids)
            # Byte for byte: that is how the service knows them for the same.
            assert acks_of(service) == before
            for device_id in ids:
                await service.activate(device_id)
            await service.until(lambda: set(service.provisioned) == ids)
            assert len(service.blobs.requests) == 10


async def test_a_device_whose_session_the_broker_has_lost_says_so(
    each_broker: LocalBroker, unique: str
) -> None:
    async with service_on(each_broker, unique) as service, fleet_of(service, each_broker, unique):
        service.answer_registrations = False
        await service.until(lambda: len(service.fresh) == 1)
        # A clean session under its id ends the device's connection and its session.
        thief = Client(each_broker.host, each_broker.port, identifier=f"{unique}-00001", clean_session=True)
        async with thief:
            pass
        await service.until(lambda: len(service.fresh) == 2)
    first, second = service.fresh
    assert None not in (first, second)
    assert first != second


async def test_a_download_that_ends_while_the_broker_is_away_is_acknowledged_when_it_is_back(
    tmp_path: Path, each_broker: LocalBroker, unique: str
) -> None:
    kind = each_broker.kind
    async with (
        await start_broker(state_dir=tmp_path, kind=kind, port=0) as broker,
        service_on(broker, unique) as service,
    ):
        service.blobs.gate = asyncio.Event()
        async with fleet_of(service, broker, unique) as fleet:
            await eventually(lambda: len(service.blobs.requests) == 1)
            await broker.stop()
            await eventually(lambda: fleet.statistics()["connected"] == 0)
            service.blobs.gate.set()
            await eventually(lambda: fleet.statistics()["downloads_completed"] == 1)
            async with await start_broker(state_dir=tmp_path, kind=kind, port=broker.port):
                await service.until(lambda: bool(service.provisioned))
                assert len(service.blobs.requests) == 1


async def test_a_broker_that_hangs_is_left_and_found_again(
    tmp_path: Path, each_broker: LocalBroker, unique: str
) -> None:
    impatient = FleetOptions(
        link=LinkOptions(
            publish_timeout_s=0.3, connect_timeout_s=0.3, first_backoff_s=0.05, max_backoff_s=0.1
        )
    )
    async with (
        await start_broker(state_dir=tmp_path, kind=each_broker.kind, port=0) as broker,
        service_on(broker, unique) as service,
    ):
        service.blobs.gate = asyncio.Event()
        async with fleet_of(service, broker, unique, options=impatient) as fleet:
            await eventually(lambda: len(service.blobs.requests) == 1)
            assert broker.process.pid is not None
            os.kill(broker.process.pid, signal.SIGSTOP)
            try:
                service.blobs.gate.set()
                # Its acknowledgement gets no PUBACK, its new connections no CONNACK.
                await eventually(lambda: fleet.statistics()["publish_failures"] >= 1)
                await eventually(lambda: fleet.statistics()["connect_failures"] >= 2)
            finally:
                os.kill(broker.process.pid, signal.SIGCONT)
            await service.until(lambda: bool(service.provisioned))
            await eventually(lambda: fleet.statistics()["connected"] == 1)


async def test_a_bug_in_one_devices_work_is_counted_and_ends_nothing_else(
    service: FakeService, any_broker: LocalBroker, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(verifier: Verifier, package: Package) -> None:
        if package.instance_id.endswith("1"):
            raise RuntimeError("a bug")

    monkeypatch.setattr(Verifier, "verify", verify)
    async with fleet_of(service, any_broker, unique, count=2) as fleet:
        await service.until(lambda: f"{unique}-00002" in service.provisioned)
        await eventually(lambda: fleet.statistics()["crashed"] == 1)
        assert fleet.statistics()["connected"] == 2


async def test_a_fleet_process_says_goodbye_on_sigterm(
    service: FakeService, any_broker: LocalBroker, unique: str, tmp_path: Path
) -> None:
    fleet_file = tmp_path / "six.fleet"
    spec = FleetSpec.of(count=6, prefix=unique, behaviours={"healthy": 1})
    fleet_file.write_text(json.dumps(FleetFile(spec=spec).to_document()))
    statistics_file = tmp_path / "fleet.json"
    processes = []
    try:
        for shard in ((1, 2), (2, 2)):
            arguments = FleetArguments(
                fleet=fleet_file,
                broker_url=any_broker.url,
                trust=(service.trust,),
                shard=shard,
                stats_file=statistics_file.with_suffix(f".{shard[0]}"),
            )
            argv = [sys.executable, "-m", "devices", *to_argv(arguments)]
            processes.append(await asyncio.create_subprocess_exec(*argv))
        await service.until(lambda: len(service.provisioned) == 6)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert [await process.wait() for process in processes] == [0, 0]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    await service.until(lambda: all(states[-1] == "offline" for states in service.presence.values()))
    assert len(service.presence) == 6
    for number in (1, 2):
        last = json.loads(statistics_file.with_suffix(f".{number}").read_text())
        assert (last["devices"], last["connected"], last["activations"]) == (3, 0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--count": "0"}, "count: 0 is out of range; give a whole number from 1 to 100,000"),
        ({"--count": "1000000"}, "count: 1,000,000 is out of range"),
        ({"--behaviours": "helthy=1"}, "unknown behaviour 'helthy'"),
        ({"--trust": "AAAA"}, "trust key 'AAAA' is no Ed25519 public key"),
        ({"--broker": "http://x"}, "mqtt://host:port"),
        ({"--shard": "2/1"}, "shard: 2/1 can't be"),
        ({"--connects-per-s": "0"}, "devices_per_s: 0.0 is out of range"),
    ],
)
async def test_a_fleet_that_cannot_start_says_why_in_one_line(change: dict[str, str], words: str) -> None:
    options = {"--broker": "mqtt://127.0.0.1:1", "--count": "1", "--trust": "A" * 43 + "="} | change
    argv = [sys.executable, "-m", "devices", *(f"{name}={value}" for name, value in options.items())]
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert words in stderr.decode()
    assert len(stderr.decode().splitlines()) == 1


def acks_of(service: FakeService) -> dict[str, bytes]:
    """The last acknowledgement of each device, as it came."""
    return {
        heard.device_id: heard.payload
        for heard in service.heard
        if isinstance(heard.event, DownloadCompletedAck)
    }
