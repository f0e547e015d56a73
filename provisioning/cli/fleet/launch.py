"""``muster fleet launch``."""

from __future__ import annotations

import argparse
import time

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.client import ServiceClient
from provisioning.cli.documents import Fleet
from provisioning.cli.errors import CliError
from provisioning.cli.fleet.groups import add_share_arguments, add_spec_arguments, spec_of
from provisioning.cli.terminal import Terminal, counted

POLL_INTERVAL_S = 0.2


def add_parsers(commands: Subparsers) -> None:
    launch = add_command(
        commands,
        "launch",
        run_launch,
        summary="start a fleet",
        description=(
            "Start devices that connect, register and wait for their package. A fleet is part of the\n"
            "service's state: it comes back with the next `muster up` until `muster fleet stop`, and a\n"
            "process of it that dies is started again with the same devices."
        ),
        examples="""muster fleet launch --count 200
            muster fleet launch --count 1000 --behaviours all --wait
            muster fleet launch --count 50 --seed 7 --behaviours healthy=0.8,never-answers=0.2
            muster fleet launch --count 1000 --prefix lab --tag site=lab --json
            muster fleet launch --file fleet.toml --processes 4
            muster fleet launch --file fleet.toml --shard 1/2""",
    )
    launch.add_argument(
        "-w", "--wait", action="store_true", help="stay until all devices have registered: then all are new"
    )
    add_spec_arguments(launch)
    add_share_arguments(launch)
    add_client_arguments(launch)


def run_launch(args: argparse.Namespace) -> int:
    spec = spec_of(args)
    client = client_of(args)
    fleet = client.launch_fleet(spec.to_document(), processes=args.processes, shard=args.shard)
    terminal = None if args.json else Terminal()
    if terminal is not None:
        groups = f" in {len(fleet['groups'])} groups" if len(fleet["groups"]) > 1 else ""
        then = "they register" if args.wait else "next: muster provision"
        terminal.line(
            f"{fleet['fleet_id']}: {counted(fleet['devices'], 'device')}{groups} launched"
            f" (seed {fleet['seed']}); {then}"
        )
    if args.wait:
        fleet = _registered(client, fleet["fleet_id"])
        if terminal is not None:
            terminal.line(f"{fleet['fleet_id']}: all have registered; next: muster provision")
    if args.json:
        Terminal().json(fleet)
    return 0


def _registered(client: ServiceClient, fleet_id: str) -> Fleet:
    """Return a fleet when all its devices have registered; a CliError where they can't any more."""
    while True:
        fleet = client.fleet(fleet_id)
        if error := fleet.get("error"):
            raise CliError(f"{fleet_id}: {error}")
        if unregistered(fleet) == 0:
            return fleet
        time.sleep(POLL_INTERVAL_S)


def unregistered(fleet: Fleet) -> int:
    """Return how many devices of a fleet, with its statistics, should have registered and have not yet."""
    statistics = fleet["statistics"]
    # Those that an operator has stopped never may. At the beginning nothing is counted yet.
    expected = int(statistics["running"]) if fleet.get("changes") else fleet["devices"]
    return max(0, expected - int(statistics["ever_registered"]))
