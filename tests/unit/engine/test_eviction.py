"""Memory: idle instances leave it and come back by replay."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from durabletask import task

from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.stores import ManualClock
from tests.unit.engine.waiting import LONG_S, output_of, until


async def test_more_instances_wait_than_fit_and_all_complete(path: Path) -> None:
    """DESIGN 2, Memory: idle instances are evicted beyond a bound and come back by replay."""

    async def echo(ctx: task.ActivityContext, value: Any) -> Any:
        return value

    def waits(ctx: Ctx, n: int) -> Steps:
        ctx.set_custom_status({"n": n})
        first = yield ctx.call_activity(echo, input=n)
        event = yield ctx.wait_for_external_event("e")
        last = yield ctx.call_activity(echo, input=event)
        return [first, event, last]

    engine = Engine(path, options=EngineOptions(max_live_instances=10))
    engine.add_orchestrator(waits)
    engine.add_activity(echo)
    async with engine:
        client = AsyncTaskHubClient(engine)
        ids = [f"i{n}" for n in range(200)]
        await asyncio.gather(
            *(client.schedule_new_orchestration(waits, instance_id=i, input=n) for n, i in enumerate(ids))
        )
        await until(lambda: engine.statistics().rows >= 200 * 3)
        await until(lambda: engine.statistics().live_instances <= 10)
        await asyncio.gather(*(client.raise_orchestration_event(i, "e", data=i) for i in ids))
        for n, i in enumerate(ids):
            assert await output_of(client, i) == [n, i, i]
        state = await client.get_orchestration_state("i7")
        assert state is not None
        assert state.serialized_custom_status == '{"n": 7}'
        assert engine.statistics().replays > 100
        await until(lambda: engine.statistics().live_instances == 0)


async def test_timers_and_children_of_evicted_instances_find_them(path: Path, clock: ManualClock) -> None:
    """DESIGN 2, Memory: what comes for an evicted instance brings it back."""

    def child(ctx: Ctx, n: int) -> Steps:
        yield ctx.create_timer(timedelta(seconds=10 + n))
        return n

    def parent(ctx: Ctx, n: int) -> Steps:
        return (yield ctx.call_sub_orchestrator(child, input=n))

    engine = Engine(path, clock=clock, options=EngineOptions(max_live_instances=2))
    engine.add_orchestrator(child)
    engine.add_orchestrator(parent)
    async with engine:
        client = AsyncTaskHubClient(engine)
        for n in range(20):
            await client.schedule_new_orchestration(parent, instance_id=f"p{n}", input=n)
        await until(lambda: engine.statistics().armed_timers == 20)
        await until(lambda: engine.statistics().live_instances <= 2)
        clock.advance(60)
        assert [await output_of(client, f"p{n}") for n in range(20)] == list(range(20))


async def test_a_finally_block_that_misbehaves_when_evicted_hurts_nobody(path: Path) -> None:
    """DESIGN 2, Memory: letting go of a generator runs user code; the engine survives it."""

    def awkward(ctx: Ctx, n: int) -> Steps:
        try:
            return (yield ctx.wait_for_external_event("e"))
        except GeneratorExit:
            raise asyncio.CancelledError from None

    engine = Engine(path, options=EngineOptions(max_live_instances=1))
    engine.add_orchestrator(awkward)
    async with engine:
        client = AsyncTaskHubClient(engine)
        for n in range(5):
            await client.schedule_new_orchestration(awkward, instance_id=str(n))
            await client.wait_for_orchestration_start(str(n), timeout=LONG_S)
        await until(lambda: engine.statistics().live_instances <= 1)
        for n in range(5):
            await client.raise_orchestration_event(str(n), "e", data=n)
            assert await output_of(client, str(n)) == n
