"""How soon an engine is ready for work on a state file with many unfinished instances.

``build`` makes the file and dies as a killed process does; ``start`` starts on it in a process of its own.
Of the instances a half waits for an event, most of the others for an event or a timer (half of the timers are
due within the engine's window, so they are armed), all with the history of two activities behind them; the
rest are in the middle of an activity, which then runs again.

    python -m benchmarks.startup build|start SIZE DIRECTORY     # prints one JSON object
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from durabletask import task

from benchmarks import child
from benchmarks.embedded import expect, running, two_steps
from benchmarks.workloads import EVENT, MAX_IN_FLIGHT, Values

SOON = timedelta(minutes=9)
"""Within the engine's window of timers (10 min): armed when the engine starts."""
LATER = timedelta(days=1)
_MAX_MID_ACTIVITY = 5_000
"""With more under way than EngineOptions.max_activity_backlog an engine begins nothing new; this is less."""
_ACTIVITY_S = 0.01
"""How long an activity takes that runs again."""
_MB = 1_000_000

FILE = "engine.db"


class Arrivals:
    """Counts the instances that have come to where they wait."""

    def __init__(self, expected: int) -> None:
        self._missing = expected
        self.complete = asyncio.Event()

    def add(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self.complete.set()


def orchestrators(arrivals: Arrivals) -> list[Callable[..., Generator[task.Task[Any], Any, Any]]]:
    def waiting(ctx: task.OrchestrationContext, device_id: str) -> Generator[task.Task[Any], Any, Any]:
        yield from two_steps(ctx, device_id)
        arrivals.add()
        return (yield ctx.wait_for_external_event(EVENT))

    def timed(ctx: task.OrchestrationContext, wait_s: float) -> Generator[task.Task[Any], Any, Any]:
        yield from two_steps(ctx, ctx.instance_id)
        arrivals.add()
        timer = ctx.create_timer(ctx.current_utc_datetime + timedelta(seconds=wait_s))
        yield task.when_any([ctx.wait_for_external_event(EVENT), timer])

    def mid_activity(ctx: task.OrchestrationContext, device_id: str) -> Generator[task.Task[Any], Any, Any]:
        arrivals.add()
        yield ctx.call_activity("LongActivity")
        yield from two_steps(ctx, device_id)

    return [waiting, timed, mid_activity, two_steps]


async def all_of(count: int, one: Callable[[int], Coroutine[Any, Any, Any]]) -> None:
    """Do it for each number below ``count``, a bounded number at once."""
    room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def bounded(number: int) -> None:
        await one(number)
        room.release()

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await room.acquire()
            group.create_task(bounded(number))


async def build(size: int, directory: Path) -> Values:
    """Ends the process without stopping the engine, once all instances are on disk."""
    await make_unfinished(size, directory, die)
    raise AssertionError("unreachable")


def die(values: Values) -> None:
    child.report(values)
    os._exit(0)


async def make_unfinished(size: int, directory: Path, made: Callable[[Values], None]) -> None:
    """``made`` is called when they are all on disk, with the engine at work."""
    mid = min(size // 20, _MAX_MID_ACTIVITY)
    timed = size // 2 - mid
    settled, in_activity = Arrivals(size - mid), Arrivals(mid)

    async def long_activity(_: task.ActivityContext, __: None) -> None:
        await asyncio.Event().wait()

    began = time.perf_counter()
    functions = [*orchestrators(settled)[:2], orchestrators(in_activity)[2], two_steps]
    async with running(directory / FILE, *functions, LongActivity=long_activity) as (_, client):

        async def start(number: int) -> None:
            if number < timed:
                wait = (SOON if number % 2 else LATER).total_seconds()
                await client.schedule_new_orchestration("timed", instance_id=f"timed-{number}", input=wait)
            else:
                instance_id = f"waiting-{number}"
                await client.schedule_new_orchestration("waiting", instance_id=instance_id, input="device")

        async def start_mid(number: int) -> None:
            instance_id = f"mid-{number}"
            await client.schedule_new_orchestration("mid_activity", instance_id=instance_id, input="device")

        await all_of(size - mid, start)
        await settled.complete.wait()
        # These take all places for activities: nothing that needs one may come after them.
        await all_of(mid, start_mid)
        await in_activity.complete.wait()
        # One commit more: what came before it is on disk.
        await client.schedule_new_orchestration("two_steps", instance_id="last", input="device")
        made({"seconds": time.perf_counter() - began})


async def start(size: int, directory: Path) -> Values:
    """Start on a built state; ready when an orchestration that is new to it has ended."""

    async def long_activity(_: task.ActivityContext, __: None) -> None:
        await asyncio.sleep(_ACTIVITY_S)

    began = time.perf_counter()
    functions = orchestrators(Arrivals(size))
    async with running(directory / FILE, *functions, LongActivity=long_activity) as (engine, client):
        started = time.perf_counter()
        armed = engine.statistics().armed_timers
        instance_id = await client.schedule_new_orchestration("two_steps", input="device")
        await expect(client, instance_id, "https://blobs.example/https://blobs.example/device")
        ready = time.perf_counter()
        waiting = f"waiting-{size - min(size // 20, _MAX_MID_ACTIVITY) - 1}"
        await client.raise_orchestration_event(waiting, EVENT, data=size)
        await expect(client, waiting, size)
        return {
            "started_s": started - began,
            "ready_s": ready - began,
            "event_ms": (time.perf_counter() - ready) * 1_000,
            "armed_timers": armed,
            "rss_mb": psutil.Process().memory_info().rss / _MB,
        }


def copy_state(source: Path, target: Path) -> None:
    """The state as the killed process left it: the file and its log."""
    for path in source.glob(f"{FILE}*"):
        shutil.copyfile(path, target / path.name)


if __name__ == "__main__":
    child.serve({"build": build, "start": start})
