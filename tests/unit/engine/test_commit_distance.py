"""While activities queue for a place commits keep a distance; nothing else makes anybody wait for a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.waiting import output_of, until

FAR = EngineOptions(max_async_activities=1, commit_distance=timedelta(hours=1))
"""A distance that no test waits out."""


def works(ctx: Ctx, _: Any) -> Steps:
    return (yield ctx.call_activity("work"))


def waits(ctx: Ctx, _: Any) -> Steps:
    return (yield ctx.wait_for_external_event("e"))


def engine_on(path: Path, gate: asyncio.Event, max_commit_rows: int = 20_000) -> Engine:
    async def work(_: Any, __: Any) -> str:
        await gate.wait()
        return "worked"

    engine = Engine(path, options=replace(FAR, max_commit_rows=max_commit_rows))
    engine.add_orchestrator(works)
    engine.add_orchestrator(waits)
    engine.add_named_activity("work", work)
    return engine


async def crowd(client: AsyncTaskHubClient, engine: Engine) -> asyncio.Task[None]:
    """One activity runs, one waits for its place; an event that was raised then, and waits for its commit."""
    await client.schedule_new_orchestration(waits, instance_id="w")
    await client.wait_for_orchestration_start("w")
    for instance_id in ("runs", "queues"):
        await client.schedule_new_orchestration(works, instance_id=instance_id)
        await client.wait_for_orchestration_start(instance_id)
    await until(lambda: engine.statistics().activity_backlog == 2)
    commits = engine.statistics().commits
    raising = asyncio.create_task(client.raise_orchestration_event("w", "e", data=1))
    await until(lambda: engine.statistics().turns == 3 + 1)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not raising.done()
    assert engine.statistics().commits == commits
    return raising


async def test_a_commit_waits_while_activities_queue_and_no_longer(path: Path) -> None:
    gate = asyncio.Event()
    async with engine_on(path, gate) as engine:
        client = AsyncTaskHubClient(engine)
        raising = await crowd(client, engine)
        gate.set()
        await raising
        assert await output_of(client, "w") == 1
        for instance_id in ("runs", "queues"):
            assert await output_of(client, instance_id) == "worked"


async def test_a_stop_waits_for_no_distance(path: Path) -> None:
    gate = asyncio.Event()
    engine = engine_on(path, gate)
    await engine.start()
    raising = await crowd(AsyncTaskHubClient(engine), engine)
    await engine.stop()
    await raising
    gate.set()
    async with engine_on(path, gate) as engine:
        client = AsyncTaskHubClient(engine)
        assert await output_of(client, "w") == 1
        assert await output_of(client, "queues") == "worked"


async def test_much_is_committed_at_once(path: Path) -> None:
    """A fan-out's rows are worth a commit of their own, whatever queues."""
    gate = asyncio.Event()
    async with engine_on(path, gate) as engine:
        client = AsyncTaskHubClient(engine)
        raising = await crowd(client, engine)
        async with asyncio.TaskGroup() as group:
            for number in range(1_500):
                group.create_task(client.schedule_new_orchestration(waits, instance_id=f"many-{number}"))
        await raising
        gate.set()


async def test_a_small_bound_on_the_batch_goes_before_the_distance(path: Path) -> None:
    """Callers who are pushed back because a batch is full do not wait for the distance as well."""
    gate = asyncio.Event()
    engine = engine_on(path, gate, max_commit_rows=4)
    async with engine:
        client = AsyncTaskHubClient(engine)
        raising = await crowd(client, engine)
        async with asyncio.TaskGroup() as group:
            for number in range(12):
                group.create_task(client.schedule_new_orchestration(waits, instance_id=f"more-{number}"))
            await raising
            gate.set()
