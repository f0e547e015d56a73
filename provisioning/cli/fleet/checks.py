"""``muster fleet check``: whether each device ended as it should."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Json
from provisioning.cli.fleet.choice import add_fleet_choice, chosen_fleet
from provisioning.cli.terminal import Terminal, counted, state_word

MAX_SHOWN = 50


def add_parsers(commands: Subparsers) -> None:
    check = add_command(
        commands,
        "check",
        run_check,
        summary="has each device ended as it should",
        description=(
            "Compare the state of each device that was in a run with what its behaviour leads to, given\n"
            "that run's number of attempts. Exit code 1 if any differs. Devices that were changed by hand\n"
            "since their run began (stopped, offline, told to behave otherwise) are not judged, nor those\n"
            "that the deadline of the device, of packaging or of notifying has ended, or whom the release\n"
            "is not for: of another model, or running a newer version."
        ),
        examples="muster fleet check\nmuster fleet check fleet-1 --json | jq .differences",
    )
    add_fleet_choice(check)
    add_client_arguments(check)


def run_check(args: argparse.Namespace) -> int:
    client = client_of(args)
    found = client.check_fleet(chosen_fleet(args, client))
    terminal = Terminal()
    if args.json:
        terminal.json(found)
    else:
        show_check(found, terminal)
    return 1 if found["different"] else 0


def show_check(found: Json, terminal: Terminal) -> None:
    """Write what a check has found."""
    different = found["different"]
    verdict = f"; {different:,} did not" if different else ""
    terminal.line(
        f"{found['fleet_id']}: {found['as_expected']:,} of {counted(found['devices'], 'device')}"
        f" ended as expected{verdict}",
        style="bold red" if different else "bold green" if found["as_expected"] else "bold",
    )
    if waiting := found["not_provisioned_yet"]:
        terminal.line(f"  {waiting:,} not provisioned yet")
    if not_judged := found["not_judged"]:
        terminal.line(
            f"  {not_judged:,} not judged: changed by hand since their run began, ended by a deadline,"
            " or not meant by the release"
        )
    if not different:
        return
    shown = found["differences"][:MAX_SHOWN]
    terminal.line()
    terminal.table(
        ["device", "group", "behaviour", "expected", "actual", "error"],
        [
            [
                one["device_id"],
                one["group"],
                one["behaviour"],
                state_word(one["expected"]),
                state_word(one["actual"]),
                one["error"] or "",
            ]
            for one in shown
        ],
        indent=2,
    )
    if (more := different - len(shown)) > 0:
        terminal.line(f"  … and {more:,} more; --json has {len(found['differences']):,}", style="dim")
