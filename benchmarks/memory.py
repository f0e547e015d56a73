"""What instances that wait for an event cost in memory, and that it is bounded whatever their number.

python -m benchmarks.memory waiting SIZE DIRECTORY     # prints one JSON object
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
from durabletask import task

from benchmarks import child
from benchmarks.embedded import expect, running, two_steps
from benchmarks.startup import Arrivals, all_of
from benchmarks.workloads import EVENT, Values
from provisioning.engine import EngineOptions

_MB = 1_000_000
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


async def waiting(size: int, directory: Path, options: EngineOptions | None = None) -> Values:
    """Resident memory over that of an empty engine; then an event to the instance that is idle longest."""
    arrivals = Arrivals(size)

    def wait(ctx: task.OrchestrationContext, device_id: str) -> Generator[task.Task[Any], Any, Any]:
        yield from two_steps(ctx, device_id)
        arrivals.add()
        return (yield ctx.wait_for_external_event(EVENT))

    async with running(directory / "engine.db", wait, two_steps, options=options) as (engine, client):

        async def run_one() -> None:
            last = await client.schedule_new_orchestration(two_steps, input="device")
            await client.wait_for_orchestration_completion(last)

        async def start(number: int) -> None:
            await client.schedule_new_orchestration(
                wait, instance_id=f"device-{number}", input=f"device-{number}"
            )

        await run_one()
        empty = resident_mb()
        await all_of(size, start)
        await arrivals.complete.wait()
        await run_one()
        full, live, replays = resident_mb(), engine.statistics().live_instances, engine.statistics().replays
        began = time.perf_counter()
        await client.raise_orchestration_event("device-0", EVENT, data=size)
        await expect(client, "device-0", size)
        return {
            "rss_mb": full - empty,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES / _MB - empty,
            "empty_mb": empty,
            "live": live,
            "event_ms": (time.perf_counter() - began) * 1_000,
            "replayed": engine.statistics().replays - replays,
        }


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / _MB


if __name__ == "__main__":
    child.serve({"waiting": waiting})
