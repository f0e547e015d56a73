"""How many devices a second the engines carry through the seed's workflow, with activities that do nothing.

Per device: two activities and one external event, each awaited; one parent orchestration starts a
sub-orchestration per device and waits for all. The embedded engine is durable (SQLite, WAL,
``synchronous=FULL``); beside it, in the same run, the Durable Task SDK's own in-memory backend with
its gRPC worker, which keeps nothing.

    python -m benchmarks.engine                      # 1,000 to 50,000 devices
    python -m benchmarks.engine --devices 1000 10000 --repeats 5 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from durabletask import client as sdk_client
from durabletask import task, worker

EVENT = "DownloadCompletedAck"
NAMES = {"embedded": "Muster, embedded", "in-memory": "durabletask, in-memory backend + gRPC worker"}
PEER_DEVICES = 1_000
"""The in-memory backend gets slower with more devices and has no part in the larger sizes."""


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


async def run_embedded(devices: int, directory: Path) -> float:
    """Seconds from the start of the parent until its end is on disk."""
    from provisioning.engine import AsyncTaskHubClient, Engine

    engine = Engine(directory / "engine.db")
    client = AsyncTaskHubClient(engine)
    acks: asyncio.Queue[str] = asyncio.Queue()
    room = asyncio.Semaphore(4_000)

    async def create_package(_: task.ActivityContext, device_id: str) -> str:
        return f"https://blobs.example/{device_id}"

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

    engine.add_orchestrator(provision)
    engine.add_orchestrator(provision_all)
    engine.add_named_activity("CreateInstallationPackage", create_package)
    engine.add_named_activity("SendPackageUrlToDevice", send_url)
    async with engine, asyncio.TaskGroup() as group:
        began = time.perf_counter()
        group.create_task(acknowledge_all())
        instance_id = await client.schedule_new_orchestration(provision_all, input=devices)
        state = await client.wait_for_orchestration_completion(instance_id, timeout=3_600)
        seconds = time.perf_counter() - began
    assert state is not None
    assert state.get_output() == devices, state
    return seconds


def run_in_memory(devices: int) -> float:
    """The same on the SDK's in-memory backend over gRPC."""
    from concurrent.futures import ThreadPoolExecutor

    from durabletask.testing import create_test_backend

    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    backend = create_test_backend(port=port)
    address = f"127.0.0.1:{port}"
    # Untyped: the SDK's annotations want orchestrators that return what they yield.
    hub: Any = worker.TaskHubGrpcWorker(host_address=address)
    client: Any = sdk_client.TaskHubGrpcClient(host_address=address)
    pool = ThreadPoolExecutor(8)

    def create_package(_: task.ActivityContext, device_id: str) -> str:
        return f"https://blobs.example/{device_id}"

    def send_url(ctx: task.ActivityContext, _: dict[str, str]) -> None:
        pool.submit(client.raise_orchestration_event, ctx.orchestration_id, EVENT, data=True)

    create_package.__name__ = "CreateInstallationPackage"
    send_url.__name__ = "SendPackageUrlToDevice"
    hub.add_orchestrator(provision)
    hub.add_orchestrator(provision_all)
    hub.add_activity(create_package)
    hub.add_activity(send_url)
    try:
        with hub:
            hub.start()
            began = time.perf_counter()
            instance_id = client.schedule_new_orchestration(provision_all, input=devices)
            state = client.wait_for_orchestration_completion(instance_id, timeout=3_600)
            seconds = time.perf_counter() - began
    finally:
        backend.stop()
    assert state is not None
    assert state.get_output() == devices, state
    return seconds


def measure_once(engine: str, devices: int) -> float:
    if engine == "in-memory":
        return run_in_memory(devices)
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=Path.cwd()) as directory:
        return asyncio.run(run_embedded(devices, Path(directory)))


def measure(engine: str, devices: int) -> float:
    """As :func:`measure_once` in a process of its own, so that no run inherits another's memory."""
    command = [sys.executable, "-m", "benchmarks.engine", "--once", engine, str(devices)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def run(sizes: list[int], repeats: int, *, peer: bool) -> list[dict[str, Any]]:
    """One record per engine and size: devices a second (median) and the range."""
    records = []
    for engine, devices in [("embedded", n) for n in sizes] + ([("in-memory", PEER_DEVICES)] if peer else []):
        rates = []
        for _ in range(repeats if engine == "embedded" else 1):
            rates.append(devices / measure(engine, devices))
            print(f"  {engine} {devices:,}: {rates[-1]:,.0f} devices/s", file=sys.stderr)
        records.append(
            {
                "engine": engine,
                "durable": engine == "embedded",
                "devices": devices,
                "devices_per_s": median(rates),
                "lowest": min(rates),
                "highest": max(rates),
            }
        )
    return records


def as_table(records: list[dict[str, Any]]) -> str:
    """Markdown, with the cost per device relative to the smallest size."""
    smallest = records[0]["devices_per_s"]
    lines = [
        "| engine | durable | devices | devices/s (median; lowest to highest) | cost per device |",
        "|---|---|---:|---:|---:|",
    ]
    for r in records:
        name = (
            "Muster, embedded"
            if r["engine"] == "embedded"
            else "durabletask, in-memory backend + gRPC worker"
        )
        cost = f"{smallest / r['devices_per_s']:.2f}×"
        rate = f"{r['devices_per_s']:,.0f} ({r['lowest']:,.0f} to {r['highest']:,.0f})"
        lines.append(f"| {name} | {'yes' if r['durable'] else 'no'} | {r['devices']:,} | {rate} | {cost} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="leave out the SDK's in-memory backend")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--once", nargs=2, metavar=("ENGINE", "DEVICES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(measure_once(arguments.once[0], int(arguments.once[1])))
        return
    records = run(arguments.devices, arguments.repeats, peer=not arguments.no_peer)
    print(json.dumps(records, indent=2) if arguments.json else as_table(records))


if __name__ == "__main__":
    main()
