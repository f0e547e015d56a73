"""``muster fleet launch``."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.fleet.groups import add_share_arguments, add_spec_arguments, spec_of
from provisioning.cli.terminal import Terminal, counted


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
            muster fleet launch --count 50 --seed 7 --behaviours healthy=0.8,never-answers=0.2
            muster fleet launch --count 1000 --prefix lab --tag site=lab --json
            muster fleet launch --file fleet.toml --processes 4
            muster fleet launch --file fleet.toml --shard 1/2""",
    )
    add_spec_arguments(launch)
    add_share_arguments(launch)
    add_client_arguments(launch)


def run_launch(args: argparse.Namespace) -> int:
    spec = spec_of(args)
    fleet = client_of(args).launch_fleet(spec.to_document(), processes=args.processes, shard=args.shard)
    terminal = Terminal()
    if args.json:
        terminal.json(fleet)
    else:
        groups = f" in {len(fleet['groups'])} groups" if len(fleet["groups"]) > 1 else ""
        terminal.line(
            f"{fleet['fleet_id']}: {counted(fleet['devices'], 'device')}{groups} launched"
            f" (seed {fleet['seed']}); next: muster provision"
        )
    return 0
