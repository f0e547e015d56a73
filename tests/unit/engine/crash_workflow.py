"""A workflow that uses all of the engine at once, for tests that kill it; also a program of its own.

Run as ``python -m tests.unit.engine.crash_workflow STATE LOG`` it works on the state file until the
workflow has ended, and appends what it does to the log, one line each, flushed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from durabletask import task
from durabletask.client import OrchestrationStatus

from provisioning.engine import AsyncTaskHubClient, Engine, EngineError, EngineOptions
from provisioning.engine.store import Store
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.waiting import LONG_S

ROOT = "root"
CHILDREN = 3
TICKS = 3
MOMENT = timedelta(milliseconds=1)
RETRY = task.RetryPolicy(first_retry_interval=MOMENT, max_number_of_attempts=10)
EXPECTED = {
    "first": "root/first",
    "children": [[f"a{n}", f"b{n}", n, f"{ROOT}:child-{n}/work"] for n in range(CHILDREN)],
    "ticks": [0, 1, 2],
    "flaky": "root/flaky",
    "failure": "builtins.ValueError",
    "asked": ["g0", "g1", "g2"],
}

Log = Callable[[str], None]


def counter(ctx: Ctx, got: list[int]) -> Steps:
    """Takes one tick per execution, and carries over those that came too early."""
    tick = yield ctx.wait_for_external_event("tick")
    ctx.set_custom_status(len(got))
    got = [*got, tick]
    if len(got) < TICKS:
        ctx.continue_as_new(got, save_events=True)
        return None
    return got


def child(ctx: Ctx, n: int) -> Steps:
    a = yield ctx.wait_for_external_event("ack")
    timer, never = ctx.create_timer(MOMENT), ctx.wait_for_external_event("never")
    yield task.when_any([timer, never])
    never.cancel()
    b = yield ctx.wait_for_external_event("ACK")
    worked = yield ctx.call_activity("work", input=f"{ctx.instance_id}/work")
    ctx.set_custom_status("worked")
    return [a, b, n, worked]


def doomed(ctx: Ctx, _: Any) -> Steps:
    yield ctx.create_timer(MOMENT)
    raise ValueError("as always")


def root(ctx: Ctx, _: Any) -> Steps:
    first = yield ctx.call_activity("work in a thread", input="root/first")
    ids = [f"{ctx.instance_id}:child-{n}" for n in range(CHILDREN)]
    children: list[task.Task[Any]] = [
        ctx.call_sub_orchestrator(child, input=n, instance_id=ids[n]) for n in range(CHILDREN)
    ]
    counting: task.Task[Any] = ctx.call_sub_orchestrator(counter, input=[])
    for n, child_id in enumerate(ids):
        ctx.send_event(child_id, "ack", data=f"a{n}")
        ctx.send_event(child_id, "ack", data=f"b{n}")
    for n in range(TICKS):
        ctx.send_event(f"{ctx.instance_id}:{CHILDREN + 2:04x}", "tick", data=n)
    flaky: task.Task[Any] = ctx.call_activity("flaky", input="root/flaky", retry_policy=RETRY)
    long = ctx.create_timer(timedelta(hours=1))
    results = yield task.when_all([*children, counting, flaky])
    long.cancel()
    try:
        # Named, for its default name depends on how often the other one was tried.
        twice = task.RetryPolicy(first_retry_interval=MOMENT, max_number_of_attempts=2)
        yield ctx.call_sub_orchestrator(doomed, instance_id=f"{ctx.instance_id}:doomed", retry_policy=twice)
        failure = None
    except task.TaskFailedError as error:
        failure = error.details.error_type
    asked = []
    for _n in range(3):
        asked.append((yield ctx.wait_for_external_event("go")))  # noqa: PERF401 -- yields
    return {
        "first": first,
        "children": results[:CHILDREN],
        "ticks": results[CHILDREN],
        "flaky": results[CHILDREN + 1],
        "failure": failure,
        "asked": asked,
    }


def build(
    store: Store | Path, log: Log, options: EngineOptions | None = None, failed: set[str] | None = None
) -> Engine:
    """An engine with the workflow. ``log`` hears ``run LABEL`` at each run of an activity.

    ``failed`` has the labels for which the flaky activity has failed already: once is enough.
    """
    engine = Engine(store, options=options)
    for orchestrator in (counter, child, doomed, root):
        engine.add_orchestrator(orchestrator)
    failed = set() if failed is None else failed

    async def work(ctx: task.ActivityContext, label: str) -> str:
        log(f"run {label}")
        return label

    def work_in_a_thread(ctx: task.ActivityContext, label: str) -> str:
        log(f"run {label}")
        return label

    async def flaky(ctx: task.ActivityContext, label: str) -> str:
        if label not in failed:
            failed.add(label)
            raise OSError("not yet")
        log(f"run {label}")
        return label

    engine.add_activity(work)
    engine.add_named_activity("work in a thread", work_in_a_thread)
    engine.add_activity(flaky)
    return engine


async def work_through(engine: Engine, raised: set[str], log: Log) -> bool:
    """Start what is not started, raise what was not raised, wait. False if the engine breaks on the way."""
    client = AsyncTaskHubClient(engine)
    try:
        if await client.get_orchestration_state(ROOT) is None:
            await client.schedule_new_orchestration(root, instance_id=ROOT)
            log("created")
        for name in ("g0", "g1", "g2"):
            if name not in raised:
                await client.raise_orchestration_event(ROOT, "go", data=name, idempotency_key=name)
                raised.add(name)
                log(f"raised {name}")
        state = await client.wait_for_orchestration_completion(ROOT, timeout=LONG_S)
    except EngineError:
        return False
    assert state is not None
    assert state.runtime_status == OrchestrationStatus.COMPLETED, state
    assert state.get_output() == EXPECTED
    return True


def end_state(path: Path) -> list[tuple[Any, ...]]:
    """All instances with how they ended, and what should not be left: messages, timers, activities."""
    connection = sqlite3.connect(path)
    try:
        found = connection.execute(
            "SELECT id, status, output, custom_status FROM instances ORDER BY id"
        ).fetchall()
        left = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            for table in ("messages", "timers", "detached_activities")
        ]
    finally:
        connection.close()
    return [*found, *left]


async def _main(path: Path, log: Log, raised: set[str]) -> None:
    engine = build(path, log, EngineOptions(max_commit_rows=1, max_live_instances=2))
    async with engine:
        log("started")
        assert await work_through(engine, raised, log)
    log("ended")


def main() -> None:
    path, log_path = Path(sys.argv[1]), Path(sys.argv[2])
    raised = {line[7:] for line in log_path.read_text().splitlines() if line.startswith("raised ")}
    with log_path.open("a", buffering=1) as file:
        asyncio.run(_main(path, lambda line: print(line, file=file), raised))


if __name__ == "__main__":
    main()
