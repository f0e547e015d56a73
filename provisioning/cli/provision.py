"""``muster provision``: start a bulk provisioning run."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import (
    Subparsers,
    add_client_arguments,
    add_command,
    client_of,
)
from provisioning.cli.client import ServiceClient
from provisioning.cli.fleet.launch import unregistered
from provisioning.cli.release.words import misfits_of
from provisioning.cli.run_options import add_run_options, run_options_of
from provisioning.cli.terminal import Terminal, counted
from provisioning.cli.watch import watch_run


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "provision",
        run,
        summary="start provisioning: all new devices, or those named",
        description=(
            "Start one durable run over all new devices, or over the devices named (provisioned ones too:\n"
            "they get their package again). It goes on by itself, whatever happens to this terminal."
        ),
        examples="""muster provision
            muster provision --follow
            muster provision dev-00007 dev-00012
            muster provision --release thermo-2.1.0
            muster provision --ack-timeout 10 --attempts 2 --json
            muster provision --attempts 5 --retry no_ack=5,delay=5s,factor=2,max=60s --retry rejected=2""",
    )
    parser.add_argument(
        "device_ids", nargs="*", metavar="DEVICE", help="devices to provision (default: all new)"
    )
    parser.add_argument(
        "--release", metavar="NAME", help="what they get: see `muster release list` (default: the service's)"
    )
    add_run_options(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="stay and show the run until it ends")
    add_client_arguments(parser)


def run(args: argparse.Namespace) -> int:
    client = client_of(args)
    started = client.provision(args.device_ids or None, run_options_of(args), args.release)
    terminal = Terminal()
    if args.json:
        terminal.json(started)
    else:
        count = started["devices"]
        hint = "" if args.follow else "; follow it with: muster watch"
        misfits = misfits_of(started.get("not_fitting", 0), args.release)
        terminal.line(f"{started['run_id']}: provisioning {counted(count, 'device')}{misfits}{hint}")
        if not args.device_ids:
            _show_missing(client, terminal)
    return watch_run(args, client, started["run_id"]) if args.follow else 0


def _show_missing(client: ServiceClient, terminal: Terminal) -> None:
    """Say which devices of fleets are not in the run, for they come too late."""
    for listed in client.fleets():
        if missing := unregistered(client.fleet(listed["fleet_id"])):
            terminal.line(
                f"{counted(missing, 'device')} of {listed['fleet_id']} had not registered yet"
                " and may be missing: `muster provision` takes them later",
                style="yellow",
            )
