"""Muster's embedded engine under each workload; also what one commit costs on the same disk.

python -m benchmarks.embedded WORKLOAD SIZE DIRECTORY     # prints one JSON object
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from durabletask import task

from benchmarks import child
from benchmarks.workloads import (
    EVENT,
    MAX_IN_FLIGHT,
    WARM_UP,
    Values,
    percentiles,
    rate,
    timer_delay_s,
)
from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions

Orchestrator = Callable[..., Generator[task.Task[Any], Any, Any]]

_MAX_WAITING_ACKS = 4_000
"""Acknowledgements of the seed's workload on their way at once."""
_PATIENCE_S = 3_600


def provision(ctx: task.OrchestrationContext, device_id: str) -> Generator[task.Task[Any], Any, Any]:
    """The seed's workflow for one device."""
    url = yield ctx.call_activity("CreateInstallationPackage", input=device_id)
    yield ctx.call_activity("SendPackageUrlToDevice", input={"id": device_id, "url": url})
    return (yield ctx.wait_for_external_event(EVENT))


def provision_all(ctx: task.OrchestrationContext, devices: int) -> Generator[task.Task[Any], Any, int]:
    """The seed's fan-out."""
    tasks: list[task.Task[Any]] = [
        ctx.call_sub_orchestrator("provision", input=f"device-{i}", instance_id=f"{ctx.instance_id}:{i}")
        for i in range(devices)
    ]
    return len((yield task.when_all(tasks)))


def two_steps(ctx: task.OrchestrationContext, device_id: str) -> Generator[task.Task[Any], Any, Any]:
    url = yield ctx.call_activity("CreateInstallationPackage", input=device_id)
    return (yield ctx.call_activity("CreateInstallationPackage", input=url))


def chain(ctx: task.OrchestrationContext, length: int) -> Generator[task.Task[Any], Any, int]:
    for i in range(length):
        yield ctx.call_activity("CreateInstallationPackage", input=f"device-{i}")
    return length


def take_events(ctx: task.OrchestrationContext, events: int) -> Generator[task.Task[Any], Any, int]:
    for _ in range(events):
        yield ctx.wait_for_external_event(EVENT)
    return events


async def create_package(_: task.ActivityContext, device_id: str) -> str:
    """An activity that does nothing."""
    return f"https://blobs.example/{device_id}"


@contextlib.asynccontextmanager
async def running(
    path: Path,
    *orchestrators: Orchestrator,
    options: EngineOptions | None = None,
    **activities: Callable[..., Any],
) -> AsyncIterator[tuple[Engine, AsyncTaskHubClient]]:
    """An engine at work, with the activity that does nothing, and its client."""
    engine = Engine(path, options=options)
    for orchestrator in orchestrators:
        engine.add_orchestrator(orchestrator)
    engine.add_named_activity("CreateInstallationPackage", create_package)
    for name, activity in activities.items():
        engine.add_named_activity(name, activity)
    async with engine:
        yield engine, AsyncTaskHubClient(engine)


async def run_to_end(client: AsyncTaskHubClient, orchestrator: Orchestrator, size: int) -> float:
    """Seconds from the start of an orchestration until its end is on disk; its output must be ``size``."""
    began = time.perf_counter()
    instance_id = await client.schedule_new_orchestration(orchestrator, input=size)
    await expect(client, instance_id, size)
    return time.perf_counter() - began


async def expect(client: AsyncTaskHubClient, instance_id: str, output: Any) -> None:
    """Wait for the end of an instance and look at its output."""
    state = await client.wait_for_orchestration_completion(instance_id, timeout=_PATIENCE_S)
    if state is None or state.get_output() != output:
        raise RuntimeError(f"{instance_id} should have ended with {output!r}: {state}")


