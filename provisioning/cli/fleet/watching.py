"""``muster fleet watch``: a fleet as it goes. A live picture on a terminal, plain lines anywhere else."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.client import ServiceClient
from provisioning.cli.documents import Fleet
from provisioning.cli.errors import ApiError
from provisioning.cli.fleet.choice import add_fleet_choice, chosen_fleet
from provisioning.cli.fleet.listing import STATE_STYLES, state_of
from provisioning.cli.fleet.numbers import latency_line
from provisioning.cli.terminal import Terminal, clock, counted, data_size, parse_timestamp
from provisioning.cli.views import Fetcher, LinesView, LiveView, SilentView, View

if TYPE_CHECKING:
    from rich.console import Group

POLL_INTERVAL_S = 1.0
PLAIN_INTERVAL_S = 2.0
MAX_GROUPS_SHOWN = 12
_RATES = ("messages_in", "messages_out", "bytes_in", "bytes_out", "downloads_completed")
_GAUGES = ("devices", "running", "connected", "downloading", "offline")


def add_parsers(commands: Subparsers) -> None:
    watch = add_command(
        commands,
        "watch",
        run_watch,
        summary="follow a fleet's numbers",
        description=(
            "Follow a fleet: connections, messages, downloads, latencies, by group. Ends with Ctrl-C, or\n"
            "when the fleet is stopped."
        ),
        examples="muster fleet watch\nmuster fleet watch fleet-1 --json | jq .statistics.connected",
    )
    add_fleet_choice(watch)
    add_client_arguments(watch)


def run_watch(args: argparse.Namespace) -> int:
    client = client_of(args)
    fleet_id = chosen_fleet(args, client)
    # Now: a fleet that there isn't is an error, one that has gone is the end.
    first = client.fleet(fleet_id)
    terminal = Terminal()
    view: FleetView = JsonFleetView(terminal) if args.json else fleet_view(terminal)
    fetch = Fetcher(args, lambda service: _fleet(service, fleet_id), view)
    try:
        with view:
            fleet: Fleet | None = first
            while fleet is not None:
                view.update(fleet)
                time.sleep(POLL_INTERVAL_S)
                fleet = fetch()
    except KeyboardInterrupt:
        return 0
    if not args.json:
        terminal.line(f"{fleet_id} was stopped")
    return 0


def _fleet(client: ServiceClient, fleet_id: str) -> Fleet | None:
    """Return the fleet, None when it was stopped."""
    try:
        return client.fleet(fleet_id)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


class Rates:
    """How fast counters grow, from one look to the next."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._before: tuple[float, dict[str, float]] | None = None

    def update(self, statistics: dict[str, Any]) -> dict[str, float]:
        """Return the growth per second since the last call; zeros at the first."""
        now_s = self._now()
        counters = {name: float(statistics.get(name, 0)) for name in _RATES}
        then_s, before = self._before or (now_s, counters)
        self._before = (now_s, counters)
        passed_s = max(now_s - then_s, 0.001)
        return {name: max(0.0, (counters[name] - before[name]) / passed_s) for name in _RATES}


FleetView: TypeAlias = "View[Fleet]"


def fleet_view(terminal: Terminal) -> FleetView:
    """Return the view that suits ``terminal``."""
    if not terminal.interactive:
        return PlainFleetView(terminal)
    return LiveView[Fleet](terminal, _Drawing())


class _Drawing:
    """Draws a fleet with the rates since the one before; drawn again it has the same ones."""

    def __init__(self) -> None:
        self._rates = Rates()
        self._fleet: Fleet | None = None
        self._growth: dict[str, float] = {}

    def __call__(self, fleet: Fleet, note: str) -> Group:
        if fleet is not self._fleet:
            self._fleet, self._growth = fleet, self._rates.update(fleet["statistics"])
        return picture(fleet, self._growth, note=note)


