"""The fleet: what idle devices cost, and how fast devices connect beside a bare aiomqtt loop.

Idle: the memory of all fleet processes over the number of devices, and their CPU in percent of one core, over
more than a keepalive period, once with one process and once with two.

Connecting: in each round three contestants take turns, each a process of its own with a broker of its own.
Bare aiomqtt connects and does nothing else; bare aiomqtt does what the contract asks on a connection, each
step awaited; the fleet's devices do the same and are devices. Of these both rates are taken: that of CONNACKs
is held against the first, which does less, that of registrations against the second. The ratios are medians
of those of neighbours in time.

    python -m benchmarks.fleet                            # 10,000 devices, 5 rounds: about ten minutes
    python -m benchmarks.fleet --quick                    # small and short: does it still work?
    python -m benchmarks.fleet --devices 5000 --rounds 3 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from benchmarks import child, connections, idle_fleet
from benchmarks.connections import BROKER_VARIABLE, CONNECT, CONNECTS, CONTRACT, CPU, DEVICES, REGISTRATIONS
from benchmarks.end_to_end import BrokerChoice
from benchmarks.figures import Figure, Results
from benchmarks.idle_fleet import CPU_PERCENT, RSS_KB, USS_KB

Say = Callable[[str], None]

IDLE, CONNECTING = "idle", "connecting"
NAMES: Final = {
    CONNECT: "bare aiomqtt: CONNECT alone",
    CONTRACT: "bare aiomqtt: connect, subscribe, `online`, register",
    DEVICES: "Muster's devices: the same, and they are devices",
}
MOST_KB, MOST_CPU_PERCENT, LEAST_RATIO = 60, 10, 0.9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    devices: int = 10_000
    rounds: int = 5
    idle_s: float = 90.0
    """Longer than the longest keepalive: each device pings within it."""
    idle_processes: tuple[int, ...] = (1, 2)
    directory: Path | None = None


QUICK: Final = Plan(devices=200, rounds=1, idle_s=2.0)


def measure(plan: Plan, say: Say) -> Results:
    """All of the plan. Raises `child.ChildError`."""
    results = Results()

    def take(figures: list[Figure], contestant: str, workload: str, values: dict[str, float]) -> None:
        results.figure(figures, contestant, workload, plan.devices).rounds.append([values])
        text = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
        say(f"  {contestant} {workload}: {text}")

    for processes in plan.idle_processes:
        say(f"idle, {processes} process(es)")
        with _directory(plan) as directory:
            values = asyncio.run(idle_fleet.idle(plan.devices, processes, plan.idle_s, directory))
        take(results.alone, str(processes), IDLE, values)
    for number in range(plan.rounds):
        say(f"connecting, round {number + 1} of {plan.rounds}")
        order = list(NAMES) if number % 2 == 0 else list(reversed(NAMES))
        for contestant in order:
            with _directory(plan) as directory:
                values = child.measure(connections.__name__, contestant, plan.devices, directory)
            take(results.beside, contestant, CONNECTING, values)
    return results


@contextmanager
def _directory(plan: Plan) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=plan.directory) as directory:
        yield Path(directory)


def as_markdown(results: Results) -> str:
    """Two tables: idle, and connecting with the ratios."""
    ratios = as_ratios(results)
    rates = "CONNACKs/s (lowest to highest) | registrations/s (lowest to highest)"
    lines = [
        f"| idle, {_size(results.alone):,} devices | memory a device, RSS (USS) | CPU, of one core |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {figure.contestant} process{'' if figure.contestant == '1' else 'es'} "
        f"| {figure.median(RSS_KB):.0f} KB ({figure.median(USS_KB):.0f} KB) "
        f"| {figure.median(CPU_PERCENT):.1f} % |"
        for figure in results.alone
    ]
    lines += [
        f"| aim | ≤ {MOST_KB} KB | ≤ {MOST_CPU_PERCENT} % |",
        "",
        f"| connecting, {_size(results.beside):,} devices | {rates} | client's CPU each |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {NAMES[figure.contestant]} | {_rate(figure, CONNECTS)} | {_rate(figure, REGISTRATIONS)} "
        f"| {figure.median(CPU):.2f} ms |"
        for figure in _in_order(results)
    ]
    against = f"{ratios[CONNECTS]:.2f} | {ratios[REGISTRATIONS]:.2f}"
    lines.append(f"| their rate against bare aiomqtt (aim: ≥ {LEAST_RATIO}) | {against} | |")
    return "\n".join(lines)


def as_ratios(results: Results) -> dict[str, float]:
    """The devices' rates over those of the bare contestants: medians of the rounds' ratios."""
    connect, contract, devices = _in_order(results)
    return {
        CONNECTS: devices.ratio(connect, CONNECTS),
        REGISTRATIONS: devices.ratio(contract, REGISTRATIONS),
    }


def as_json(results: Results) -> dict[str, Any]:
    """Plain data: every run, and the ratios."""
    return {**asdict(results), "ratios": as_ratios(results)}


def _in_order(results: Results) -> list[Figure]:
    return sorted(results.beside, key=lambda figure: list(NAMES).index(figure.contestant))


def _size(figures: list[Figure]) -> int:
    return figures[0].size


def _rate(figure: Figure, name: str) -> str:
    if any(name not in values for runs in figure.rounds for values in runs):
        return ""
    return f"{figure.median(name):,.0f} ({min(figure.all(name)):,.0f} to {max(figure.all(name)):,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int)
    parser.add_argument("--rounds", type=int, help="of connecting")
    parser.add_argument("--broker", choices=get_args(BrokerChoice), default="auto")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.devices} devices, {QUICK.rounds} round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ[BROKER_VARIABLE] = arguments.broker
    base = QUICK if arguments.quick else Plan()
    plan = Plan(
        devices=arguments.devices or base.devices,
        rounds=arguments.rounds or base.rounds,
        idle_s=base.idle_s,
    )
    results = measure(plan, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(as_json(results), indent=2) if arguments.json else as_markdown(results))


if __name__ == "__main__":
    main()
