"""The Durable Task SDK's own in-memory backend with its gRPC worker. It keeps nothing; it comes with the SDK.

The orchestrators are the very ones that Muster runs (benchmarks/embedded.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from durabletask import client as sdk_client
from durabletask import task, worker
from durabletask.testing import create_test_backend

from benchmarks import child
from benchmarks.embedded import chain, provision, provision_all, take_events, two_steps
from benchmarks.workloads import EVENT, WARM_UP, Values, percentiles, rate, timer_delay_s

_SENDERS = 8
_PATIENCE_S = 3_600


def create_package(_: task.ActivityContext, device_id: str) -> str:
    return f"https://blobs.example/{device_id}"


@contextlib.contextmanager
def running(orchestrators: list[Any], **activities: Callable[..., Any]) -> Iterator[Any]:
    """The backend and a worker at work; gives the client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    backend = create_test_backend(port=port)
    # Untyped: the SDK's annotations want orchestrators that return what they yield.
    hub: Any = worker.TaskHubGrpcWorker(host_address=f"127.0.0.1:{port}")
    for orchestrator in orchestrators:
        hub.add_orchestrator(orchestrator)
    for name, activity in {"CreateInstallationPackage": create_package, **activities}.items():
        activity.__name__ = name
        hub.add_activity(activity)
    try:
        with hub:
            hub.start()
            yield sdk_client.TaskHubGrpcClient(host_address=f"127.0.0.1:{port}")
    finally:
        backend.stop()


def run_to_end(client: Any, orchestrator: Any, size: int) -> float:
    began = time.perf_counter()
    expect(client, client.schedule_new_orchestration(orchestrator, input=size), size)
    return time.perf_counter() - began


def expect(client: Any, instance_id: str, output: Any) -> None:
    state = client.wait_for_orchestration_completion(instance_id, timeout=_PATIENCE_S)
    if state is None or state.get_output() != output:
        raise RuntimeError(f"{instance_id} should have ended with {output!r}: {state}")


def run_seed(devices: int) -> Values:
    with ThreadPoolExecutor(_SENDERS) as pool:

        def send_url(ctx: task.ActivityContext, _: dict[str, str]) -> None:
            pool.submit(client.raise_orchestration_event, ctx.orchestration_id, EVENT, data=True)

        with running([provision, provision_all], SendPackageUrlToDevice=send_url) as client:
            return rate(devices, run_to_end(client, provision_all, devices))


def run_chain(length: int) -> Values:
    with running([chain]) as client:
        return rate(length, run_to_end(client, chain, length))


def run_timers(timers: int) -> Values:
    delay_s = timer_delay_s(timers)

    def wait_a_while(ctx: task.OrchestrationContext, _: Any) -> Generator[task.Task[Any], Any, None]:
        yield ctx.create_timer(ctx.current_utc_datetime + timedelta(seconds=delay_s))

    def wait_all(ctx: task.OrchestrationContext, size: int) -> Generator[task.Task[Any], Any, int]:
        tasks: list[task.Task[Any]] = [ctx.call_sub_orchestrator("wait_a_while") for _ in range(size)]
        return len((yield task.when_all(tasks)))

    with running([wait_a_while, wait_all]) as client:
        return rate(timers, run_to_end(client, wait_all, timers) - delay_s)


def run_events(events: int) -> Values:
    with running([take_events]) as client, ThreadPoolExecutor(_SENDERS) as pool:
        began = time.perf_counter()
        instance_id = client.schedule_new_orchestration(take_events, input=events)
        sent = [
            pool.submit(client.raise_orchestration_event, instance_id, EVENT, data=True)
            for _ in range(events)
        ]
        for one in sent:
            one.result()
        expect(client, instance_id, events)
        return rate(events, time.perf_counter() - began)


def run_latency(samples: int) -> Values:
    times = []
    with running([two_steps]) as client:
        for i in range(WARM_UP + samples):
            began = time.perf_counter()
            instance_id = client.schedule_new_orchestration(two_steps, input=f"device-{i}")
            client.wait_for_orchestration_completion(instance_id)
            times.append(time.perf_counter() - began)
    return percentiles(times[WARM_UP:])


def run_raise(samples: int) -> Values:
    times = []
    with running([take_events]) as client:
        instance_id = client.schedule_new_orchestration(take_events, input=WARM_UP + samples)
        client.wait_for_orchestration_start(instance_id)
        for _ in range(WARM_UP + samples):
            began = time.perf_counter()
            client.raise_orchestration_event(instance_id, EVENT, data=True)
            times.append(time.perf_counter() - began)
        expect(client, instance_id, WARM_UP + samples)
    return percentiles(times[WARM_UP:])


def _in_thread(run: Callable[[int], Values]) -> child.Run:
    async def measure(size: int, _: Path) -> Values:
        return await asyncio.to_thread(run, size)

    return measure


if __name__ == "__main__":
    child.serve(
        {
            "seed": _in_thread(run_seed),
            "chain": _in_thread(run_chain),
            "timers": _in_thread(run_timers),
            "events": _in_thread(run_events),
            "latency": _in_thread(run_latency),
            "raise": _in_thread(run_raise),
        }
    )
