"""Releases with real devices of two models, a real broker and a real Azurite."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import pytest
import pytest_asyncio
from azure.storage.blob.aio import ContainerClient

from broker.address import BrokerAddress
from broker.local import LocalBroker, start_broker
from provisioning.azurite import LocalAzurite
from provisioning.service import Service
from provisioning.settings import ServiceSettings

from .driving import Api, wait_until

pytestmark = pytest.mark.real

Json = dict[str, Any]
OPTIONS = {"ack_timeout_s": 20, "activation_timeout_s": 20, "max_attempts": 2}


@pytest_asyncio.fixture
async def own_broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    """A broker that knows no devices of other tests."""
    async with await start_broker(state_dir=tmp_path / "broker", port=0) as broker:
        yield broker


@contextlib.asynccontextmanager
async def fleet(broker_url: str, trust: str, model: str, count: int) -> AsyncIterator[None]:
    """So many healthy devices of a model, with ids that begin with it and a tag."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devices", "--broker", broker_url, "--count", str(count), "--trust", trust),
        *("--model", model, "--prefix", model, "--firmware-version", "1.0", "--tag", "site=lab"),
    )
    try:
        yield
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


@contextlib.asynccontextmanager
async def told(broker_url: str) -> AsyncIterator[set[str]]:
    """The devices to which the service says anything."""
    address = BrokerAddress.parse(broker_url)
    heard: set[str] = set()

    async def listen(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            heard.add(str(message.topic).split("/")[1])

    async with aiomqtt.Client(address.host, address.port) as client:
        await client.subscribe("devices/+/package", qos=1)
        await client.subscribe("devices/+/commands/+", qos=1)
        listening = asyncio.create_task(listen(client))
        try:
            yield heard
        finally:
            listening.cancel()
            await asyncio.wait([listening])


async def blobs(azurite: LocalAzurite, container: str) -> list[str]:
    async with ContainerClient.from_connection_string(azurite.connection_string, container) as client:
        return sorted([blob.name async for blob in client.list_blobs()])


async def ended(api: Api, rollout_id: str) -> Json:
    view: Json = {}

    async def check() -> bool:
        nonlocal view
        view = await api.get(f"/api/rollouts/{rollout_id}")
        return view["state"] in ("completed", "cancelled", "failed")

    await wait_until(f"{rollout_id} has ended", check, timeout_s=120)
    return view


@contextlib.asynccontextmanager
async def service_of(
    directory: Path, broker: LocalBroker, azurite: LocalAzurite, container: str
) -> AsyncIterator[tuple[Service, Api]]:
    settings = ServiceSettings(
        state_dir=directory,
        broker_url=broker.url,
        blob_connection_string=azurite.connection_string,
        container=container,
        api_port=0,
    )
    async with Service(settings) as service:
        yield service, Api(directory)


async def add(service: Service, firmware: bytes | None, **fields: Any) -> Json:
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        files = {} if firmware is None else {"firmware": ("firmware.bin", firmware)}
        # An empty file part makes httpx send multipart where there is no file, too.
        answer = await client.post(
            "/api/releases", data=fields, files=files or {"notes": (None, fields.pop("notes", ""))}
        )
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@pytest.mark.timeout(300)
async def test_devices_of_another_model_are_rejected_before_anything_is_sent(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    async with service_of(tmp_path / "state", own_broker, azurite, unique) as (service, api):
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        release = await add(
            service,
            b"\x00firmware" * 1000,
            name="fw-2",
            version="2.0.1",
            model=["alpha", "gamma"],
            configuration='{"at": "{tags.site}/{device_id}"}',
        )
        assert release["models"] == ["alpha", "gamma"]
        async with (
            fleet(own_broker.url, trust, "alpha", 6),
            fleet(own_broker.url, trust, "beta", 4),
            told(own_broker.url) as heard,
        ):
            await api.wait_registered(10)
            plan = {"release": "fw-2", "waves": [{"percent": 50}, {}], "options": OPTIONS}
            status, planned = await api.call("POST", "/api/rollouts/plan", {"plan": plan})
            assert (status, planned["devices"], planned["not_fitting"]) == (200, 10, 4)
            status, created = await api.call("POST", "/api/rollouts", {"plan": plan})
            assert (status, created["not_fitting"], created["release"]) == (201, 4, "fw-2")
            view = await ended(api, created["rollout_id"])
            devices = {one["device_id"]: one for one in (await api.get("/api/devices?limit=100"))["devices"]}
        fitting = {device_id for device_id in devices if device_id.startswith("alpha")}
        assert (view["counts"]["provisioned"], view["counts"]["rejected"]) == (6, 4)
        assert {devices[name]["firmware_version"] for name in fitting} == {"2.0.1"}
        rejected = [device for name, device in devices.items() if name not in fitting]
        assert {(one["state"], one["firmware_version"], one["attempt"]) for one in rejected} == {
            ("rejected", "1.0", 1)
        }
        assert [(one["count"], one["reason"]) for one in view["reasons"]] == [
            (4, "the release fw-2 is for the models alpha, gamma, and the device's model is beta")
        ]
        assert heard == fitting
        assert await blobs(azurite, unique) == sorted(f"fw-2/{name}.zip" for name in fitting)
        plan = {"targets": {"firmware_versions": ["2.0.1"], "states": ["provisioned"]}}
        status, planned = await api.call("POST", "/api/rollouts/plan", {"plan": plan})
        assert (status, planned["devices"]) == (200, 6)


@pytest.mark.timeout(300)
async def test_a_large_release_goes_through_whole_and_leaves_nothing_when_it_is_removed(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    async with service_of(tmp_path / "state", own_broker, azurite, unique) as (service, api):
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        size_bytes = 9 * 1024 * 1024 + 1  # three blocks
        await add(service, None, name="big", version="9", generated_size_bytes=str(size_bytes))
        async with fleet(own_broker.url, trust, "alpha", 3):
            await api.wait_registered(3)
            status, started = await api.call("POST", "/api/provision", {"release": "big", "options": OPTIONS})
            assert (status, started["release"], started["not_fitting"]) == (202, "big", 0)
            run = await api.wait_ended(started["run_id"])
            assert (run["release"], run["counts"]["provisioned"]) == ("big", 3)
            device = await api.get("/api/devices/alpha-00001")
        assert (device["firmware_version"], device["package"]["release"]) == ("9", "big")
        assert device["package"]["size_bytes"] > size_bytes
        assert (await api.call("DELETE", "/api/releases/big"))[0] == 200
        assert list((tmp_path / "state" / "releases").iterdir()) == []
