"""An API over an engine with orchestrations of the tests' own, on each engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from durabletask.task import ActivityContext, OrchestrationContext

from provisioning.api import create_api
from provisioning.engines import OrchestrationEngine, create_engine
from provisioning.http.instances import Instances
from provisioning.settings import EngineSettings
from tests.backend import Backend

Json = dict[str, Any]

INSTANCES = "/runtime/webhooks/durabletask/instances"
SIGNED = "http://127.0.0.1/packages/p.zip?sv=1&sig=c2VjcmV0%2Fs%3D&se=2"
"""A URL with a secret in it, which is `c2VjcmV0…`."""


def Greet(ctx: OrchestrationContext, name: Any) -> Any:  # noqa: N802
    """One activity."""
    return (yield ctx.call_activity("Say", input=name))


def Wait(ctx: OrchestrationContext, _: Any) -> Any:  # noqa: N802
    """Returns the data of its event."""
    ctx.set_custom_status({"waits": "for Go"})
    return (yield ctx.wait_for_external_event("Go"))


def Try(ctx: OrchestrationContext, what: Any) -> Any:  # noqa: N802
    """Fails as long as the world is broken."""
    return (yield ctx.call_activity("Break", input=what))


def Parent(ctx: OrchestrationContext, name: Any) -> Any:  # noqa: N802
    """One child, whose id has a colon in it, and one event to another."""
    said = yield ctx.call_sub_orchestrator("Greet", input=name, instance_id=f"{ctx.instance_id}:child")
    return said


def Leak(ctx: OrchestrationContext, url: Any) -> Any:  # noqa: N802
    """Has a secret wherever one can be."""
    ctx.set_custom_status({"package": url})
    yield ctx.call_activity("Say", input=url)
    event = yield ctx.wait_for_external_event("Go")
    if event == "fail":
        raise ValueError(f"can't be sent to {url}")
    return {
        "url": url,
        "nested": f'{{"url": "{url}"}}',
        "within": f"https://x.example/?u={httpx.QueryParams(u=url)}",
    }


class World:
    """What the activities find."""

    def __init__(self) -> None:
        self.broken = True

    async def say(self, _ctx: ActivityContext, name: Any) -> Any:
        return f"Hello {name}!"

    async def fall(self, _ctx: ActivityContext, what: Any) -> Any:
        if self.broken:
            raise ValueError(f"{what} is broken")
        return f"{what} works"


class Managed:
    """The API's client, its engine, and what the engine's activities find."""

    def __init__(self, client: httpx.AsyncClient, engine: OrchestrationEngine, world: World) -> None:
        self.client = client
        self.engine = engine
        self.world = world

    async def start(self, name: str, instance_id: str, given: Any = None) -> httpx.Response:
        """Start one, and be told where it is."""
        url = f"/api/orchestrators/{name}/{httpx.URL(path=instance_id).raw_path.decode()}"
        answer = await self.client.post(url, json=given)
        assert answer.status_code == 202, answer.text
        return answer

    async def ended(self, instance_id: str, given: Any = None, name: str = "Greet") -> None:
        """Start one, and wait until it has ended."""
        await self.start(name, instance_id, given)
        await self.wait(instance_id)

    async def wait(self, instance_id: str) -> None:
        """Until it has ended."""
        await self.engine.client.wait_for_orchestration_completion(instance_id, timeout=60)

    async def status(self, instance_id: str, **parameters: Any) -> Json:
        """How it stands with one that is there."""
        answer = await self.client.get(f"{INSTANCES}/{instance_id}", params=parameters)
        assert answer.status_code in (200, 202, 500), answer.text
        found: Json = answer.json()
        return found

    async def until(self, instance_id: str, status: str) -> Json:
        """Wait until it has that status."""
        async with asyncio.timeout(60):
            while (found := await self.status(instance_id))["runtimeStatus"] != status:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # it is asked as a client would, over HTTP
        return found


@asynccontextmanager
async def managed(kind: str, path: Path, backend: Backend) -> AsyncIterator[Managed]:
    """An API on an engine of that kind."""
    settings = EngineSettings()
    if kind == "durabletask":
        backend.start()
        settings = EngineSettings(kind="durabletask", host="127.0.0.1", port=backend.port)
    engine = create_engine(settings, path)
    for orchestrator in (Greet, Wait, Try, Parent, Leak):
        engine.add_orchestrator(orchestrator)
    world = World()
    engine.add_named_activity("Say", world.say)
    engine.add_named_activity("Break", world.fall)
    async with engine:
        instances = Instances(client=engine.client, orchestrators=engine.orchestrators)
        app = create_api(cast(Any, SimpleNamespace(instances=instances, url="http://127.0.0.1:8470")))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7071") as client:
            yield Managed(client, engine, world)
