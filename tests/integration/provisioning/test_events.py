"""Events of a real job: whoever fetches once and then follows the stream has what the service has."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.local import start_broker
from provisioning.azurite import LocalAzurite
from provisioning.service import Service
from provisioning.settings import ServiceSettings
from tests.unit.events.watching import read

from .driving import Api, fleet

pytestmark = pytest.mark.real

DEVICES = 30
BREAK_AFTER = 1
"""News of devices, after which a connection breaks: there are few, as what changes at once is told so."""


class Page:
    """What a page knows of the devices, and how the rollouts are."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.rollouts: dict[str, Any] = {}
        self.last_id: str | None = None
        self.names: list[str] = []

    async def follow(self, client: httpx.AsyncClient) -> bool:
        """Read until a rollout has ended (True), or until the connection breaks."""
        headers = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        rest, count = b"", 0
        async with client.stream("GET", "/api/events", headers=headers, timeout=None) as answer:
            async for chunk in answer.aiter_bytes():
                blocks, _, rest = (rest + chunk).rpartition(b"\n\n")
                for event in read(blocks):
                    count += event.name == "devices"
                    await self.take(client, event.name, event.data)
                    self.last_id = event.event_id
                if self.ended:
                    return True
                if count >= BREAK_AFTER:
                    return False
        return False

    async def take(self, client: httpx.AsyncClient, name: str, data: Any) -> None:
        self.names.append(name)
        if name == "hello" and not self.states:
            cells = (await client.get("/api/cells")).json()
            codes = base64.b64decode(cells["codes"])
            self.states = {one: cells["states"][code] for one, code in zip(cells["ids"], codes, strict=True)}
        elif name == "devices":
            self.states |= {row[0]: row[1] for row in data["devices"]}
        elif name == "rollout":
            self.rollouts[data["rollout_id"]] = data

    @property
    def ended(self) -> bool:
        return any(rollout["ended_at"] is not None for rollout in self.rollouts.values())


async def test_a_page_that_follows_the_stream_has_what_the_service_has(
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
        async with Service(settings) as service:
            api = Api(state_dir)
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            async with (
                fleet(broker.url, trust, count=DEVICES),
                httpx.AsyncClient(base_url=service.url, timeout=60) as client,
            ):
                await api.wait_registered(DEVICES)
                assert (await client.get("/api/ready")).json() == {"status": "ready"}
                page = Page()
                plan = {"name": "x", "targets": {"states": ["new"]}, "pace": {"in_flight": 5}}
                connections = 0

                async def follow() -> None:
                    nonlocal connections
                    async with asyncio.timeout(90):
                        while not await page.follow(client):
                            connections += 1
                    # The last devices may be in an event after that of the rollout.
                    async with asyncio.timeout(30):
                        while set(page.states.values()) != {"provisioned"}:
                            await page.follow(client)

                following = asyncio.create_task(follow())
                while not page.states:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.01)
                created = (await client.post("/api/rollouts", json={"plan": plan})).json()
                await following
                overview = (await client.get("/api/overview")).json()
                path = f"/api/rollouts/{created['rollout_id']}"
                cells = (await client.get(f"{path}/cells")).json()
                series = (await client.get(f"{path}/series")).json()
    assert connections >= 1, "it broke in mid-run"
    assert "reset" not in page.names, "what was missed was sent after"
    assert page.states == dict.fromkeys(cells["ids"], "provisioned")
    assert page.rollouts[created["rollout_id"]] == overview["rollouts"][0]
    assert overview["states"]["provisioned"] == len(cells["ids"]) == DEVICES
    assert sum(series["ended"]["provisioned"]) == DEVICES
