"""The HTTP API: how quick it answers, what its events cost, and whether it slows the main job.

    python -m benchmarks.api                       # about ten minutes; leave the machine alone
    python -m benchmarks.api --rounds 1 --devices 500 --json

Answers are timed by a client in a process of its own, over loopback: what the server needs is less. What the
events cost is the processor time of the service's process with readers less that without, in turns, while
devices change 500 times a second. The main job runs with and without three pollers and three readers beside
it, in turns; they take their share of the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks import child
from benchmarks.end_to_end import run_muster
from benchmarks.figures import median
from broker.local import start_broker
from provisioning.azurite import start_azurite
from provisioning.registry import Outcome
from provisioning.service import Service
from provisioning.settings import ServiceSettings
from provisioning.states import WORKING, DeviceState

DEVICES: Final = 10_000
"""On record, where answers are timed and events counted."""
CHANGES_PER_S: Final = 500
PHASE_S: Final = 10.0
READERS: Final = (0, 1, 5)
STEPS: Final = WORKING[1:]
CALLS_EACH: Final = 30
POLLERS: Final = 3
POLL_INTERVAL_S: Final = 1.0

CALLS: Final = {
    "the first page of 100": "/api/devices",
    "a page of 1,000, which ends at 100 KB": "/api/devices?limit=1000",
    "a page from the middle": "/api/devices?after=dev-05000",
    "by state": "/api/devices?state=failed",
    "by tag, model and presence": "/api/devices?tag=site%3Doslo&model=m&online=true",
    "by the beginning of the id": "/api/devices?q=dev-07",
    "the latest first": "/api/devices?sort=-updated_at",
    "one device": "/api/devices/dev-00007",
    "the overview": "/api/overview",
    "all cells": "/api/cells?ids=false",
    "all cells with ids": "/api/cells",
    "cells of a rollout": "/api/rollouts/{rollout}/cells?ids=false",
    "a rollout over time": "/api/rollouts/{rollout}/series",
    "a run over time": "/api/runs/r1/series",
    "metrics": "/metrics",
}
POLLED: Final = ("/api/overview", "/api/devices?sort=-updated_at", "/api/cells?ids=false")


@contextlib.asynccontextmanager
async def service_with_devices(directory: Path) -> AsyncIterator[Service]:
    """A service without its neighbours: half of its devices have ended in a run."""
    settings = ServiceSettings(
        state_dir=directory,
        broker_url="mqtt://127.0.0.1:1",
        blob_connection_string="DefaultEndpointsProtocol=http;AccountName=a;AccountKey=YQ==;"
        "BlobEndpoint=http://127.0.0.1:1/a",
        api_port=0,
    )
    async with Service(settings) as service:
        registry = service._registry
        ids = [f"dev-{number:05d}" for number in range(DEVICES)]
        for number, device_id in enumerate(ids):
            tags = {"site": ("oslo", "rome")[number % 2]}
            registry.register(device_id, model="m", firmware_version="1", tags=tags)
        await registry.claim("r1", ids, options={}, limit=DEVICES)
        await asyncio.gather(
            *(
                registry.record_outcome(
                    Outcome(
                        run_id="r1",
                        device_id=device_id,
                        state=DeviceState.FAILED if number % 20 == 0 else DeviceState.PROVISIONED,
                        attempts=1,
                        error="it did not answer" if number % 20 == 0 else None,
                        ended_at=time.time() + number / 100,
                        device_s=number % 97 / 10,
                        steps_s={},
                    )
                )
                for number, device_id in enumerate(ids[: DEVICES // 2])
            )
        )
        yield service


def connection_to(url: str) -> http.client.HTTPConnection:
    """One that is kept."""
    there = urlsplit(url)
    return http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)


def time_calls(url: str, rollout_id: str) -> dict[str, float]:
    """Milliseconds and bytes of each call."""
    connection = connection_to(url)
    found: dict[str, float] = {}
    for name, path in CALLS.items():
        times = []
        size = 0
        for _ in range(CALLS_EACH):
            began = time.perf_counter()
            connection.request("GET", path.format(rollout=rollout_id))
            answer = connection.getresponse()
            size = len(answer.read())
            times.append((time.perf_counter() - began) * 1_000)
            assert answer.status == 200, (path, answer.status)
        found |= {f"{name}|ms": median(times), f"{name}|most_ms": max(times), f"{name}|bytes": size}
    return found


async def measure_calls(_: int, directory: Path) -> dict[str, float]:
    """Each call, from another process; nothing else goes on."""
    async with service_with_devices(directory) as service:
        plan = {"name": "x", "targets": {"states": ["provisioned"]}, "pace": {"in_flight": 1}}
        created = await service.rollouts.create(plan, actor="benchmark")
        await service.rollouts.act(created["rollout_id"], "pause", actor="benchmark")
        asker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", MODULE, "--ask", service.url, created["rollout_id"]),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _err = await asker.communicate()
        found: dict[str, float] = json.loads(output)
        return found


async def measure_events(_: int, directory: Path) -> dict[str, float]:
    """The service's processor time, as a share of a core, by how many read."""
    async with service_with_devices(directory) as service:
        service.events._hub._linger_s = 0.0
        feeding = asyncio.create_task(feed(service))
        found = {}
        for readers in READERS:
            async with reading(service.url, readers):
                while service.events.statistics().readers != readers:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.05)
                before = service.events.statistics().published
                began, began_cpu = time.perf_counter(), time.process_time()
                await asyncio.sleep(PHASE_S)
                took = time.perf_counter() - began
                found[f"{readers}|core"] = (time.process_time() - began_cpu) / took
                found[f"{readers}|events_per_s"] = (service.events.statistics().published - before) / took
        feeding.cancel()
        await asyncio.wait([feeding])
        return found


