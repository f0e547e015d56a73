"""Rollouts on the embedded engine with devices that only pretend: what a device costs, small and large.

In three waves, with a bound on devices in flight, a success threshold and a criterion to abort. Sizes take
turns within a round, each run in a process of its own; the ratio is that of neighbours. It also looks at what
must not grow: the devices in flight, and the longest history of any orchestration.

    python -m benchmarks.rollouts                        # 1,000 and 100,000 devices, 3 rounds
    python -m benchmarks.rollouts --devices 10000 --rounds 1 --json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import Any, Final

from durabletask import task
from durabletask.task import OrchestrationContext

from benchmarks import child
from provisioning.engine import AsyncTaskHubClient, Engine
from provisioning.orchestrations import RECORD_OUTCOME
from provisioning.registry import Outcome, Registry
from provisioning.rollouts.activities import RolloutActivities
from provisioning.rollouts.operations import Rollouts
from provisioning.rollouts.orchestrations import LaneOrchestration, RolloutOrchestration, WaveOrchestration
from provisioning.rollouts.store import RolloutStore
from provisioning.states import DeviceState

SMALL: Final = 1_000
IN_FLIGHT: Final = 500
PLAN: Final = {
    "waves": [{"percent": 1, "success_threshold_percent": 90}, {"percent": 10}, {"percent": 100}],
    "pace": {"in_flight": IN_FLIGHT},
    "abort": [{"on": "failed", "threshold_percent": 20, "min_sample": 10}],
}
_POLL_S: Final = 0.05

Flow = Generator[task.Task[Any], Any, Any]


def DeviceProvisioningOrchestration(ctx: OrchestrationContext, request: dict[str, Any]) -> Flow:  # noqa: N802
    """Stands for the real one: two activities, that only pretend and that which records the outcome."""
    rollout_id, _, device_id = ctx.instance_id.rpartition(":")
    yield ctx.call_activity("Pretend", input=device_id)
    now = ctx.current_utc_datetime
    yield ctx.call_activity(
        RECORD_OUTCOME, input={"rollout_id": rollout_id, "device_id": device_id, "at": now.timestamp()}
    )


class _Nobody:
    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float) -> None:
        raise AssertionError("nothing is cancelled here")


async def measure(devices: int, directory: Path) -> dict[str, float]:
    """One rollout of so many devices."""
    in_flight = most = 0

    async def pretend(_ctx: Any, _device_id: str) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1

    async with contextlib.AsyncExitStack() as stack:
        registry = await stack.enter_async_context(Registry(directory / "registry.db"))
        for number in range(devices):
            registry.register(f"dev-{number:06d}", model="m", firmware_version="1", tags={})
        await registry.flush()

        async def record_outcome(_ctx: Any, request: dict[str, Any]) -> None:
            await registry.record_outcome(
                Outcome(
                    run_id=request["rollout_id"],
                    device_id=request["device_id"],
                    state=DeviceState.PROVISIONED,
                    attempts=1,
                    error=None,
                    ended_at=request["at"],
                    device_s=0.0,
                    steps_s={},
                )
            )

        store = RolloutStore(registry)
        engine = Engine(directory / "engine.db")
        for orchestrator in (
            RolloutOrchestration,
            WaveOrchestration,
            LaneOrchestration,
            DeviceProvisioningOrchestration,
        ):
            engine.add_orchestrator(orchestrator)
        activities = RolloutActivities(
            store=store, client=AsyncTaskHubClient(engine), publisher=_Nobody(), publish_timeout_s=5.0
        )
        for name, activity in activities.named().items():
            engine.add_named_activity(name, activity)
        engine.add_named_activity(RECORD_OUTCOME, record_outcome)
        engine.add_named_activity("Pretend", pretend)
        await stack.enter_async_context(engine)
        rollouts = Rollouts(registry=registry, store=store, client=AsyncTaskHubClient(engine))
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        rollout_id = (await rollouts.create(PLAN, actor="benchmark"))["rollout_id"]
        await AsyncTaskHubClient(engine).wait_for_orchestration_completion(rollout_id, timeout=3_600)
        took_s, took_cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
        view = await rollouts.view(rollout_id)
        assert view["counts"]["provisioned"] == devices, view["counts"]
    with contextlib.closing(sqlite3.connect(directory / "engine.db")) as database:
        query = "SELECT max(events) FROM (SELECT count(*) AS events FROM history GROUP BY instance)"
        longest = database.execute(query).fetchone()[0]
    return {
        "devices_per_s": devices / took_s,
        "cpu_ms": took_cpu_s / devices * 1_000,
        "cost_s": took_s / devices,
        "most_in_flight": most,
        "longest_history": longest,
    }


def as_table(rounds: dict[int, list[dict[str, float]]]) -> str:
    """Markdown."""
    lines = [
        "| devices | devices/s (lowest to highest) | CPU each | most in flight | longest history |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for devices, values in rounds.items():
        rates = [one["devices_per_s"] for one in values]
        lines.append(
            f"| {devices:,} | {median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) "
            f"| {median(one['cpu_ms'] for one in values):.2f} ms "
            f"| {max(one['most_in_flight'] for one in values):,.0f} of {IN_FLIGHT:,} "
            f"| {max(one['longest_history'] for one in values):,.0f} events |"
        )
    lines.append("")
    lines.append(
        f"A device costs {ratio(rounds):.2f} times in the largest rollout what it does in the smallest."
    )
    return "\n".join(lines)


def ratio(rounds: dict[int, list[dict[str, float]]]) -> float:
    """The median of the ratios of neighbours in time."""
    small, large = rounds[min(rounds)], rounds[max(rounds)]
    return median(b["cost_s"] / a["cost_s"] for a, b in zip(small, large, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rollouts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, default=100_000, help="of the large rollout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rounds: dict[int, list[dict[str, float]]] = {SMALL: [], arguments.devices: []}
    for number in range(arguments.rounds):
        for devices in rounds if number % 2 == 0 else reversed(rounds):
            with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=Path.cwd()) as directory:
                values = child.measure(MODULE, RUN, devices, Path(directory))
            rounds[devices].append(values)
            text = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
            print(f"{devices:,} devices: {text}", file=sys.stderr, flush=True)
    print(
        json.dumps({str(n): values for n, values in rounds.items()}) if arguments.json else as_table(rounds)
    )


MODULE: Final = "benchmarks.rollouts"
RUN: Final = "measure"

if __name__ == "__main__":
    # The same module is the child, which is told from the parent by its first argument.
    if sys.argv[1:2] == [RUN]:
        child.serve({RUN: measure})
    else:
        main()
