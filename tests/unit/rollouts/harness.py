"""Rollouts on the embedded engine and a real registry, with devices that only pretend."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator
from datetime import datetime
from pathlib import Path
from typing import Any

from durabletask import task
from durabletask.task import OrchestrationContext

from provisioning.engine import AsyncTaskHubClient, Engine
from provisioning.orchestrations import CANCEL_PROVISIONING, RECORD_OUTCOME
from provisioning.registry import Outcome, Registry
from provisioning.rollouts.activities import RolloutActivities
from provisioning.rollouts.operations import Rollouts
from provisioning.rollouts.orchestrations import (
    LaneOrchestration,
    RolloutOrchestration,
    WaveOrchestration,
)
from provisioning.rollouts.store import RolloutStore
from provisioning.states import DeviceState

Json = dict[str, Any]
Flow = Generator[task.Task[Any], Any, Any]

ENDED = ("completed", "cancelled", "failed")


def DeviceProvisioningOrchestration(ctx: OrchestrationContext, request: Json) -> Flow:  # noqa: N802
    """Stands for the real one: the device ends as the test says, or as cancelled when it is told to stop."""
    rollout_id, _, device_id = ctx.instance_id.rpartition(":")
    began = ctx.current_utc_datetime
    cancelled = ctx.wait_for_external_event(CANCEL_PROVISIONING)
    working: task.CompletableTask[Any] = ctx.call_activity(
        "Pretend", input={"device_id": device_id, "release": request.get("release")}
    )
    yield task.when_any([working, cancelled])
    state = "cancelled" if cancelled.is_complete else working.get_result()
    now = ctx.current_utc_datetime
    yield ctx.call_activity(
        RECORD_OUTCOME,
        input={
            "run_id": rollout_id,
            "device_id": device_id,
            "state": state,
            "attempts": 1,
            "error": None if state == "provisioned" else f"it {state}",
            "ended_at": f"{now.isoformat()}+00:00",
            "device_s": (now - began).total_seconds(),
        },
    )
    return {"state": state}


class Publisher:
    """Takes messages to devices down."""

    def __init__(self) -> None:
        self.published: list[str] = []
        self.away = False

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float) -> None:
        if self.away:
            raise OSError("the broker is away")
        self.published.append(topic)


class Devices:
    """What the pretended devices do; it outlives the services that a test kills."""

    def __init__(self) -> None:
        self.outcome: Callable[[str], str] = lambda _: "provisioned"
        self.started: list[str] = []
        self.releases: list[str | None] = []
        """What each that was started was to bring."""
        self.in_flight: set[str] = set()
        self.most_in_flight = 0
        self.twice_at_once: set[str] = set()
        """Devices that two provisionings were at."""
        self.hanging: set[str] = set()
        """Devices that take until `let_go`."""
        self._let_go = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    def let_go(self) -> None:
        """Let those that hang end."""
        self._let_go.set()

    async def pretend(self, _ctx: Any, request: Json) -> str:
        device_id: str = request["device_id"]
        self.started.append(device_id)
        self.releases.append(request["release"])
        if device_id in self.in_flight:
            self.twice_at_once.add(device_id)
        self.in_flight.add(device_id)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        try:
            await self.open.wait()
            if device_id in self.hanging:
                await self._let_go.wait()
            # In flight for a turn of the loop at least, so that two at once are seen.
            await asyncio.sleep(0)
            return self.outcome(device_id)
        finally:
            self.in_flight.discard(device_id)


class Service:
    """One life of a service that has nothing but rollouts."""

    def __init__(
        self, registry: Registry, rollouts: Rollouts, publisher: Publisher, client: AsyncTaskHubClient
    ) -> None:
        self.registry = registry
        self.client = client
        self.rollouts = rollouts
        self.publisher = publisher

    async def wait(self, rollout_id: str, condition: Callable[[Json], bool], timeout_s: float = 30.0) -> Json:
        """Wait until the view of a rollout is as wanted; each view must add up."""
        view: Json = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    view = await self.rollouts.view(rollout_id)
                    assert sum(view["counts"].values()) == view["devices"]
                    for wave in view["waves"]:
                        assert sum(wave["counts"].values()) == wave["devices"]
                    if condition(view):
                        return view
                    await asyncio.sleep(0.01)
        except TimeoutError:
            shown = {k: view.get(k) for k in ("state", "reason", "wave", "counts", "in_flight")}
            raise AssertionError(f"waited in vain; {shown}") from None

    async def ended(self, rollout_id: str) -> Json:
        """Wait until a rollout has ended."""
        return await self.wait(rollout_id, lambda view: view["state"] in ENDED)

    async def in_state(self, rollout_id: str, state: str) -> Json:
        """Wait until a rollout is in a state."""
        return await self.wait(rollout_id, lambda view: view["state"] == state)

    async def log(self, rollout_id: str) -> list[str]:
        """What was done, in order."""
        return [line["what"] for line in await self.rollouts.log(rollout_id)]


@contextlib.asynccontextmanager
async def service_on(directory: Path, devices: Devices) -> AsyncIterator[Service]:
    """A service on ``directory``; what it leaves unfinished the next one goes on with."""
    publisher = Publisher()
    async with Registry(directory / "registry.db") as registry:
        store = RolloutStore(registry)
        engine = Engine(directory / "engine.db")
        for orchestrator in (
            RolloutOrchestration,
            WaveOrchestration,
            LaneOrchestration,
            DeviceProvisioningOrchestration,
        ):
            engine.add_orchestrator(orchestrator)

        async def record_outcome(_ctx: Any, request: Json) -> None:
            await registry.record_outcome(
                Outcome(
                    run_id=request["run_id"],
                    device_id=request["device_id"],
                    state=DeviceState(request["state"]),
                    attempts=request["attempts"],
                    error=request["error"],
                    ended_at=datetime.fromisoformat(request["ended_at"]).timestamp(),
                    device_s=request["device_s"],
                    steps_s={},
                )
            )

        activities = RolloutActivities(
            store=store, client=AsyncTaskHubClient(engine), publisher=publisher, publish_timeout_s=5.0
        )
        for name, activity in {
            **activities.named(),
            RECORD_OUTCOME: record_outcome,
            "Pretend": devices.pretend,
        }.items():
            engine.add_named_activity(name, activity)
        async with engine:
            client = AsyncTaskHubClient(engine)
            rollouts = Rollouts(registry=registry, store=store, client=client, default_release="demo-1.0.0")
            await rollouts.open()
            try:
                yield Service(registry, rollouts, publisher, client)
            finally:
                await rollouts.close()


async def register(
    registry: Registry, count: int, *, model: str = "demo-1", prefix: str = "dev"
) -> list[str]:
    """So many new devices."""
    ids = [f"{prefix}-{number:05d}" for number in range(1, count + 1)]
    for device_id in ids:
        registry.register(device_id, model=model, firmware_version="1", tags={"site": "lab"})
    await registry.flush()
    return ids
