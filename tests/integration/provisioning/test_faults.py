"""What breaks in mid-run is mended: the broker, Azurite, the service itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker.local import start_broker
from provisioning.azurite import LocalAzurite, start_azurite
from provisioning.service import Service
from provisioning.settings import ServiceSettings

from .driving import Api, fleet, instance_counts, service_process

pytestmark = pytest.mark.real

DEVICES = 30
# Slow ones take seconds for their download: whatever breaks strikes devices in every step.
MIX = "healthy=0.5,slow=0.5"
AWAY_S = 1.5


def _settings(state_dir: Path, broker_url: str, blob: str, container: str) -> ServiceSettings:
    return ServiceSettings(
        state_dir=state_dir,
        broker_url=broker_url,
        blob_connection_string=blob,
        container=container,
        api_port=0,
        # Shorter than the outage: the activities' retries have to carry it, not one patient publish.
        publish_timeout_s=0.5,
        upload_timeout_s=0.5,
        probe_interval_s=0.2,
    )


def _all_provisioned(run: dict[str, Any], state_dir: Path) -> None:
    assert run["status"] == "completed"
    assert run["counts"]["provisioned"] == run["devices"] == DEVICES, run
    assert instance_counts(state_dir) == {
        "ProvisionNewDevices": 1,
        "DeviceProvisioningOrchestration": DEVICES,
    }


@pytest.mark.parametrize("kind", ["mosquitto", "aedes"])
async def test_the_broker_goes_away_and_comes_back(
    tmp_path: Path, azurite: LocalAzurite, unique: str, kind: Any
) -> None:
    state_dir = tmp_path / "state"
    broker = await start_broker(state_dir=tmp_path, kind=kind, port=0)
    try:
        async with Service(_settings(state_dir, broker.url, azurite.connection_string, unique)):
            api = Api(state_dir)
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            async with fleet(broker.url, trust, count=DEVICES, behaviours=MIX):
                await api.wait_registered(DEVICES)
                run_id = await api.provision()
                await api.wait_counts(
                    run_id, "a package was sent", lambda c: c["queued"] + c["packaging"] < DEVICES
                )
                await broker.stop()
                await asyncio.sleep(AWAY_S)  # the outage itself, not a wait for something
                health = await api.get("/api/health")
                broker = await start_broker(state_dir=tmp_path, kind=kind, port=broker.port)
                run = await api.wait_ended(run_id)
    finally:
        await broker.stop()

    assert (health["status"], health["broker"]["connected"]) == ("degraded", False)
    _all_provisioned(run, state_dir)


@pytest.mark.parametrize("kind", ["mosquitto", "aedes"])
async def test_a_killed_broker_that_forgets_everybody_costs_no_attempt(
    tmp_path: Path, azurite: LocalAzurite, unique: str, kind: Any
) -> None:
    state_dir = tmp_path / "state"
    broker = await start_broker(state_dir=tmp_path / "one", kind=kind, port=0)
    try:
        async with Service(_settings(state_dir, broker.url, azurite.connection_string, unique)):
            api = Api(state_dir)
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            async with fleet(broker.url, trust, count=DEVICES, behaviours=MIX):
                await api.wait_registered(DEVICES)
                run_id = await api.provision()
                await api.wait_counts(run_id, "packages are out", lambda c: c["downloading"] > 0)
                await broker.stop()
                # Its sessions, its queues and what it had acknowledged are gone.
                broker = await start_broker(state_dir=tmp_path / "two", kind=kind, port=broker.port)
                run = await api.wait_ended(run_id)
                devices = await api.devices(run_id)
    finally:
        await broker.stop()

    _all_provisioned(run, state_dir)
    assert {device["attempt"] for device in devices} == {1}


async def test_azurite_goes_away_and_comes_back(tmp_path: Path, unique: str) -> None:
    state_dir = tmp_path / "state"
    azurite = await start_azurite(state_dir=tmp_path, port=0)
    try:
        async with (
            await start_broker(state_dir=tmp_path, port=0) as broker,
            Service(_settings(state_dir, broker.url, azurite.connection_string, unique)),
        ):
            api = Api(state_dir)
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            async with fleet(broker.url, trust, count=DEVICES, behaviours=MIX):
                await api.wait_registered(DEVICES)
                run_id = await api.provision()
                await azurite.stop()
                await asyncio.sleep(AWAY_S)  # the outage itself, not a wait for something
                azurite = await start_azurite(state_dir=tmp_path, port=azurite.port)
                run = await api.wait_ended(run_id)
    finally:
        await azurite.stop()

    _all_provisioned(run, state_dir)


async def test_the_service_starts_before_broker_and_azurite(tmp_path: Path, unique: str) -> None:
    state_dir = tmp_path / "state"
    async with await start_broker(state_dir=tmp_path, port=0) as broker:
        pass
    async with await start_azurite(state_dir=tmp_path, port=0) as azurite:
        pass
    async with Service(_settings(state_dir, broker.url, azurite.connection_string, unique)):
        api = Api(state_dir)
        assert (await api.get("/api/health"))["status"] == "degraded"
        async with (
            await start_broker(state_dir=tmp_path, port=broker.port),
            await start_azurite(state_dir=tmp_path, port=azurite.port),
        ):
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            async with fleet(broker.url, trust, count=3):
                await api.wait_registered(3)
                run = await api.wait_ended(await api.provision())
            assert run["counts"]["provisioned"] == 3


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(("queued", "packaging"), id="while packages are made"),
        pytest.param(("notified", "downloading"), id="while devices download"),
        pytest.param(("provisioned",), id="while some are done"),
    ],
)
async def test_the_service_is_killed_and_started_again(
    tmp_path: Path, azurite: LocalAzurite, unique: str, moment: tuple[str, ...]
) -> None:
    state_dir = tmp_path / "state"
    api = Api(state_dir)
    async with await start_broker(state_dir=tmp_path, port=0) as broker:
        where = (state_dir, broker.url, azurite.connection_string, unique)
        async with service_process(*where) as first:
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            devices = fleet(broker.url, trust, count=DEVICES, behaviours=MIX)
            await devices.__aenter__()
            try:
                await api.wait_registered(DEVICES)
                run_id = await api.provision()
                await api.wait_counts(run_id, str(moment), lambda c: any(c[state] for state in moment))
                first.kill()
                await first.wait()
                # Acks are published while nobody is there to take them.
                await asyncio.sleep(AWAY_S)
                async with service_process(*where):
                    run = await api.wait_ended(run_id)
            finally:
                await devices.__aexit__(None, None, None)

    _all_provisioned(run, state_dir)
