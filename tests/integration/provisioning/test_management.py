"""The main job by Durable Functions' HTTP management API, as a client of Durable Functions would do it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.local import LocalBroker, start_broker
from provisioning.azurite import LocalAzurite
from tests.backend import Backend

from .driving import Api, fleet, service_process

pytestmark = pytest.mark.real

DEVICES = 4


class PollingClient:
    """Knows of 202, `Location` and `Retry-After`, and of nothing that is Muster's."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def run(self, url: str, given: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Start an orchestration and poll until it has ended: how it ended, and its management URLs."""
        answer = await self._http.post(url, json=given)
        assert answer.status_code == 202, answer.text
        urls: dict[str, str] = answer.json()
        async with asyncio.timeout(90):
            while answer.status_code == 202:
                # A tenth of what is asked for: the test is in a hurry.
                await asyncio.sleep(int(answer.headers["retry-after"]) / 100)
                answer = await self._http.get(answer.headers["location"])
        assert answer.status_code == 200, answer.text
        return answer.json(), urls


@pytest.mark.parametrize("engine", ["embedded", "durabletask"])
async def test_devices_are_provisioned_by_a_client_of_durable_functions(
    tmp_path: Path, azurite: LocalAzurite, unique: str, backend: Backend, engine: str
) -> None:
    variables: dict[str, str] = {}
    if engine == "durabletask":
        backend.start()
        variables = {"MUSTER_ENGINE": "durabletask", "MUSTER_ENGINE_ENDPOINT": backend.endpoint}
    state_dir = tmp_path / "state"
    api = Api(state_dir)
    async with (
        await start_broker(state_dir=tmp_path, port=0) as broker,
        service_process(state_dir, broker.url, azurite.connection_string, unique, variables),
    ):
        await _provision(api, state_dir, broker)


async def _provision(api: Api, state_dir: Path, broker: LocalBroker) -> None:
    trust = (await api.get("/api/health"))["trust"]["public_key"]
    base = json.loads((state_dir / "service.json").read_text())["url"]
    async with (
        fleet(broker.url, trust, count=DEVICES),
        httpx.AsyncClient(timeout=60) as http,
    ):
        await api.wait_registered(DEVICES)
        client = PollingClient(http)
        ended, urls = await client.run(
            f"{base}/api/orchestrators/ProvisionNewDevices/run%3Aone", {"options": {}}
        )
        assert (ended["name"], ended["runtimeStatus"]) == ("ProvisionNewDevices", "Completed")
        assert ended["output"]["counts"] == {"provisioned": DEVICES}
        assert ended["instanceId"] == urls["id"] == "run:one"
        assert (await api.wait_ended("run:one"))["counts"]["provisioned"] == DEVICES

        # Each device was sent a SAS URL, which was made when it was sent: no history has it.
        instances = f"{base}/runtime/webhooks/durabletask/instances"
        page = await http.get(instances, params={"instanceIdPrefix": "run:one:", "top": DEVICES + 1})
        children = [one["instanceId"] for one in page.json()]
        assert len(children) == DEVICES
        for child in children:
            answer = await http.get(
                f"{instances}/{child.replace(':', '%3A')}?showHistory=true&showHistoryOutput=true"
            )
            assert "sig=" not in answer.text
            activities = [event.get("FunctionName") for event in answer.json()["historyEvents"]]
            assert {"CreateInstallationPackage", "SendPackageUrlToDevice", "ActivateDevice"} <= set(
                activities
            )

        purged = await http.delete(instances, params={"createdTimeFrom": "2020-01-01T00:00:00Z"})
        assert purged.json() == {"instancesDeleted": DEVICES + 1}
        assert (await http.get(urls["statusQueryGetUri"])).status_code == 404
