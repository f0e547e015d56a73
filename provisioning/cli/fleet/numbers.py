"""``muster fleet stats``, and the numbers of a fleet for people."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Fleet
from provisioning.cli.errors import UsageError
from provisioning.cli.fleet.choice import add_fleet_choice, chosen_fleet
from provisioning.cli.terminal import Terminal, data_size, duration, parse_timestamp

Figures = list[tuple[str, str]]


def add_parsers(commands: Subparsers) -> None:
    stats = add_command(
        commands,
        "stats",
        run_stats,
        summary="all that a fleet counts",
        description=(
            "Write all counters, gauges and latencies of a fleet, over all its processes, dead ones too.\n"
            "`/metrics` of the service has the same for Prometheus, for all fleets."
        ),
        examples="""muster fleet stats
            muster fleet stats fleet-1 --json
            muster fleet stats fleet-1 --prometheus""",
    )
    add_fleet_choice(stats)
    stats.add_argument("--prometheus", action="store_true", help="write Prometheus' text format")
    add_client_arguments(stats)


def run_stats(args: argparse.Namespace) -> int:
    if args.json and args.prometheus:
        raise UsageError("choose one of --json and --prometheus")
    client = client_of(args)
    fleet_id = chosen_fleet(args, client)
    terminal = Terminal()
    if args.prometheus:
        terminal.stream.write(client.metrics(fleet_id))
        return 0
    statistics = client.fleet(fleet_id)["statistics"]
    if args.json:
        terminal.json({"fleet_id": fleet_id, **statistics})
        return 0
    rows = [
        [name.replace("_", " "), f"{value:,}"]
        for name, value in statistics.items()
        if isinstance(value, int | float) and name != "uptime_s"
    ]
    terminal.table(["what", "number"], rows, right=(1,))
    terminal.line()
    terminal.table(
        ["latency", "count", "p50", "p95", "p99"],
        [
            [name, f"{values['count']:,}", *_percentiles(values)]
            for name, values in statistics["latencies"].items()
        ],
        right=(1, 2, 3, 4),
    )
    return 0


def figures(statistics: Mapping[str, Any]) -> Figures:
    """Return what a fleet has come to, each figure with its name."""
    s = statistics
    found = [
        (
            "connections",
            f"{s['connects']:,} made, {s['reconnects']:,} of them again, {s['connect_failures']:,} failed",
        ),
        (
            "messages",
            (
                f"{s['messages_in']:,} in ({data_size(s['bytes_in'])}), {s['messages_out']:,} out"
                f" ({data_size(s['bytes_out'])})"
            ),
        ),
        (
            "downloads",
            (
                f"{s['downloads_completed']:,} of {s['downloads_started']:,},"
                f" {data_size(s['downloaded_bytes'])}; {s['hash_failures']:,} with a wrong hash"
            ),
        ),
        ("activations", f"{s['activations']:,}"),
    ]
    found += [
        (f"{name} latency", latency_line(values))
        for name, values in s.get("latencies", {}).items()
        if values.get("count")
    ]
    if s.get("behaviour_failures"):
        found.append(("own behaviours", f"{s['behaviour_failures']:,} failures: the log has the first ones"))
    if s.get("crashed"):
        found.append(("crashed devices", f"{s['crashed']:,}: a defect of Muster's, please report it"))
    return found


def show_figures(found: Sequence[tuple[str, str]], terminal: Terminal) -> None:
    """Write figures, one a line."""
    width = max(len(name) for name, _ in found)
    for name, text in found:
        terminal.line(f"  {name:<{width}}  {text}")


def latency_line(values: Mapping[str, Any]) -> str:
    """Return the percentiles of a latency."""
    return "  ".join(
        f"{name} {value}" for name, value in zip(("p50", "p95", "p99"), _percentiles(values), strict=True)
    )


def _percentiles(values: Mapping[str, Any]) -> list[str]:
    return [duration(values.get(f"p{percent}_s")) for percent in (50, 95, 99)]


def age_s(fleet: Fleet) -> float | None:
    """Return how long a fleet has been there."""
    started = parse_timestamp(fleet.get("started_at"))
    return None if started is None else max(0.0, time.time() - started.timestamp())
