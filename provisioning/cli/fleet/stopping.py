"""``muster fleet stop``: whole fleets, or devices of one."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Fleet
from provisioning.cli.errors import UsageError
from provisioning.cli.fleet.changes import report
from provisioning.cli.fleet.choice import add_selection, only_fleet, selection_of
from provisioning.cli.fleet.numbers import figures, show_figures
from provisioning.cli.terminal import Terminal, counted


def add_parsers(commands: Subparsers) -> None:
    stop = add_command(
        commands,
        "stop",
        run_stop,
        summary="stop fleets, or devices of one",
        description=(
            "Stop fleets: their devices disconnect, and don't come back with the next `muster up`; what\n"
            "they came to is shown. With --group, --devices, --behaviour or --share only those devices\n"
            "stop, until `muster fleet start`."
        ),
        examples="""muster fleet stop fleet-1
            muster fleet stop --all
            muster fleet stop --group field
            muster fleet stop fleet-1 --devices dev-00001,dev-00002""",
    )
    stop.add_argument(
        "fleet_ids",
        nargs="*",
        metavar="FLEET",
        help="ids, as `muster fleet list` shows them (may be left out where there is one fleet)",
    )
    stop.add_argument("--all", action="store_true", help="stop every fleet")
    add_selection(stop)
    add_client_arguments(stop)


def run_stop(args: argparse.Namespace) -> int:
    if args.all and args.fleet_ids:
        raise UsageError("name the fleets to stop, or stop them --all: not both")
    client = client_of(args)
    fleet_ids: list[str] = args.fleet_ids
    if not fleet_ids:
        fleet_ids = [fleet["fleet_id"] for fleet in client.fleets()]
        if not args.all:
            fleet_ids = [only_fleet(fleet_ids, otherwise=", or stop them --all")]
    if which := selection_of(args):
        for fleet_id in fleet_ids:
            report(
                client.change_fleet(fleet_id, {"do": "stop", "which": which}),
                args,
                "stopped; `muster fleet start` starts them again",
            )
        return 0
    stopped = [client.stop_fleet(fleet_id) for fleet_id in fleet_ids]
    terminal = Terminal()
    if args.json:
        terminal.json({"stopped": fleet_ids, "fleets": stopped})
        return 0
    for fleet in stopped:
        show_summary(fleet, terminal)
    if not stopped:
        terminal.line("no fleet to stop")
    return 0


def show_summary(fleet: Fleet, terminal: Terminal) -> None:
    """Write what a fleet that was stopped came to."""
    restarts = fleet.get("restarts", 0)
    again = f"; {counted(restarts, 'process', 'processes')} died and started again" if restarts else ""
    terminal.line(f"stopped: {fleet['fleet_id']}, {counted(fleet['devices'], 'device')}{again}", style="bold")
    show_figures(figures(fleet["statistics"]), terminal)
