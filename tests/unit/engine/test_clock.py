"""A clock that jumps: forward and back, while the engine runs and while it does not.

What is defined (clock.SteadyClock): no timer fires before the engine's time says so, overdue ones fire in the
order in which they were due, and orchestration time never goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from durabletask import task

from provisioning.engine import AsyncTaskHubClient, Engine
from provisioning.engine.clock import SteadyClock
from provisioning.engine.records import to_datetime
from tests.unit.engine.driving import SECOND, START, Ctx, Steps
from tests.unit.engine.stores import ManualClock
from tests.unit.engine.waiting import output_of, until

HOUR = 3_600.0


def sleeps(ctx: Ctx, seconds: float) -> Steps:
    yield ctx.create_timer(timedelta(seconds=seconds))
    return ctx.current_utc_datetime.isoformat()


def sleeps_in_steps(ctx: Ctx, seconds: list[float]) -> Steps:
    """When it woke up, by its own clock."""
    times = [ctx.current_utc_datetime.isoformat()]
    for one in seconds:
        yield ctx.create_timer(timedelta(seconds=one))
        times.append(ctx.current_utc_datetime.isoformat())
    return times


def waits_with_a_deadline(ctx: Ctx, at: str) -> Steps:
    deadline = ctx.create_timer(datetime.fromisoformat(at))
    event = ctx.wait_for_external_event("e")
    winner = yield task.when_any([deadline, event])
    return "in time" if winner is event else "late"


class Machine:
    """The two clocks of a machine, which the engine reads; a new process reads them anew."""

    def __init__(self) -> None:
        self.wall, self.monotonic = ManualClock(), ManualClock()

    def engine(self, path: Path) -> Engine:
        engine = Engine(path, clock=SteadyClock(wall=self.wall, monotonic=self.monotonic))
        for orchestrator in (sleeps, sleeps_in_steps, waits_with_a_deadline):
            engine.add_orchestrator(orchestrator)
        return engine

    def passes(self, seconds: float) -> None:
        """Time goes on."""
        self.wall.advance(seconds)
        self.monotonic.advance(seconds)

    def is_set(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.wall.advance(seconds)


@pytest.fixture
def machine(clock: ManualClock) -> Machine:
    """Two clocks at one time; engines look at them often (that is what the fixture ``clock`` is for)."""
    return Machine()


async def begin(engine: Engine, orchestrator: Callable[..., Any], instance_id: str, input: Any) -> None:
    """Start one, and wait until its timer is armed."""
    armed = engine.statistics().armed_timers
    await AsyncTaskHubClient(engine).schedule_new_orchestration(
        orchestrator, instance_id=instance_id, input=input
    )
    await until(lambda: engine.statistics().armed_timers > armed)


async def test_a_clock_set_forward_fires_what_is_due_by_it_in_order(path: Path, machine: Machine) -> None:
    """SEMANTICS Timers: in order, no earlier than due: by the clock as it is now."""
    order = []

    def noted(ctx: Ctx, seconds: float) -> Steps:
        yield ctx.create_timer(timedelta(seconds=seconds))
        order.append(seconds)
        return ctx.current_utc_datetime.isoformat()

    engine = machine.engine(path)
    engine.add_orchestrator(noted)
    async with engine:
        client = AsyncTaskHubClient(engine)
        for seconds in (30.0, 10.0, 20.0, 300.0):
            await begin(engine, noted, str(seconds), seconds)
        machine.is_set(60.0)
        woken = [datetime.fromisoformat(await output_of(client, name)) for name in ("10.0", "20.0", "30.0")]
        assert woken == [to_datetime(START) + timedelta(minutes=1)] * 3
        assert order == [10.0, 20.0, 30.0]
        assert engine.statistics().armed_timers == 1
        machine.passes(240.0)
        await output_of(client, "300.0")


@pytest.mark.parametrize("jump", [-HOUR, -1.0, 1.0, HOUR])
async def test_a_clock_that_jumps_between_two_lives(path: Path, machine: Machine, jump: float) -> None:
    """SteadyClock: a new process begins with the wall clock as it is: a timer is late by what that was set
    back, due at once where it was set beyond it, and never early by it."""
    async with machine.engine(path) as engine:
        await begin(engine, sleeps, "i", 60.0)
    due = machine.wall.now + 60 * SECOND
    machine.is_set(jump)
    async with machine.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        left = (due - machine.wall.now) / SECOND
        assert left == 60.0 - jump
        if left > 0:
            machine.passes(left - 0.001)
            engine._timers.fire_due()
            assert engine.statistics().armed_timers == 1
            machine.passes(0.001)
        woken = datetime.fromisoformat(await output_of(client, "i"))
        assert woken >= to_datetime(due)


async def test_orchestration_time_goes_on_through_jumps_and_lives(path: Path, machine: Machine) -> None:
    """SEMANTICS Identity: orchestration time never goes back; each wait is as long as asked for or more."""
    async with machine.engine(path) as engine:
        await begin(engine, sleeps_in_steps, "i", [10.0] * 4)
        machine.passes(10)
        await until(lambda: engine._turns.turns == 2)
        machine.is_set(-HOUR)
    for jump in (-HOUR, HOUR / 2, 3 * HOUR):
        machine.is_set(jump)
        async with machine.engine(path) as engine:
            machine.passes(3 * HOUR)
            await until(lambda: engine._turns.turns > 0)
    async with machine.engine(path) as engine:
        times = await output_of(AsyncTaskHubClient(engine), "i")
    waits = [datetime.fromisoformat(b) - datetime.fromisoformat(a) for a, b in pairwise(times)]
    assert len(waits) == 4
    assert min(waits) >= timedelta(seconds=10)


async def test_a_deadline_and_its_event_after_a_jump_have_one_winner(path: Path, machine: Machine) -> None:
    """SEMANTICS Events: a wait raced with a timer: what a jump makes due is due before what comes later."""
    at = (to_datetime(START) + timedelta(seconds=60)).isoformat()
    async with machine.engine(path) as engine:
        await begin(engine, waits_with_a_deadline, "i", at)
    machine.is_set(HOUR)
    async with machine.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        assert await output_of(client, "i") == "late"
        await client.raise_orchestration_event("i", "e")
        assert await output_of(client, "i") == "late"
