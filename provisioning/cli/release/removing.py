"""``muster release remove``."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.terminal import Terminal


def add_parsers(commands: Subparsers) -> None:
    remove = add_command(
        commands,
        "remove",
        run_remove,
        summary="remove a release that nothing under way brings to devices",
        description=(
            "Remove a release with its firmware. While a rollout or run that has not ended names it, that\n"
            "is refused. What devices have already stays with them."
        ),
        examples="muster release remove thermo-2.0.0",
    )
    remove.add_argument("name", metavar="NAME", help="a release, as `muster release list` shows them")
    add_client_arguments(remove)


def run_remove(args: argparse.Namespace) -> int:
    removed = client_of(args).remove_release(args.name)
    terminal = Terminal()
    if args.json:
        terminal.json(removed)
    else:
        terminal.line(f"{removed['name']} is removed")
    return 0
