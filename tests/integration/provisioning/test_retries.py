"""Retries by kind of failure and deadlines, with real devices that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.local import LocalBroker, start_broker
from devices.roster import Roster
from devices.spec import FleetSpec, parse_behaviours
from provisioning.azurite import LocalAzurite
from provisioning.service import Service
from provisioning.settings import RunOptions, ServiceSettings

from .driving import Api, fleet, service_process, wait_until

pytestmark = pytest.mark.real

Json = dict[str, Any]
DEVICES = 60
SEED = 4
BEHAVIOURS = "healthy=2,flaky=1,corrupt=1,out-of-storage=1,lost-ack=1,never-answers=1,rejects=1,expired-url=1"


@pytest_asyncio.fixture
async def own_broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    """A broker that knows no devices of other tests."""
    async with await start_broker(state_dir=tmp_path / "broker", port=0) as broker:
        yield broker


def settings(directory: Path, broker: LocalBroker, azurite: LocalAzurite, container: str) -> ServiceSettings:
    return ServiceSettings(
        state_dir=directory,
        broker_url=broker.url,
        blob_connection_string=azurite.connection_string,
        container=container,
        api_port=0,
    )


async def waiting(api: Api, device_id: str = "dev-00001") -> Json:
    """The device, as soon as it waits for its next attempt."""
    device: Json = {}

    async def check() -> bool:
        nonlocal device
        device = await api.get(f"/api/devices/{device_id}")
        return bool(device["step"] == "waiting")

    await wait_until(f"{device_id} waits for its next attempt", check)
    return device


@pytest.mark.timeout(300)
async def test_each_device_is_tried_as_often_as_its_kind_of_failure_says(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    options: Json = {
        "ack_timeout_s": 8,
        "activation_timeout_s": 8,
        "max_attempts": 3,
        "retries": {
            "no_ack": {"max_attempts": 1},
            "download_failed": {"max_attempts": 2, "delay_s": 1, "jitter": 0.5},
            "rejected": {"max_attempts": 3, "delay_s": 0.5, "factor": 2},
        },
    }
    read = RunOptions.from_json(options)
    roster = Roster(FleetSpec.of(count=DEVICES, seed=SEED, behaviours=parse_behaviours(BEHAVIOURS)))
    expected = {
        device_id: roster.expected_outcome(entry, max_attempts=3, limits=read.attempts_by_kind())
        for device_id, entry in roster.entries.items()
    }
    attempts = {"rejects": 3, "out-of-storage": 2, "corrupt": 2, "expired-url": 2}
    state_dir = tmp_path / "state"
    async with Service(settings(state_dir, own_broker, azurite, unique)):
        api = Api(state_dir)
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        async with fleet(own_broker.url, trust, count=DEVICES, behaviours=BEHAVIOURS, seed=SEED):
            await api.wait_registered(DEVICES)
            plan = {"options": options}
            status, created = await api.call("POST", "/api/rollouts", {"plan": plan, "actor": "test"})
            assert status == 201, created
            path = f"/api/rollouts/{created['rollout_id']}"

            async def ended() -> bool:
                return bool((await api.get(path))["state"] == "completed")

            await wait_until("the rollout is completed", ended, timeout_s=200)
            found = [await api.get(f"/api/devices/{device_id}") for device_id in expected]

    assert {device["device_id"]: device["state"] for device in found} == expected
    assert set(expected.values()) == {"provisioned", "failed", "timed_out", "rejected"}
    for device in found:
        behaviour = roster.entries[device["device_id"]].behaviour
        assert device["outcome"]["attempts"] == attempts.get(behaviour, 1), behaviour
        waits = [step for step in device["steps"] if step["step"] == "waiting"]
        assert len(waits) == device["outcome"]["attempts"] - 1
        for step in waits:
            began, until, went_on = (
                datetime.fromisoformat(step[name]) for name in ("started_at", "retrying_at", "ended_at")
            )
            assert began < until <= went_on
        if behaviour == "rejects":
            took_s = [
                (
                    datetime.fromisoformat(step["retrying_at"]) - datetime.fromisoformat(step["started_at"])
                ).total_seconds()
                for step in waits
            ]
            assert took_s == pytest.approx([0.5, 1.0])


@pytest.mark.timeout(200)
async def test_an_acknowledgement_that_is_late_ends_the_wait_for_the_next_attempt(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    async with Service(settings(state_dir, own_broker, azurite, unique)):
        api = Api(state_dir)
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        async with fleet(own_broker.url, trust, count=1, behaviours="late-ack=1"):
            await api.wait_registered(1)
            options = {"ack_timeout_s": 2, "retries": {"no_ack": {"delay_s": 3600}}}
            run_id = await api.provision(options=options)
            device = await waiting(api)
            assert device["retrying_after"] == "no_ack"
            run = await api.wait_ended(run_id)
            after = await api.get("/api/devices/dev-00001")
    left_s = datetime.fromisoformat(device["retrying_at"]) - datetime.fromisoformat(device["since"])
    assert left_s.total_seconds() == pytest.approx(3600, abs=0.01)
    assert run["counts"]["provisioned"] == 1
    assert (after["outcome"]["attempts"], after["retrying_at"]) == (1, None)


@pytest.mark.timeout(200)
async def test_a_forced_cancellation_and_the_devices_deadline_end_a_wait(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    retries = {"no_ack": {"delay_s": 3600}}
    async with Service(settings(state_dir, own_broker, azurite, unique)):
        api = Api(state_dir)
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        async with fleet(own_broker.url, trust, count=1, behaviours="never-answers=1"):
            await api.wait_registered(1)
            plan = {"options": {"ack_timeout_s": 0.5, "retries": retries}}
            status, created = await api.call("POST", "/api/rollouts", {"plan": plan, "actor": "test"})
            assert status == 201, created
            path = f"/api/rollouts/{created['rollout_id']}"
            await waiting(api)
            status, answer = await api.call(
                "POST", f"{path}/actions", {"action": "force_cancel", "actor": "test"}
            )
            assert status in (200, 202), answer

            async def cancelled() -> bool:
                return bool((await api.get("/api/devices/dev-00001"))["state"] == "cancelled")

            await wait_until("the device is cancelled", cancelled)

            options = {"ack_timeout_s": 0.5, "device_timeout_s": 2, "retries": retries}
            await api.wait_ended(await api.provision(device_ids=["dev-00001"], options=options))
            device = await api.get("/api/devices/dev-00001")
    assert device["state"] == "timed_out"
    assert device["error"] == "deadline of the device (2 s) passed in waiting, attempt 2"


@pytest.mark.timeout(200)
async def test_a_service_that_is_killed_while_a_device_waits_tries_it_again_when_it_is_time(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    api = Api(state_dir)
    here = (state_dir, own_broker.url, azurite.connection_string, unique)
    async with service_process(*here) as process:
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        async with fleet(own_broker.url, trust, count=1, behaviours="lost-ack=1"):
            await api.wait_registered(1)
            options = {"ack_timeout_s": 2, "retries": {"no_ack": {"max_attempts": 2, "delay_s": 4}}}
            run_id = await api.provision(options=options)
            before = await waiting(api)
            process.kill()
            await asyncio.wait_for(process.wait(), 30)
            async with service_process(*here):
                run = await api.wait_ended(run_id)
                device = await api.get("/api/devices/dev-00001")
    assert run["counts"]["provisioned"] == 1
    assert device["outcome"]["attempts"] == 2
    (step,) = [step for step in device["steps"] if step["step"] == "waiting"]
    assert step["retrying_at"] == before["retrying_at"] <= step["ended_at"]
