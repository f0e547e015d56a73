"""What has ended or left memory is gone at once, and does not wait until Python looks for cyclic garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task

from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.waiting import output_of, until

INSTANCES = 200


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def races(ctx: Ctx, race: bool) -> Steps:
    """Waits that win, waits that are cancelled, a wait and a timer that are left behind.

    Without ``race`` it waits for one task alone: a composite that waits and its tasks hold each other, which
    is the SDK's.
    """
    yield ctx.call_activity("nothing")
    left, timer = ctx.wait_for_external_event("never"), ctx.create_timer(timedelta(days=1))
    fired = ctx.create_timer(timedelta(0))
    go = ctx.wait_for_external_event("go")
    yield fired
    yield task.when_any([left, go, timer]) if race else go
    cancelled = ctx.wait_for_external_event("never")
    cancelled.cancel()
    return "done"


async def nothing(_: Any, __: Any) -> None: ...


def engine_on(path: Path, most: int) -> Engine:
    engine = Engine(path, options=EngineOptions(max_live_instances=most))
    engine.add_orchestrator(races)
    engine.add_named_activity("nothing", nothing)
    return engine


@pytest.mark.parametrize("most", [INSTANCES * 2, 1], ids=["in memory", "evicted"])
async def test_instances_leave_no_cycles(path: Path, most: int) -> None:
    async with engine_on(path, most) as engine:
        client = AsyncTaskHubClient(engine)
        ids = [f"i{n}" for n in range(INSTANCES)]
        for instance_id in ids:
            await client.schedule_new_orchestration(races, input=most > 1, instance_id=instance_id)
        # Four waits each at least: the activity's result, the timer that fires, and the two that stay.
        await until(lambda: engine.statistics().turns >= 3 * INSTANCES)
        for instance_id in ids:
            await client.raise_orchestration_event(instance_id, "go")
        for instance_id in ids:
            assert await output_of(client, instance_id) == "done"
    # The loop and the test leave a few of their own; each instance would leave tens.
    assert gc.collect() < INSTANCES
