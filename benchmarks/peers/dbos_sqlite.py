"""DBOS on SQLite, as it opens it itself: a rollback journal and ``synchronous=FULL``, each commit synced.

Runs in the environment of ``python -m benchmarks.peers setup``. Its poll for messages is set to 0.1 s: by
default it is a whole second, which would be all that the smaller sizes measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from dbos import DBOS  # type: ignore[import-not-found]

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

_POLL_S = 0.1
_PATIENCE_S = 3_600

_acks: asyncio.Queue[str] = asyncio.Queue()


@DBOS.step()  # type: ignore[untyped-decorator]
async def create_package(device_id: str) -> str:
    return f"https://blobs.example/{device_id}"


@DBOS.step()  # type: ignore[untyped-decorator]
async def send_url(_: str) -> None:
    _acks.put_nowait(DBOS.workflow_id)


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def provision(device_id: str) -> bool:
    await send_url(await create_package(device_id))
    acknowledged: bool = await DBOS.recv_async(EVENT, timeout_seconds=_PATIENCE_S)
    return acknowledged


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def provision_all(devices: int) -> int:
    handles = [await DBOS.start_workflow_async(provision, f"device-{i}") for i in range(devices)]
    return len([await handle.get_result() for handle in handles])


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def chain(length: int) -> int:
    for i in range(length):
        await create_package(f"device-{i}")
    return length


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def wait_a_while(delay_s: float) -> None:
    await DBOS.sleep_async(delay_s)


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def wait_all(timers: int, delay_s: float) -> int:
    handles = [await DBOS.start_workflow_async(wait_a_while, delay_s) for _ in range(timers)]
    return len([await handle.get_result() for handle in handles])


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def take_events(events: int) -> int:
    for _ in range(events):
        await DBOS.recv_async(EVENT, timeout_seconds=_PATIENCE_S)
    return events


@DBOS.workflow()  # type: ignore[untyped-decorator]
async def two_steps(device_id: str) -> str:
    url: str = await create_package(await create_package(device_id))
    return url


@contextlib.contextmanager
def running(directory: Path) -> Iterator[None]:
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": f"sqlite:///{directory / 'dbos.sqlite'}",
            "notification_listener_polling_interval_sec": _POLL_S,
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()


def check(output: object, expected: object) -> None:
    if output != expected:
        raise RuntimeError(f"the workflow should have ended with {expected!r}, not {output!r}")


async def run_seed(devices: int, directory: Path) -> Values:
    async def acknowledge_all() -> None:
        for _ in range(devices):
            await DBOS.send_async(await _acks.get(), True, EVENT)

    with running(directory):
        async with asyncio.TaskGroup() as group:
            began = time.perf_counter()
            group.create_task(acknowledge_all())
            check(await provision_all(devices), devices)
            return rate(devices, time.perf_counter() - began)


async def run_chain(length: int, directory: Path) -> Values:
    with running(directory):
        began = time.perf_counter()
        check(await chain(length), length)
        return rate(length, time.perf_counter() - began)


async def run_timers(timers: int, directory: Path) -> Values:
    delay_s = timer_delay_s(timers)
    with running(directory):
        began = time.perf_counter()
        check(await wait_all(timers, delay_s), timers)
        return rate(timers, time.perf_counter() - began - delay_s)


async def run_events(events: int, directory: Path) -> Values:
    room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def send(workflow_id: str) -> None:
        await DBOS.send_async(workflow_id, True, EVENT)
        room.release()

    with running(directory):
        began = time.perf_counter()
        handle = await DBOS.start_workflow_async(take_events, events)
        async with asyncio.TaskGroup() as group:
            for _ in range(events):
                await room.acquire()
                group.create_task(send(handle.workflow_id))
        check(await handle.get_result(), events)
        return rate(events, time.perf_counter() - began)


async def run_latency(samples: int, directory: Path) -> Values:
    times = []
    with running(directory):
        for i in range(WARM_UP + samples):
            began = time.perf_counter()
            await two_steps(f"device-{i}")
            times.append(time.perf_counter() - began)
    return percentiles(times[WARM_UP:])


async def run_raise(samples: int, directory: Path) -> Values:
    times = []
    with running(directory):
        handle = await DBOS.start_workflow_async(take_events, WARM_UP + samples)
        for _ in range(WARM_UP + samples):
            began = time.perf_counter()
            await DBOS.send_async(handle.workflow_id, True, EVENT)
            times.append(time.perf_counter() - began)
        check(await handle.get_result(), WARM_UP + samples)
    return percentiles(times[WARM_UP:])


if __name__ == "__main__":
    child.serve(
        {
            "seed": run_seed,
            "chain": run_chain,
            "timers": run_timers,
            "events": run_events,
            "latency": run_latency,
            "raise": run_raise,
        }
    )
