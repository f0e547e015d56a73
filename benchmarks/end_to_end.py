"""The main job against the same job without an engine, in the same run, on the same parts.

Three contestants, in turn: Muster; the service with its engine taken out; and the bare parts, which keep
nothing at all (benchmarks/pipeline.py says what each leaves out). Each run gets a broker, an Azurite and a
fleet of its own. Each round gives a ratio of neighbours in time, and the median of these is reported: a
machine whose speed drifts changes both sides of it.

    python -m benchmarks.end_to_end                       # 1,000 devices, 5 runs of each
    python -m benchmarks.end_to_end --devices 500 --rounds 1 --broker aedes --json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from benchmarks.engine import median
from benchmarks.pipeline import Bare, Engineless
from broker.connection import BrokerConnection
from broker.local import start_broker
from provisioning.activities import Activities
from provisioning.azurite import start_azurite
from provisioning.bridge import SUBSCRIPTIONS
from provisioning.package_store import PackageStore, new_policy
from provisioning.packages import Release
from provisioning.registry import Registry
from provisioning.settings import RunOptions, ServiceSettings
from provisioning.signing import KeyRing
from provisioning.states import DeviceState

BrokerChoice = Literal["auto", "mosquitto", "aedes"]
_PATIENCE_S = 600.0


@contextlib.asynccontextmanager
async def fleet(broker_url: str, trust: str, devices: int) -> AsyncIterator[None]:
    """Healthy devices, so that both sides do the same work; stopped at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "devices",
        f"--broker={broker_url}",
        f"--count={devices}",
        "--behaviours=healthy=1",
        f"--trust={trust}",
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


@contextlib.asynccontextmanager
async def parts(
    broker_url: str, blob: str, directory: Path, on_message: Any
) -> AsyncIterator[tuple[ServiceSettings, KeyRing, PackageStore, BrokerConnection]]:
    """The service's own storage and broker connection."""
    settings = ServiceSettings(state_dir=directory, broker_url=broker_url, blob_connection_string=blob)
    store = PackageStore(
        connection_string=blob,
        container=settings.container,
        policy=new_policy(),
        max_concurrent_uploads=settings.max_concurrent_uploads,
        upload_timeout_s=120.0,
    )
    connection = BrokerConnection(
        url=broker_url, client_id="benchmark", on_message=on_message, subscriptions=SUBSCRIPTIONS
    )
    async with store, connection:
        await connection.wait_connected()
        yield settings, KeyRing.open(directory), store, connection


async def run_bare(devices: int, broker_url: str, blob: str, directory: Path) -> dict[str, float]:
    """Seconds to provision, and this process's CPU seconds."""
    bare = Bare()
    async with (
        asyncio.timeout(_PATIENCE_S),
        parts(broker_url, blob, directory, bare.on_message) as (settings, keys, store, connection),
        fleet(broker_url, keys.current.public_key, devices),
    ):
        await bare.wait_registered(devices)
        release = Release.demo(settings.release, settings.firmware_size_bytes)
        cpu = time.process_time()
        seconds = await bare.run(connection, store, release, keys.current)
        return {"seconds": seconds, "cpu_s": time.process_time() - cpu}


async def run_engineless(devices: int, broker_url: str, blob: str, directory: Path) -> dict[str, float]:
    """As above, with registry, bridge and activities."""
    async with asyncio.timeout(_PATIENCE_S), Registry(directory / "registry.db") as registry:
        engineless = Engineless(registry, RunOptions())
        engineless.bridge.open()
        async with (
            parts(broker_url, blob, directory, engineless.bridge.take) as (settings, keys, store, connection),
            fleet(broker_url, keys.current.public_key, devices),
        ):
            await engineless.wait_registered(devices)
            activities = Activities(
                registry=registry,
                store=store,
                publisher=connection,
                release=Release.demo(settings.release, settings.firmware_size_bytes),
                keys=keys,
                publish_timeout_s=120.0,
            )
            cpu = time.process_time()
            seconds = await engineless.run(activities)
            states = await registry.states()
            assert states[DeviceState.PROVISIONED] == devices, states
            result = {"seconds": seconds, "cpu_s": time.process_time() - cpu}
        await engineless.bridge.close()
        return result