class JsonFleetView(SilentView[Fleet]):
    """One line of JSON at each look."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def update(self, fleet: Fleet, /) -> None:
        print(json.dumps(fleet), file=self._terminal.stream, flush=True)


class PlainFleetView(LinesView[Fleet]):
    """One line every PLAIN_INTERVAL_S seconds."""

    def update(self, fleet: Fleet, /) -> None:
        if self._now() < self._next_s:
            return
        self._next_s = self._now() + PLAIN_INTERVAL_S
        self._terminal.line(plain_line(fleet))
        if error := fleet.get("error"):
            self.note(error)


def plain_line(fleet: Fleet) -> str:
    """Return a fleet's numbers in one line."""
    s = fleet["statistics"]
    parts = [
        clock(_age_s(fleet)),
        f"{s['connected']:,}/{fleet['devices']:,} connected",
        f"{s['connects_per_s']:,.1f} connects/s",
        f"{s['reconnects']:,} reconnects",
        f"in {s['messages_in']:,} ({data_size(s['bytes_in'])})",
        f"out {s['messages_out']:,} ({data_size(s['bytes_out'])})",
        f"downloads {s['downloads_completed']:,}",
        f"wrong hash {s['hash_failures']:,}",
    ]
    ack = s["latencies"]["ack"]
    if ack["count"]:
        parts.append(f"ack {' '.join(latency_line(ack).split())}")
    if fleet.get("restarts"):
        parts.append(f"restarts {fleet['restarts']:,}")
    return "  ".join(parts)


def picture(fleet: Fleet, rates: dict[str, float], *, note: str = "") -> Group:
    """Return a fleet as something that rich can draw, at most 80 columns wide."""
    from rich.console import Group, RenderableType
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    s = fleet["statistics"]
    state = state_of(fleet)
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        Text(fleet["fleet_id"], style="bold"),
        ProgressBar(
            total=max(fleet["devices"], 1), completed=s["connected"], width=16, complete_style="cyan"
        ),
        Text(f"{s['connected']:,}/{fleet['devices']:,} connected", style="bold"),
        Text(state, style=STATE_STYLES[state]),
        Text(clock(_age_s(fleet)), style="cyan"),
    )
    numbers = Table.grid(padding=(0, 2))
    for name, text in (
        (
            "connections",
            (
                f"{s['connects_per_s']:,.1f}/s   {s['connects']:,} made, {s['reconnects']:,} again,"
                f" {s['connect_failures']:,} failed"
            ),
        ),
        ("messages in", _flow(s, rates, "messages_in", "bytes_in")),
        ("messages out", _flow(s, rates, "messages_out", "bytes_out")),
        (
            "downloads",
            (
                f"{rates['downloads_completed']:,.1f}/s   {s['downloads_completed']:,} done,"
                f" {s['downloading']:,} under way, {s['hash_failures']:,} with a wrong hash"
            ),
        ),
        ("ack latency", latency_line(s["latencies"]["ack"]) if s["latencies"]["ack"]["count"] else "-"),
    ):
        numbers.add_row(Text(name, style="dim"), Text(text))
    parts: list[RenderableType] = [bar, numbers]
    if len(fleet["groups"]) > 1:
        parts += [Text(""), _groups(fleet)]
    if fleet.get("restarts"):
        died = f"{counted(fleet['restarts'], 'process', 'processes')} died and started again"
        parts.append(Text(died, style="yellow"))
    remarks = ((fleet.get("error"), "red"), (note, "yellow"))
    parts += [Text(remark, style=style) for remark, style in remarks if remark]
    return Group(*parts)


def _groups(fleet: Fleet) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(max_width=16, no_wrap=True, overflow="ellipsis")
    for _ in _GAUGES:
        table.add_column(justify="right")
    table.add_row(Text("group", style="dim"), *(Text(gauge, style="dim") for gauge in _GAUGES))
    groups = list(fleet["statistics"]["groups"].items())
    for name, values in groups[:MAX_GROUPS_SHOWN]:
        figures = [values.get(gauge, 0) for gauge in _GAUGES]
        table.add_row(Text(name), *(Text(f"{value:,}", style="" if value else "dim") for value in figures))
    if (more := len(groups) - MAX_GROUPS_SHOWN) > 0:
        table.add_row(Text(f"… and {more:,} more", style="dim"))
    return table


def _flow(statistics: dict[str, Any], rates: dict[str, float], messages: str, size: str) -> str:
    return (
        f"{rates[messages]:,.1f}/s, {data_size(rates[size])}/s   {statistics[messages]:,},"
        f" {data_size(statistics[size])}"
    )


def _age_s(fleet: Fleet) -> float | None:
    started = parse_timestamp(fleet.get("started_at"))
    return None if started is None else max(0.0, time.time() - started.timestamp())
