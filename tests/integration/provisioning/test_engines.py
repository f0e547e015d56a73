"""The main job on each engine; the SDK's in-memory backend over gRPC stands in for backends elsewhere.

That backend keeps its instances when it is stopped and started again, but gives no work twice: in the tests
it goes away while nothing but devices is waited for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from broker import messages, topics
from broker.local import LocalBroker, start_broker
from provisioning.azurite import LocalAzurite
from tests.backend import Backend

from .driving import Api, Json, fleet, service_process, wait_until

pytestmark = pytest.mark.real

DEVICES = 15
DEVICE = "dev-by-hand"


def variables(backend: Backend, **more: str) -> dict[str, str]:
    return {"MUSTER_ENGINE": "durabletask", "MUSTER_ENGINE_ENDPOINT": backend.endpoint, **more}


@pytest.fixture
async def own_broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    async with await start_broker(state_dir=tmp_path, port=0) as broker:
        yield broker


@pytest.mark.parametrize("engine", ["embedded", "durabletask", "durabletask with a task hub"])
async def test_the_main_job_is_the_same_on_each_engine(
    tmp_path: Path,
    azurite: LocalAzurite,
    own_broker: LocalBroker,
    unique: str,
    engine: str,
    backend: Backend,
) -> None:
    state_dir = tmp_path / "state"
    chosen: dict[str, str] = {}
    if engine != "embedded":
        backend.start()
        chosen = variables(backend, MUSTER_ENGINE_TASKHUB="default" if "hub" in engine else "")
    where = (state_dir, own_broker.url, azurite.connection_string, unique, chosen)
    api = Api(state_dir)
    async with service_process(*where):
        health = await api.get("/api/health")
        async with fleet(own_broker.url, health["trust"]["public_key"], count=DEVICES):
            await api.wait_registered(DEVICES)
            run = await api.wait_ended(await api.provision())
            devices = (await api.get(f"/api/devices?run_id={run['run_id']}"))["devices"]
            device = await api.get("/api/devices/dev-00003")
            statistics = await api.get("/api/statistics")
            again, problem = await api.call("POST", "/api/provision", {})

    assert health["engine"]["kind"] == engine.split()[0]
    assert (run["status"], run["devices"], run["counts"]["provisioned"]) == ("completed", DEVICES, DEVICES)
    assert set(run["percentiles"]["steps"]) == {"packaging", "notifying", "downloading", "activating"}
    assert {(one["state"], one["attempt"], one["error"]) for one in devices} == {("provisioned", 1, None)}
    assert [step["step"] for step in device["steps"]] == [
        "packaging",
        "notifying",
        "downloading",
        "activating",
    ]
    assert all(step["ended_at"] and step["error"] is None for step in device["steps"])
    assert device["outcome"]["state"] == "provisioned"
    assert device["firmware_version"] != "0.9.0"
    assert "sig=" not in json.dumps(device).replace("sig=***", "")
    assert statistics["bridge"]["malformed"] == statistics["bridge"]["unknown"] == 0
    assert (again, problem["title"]) == (409, "No new devices")


async def test_devices_that_never_answer_time_out_on_a_backend_too(
    tmp_path: Path,
    azurite: LocalAzurite,
    own_broker: LocalBroker,
    unique: str,
    backend: Backend,
) -> None:
    backend.start()
    state_dir = tmp_path / "state"
    where = (state_dir, own_broker.url, azurite.connection_string, unique, variables(backend))
    api = Api(state_dir)
    async with service_process(*where):
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        async with fleet(own_broker.url, trust, count=3, behaviours="never-answers=1"):
            await api.wait_registered(3)
            run = await api.wait_ended(await api.provision(options={"ack_timeout_s": 0.3, "max_attempts": 2}))
            device = await api.get("/api/devices/dev-00001")
    assert (run["status"], run["counts"]["timed_out"]) == ("completed", 3)
    assert [step["attempt"] for step in device["steps"]] == [1, 1, 1, 2, 2, 2]


class Device:
    """A device that says what the test has it say."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def register(self) -> None:
        message = messages.Register(model="by-hand", firmware_version="0.9.0")
        await self._client.publish(topics.register(DEVICE), message.to_json(), qos=1)

    async def told(self) -> Json:
        """The next message to it."""
        async with asyncio.timeout(60):
            message = await anext(self._client.messages)
        told: Json = json.loads(message.payload)
        return told

    async def say(self, event: messages.Event) -> None:
        topic = topics.event(DEVICE, type(event).__name__)
        await self._client.publish(topic, event.to_json(), qos=1)

    async def acknowledge(self, package: Json) -> None:
        wanted = ("instance_id", "package_id", "attempt", "size_bytes", "sha256")
        await self.say(messages.DownloadCompletedAck(**{name: package[name] for name in wanted}))

    async def confirm(self, command: Json) -> None:
        wanted = ("instance_id", "package_id", "attempt")
        named = {name: command[name] for name in wanted}
        await self.say(messages.ActivationCompleted(**named, firmware_version=command["release"]))


