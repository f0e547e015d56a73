"""The main job against the same pipeline without an engine, in the same run, on the same parts.

Each run gets a broker, an Azurite and a fleet of its own. Muster's runs are durable; the pipeline's keep
nothing (benchmarks/pipeline.py). They alternate, and the ratio is that of the medians.

    python -m benchmarks.end_to_end                       # 1,000 devices, 3 runs of each
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
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from benchmarks.engine import median
from benchmarks.pipeline import Pipeline
from broker import topics
from broker.connection import BrokerConnection
from broker.local import start_broker
from provisioning.azurite import start_azurite
from provisioning.packages import PackageStore, SigningKey
from provisioning.settings import ServiceSettings

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


async def run_pipeline(devices: int, broker_url: str, blob: str, directory: Path) -> dict[str, float]:
    """Seconds to provision, and this process's CPU seconds."""
    settings = ServiceSettings(state_dir=directory, broker_url=broker_url, blob_connection_string=blob)
    key = SigningKey.load_or_create(directory / "signing.key")
    pipeline = Pipeline(settings=settings, key=key)
    store = PackageStore(
        connection_string=blob,
        container=settings.container,
        max_concurrent_uploads=settings.max_concurrent_uploads,
        upload_timeout_s=120.0,
    )
    connection = BrokerConnection(
        url=broker_url,
        client_id="pipeline",
        on_message=pipeline.on_message,
        subscriptions=(topics.ALL_PRESENCE, topics.ALL_REGISTER, topics.ALL_EVENTS),
    )
    async with asyncio.timeout(_PATIENCE_S), store, connection:
        await connection.wait_connected()
        async with fleet(broker_url, key.public_key, devices):
            await pipeline.wait_registered(devices)
            cpu = time.process_time()
            seconds = await pipeline.run(connection, store)
            return {"seconds": seconds, "cpu_s": time.process_time() - cpu}


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
            await asyncio.sleep(0.25)


async def run_muster(devices: int, broker_url: str, blob: str, directory: Path) -> dict[str, float]:
    """The same by ``muster up`` on the given broker and storage."""
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
            cpu = sum(process.cpu_times()[:2])
            began = time.perf_counter()
            run_id = (await asyncio.to_thread(call, f"{api}/provision", {}))["run_id"]
            run = await poll(f"{api}/runs/{run_id}", lambda r: r["status"] != "running")
            seconds = time.perf_counter() - began
            assert run["counts"].get("provisioned") == devices, run
            return {"seconds": seconds, "cpu_s": sum(process.cpu_times()[:2]) - cpu}
    finally:
        service.send_signal(signal.SIGTERM)
        await service.wait()


async def run_once(which: str, devices: int, broker: BrokerChoice) -> dict[str, float]:
    """One run on a stack of its own."""
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=Path.cwd()) as name:
        directory = Path(name)
        async with (
            await start_broker(state_dir=directory / "stack", kind=broker, port=0) as local_broker,
            await start_azurite(state_dir=directory / "stack", port=0) as azurite,
        ):
            run = run_muster if which == "muster" else run_pipeline
            state = directory / "state"
            state.mkdir()
            return await run(devices, local_broker.url, azurite.connection_string, state)


async def run_all(devices: int, rounds: int, broker: BrokerChoice) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times; medians, ranges and their ratio."""
    rates: dict[str, list[float]] = {"pipeline": [], "muster": []}
    cpu: dict[str, list[float]] = {"pipeline": [], "muster": []}
    for number in range(rounds):
        order = ("pipeline", "muster") if number % 2 == 0 else ("muster", "pipeline")
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
        "ratio": median(rates["muster"]) / median(rates["pipeline"]),
        **{
            which: {
                "devices_per_s": median(rates[which]),
                "lowest": min(rates[which]),
                "highest": max(rates[which]),
                "cpu_ms_per_device": median(cpu[which]),
            }
            for which in rates
        },
    }


def as_table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        (
            f"| {result['devices']:,} devices, {result['rounds']} runs each | devices/s "
            "(median; lowest to highest) | CPU of the service per device |"
        ),
        "|---|---:|---:|",
    ]
    for which, name in (
        ("pipeline", "the same parts, no engine, nothing kept"),
        ("muster", "Muster, durable"),
    ):
        r = result[which]
        rate = f"{r['devices_per_s']:.0f} ({r['lowest']:.0f} to {r['highest']:.0f})"
        lines.append(f"| {name} | {rate} | {r['cpu_ms_per_device']:.2f} ms |")
    lines.append(f"| **ratio** | **{result['ratio']:.2f}** | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--broker", choices=get_args(BrokerChoice), default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = asyncio.run(run_all(arguments.devices, arguments.rounds, arguments.broker))
    print(json.dumps(result, indent=2) if arguments.json else as_table(result))


if __name__ == "__main__":
    main()
