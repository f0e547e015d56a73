"""``muster fleet watch``: a fleet as it goes. The full screen on a terminal, plain lines anywhere else."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.client import ServiceClient
from provisioning.cli.documents import Fleet
from provisioning.cli.errors import ApiError
from provisioning.cli.fleet.choice import add_fleet_choice, chosen_fleet
from provisioning.cli.fleet.numbers import age_s, latency_line
from provisioning.cli.followed import Followed, Page
from provisioning.cli.rates import Rates
from provisioning.cli.terminal import Terminal, clock, data_size
from provisioning.cli.views import Fetcher, LinesView, LiveView, SilentView, View

if TYPE_CHECKING:
    from rich.text import Text

POLL_INTERVAL_S = 1.0
PLAIN_INTERVAL_S = 2.0


def add_parsers(commands: Subparsers) -> None:
    watch = add_command(
        commands,
        "watch",
        run_watch,
        summary="follow a fleet's numbers",
        description=(
            "Follow a fleet: connections, messages, downloads, latencies, by group. Ends with q or Ctrl-C,\n"
            "or when the fleet is stopped."
        ),
        examples="muster fleet watch\nmuster fleet watch fleet-1 --json | jq .statistics.connected",
    )
    add_fleet_choice(watch)
    add_client_arguments(watch)


def run_watch(args: argparse.Namespace) -> int:
    fleet_id = chosen_fleet(args, client_of(args))
    return watch_fleet(args, Followed(kind="fleet", id=fleet_id), "fleet")


def watch_fleet(args: argparse.Namespace, followed: Followed, page: Page) -> int:
    """Follow a fleet, or all devices, until it is stopped or the user ends it; return the exit code."""
    terminal = Terminal()
    # Now: a fleet that there isn't is an error, one that has gone is the end.
    first = None if followed.kind == "all" else client_of(args).fleet(followed.id)
    if args.json or not terminal.interactive:
        view: FleetView = JsonFleetView(terminal) if args.json else PlainFleetView(terminal)
        stopped = _follow(args, followed.id, first, view)
    else:
        from provisioning.cli.live.watching import watch

        stopped = watch(args, terminal, followed, page).ended
    if stopped and not args.json:
        terminal.line(f"{followed.id} was stopped")
    return 0


def _follow(args: argparse.Namespace, fleet_id: str, first: Fleet | None, view: FleetView) -> bool:
    """Follow a fleet until it is stopped (True) or Ctrl-C."""
    fetch = Fetcher(args, lambda service: _fleet(service, fleet_id), view)
    try:
        with view:
            fleet = first
            while fleet is not None:
                view.update(fleet)
                time.sleep(POLL_INTERVAL_S)
                fleet = fetch()
    except KeyboardInterrupt:
        return False
    return True


def _fleet(client: ServiceClient, fleet_id: str) -> Fleet | None:
    """Return the fleet, None when it was stopped."""
    try:
        return client.fleet(fleet_id)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


FleetView: TypeAlias = "View[Fleet]"


def fleet_view(terminal: Terminal) -> FleetView:
    """Return the view that suits ``terminal``, below whatever was written before it."""
    return LiveView[Fleet](terminal, _Drawing(terminal)) if terminal.interactive else PlainFleetView(terminal)


class _Drawing:
    """Draws a fleet with the rates since the one before; drawn again it has the same ones."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._rates = Rates()
        self._fleet: Fleet | None = None
        self._growth: Mapping[str, float] = {}

    def __call__(self, fleet: Fleet, note: str) -> Text:
        from rich.text import Text

        from provisioning.cli.live.fleet_page import block

        if fleet is not self._fleet:
            self._fleet, self._growth = fleet, self._rates.update(fleet["statistics"])
        lines = block(fleet, self._growth, self._terminal.console.width, note=note)
        return Text("\n", no_wrap=True).join(lines)


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
        clock(age_s(fleet)),
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
