"""Restate: its server as a process of its own, one workflow per orchestration, events as durable promises.

Runs in the environment of ``python -m benchmarks.peers setup``; the server's program is what
``MUSTER_RESTATE_SERVER`` names. It is as it comes (its log in RocksDB is synced), but for four partitions
instead of 24, which is half as fast again on two cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import hypercorn.asyncio  # type: ignore[import-not-found]
import hypercorn.config  # type: ignore[import-not-found]
import restate  # type: ignore[import-not-found]

from benchmarks import child
from benchmarks.workloads import WARM_UP, Values, percentiles, rate, timer_delay_s

PROGRAM_VARIABLE = "MUSTER_RESTATE_SERVER"
_PARTITIONS = 4
_CONNECTIONS = 100
"""More requests under way at once than this make the client slower, not the server busier."""
_PATIENCE_S = 3_600
_START_S = 60

_acks: asyncio.Queue[str] = asyncio.Queue()

provision = restate.Workflow("Provision")
provision_all = restate.Workflow("ProvisionAll")
chain = restate.Workflow("Chain")
wait_a_while = restate.Workflow("WaitAWhile")
wait_all = restate.Workflow("WaitAll")
take_events = restate.Workflow("TakeEvents")
two_steps = restate.Workflow("TwoSteps")


def create_package(device_id: str) -> str:
    return f"https://blobs.example/{device_id}"


@provision.main("run")  # type: ignore[untyped-decorator]
async def run_provision(ctx: Any, device_id: str) -> bool:
    await ctx.run_typed("CreateInstallationPackage", create_package, device_id=device_id)
    await ctx.run_typed("SendPackageUrlToDevice", _acks.put_nowait, item=ctx.key())
    acknowledged: bool = await ctx.promise("ack").value()
    return acknowledged


@provision.handler("acknowledge")  # type: ignore[untyped-decorator]
async def acknowledge(ctx: Any, value: bool) -> None:
    await ctx.promise("ack").resolve(value)


@provision_all.main("run")  # type: ignore[untyped-decorator]
async def run_provision_all(ctx: Any, devices: int) -> int:
    calls = [
        ctx.workflow_call(run_provision, key=f"{ctx.key()}-{i}", arg=f"device-{i}") for i in range(devices)
    ]
    return len(await restate.gather(*calls))


@chain.main("run")  # type: ignore[untyped-decorator]
async def run_chain_workflow(ctx: Any, length: int) -> int:
    for i in range(length):
        await ctx.run_typed("CreateInstallationPackage", create_package, device_id=f"device-{i}")
    return length


@wait_a_while.main("run")  # type: ignore[untyped-decorator]
async def run_wait_a_while(ctx: Any, delay_s: float) -> None:
    await ctx.sleep(timedelta(seconds=delay_s))


@wait_all.main("run")  # type: ignore[untyped-decorator]
async def run_wait_all(ctx: Any, timers: int) -> int:
    delay_s = timer_delay_s(timers)
    calls = [ctx.workflow_call(run_wait_a_while, key=f"{ctx.key()}-{i}", arg=delay_s) for i in range(timers)]
    return len(await restate.gather(*calls))


@take_events.main("run")  # type: ignore[untyped-decorator]
async def run_take_events(ctx: Any, events: int) -> int:
    for i in range(events):
        await ctx.promise(f"event-{i}").value()
    return events


@take_events.handler("send")  # type: ignore[untyped-decorator]
async def send_event(ctx: Any, number: int) -> None:
    await ctx.promise(f"event-{number}").resolve(True)


@two_steps.main("run")  # type: ignore[untyped-decorator]
async def run_two_steps(ctx: Any, device_id: str) -> str:
    url: str = await ctx.run_typed("CreateInstallationPackage", create_package, device_id=device_id)
    again: str = await ctx.run_typed("CreateInstallationPackage", create_package, device_id=url)
    return again


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


class Ingress:
    """What a caller of the server does."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url

    async def call(self, workflow: str, key: str, argument: Any) -> Any:
        """Run a workflow and wait for its end."""
        return await self._post(f"{workflow}/{key}/run", argument)

    async def send(self, path: str, argument: Any) -> None:
        """Returns when the server has taken the message durably."""
        await self._post(f"{path}/send", argument)

    async def _post(self, path: str, argument: Any) -> Any:
        answer = await self._http.post(f"{self._url}/{path}", json=argument)
        answer.raise_for_status()
        return json.loads(answer.content or "null")