async def feed(service: Service) -> None:
    """Devices change so often, each time to another state: step after step, attempt after attempt."""
    registry, number = service._registry, 0
    began = time.perf_counter()
    half = DEVICES // 2
    while True:
        while number < (time.perf_counter() - began) * CHANGES_PER_S:
            attempt, step = divmod(number // half, len(STEPS))
            registry.progress("r1", f"dev-{half + number % half:05d}", STEPS[step], attempt=attempt + 1)
            number += 1
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def reading(url: str, readers: int, pollers: int = 0) -> AsyncIterator[None]:
    """So many who read, and ask, in a process of their own."""
    if not readers and not pollers:
        yield
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULE, "--read", url, str(readers), str(pollers)),
        stdin=asyncio.subprocess.PIPE,
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def read_and_ask(url: str, readers: int, pollers: int) -> None:
    """The other end, until its standard input ends."""

    def read() -> None:
        connection = connection_to(url)
        connection.request("GET", "/api/events")
        answer = connection.getresponse()
        while answer.read1(1 << 16):
            pass

    def ask() -> None:
        connection = connection_to(url)
        while True:
            for path in POLLED:
                connection.request("GET", path)
                connection.getresponse().read()
            time.sleep(POLL_INTERVAL_S)

    for work in [read] * readers + [ask] * pollers:
        threading.Thread(target=work, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


async def measure_job(devices: int, directory: Path) -> dict[str, float]:
    """The main job with the API under load, and without, each on a stack of its own."""
    found = {}
    for name in ("without", "with") if directory.name.endswith("0") else ("with", "without"):
        place = directory / name
        place.mkdir()
        async with (
            await start_broker(state_dir=place / "stack", port=0) as broker,
            await start_azurite(state_dir=place / "stack", port=0) as azurite,
        ):
            state = place / "state"
            state.mkdir()

            def beside(
                api: str, loaded: bool = name == "with"
            ) -> contextlib.AbstractAsyncContextManager[None]:
                return reading(api, POLLERS if loaded else 0, POLLERS if loaded else 0)

            result = await run_muster(devices, broker.url, azurite.connection_string, state, beside)
        found[name] = devices / result["seconds"]
        found[f"{name}|cpu_ms"] = result["cpu_s"] / devices * 1_000
    return found


MODULE: Final = "benchmarks.api"
RUNS: Final = {"measure_calls": measure_calls, "measure_events": measure_events, "measure_job": measure_job}


def rounds_of(run: str, size: int, rounds: int) -> Iterator[dict[str, float]]:
    """Each in a process of its own; the number of the round is the end of its directory's name."""
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=Path.cwd()) as name:
            directory = Path(name) / f"round-{number % 2}"
            directory.mkdir()
            values = child.measure(MODULE, run, size, directory)
            text = ", ".join(f"{key} {value:,.4g}" for key, value in values.items() if "bytes" not in key)
            print(f"{run}: {text}", file=sys.stderr, flush=True)
            yield values


def as_tables(calls: list[Any], events: list[Any], jobs: list[Any], devices: int) -> str:
    """Markdown."""
    lines = [
        f"| {DEVICES:,} devices on record | median | highest | bytes |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {median(one[f'{name}|ms'] for one in calls):.1f} ms "
        f"| {max(one[f'{name}|most_ms'] for one in calls):.1f} ms "
        f"| {max(one[f'{name}|bytes'] for one in calls):,.0f} |"
        for name in CALLS
    ]
    lines += [
        "",
        f"| readers, {CHANGES_PER_S} changes/s | the service, of a core | the events' share | events/s |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for readers in READERS:
        share = median(one[f"{readers}|core"] - one["0|core"] for one in events)
        lines.append(
            f"| {readers} | {median(one[f'{readers}|core'] for one in events):.1%} "
            f"| {'' if readers == 0 else f'{share:.1%}'} "
            f"| {median(one[f'{readers}|events_per_s'] for one in events):.1f} |"
        )
    if jobs:
        ratio = median(one["with"] / one["without"] for one in jobs)
        head = (
            f"| the main job, {devices:,} devices, {len(jobs)} runs each | devices/s (lowest to highest) "
            "| service's CPU per device |"
        )
        lines += ["", head, "| --- | ---: | ---: |"]
        for name, told in (("without", "alone"), ("with", f"beside {POLLERS} pollers, {POLLERS} readers")):
            rates = [one[name] for one in jobs]
            lines.append(
                f"| {told} | {median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) "
                f"| {median(one[f'{name}|cpu_ms'] for one in jobs):.2f} ms |"
            )
        lines += ["", f"With the API under load it goes at {ratio:.2f} of its rate alone."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.api",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, default=1_000, help="of the main job; 0: without it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    calls = list(rounds_of("measure_calls", 0, arguments.rounds))
    events = list(rounds_of("measure_events", 0, arguments.rounds))
    jobs = list(rounds_of("measure_job", arguments.devices, arguments.rounds if arguments.devices else 0))
    print(
        json.dumps({"calls": calls, "events": events, "jobs": jobs})
        if arguments.json
        else as_tables(calls, events, jobs, arguments.devices)
    )


if __name__ == "__main__":
    # The same module is the child, and the clients, which are told from the parent by the first argument.
    match sys.argv[1:]:
        case ["--ask", url, rollout_id]:
            print(json.dumps(time_calls(url, rollout_id)))
        case ["--read", url, readers, pollers]:
            read_and_ask(url, int(readers), int(pollers))
        case [name, *_] if name in RUNS:
            child.serve(RUNS)
        case _:
            main()