def call(url: str, body: Any = None) -> Any:
    """One request of the service's API."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


async def poll(url: str, done: Any) -> Any:
    """The first answer of which ``done`` is true."""
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            answer = await asyncio.to_thread(call, url)
            if done(answer):
                return answer
            # The end is taken from the answer: asking more often would only cost more.
            await asyncio.sleep(1.0)


async def run_muster(
    devices: int,
    broker_url: str,
    blob: str,
    directory: Path,
    beside: Callable[[str], contextlib.AbstractAsyncContextManager[None]] = lambda api: (
        contextlib.nullcontext()
    ),
) -> dict[str, float]:
    """The same by ``muster up`` on the given broker and storage; ``beside`` goes on at its API meanwhile."""
    service = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "provisioning.cli",
        "up",
        f"--state={directory}",
        "--port=0",
        env={**os.environ, "MUSTER_BROKER": broker_url, "MUSTER_BLOB": blob},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        record = directory / "service.json"
        async with asyncio.timeout(60):
            while not record.exists():  # noqa: ASYNC110 (another process writes it)
                await asyncio.sleep(0.05)
        api = json.loads(record.read_text())["url"] + "/api"
        health = await poll(f"{api}/health", lambda h: h["broker"]["connected"] and h["blob"]["reachable"])
        async with fleet(broker_url, health["trust"]["public_key"], devices):
            await poll(f"{api}/statistics", lambda s: s["states"].get("new", 0) == devices)
            process = psutil.Process(service.pid)
            async with beside(api):
                cpu = sum(process.cpu_times()[:2])
                began = time.perf_counter()
                run_id = (await asyncio.to_thread(call, f"{api}/provision", {}))["run_id"]
                run = await poll(f"{api}/runs/{run_id}", lambda r: r["status"] != "running")
            # As the service has it: how often this process asks is no part of the job.
            seconds = min(run["elapsed_s"], time.perf_counter() - began)
            assert run["counts"].get("provisioned") == devices, run
            return {"seconds": seconds, "cpu_s": sum(process.cpu_times()[:2]) - cpu}
    finally:
        service.send_signal(signal.SIGTERM)
        await service.wait()


RUNS = {"bare": run_bare, "engineless": run_engineless, "muster": run_muster}
NAMES = {
    "bare": "the bare parts: no registry, nothing kept",
    "engineless": "the service without its engine",
    "muster": "Muster, durable",
}


async def run_once(which: str, devices: int, broker: BrokerChoice) -> dict[str, float]:
    """One run on a stack of its own."""
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=Path.cwd()) as name:
        directory = Path(name)
        async with (
            await start_broker(state_dir=directory / "stack", kind=broker, port=0) as local_broker,
            await start_azurite(state_dir=directory / "stack", port=0) as azurite,
        ):
            state = directory / "state"
            state.mkdir()
            return await RUNS[which](devices, local_broker.url, azurite.connection_string, state)


async def run_all(devices: int, rounds: int, broker: BrokerChoice) -> dict[str, Any]:
    """All in turn, ``rounds`` times; medians, ranges and ratios."""
    rates: dict[str, list[float]] = {which: [] for which in RUNS}
    cpu: dict[str, list[float]] = {which: [] for which in RUNS}
    for number in range(rounds):
        order = list(RUNS) if number % 2 == 0 else list(reversed(RUNS))
        for which in order:
            result = await run_once(which, devices, broker)
            rates[which].append(devices / result["seconds"])
            cpu[which].append(result["cpu_s"] / devices * 1_000)
            print(
                f"  {which}: {rates[which][-1]:.0f} devices/s, {cpu[which][-1]:.2f} ms of CPU a device",
                file=sys.stderr,
            )
    return {
        "devices": devices,
        "broker": broker,
        "rounds": rounds,
        "runs": {
            which: {
                "devices_per_s": median(rates[which]),
                "lowest": min(rates[which]),
                "highest": max(rates[which]),
                "cpu_ms_per_device": median(cpu[which]),
                "muster_ratio": median(
                    [muster / other for muster, other in zip(rates["muster"], rates[which], strict=True)]
                ),
            }
            for which in RUNS
        },
    }


def as_table(result: dict[str, Any]) -> str:
    """Markdown."""
    heading = f"{result['devices']:,} devices, {result['rounds']} runs each"
    lines = [
        f"| {heading} | devices/s (median; range) | service's CPU per device | Muster's rate against it |",
        "|---|---:|---:|---:|",
    ]
    for which, r in result["runs"].items():
        rate = f"{r['devices_per_s']:.0f} ({r['lowest']:.0f} to {r['highest']:.0f})"
        lines.append(
            f"| {NAMES[which]} | {rate} | {r['cpu_ms_per_device']:.2f} ms | {r['muster_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--broker", choices=get_args(BrokerChoice), default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = asyncio.run(run_all(arguments.devices, arguments.rounds, arguments.broker))
    print(json.dumps(result, indent=2) if arguments.json else as_table(result))


if __name__ == "__main__":
    main()