async def run_seed(devices: int, directory: Path) -> Values:
    acks: asyncio.Queue[str] = asyncio.Queue()
    room = asyncio.Semaphore(_MAX_WAITING_ACKS)

    async def send_url(ctx: task.ActivityContext, _: dict[str, str]) -> None:
        acks.put_nowait(ctx.orchestration_id)

    async def acknowledge(instance_id: str) -> None:
        await client.raise_orchestration_event(instance_id, EVENT, data=True, idempotency_key="ack")
        room.release()

    async def acknowledge_all() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(devices):
                await room.acquire()
                group.create_task(acknowledge(await acks.get()))

    path = directory / "engine.db"
    async with (
        running(path, provision, provision_all, SendPackageUrlToDevice=send_url) as (_, client),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(acknowledge_all())
        return rate(devices, await run_to_end(client, provision_all, devices))


async def run_chain(length: int, directory: Path) -> Values:
    async with running(directory / "engine.db", chain) as (_, client):
        return rate(length, await run_to_end(client, chain, length))


async def run_timers(timers: int, directory: Path) -> Values:
    """Also how late they fired, and how many waited at the same time."""
    delay_s = timer_delay_s(timers)
    late: list[float] = []
    waiting = most = 0

    def wait_a_while(ctx: task.OrchestrationContext, _: Any) -> Generator[task.Task[Any], Any, None]:
        nonlocal waiting, most
        due = ctx.current_utc_datetime + timedelta(seconds=delay_s)
        waiting += 1
        most = max(most, waiting)
        yield ctx.create_timer(due)
        waiting -= 1
        late.append(time.time() - due.replace(tzinfo=UTC).timestamp())

    def wait_all(ctx: task.OrchestrationContext, size: int) -> Generator[task.Task[Any], Any, int]:
        tasks: list[task.Task[Any]] = [ctx.call_sub_orchestrator("wait_a_while") for _ in range(size)]
        return len((yield task.when_all(tasks)))

    async with running(directory / "engine.db", wait_a_while, wait_all) as (_, client):
        seconds = await run_to_end(client, wait_all, timers)
    lateness = {f"late_{name}": value for name, value in percentiles(late).items()}
    return {**rate(timers, seconds - delay_s), **lateness, "most_at_once": most}


async def run_events(events: int, directory: Path) -> Values:
    room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def send(instance_id: str) -> None:
        await client.raise_orchestration_event(instance_id, EVENT, data=True)
        room.release()

    async with running(directory / "engine.db", take_events) as (_, client):
        began = time.perf_counter()
        instance_id = await client.schedule_new_orchestration(take_events, input=events)
        async with asyncio.TaskGroup() as group:
            for _ in range(events):
                await room.acquire()
                group.create_task(send(instance_id))
        await expect(client, instance_id, events)
        return rate(events, time.perf_counter() - began)


async def run_latency(samples: int, directory: Path) -> Values:
    async with running(directory / "engine.db", two_steps) as (engine, client):

        async def one(number: int) -> None:
            instance_id = await client.schedule_new_orchestration(two_steps, input=f"device-{number}")
            await client.wait_for_orchestration_completion(instance_id)

        return await time_each(engine, one, samples)


async def run_raise(samples: int, directory: Path) -> Values:
    async with running(directory / "engine.db", take_events) as (engine, client):
        events = WARM_UP + samples
        instance_id = await client.schedule_new_orchestration(take_events, input=events)
        await client.wait_for_orchestration_start(instance_id)

        async def one(_: int) -> None:
            await client.raise_orchestration_event(instance_id, EVENT, data=True)

        values = await time_each(engine, one, samples)
        await expect(client, instance_id, events)
    return values


async def time_each(engine: Engine, one: Callable[[int], Coroutine[Any, Any, None]], samples: int) -> Values:
    """One after another, on an engine with nothing else to do; also how many commits each took."""
    for number in range(WARM_UP):
        await one(number)
    times = []
    before = engine.statistics().commits
    for number in range(WARM_UP, WARM_UP + samples):
        began = time.perf_counter()
        await one(number)
        times.append(time.perf_counter() - began)
    return {**percentiles(times), "commits_each": (engine.statistics().commits - before) / samples}


async def run_disk(samples: int, directory: Path) -> Values:
    """No engine at all: one row into SQLite by one durable commit, which is what the rest is made of."""
    connection = sqlite3.connect(directory / "disk.db", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, value TEXT)")
        times = []
        for i in range(samples):
            began = time.perf_counter()
            connection.execute("INSERT INTO rows VALUES (?, 'x')", (i,))
            times.append(time.perf_counter() - began)
    finally:
        connection.close()
    return percentiles(times)


RUNS: dict[str, Callable[[int, Path], Coroutine[Any, Any, Values]]] = {
    "seed": run_seed,
    "chain": run_chain,
    "timers": run_timers,
    "events": run_events,
    "latency": run_latency,
    "raise": run_raise,
    "disk": run_disk,
}

if __name__ == "__main__":
    child.serve(RUNS)
