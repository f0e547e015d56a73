"""A fleet is provisioned through the real broker and the real Azurite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.local import start_broker
from provisioning.azurite import LocalAzurite
from provisioning.service import Service
from provisioning.settings import ServiceSettings

from .driving import Api, fleet, instance_counts

pytestmark = pytest.mark.real


@pytest.mark.parametrize("kind", ["mosquitto", "aedes"])
async def test_a_fleet_is_provisioned(tmp_path: Path, azurite: LocalAzurite, unique: str, kind: str) -> None:
    state_dir = tmp_path / "state"
    async with await start_broker(state_dir=tmp_path, kind=kind, port=0) as broker:  # type: ignore[arg-type]
        settings = ServiceSettings(
            state_dir=state_dir,
            broker_url=broker.url,
            blob_connection_string=azurite.connection_string,
            container=unique,
            api_port=0,
        )
        async with Service(settings):
            api = Api(state_dir)
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            async with fleet(broker.url, trust, count=30):
                await api.wait_registered(30)
                run = await api.wait_ended(await api.provision())
                device = await api.get("/api/devices/dev-00003")
                page = await api.get("/api/devices?state=provisioned&limit=20")
                rest = await api.get(f"/api/devices?state=provisioned&limit=20&after={page['next']}")
                statistics = await api.get("/api/statistics")
                again, problem = await api.call("POST", "/api/provision", {})

    assert (run["status"], run["devices"], run["counts"]["provisioned"]) == ("completed", 30, 30)
    assert run["percentiles"]["device"]["p50_s"] <= run["percentiles"]["device"]["p99_s"]
    assert set(run["percentiles"]["steps"]) == {"packaging", "notifying", "downloading", "activating"}
    assert [step["step"] for step in device["steps"]] == [
        "packaging",
        "notifying",
        "downloading",
        "activating",
    ]
    assert all(step["ended_at"] and step["error"] is None for step in device["steps"])
    assert device["outcome"]["state"] == "provisioned"
    assert device["firmware_version"] != "0.9.0"
    assert len(page["devices"]) + len(rest["devices"]) == page["total"] == 30
    assert rest["next"] is None
    assert statistics["bridge"]["malformed"] == statistics["bridge"]["unknown"] == 0
    assert (again, problem["title"]) == (409, "No new devices")
    assert "sig=***" in device["package"]["url"]
    assert "sig=" not in json.dumps(device).replace("sig=***", "")
    assert instance_counts(state_dir) == {"ProvisionNewDevices": 1, "DeviceProvisioningOrchestration": 30}


async def test_a_device_that_never_answers_times_out_and_can_be_tried_again(
    tmp_path: Path, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    async with await start_broker(state_dir=tmp_path, port=0) as broker:
        settings = ServiceSettings(
            state_dir=state_dir,
            broker_url=broker.url,
            blob_connection_string=azurite.connection_string,
            container=unique,
            api_port=0,
        )
        async with Service(settings):
            api = Api(state_dir)
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            async with fleet(broker.url, trust, count=2, behaviours="never-answers=1"):
                await api.wait_registered(2)
                options = {"ack_timeout_s": 0.3, "max_attempts": 2}
                first = await api.wait_ended(await api.provision(options=options))
                device = await api.get("/api/devices/dev-00001")
                second = await api.wait_ended(await api.provision(device_ids=["dev-00001"], options=options))
                first_again = await api.get(f"/api/runs/{first['run_id']}")

    assert first["counts"]["timed_out"] == 2
    assert {failure["device_id"] for failure in first["failures"]} == {"dev-00001", "dev-00002"}
    assert "0.3 s" in first["failures"][0]["reason"]
    assert [step["attempt"] for step in device["steps"]] == [1, 1, 1, 2, 2, 2]
    assert (second["devices"], second["counts"]["timed_out"]) == (1, 1)
    # A later run of the same device leaves what an earlier one came to.
    assert first_again["counts"] == first["counts"]
