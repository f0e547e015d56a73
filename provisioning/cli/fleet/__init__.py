"""``muster fleet``: everything about fleets of emulated devices, one module per purpose."""

from __future__ import annotations

from provisioning.cli.arguments import Subparsers, add_command
from provisioning.cli.fleet import (
    changes,
    checks,
    launch,
    listing,
    numbers,
    planning,
    running,
    stopping,
    watching,
)


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "fleet",
        lambda args: args.parser.error("say what to do: launch, list, stop or another command"),
        summary="launch, watch, change and stop fleets of devices",
        description="Fleets of emulated devices, run by the service on this machine.",
        examples="""muster fleet launch --count 200
            muster fleet list
            muster fleet watch
            muster fleet offline --group field --for 30
            muster fleet check
            muster fleet stop --all""",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (launch, listing, watching, numbers, changes, stopping, checks, planning, running):
        module.add_parsers(commands)