@asynccontextmanager
async def device_by_hand(broker: LocalBroker) -> AsyncIterator[Device]:
    async with aiomqtt.Client("127.0.0.1", broker.port, identifier=DEVICE) as client:
        await client.subscribe(topics.package(DEVICE), qos=1)
        await client.subscribe(topics.command(DEVICE, "+"), qos=1)
        yield Device(client)


async def wait_subscribed(api: Api) -> None:
    async def check() -> bool:
        return bool((await api.get("/api/health"))["broker"]["connected"])

    await wait_until("the service listens to the broker", check)


async def wait_engine(api: Api, connected: bool) -> None:
    async def check() -> bool:
        return bool((await api.get("/api/health"))["engine"]["connected"] is connected)

    await wait_until(f"the engine is {'back' if connected else 'away'}", check)


async def wait_step(api: Api, step: str) -> None:
    async def check() -> bool:
        return bool((await api.get(f"/api/devices/{DEVICE}"))["step"] == step)

    await wait_until(f"the orchestration waits in {step}", check)


async def wait_not_taken(api: Api) -> None:
    """Until an event of the device was offered to the backend in vain, and is kept."""

    async def check() -> bool:
        bridge: dict[str, Any] = (await api.get("/api/statistics"))["bridge"]
        return bool(bridge["retries"] > 0 and bridge["in_flight"] == 1)

    await wait_until("an event waits for the backend", check)


async def test_a_backend_that_starts_after_the_service_gets_the_work(
    tmp_path: Path,
    azurite: LocalAzurite,
    own_broker: LocalBroker,
    unique: str,
    backend: Backend,
) -> None:
    state_dir = tmp_path / "state"
    where = (state_dir, own_broker.url, azurite.connection_string, unique, variables(backend))
    api = Api(state_dir)
    async with service_process(*where):
        health = await api.get("/api/health")
        assert (health["status"], health["engine"]["connected"]) == ("degraded", False)
        async with fleet(own_broker.url, health["trust"]["public_key"], count=3):
            await api.wait_registered(3)
            backend.start()
            await wait_engine(api, connected=True)
            run = await api.wait_ended(await api.provision())
    assert (run["status"], run["counts"]["provisioned"]) == ("completed", 3)


@pytest.mark.parametrize(
    "killed", [False, True], ids=["the service waits", "the service is killed meanwhile"]
)
async def test_what_a_device_says_while_the_backend_is_away_is_not_lost(
    tmp_path: Path,
    azurite: LocalAzurite,
    own_broker: LocalBroker,
    unique: str,
    backend: Backend,
    killed: bool,
) -> None:
    backend.start()
    state_dir = tmp_path / "state"
    where = (state_dir, own_broker.url, azurite.connection_string, unique, variables(backend))
    api = Api(state_dir)
    async with device_by_hand(own_broker) as device:
        async with service_process(*where) as process:
            await wait_subscribed(api)
            await device.register()
            await api.wait_registered(1)
            run_id = await api.provision()
            package = await device.told()
            await wait_step(api, "downloading")
            backend.stop()
            await wait_engine(api, connected=False)
            await device.acknowledge(package)
            await wait_not_taken(api)
            if killed:
                process.kill()
                await process.wait()
            else:
                backend.start()
                await device.confirm(await device.told())
                run = await api.wait_ended(run_id)
        if killed:
            # It starts without its backend, takes up the run when that is there, and the broker still has
            # what was never acknowledged.
            async with service_process(*where):
                assert (await api.get(f"/api/runs/{run_id}"))["status"] == "running"
                backend.start()
                command = await device.told()
                while "url" in command:  # the package once more, to a device that may have missed it
                    command = await device.told()
                await device.confirm(command)
                run = await api.wait_ended(run_id)
                device_view = await api.get(f"/api/devices/{DEVICE}")
            assert device_view["attempt"] == 1
    assert (run["status"], run["counts"]["provisioned"]) == ("completed", 1)
