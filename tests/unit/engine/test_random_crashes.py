"""Random workflows on real state files, under random bounds, dying at random commits.

What a workflow returns does not depend on timing, so it is known beforehand. A failure names its seed.
"""

from __future__ import annotations

import random
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task

from provisioning.engine import AsyncTaskHubClient, Engine, EngineError, EngineOptions
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.stores import DyingStore, abandon
from tests.unit.engine.waiting import output_of

SEEDS = 60
MOST_LIVES = 6

Step = list[Any]


def random_step(dice: random.Random, depth: int) -> Step:
    kinds = ["double", "flaky", "wait", "talk", "again", "fail"]
    if depth > 0:
        kinds += ["child", "child", "together", "together"]
    match kind := dice.choice(kinds):
        case "child" | "together":
            return [kind, [random_step(dice, depth - 1) for _ in range(dice.randint(1, 4))]]
        case _:
            return [kind, dice.randint(0, 4)]


def expected(step: Step) -> Any:
    """What a step gives."""
    kind, arg = step
    match kind:
        case "double":
            return arg * 2
        case "flaky" | "wait" | "again":
            return arg
        case "talk":
            return list(range(arg))
        case "fail":
            return f"failed {arg}"
        case _:
            return [expected(inner) for inner in arg]


def ask(ctx: Ctx, step: Step) -> task.Task[Any]:
    """Begin a step."""
    kind, arg = step
    retry = task.RetryPolicy(first_retry_interval=timedelta(milliseconds=1), max_number_of_attempts=20)
    asked: task.Task[Any]
    match kind:
        case "double" | "flaky":
            asked = ctx.call_activity(kind, input=arg, retry_policy=retry)
        case "wait":
            asked = ctx.create_timer(timedelta(milliseconds=arg))
        case "talk":
            name = f"{ctx.instance_id}/{ctx.new_uuid()}"
            asked = ctx.call_sub_orchestrator(listens, input=arg, instance_id=name)
            for n in range(arg):
                ctx.send_event(name, "word", data=n)
        case "again":
            asked = ctx.call_sub_orchestrator(again, input=[0, arg])
        case "fail":
            asked = ctx.call_sub_orchestrator(fails, input=arg)
        case _:
            asked = ctx.call_sub_orchestrator(runs, input=[kind, arg])
    return asked


def runs(ctx: Ctx, step: Step) -> Steps:
    """The steps of a branch, one by one or together."""
    kind, steps = step
    ctx.set_custom_status(kind)
    asked = [ask(ctx, inner) for inner in steps] if kind == "together" else []
    if asked and steps[-1][0] != "fail":
        # One that fails would hide the others' results: those are looked at one by one.
        yield task.when_any(asked)
    results = []
    for n, inner in enumerate(steps):
        waited = asked[n] if asked else ask(ctx, inner)
        try:
            value = yield waited
        except task.TaskFailedError as error:
            value = error.details.message
        results.append(inner[1] if inner[0] == "wait" else value)
    return results


def listens(ctx: Ctx, count: int) -> Steps:
    heard = []
    for _ in range(count):
        heard.append((yield ctx.wait_for_external_event("WORD")))  # noqa: PERF401 -- yields
    return heard


def again(ctx: Ctx, state: list[int]) -> Steps:
    done, wanted = state
    never = ctx.create_timer(timedelta(hours=1))
    if done == wanted:
        never.cancel()
        return done
    yield ctx.create_timer(timedelta(0))
    ctx.continue_as_new([done + 1, wanted])
    return None


def fails(ctx: Ctx, n: int) -> Steps:
    yield ctx.create_timer(timedelta(0))
    raise ValueError(f"failed {n}")


def build(store: DyingStore, options: EngineOptions, seed: int) -> Engine:
    engine = Engine(store, options=options)
    for orchestrator in (runs, listens, again, fails):
        engine.add_orchestrator(orchestrator)
    dice = random.Random(seed)

    async def double(ctx: task.ActivityContext, n: int) -> int:
        return n * 2

    def flaky(ctx: task.ActivityContext, n: int) -> int:
        if dice.random() < 0.5:
            raise OSError("not now")
        return n

    engine.add_activity(double)
    engine.add_activity(flaky)
    return engine


async def live_and_die(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    step = ["child", [random_step(dice, 2) for _ in range(dice.randint(1, 4))]]
    options = EngineOptions(
        max_live_instances=dice.choice([1, 3, 50_000]),
        max_turn_messages=dice.choice([1, 2, 1_000]),
        max_commit_rows=dice.choice([1, 5, 20_000]),
        max_async_activities=dice.choice([1, 256]),
        max_activity_backlog=dice.choice([1, 10_000]),
    )
    for life in range(MOST_LIVES):
        last = life == MOST_LIVES - 1
        store = DyingStore(path, dies_at=0 if last else dice.randint(2, 25), after=dice.random() < 0.5)
        engine = build(store, options, seed + life)
        await engine.start()
        client = AsyncTaskHubClient(engine)
        try:
            if await client.get_orchestration_state("root") is None:
                await client.schedule_new_orchestration(runs, instance_id="root", input=step)
            got = await output_of(client, "root")
        except EngineError:
            assert store.dead
            abandon(engine)
            continue
        assert got == expected(step)
        await engine.stop()
        break
    connection = sqlite3.connect(path)
    for table in ("messages", "timers", "detached_activities"):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    unfinished = connection.execute("SELECT id FROM instances WHERE status NOT IN (1, 3)").fetchall()
    connection.close()
    assert unfinished == []


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_random_workflows_survive_random_deaths(tmp_path: Path, seed: int) -> None:
    """DESIGN 2: commits, effects, recovery, eviction, bounds and continue_as_new, all at once."""
    await live_and_die(tmp_path / "engine.db", seed)