@contextlib.asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Ingress]:
    """Server and worker at work, the one registered with the other."""
    ingress, admin, node, worker = free_ports(4)
    stop = asyncio.Event()
    async with (
        _server(directory, ingress=ingress, admin=admin, node=node),
        httpx.AsyncClient(timeout=_PATIENCE_S, limits=httpx.Limits(max_connections=_CONNECTIONS)) as http,
        asyncio.TaskGroup() as group,
    ):
        config = hypercorn.config.Config()
        config.bind = [f"127.0.0.1:{worker}"]
        config.h2_max_concurrent_streams = 2**31 - 1
        config.keep_alive_max_requests = 2**31 - 1
        config.errorlog = None
        app = restate.app([provision, provision_all, chain, wait_a_while, wait_all, take_events, two_steps])
        group.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
        try:
            await _until_healthy(http, f"http://127.0.0.1:{admin}/health")
            registered = await http.post(
                f"http://127.0.0.1:{admin}/deployments", json={"uri": f"http://127.0.0.1:{worker}"}
            )
            registered.raise_for_status()
            yield Ingress(http, f"http://127.0.0.1:{ingress}")
        finally:
            stop.set()


@contextlib.asynccontextmanager
async def _server(directory: Path, *, ingress: int, admin: int, node: int) -> AsyncIterator[None]:
    environment = {
        **os.environ,
        "RESTATE_BASE_DIR": str(directory),
        "RESTATE_NODE_NAME": "benchmark",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_DEFAULT_NUM_PARTITIONS": str(_PARTITIONS),
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "error,octocrab=off",
        "DO_NOT_TRACK": "1",
    }
    process = await asyncio.create_subprocess_exec(
        os.environ[PROGRAM_VARIABLE], "--no-logo", env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_healthy(http: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(_START_S):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(url)).status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(0.05)


def check(output: object, expected: object) -> None:
    if output != expected:
        raise RuntimeError(f"the workflow should have ended with {expected!r}, not {output!r}")


async def run_seed(devices: int, directory: Path) -> Values:
    room = asyncio.Semaphore(_CONNECTIONS)

    async def acknowledge_one(key: str) -> None:
        await ingress.send(f"Provision/{key}/acknowledge", True)
        room.release()

    async def acknowledge_all() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(devices):
                await room.acquire()
                group.create_task(acknowledge_one(await _acks.get()))

    async with running(directory) as ingress, asyncio.TaskGroup() as group:
        began = time.perf_counter()
        group.create_task(acknowledge_all())
        check(await ingress.call("ProvisionAll", "all", devices), devices)
        return rate(devices, time.perf_counter() - began)


async def run_chain(length: int, directory: Path) -> Values:
    async with running(directory) as ingress:
        began = time.perf_counter()
        check(await ingress.call("Chain", "one", length), length)
        return rate(length, time.perf_counter() - began)


async def run_timers(timers: int, directory: Path) -> Values:
    async with running(directory) as ingress:
        began = time.perf_counter()
        check(await ingress.call("WaitAll", "all", timers), timers)
        return rate(timers, time.perf_counter() - began - timer_delay_s(timers))


async def run_events(events: int, directory: Path) -> Values:
    room = asyncio.Semaphore(_CONNECTIONS)

    async def send(number: int) -> None:
        await ingress.send("TakeEvents/one/send", number)
        room.release()

    async with running(directory) as ingress, asyncio.TaskGroup() as group:
        began = time.perf_counter()
        ended = group.create_task(ingress.call("TakeEvents", "one", events))
        for number in range(events):
            await room.acquire()
            group.create_task(send(number))
        check(await ended, events)
        return rate(events, time.perf_counter() - began)


async def run_latency(samples: int, directory: Path) -> Values:
    times = []
    async with running(directory) as ingress:
        for i in range(WARM_UP + samples):
            began = time.perf_counter()
            await ingress.call("TwoSteps", f"number-{i}", f"device-{i}")
            times.append(time.perf_counter() - began)
    return percentiles(times[WARM_UP:])


async def run_raise(samples: int, directory: Path) -> Values:
    times = []
    async with running(directory) as ingress, asyncio.TaskGroup() as group:
        ended = group.create_task(ingress.call("TakeEvents", "one", WARM_UP + samples))
        for number in range(WARM_UP + samples):
            began = time.perf_counter()
            await ingress.send("TakeEvents/one/send", number)
            times.append(time.perf_counter() - began)
        check(await ended, WARM_UP + samples)
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
