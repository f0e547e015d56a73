"""The service's own orchestrations, started and ended through the management API: nothing breaks by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from provisioning.api_tokens import provide_token
from provisioning.engine import AsyncTaskHubClient
from provisioning.service import Service
from tests.unit.http.managed import INSTANCES
from tests.unit.http.running import settings


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with Service(settings(tmp_path / "state")) as running:
        yield running


@pytest.fixture
async def api(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        yield client


JUNK: list[Any] = [
    None,
    5,
    "junk",
    [],
    {"options": {"speed": 9}},
    {"options": 5},
    {"options": {"max_attempts": {}}},
]


@pytest.mark.parametrize(
    ("name", "junk"),
    [
        ("ProvisionNewDevices", [*JUNK, {"device_ids": 5}, {"device_ids": "dev-1"}]),
        (
            "DeviceProvisioningOrchestration",
            [*JUNK, {"device_id": {"a": 1}}, {"device_id": 5}, {"device_id": "\ud800"}, {"device_id": "a/b"}],
        ),
        (
            "RolloutOrchestration",
            [*JUNK, {}, {"rollout_id": "ghost"}, {"rollout_id": {"a": 1}}, {"rollout_id": "\ud800"}],
        ),
        ("WaveOrchestration", [*JUNK, {}, {"lanes": 10**9}, {"lanes": "many"}]),
        ("LaneOrchestration", [*JUNK, {}]),
    ],
)
async def test_junk_ends_as_a_failed_instance_and_the_service_goes_on(
    service: Service, api: httpx.AsyncClient, name: str, junk: list[Any]
) -> None:
    for given in junk:
        answer = await api.post(f"/api/orchestrators/{name}?timeout=60", content=json.dumps(given))
        assert answer.status_code == 200, (given, answer.text)
        assert answer.json()["runtimeStatus"] == "Failed", given
        assert answer.json()["output"], given
    service._registry.register("d1", model="m", firmware_version="1", tags={})
    await asyncio.wait_for(service._registry.flush(), 60)
    assert (await api.get("/api/devices/d1")).status_code == 200


async def test_devices_that_nobody_knows_are_left_out_of_a_run_started_by_hand(
    service: Service, api: httpx.AsyncClient
) -> None:
    body = json.dumps({"device_ids": ["\ud800", "ghost", 5, {"a": 1}]})
    answer = await api.post("/api/orchestrators/ProvisionNewDevices/run-x?timeout=60", content=body)
    assert answer.json() == {"run_id": "run-x", "devices": 0, "counts": {}, "failures": []}
    assert await _run_ended(api, "run-x") == "completed"


async def _run_ended(api: httpx.AsyncClient, run_id: str) -> str:
    async with asyncio.timeout(60):
        while (run := (await api.get(f"/api/runs/{run_id}")).json())["status"] == "running":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return str(run["status"])


async def test_a_run_that_is_terminated_here_is_closed_with_its_devices(
    service: Service, api: httpx.AsyncClient
) -> None:
    service._registry.register("d1", model="m", firmware_version="1", tags={})
    await service._registry.flush()
    run_id = (await api.post("/api/provision", json={})).json()["run_id"]
    assert run_id in [one["instanceId"] for one in (await api.get(INSTANCES)).json()]
    assert (await api.post(f"{INSTANCES}/{run_id}/terminate?reason=enough")).status_code == 202
    assert await _run_ended(api, run_id) == "terminated"
    assert (await api.get("/api/devices/d1")).json()["state"] == "cancelled"
    child = (await api.get(f"{INSTANCES}/{run_id}:d1")).json()
    assert child["runtimeStatus"] == "Terminated"
    # Purged, the run is still on record.
    assert (await api.delete(f"{INSTANCES}/{run_id}")).status_code == 200
    assert (await api.get(f"/api/runs/{run_id}")).json()["status"] == "terminated"
    assert (await api.get("/api/devices/d1")).status_code == 200


async def test_a_device_is_not_worked_on_any_more_when_its_run_was_terminated_alone(
    service: Service, api: httpx.AsyncClient
) -> None:
    service._registry.register("d1", model="m", firmware_version="1", tags={})
    await service._registry.flush()
    run_id = (await api.post("/api/provision", json={})).json()["run_id"]
    # Not by the API, which ends the children too.
    client = service._client
    assert isinstance(client, AsyncTaskHubClient)
    await client.terminate_orchestration(run_id, recursive=False)
    assert await _run_ended(api, run_id) == "terminated"
    async with asyncio.timeout(60):
        while (await api.get(f"{INSTANCES}/{run_id}:d1")).json()["runtimeStatus"] != "Terminated":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await api.get("/api/devices/d1")).json()["state"] == "cancelled"


async def test_a_run_is_started_by_hand(service: Service, api: httpx.AsyncClient) -> None:
    service._registry.register("d1", model="m", firmware_version="1", tags={})
    await service._registry.flush()
    answer = await api.post("/api/orchestrators/ProvisionNewDevices/by-hand", json={"device_ids": ["d1"]})
    assert answer.status_code == 202
    async with asyncio.timeout(60):
        while (await api.get("/api/runs/by-hand")).status_code == 404:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await api.get("/api/runs/by-hand")).json()["devices"] == 1
    assert (await api.post(f"{INSTANCES}/by-hand/terminate")).status_code == 202
    assert await _run_ended(api, "by-hand") == "terminated"


@pytest.mark.parametrize("run_id", ["a/b", "rollout-1#3#7", "ü", "q+1", "x" * 201])
async def test_an_id_that_no_message_can_carry_claims_no_device(
    service: Service, api: httpx.AsyncClient, run_id: str
) -> None:
    service._registry.register("d1", model="m", firmware_version="1", tags={})
    await service._registry.flush()
    there = f"/api/orchestrators/ProvisionNewDevices/{quote(run_id, safe='')}?timeout=60"
    answer = (await api.post(there, json={})).json()
    assert (answer["runtimeStatus"], "a run id is" in answer["output"]) == ("Failed", True), answer
    assert (await api.get("/api/devices/d1")).json()["state"] == "new"


@pytest.mark.parametrize("instance_id", ["d1", ":d1", "a/b:d1"])
async def test_a_device_is_not_begun_under_an_id_that_no_message_can_carry(
    api: httpx.AsyncClient, instance_id: str
) -> None:
    there = f"/api/orchestrators/DeviceProvisioningOrchestration/{quote(instance_id, safe='')}?timeout=60"
    answer = (await api.post(there, json={"device_id": "d1"})).json()
    assert (answer["runtimeStatus"], "id" in answer["output"]) == ("Failed", True), answer


async def test_an_empty_body_is_told_what_is_missing(api: httpx.AsyncClient) -> None:
    answer = (await api.post("/api/orchestrators/ProvisionNewDevices?timeout=60")).json()
    assert (answer["runtimeStatus"], answer["output"]) == ("Failed", "the input is no object: '{}' at least")


async def test_urls_have_the_scheme_that_the_service_serves(service: Service, api: httpx.AsyncClient) -> None:
    answer = await api.post(
        "/api/orchestrators/ProvisionNewDevices",
        json={"device_ids": []},
        headers={
            # What a proxy passes on needs one.
            "authorization": f"Bearer {provide_token(service.settings.state_dir / 'api.token')}",
            "x-forwarded-proto": "https",
            "x-forwarded-for": "192.0.2.1",
            "x-forwarded-host": "x.example",
        },
    )
    assert answer.headers["location"].startswith(f"{service.url}/")
