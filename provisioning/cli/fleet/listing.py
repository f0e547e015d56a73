"""``muster fleet list`` and ``muster fleet show``."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.client import ServiceClient
from provisioning.cli.documents import Fleet, FleetGroup
from provisioning.cli.fleet.choice import add_fleet_choice, chosen_fleet
from provisioning.cli.fleet.numbers import figures, show_figures
from provisioning.cli.terminal import Terminal, counted, time_of_day

MAX_BEHAVIOURS_SHOWN = 6
STATE_STYLES = {"running": "green", "restarting": "yellow", "not running": "red"}


def add_parsers(commands: Subparsers) -> None:
    listing = add_command(
        commands,
        "list",
        run_list,
        summary="list the fleets",
        description="List the fleets of this service.",
        examples="muster fleet list\nmuster fleet list --json",
    )
    add_client_arguments(listing)

    show = add_command(
        commands,
        "show",
        run_show,
        summary="one fleet: its groups, processes and numbers",
        description="Show one fleet: its groups with the devices connected, its processes and numbers.",
        examples="""muster fleet show
            muster fleet show fleet-1 --devices
            muster fleet show fleet-1 --json""",
    )
    add_fleet_choice(show)
    show.add_argument(
        "--devices",
        action="store_true",
        help="list each device: its group, its behaviour, how a run should end it",
    )
    add_client_arguments(show)


def run_list(args: argparse.Namespace) -> int:
    fleets = client_of(args).fleets()
    terminal = Terminal()
    if args.json:
        terminal.json({"fleets": fleets})
    elif not fleets:
        terminal.line("no fleets; start one with `muster fleet launch --count 200`")
    else:
        terminal.table(
            ["fleet", "devices", "connected", "seed", "state", "processes", "restarts", "groups"],
            [
                [
                    fleet["fleet_id"],
                    f"{fleet['devices']:,}",
                    f"{fleet.get('connected', 0):,}",
                    str(fleet["seed"]),
                    state_of(fleet),
                    str(fleet.get("processes", 0)),
                    f"{fleet.get('restarts', 0):,}",
                    groups_of(fleet),
                ]
                for fleet in fleets
            ],
            right=(1, 2, 3, 5, 6),
            styles={4: STATE_STYLES},
        )
        for fleet in fleets:
            if error := fleet.get("error"):
                terminal.line(f"{fleet['fleet_id']}: {error}", style="red")
    return 0


def run_show(args: argparse.Namespace) -> int:
    client = client_of(args)
    fleet_id = chosen_fleet(args, client)
    terminal = Terminal()
    if args.devices:
        _show_devices(client, fleet_id, terminal, as_json=args.json)
        return 0
    fleet = client.fleet(fleet_id)
    if args.json:
        terminal.json(fleet)
        return 0
    show_heading(fleet, terminal)
    terminal.line()
    show_groups(fleet, terminal)
    terminal.line()
    show_figures(figures(fleet["statistics"]), terminal)
    return 0


def show_heading(fleet: Fleet, terminal: Terminal) -> None:
    """Write what a fleet is in a line or two."""
    terminal.line(
        f"{fleet['fleet_id']}: {counted(fleet['devices'], 'device')},"
        f" {fleet.get('connected', 0):,} connected, {state_of(fleet)}, seed {fleet['seed']}",
        style="bold",
    )
    shard = f"; shard {fleet['shard']} of the whole fleet" if fleet.get("shard") else ""
    terminal.line(
        f"{counted(fleet['processes'], 'process', 'processes')}, {counted(fleet['restarts'], 'restart')},"
        f" {counted(fleet['changes'], 'change')} since {time_of_day(fleet.get('started_at'))}{shard}"
    )
    if error := fleet.get("error"):
        terminal.line(error, style="red")


def show_groups(fleet: Fleet, terminal: Terminal) -> None:
    """Write the groups of a fleet: how their devices are, and what."""
    now = fleet.get("statistics", {}).get("groups", {})
    gauges = ("devices", "running", "connected", "registered", "downloading", "offline")
    terminal.table(
        ["group", *gauges],
        [
            [group["name"], *(f"{now.get(group['name'], {}).get(gauge, 0):,}" for gauge in gauges)]
            for group in fleet["groups"]
        ],
        right=range(1, 7),
        indent=2,
    )
    terminal.line()
    terminal.table(
        ["group", "model", "firmware", "behaviours"],
        [
            [group["name"], group["model"], group["firmware_version"], behaviours_of(group)]
            for group in fleet["groups"]
        ],
        indent=2,
    )


def state_of(fleet: Fleet) -> str:
    """Return in a word or two how a fleet is."""
    if fleet.get("running"):
        return "running"
    return "not running" if fleet.get("error") else "restarting"


def groups_of(fleet: Fleet) -> str:
    """Return the groups with their sizes; of a single one the behaviours."""
    groups = fleet["groups"]
    if len(groups) == 1:
        return behaviours_of(groups[0])
    return ", ".join(f"{group['name']} {group['count']:,}" for group in groups)


def behaviours_of(group: FleetGroup) -> str:
    """Return the weights of a group's behaviours, or of the first few."""
    given = group["behaviours"]
    if len(given) > MAX_BEHAVIOURS_SHOWN and len(set(given.values())) == 1:
        return f"{len(given):,} behaviours in equal parts"
    weights = [f"{name} {weight:.3g}" for name, weight in given.items()]
    if (more := len(weights) - MAX_BEHAVIOURS_SHOWN) > 0:
        weights[MAX_BEHAVIOURS_SHOWN:] = [f"and {more:,} more"]
    return ", ".join(weights)


def _show_devices(client: ServiceClient, fleet_id: str, terminal: Terminal, *, as_json: bool) -> None:
    devices = list(client.fleet_devices(fleet_id))
    if as_json:
        terminal.json({"fleet_id": fleet_id, "devices": devices})
        return
    terminal.table(
        ["device", "group", "running", "network", "expected", "behaviour"],
        [
            [
                device["device_id"],
                device["group"],
                "yes" if device["running"] else "no",
                "yes" if device["online"] else "no",
                device["expected"].replace("_", " "),
                device["behaviour"],
            ]
            for device in devices
        ],
    )
