"""``muster enrolment list`` and ``muster enrolment show``."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Enrolment
from provisioning.cli.rollout.words import moment
from provisioning.cli.terminal import Terminal


def add_parsers(commands: Subparsers) -> None:
    listing = add_command(
        commands,
        "list",
        run_list,
        summary="list the enrolled devices",
        description="List the enrolments by device id, with who has made them: a fleet, or an operator.",
        examples="muster enrolment list\nmuster enrolment list --revoked\nmuster enrolment list --json",
    )
    state = listing.add_mutually_exclusive_group()
    state.add_argument(
        "--revoked", dest="state", action="store_const", const="revoked", help="only those that are revoked"
    )
    state.add_argument(
        "--enrolled", dest="state", action="store_const", const="enrolled", help="only those that may connect"
    )
    add_client_arguments(listing)
    show = add_command(
        commands,
        "show",
        run_show,
        summary="one enrolment",
        description="Show whether a device may connect, since when, and who has enrolled it.",
        examples="muster enrolment show dev-00007\nmuster enrolment show --json dev-00007 | jq -r .state",
    )
    show.add_argument("device", metavar="DEVICE", help="the id of a device")
    add_client_arguments(show)


def run_list(args: argparse.Namespace) -> int:
    enrolments = list(client_of(args).enrolments(state=args.state))
    terminal = Terminal()
    if args.json:
        terminal.json({"enrolments": enrolments})
        return 0
    terminal.table(
        ["device", "state", "by", "enrolled", "revoked"], [_row(one) for one in enrolments], fold=False
    )
    return 0


def run_show(args: argparse.Namespace) -> int:
    enrolment = client_of(args).enrolment(args.device)
    terminal = Terminal()
    if args.json:
        terminal.json(enrolment)
        return 0
    device, state, by, enrolled, revoked = _row(enrolment)
    since = f"since {revoked}" if enrolment["state"] == "revoked" else f"since {enrolled}"
    terminal.line(f"{device} is {state} {since}, by {by}")
    return 0


def _row(enrolment: Enrolment) -> list[str]:
    revoked_at = enrolment["revoked_at"]
    return [
        enrolment["device_id"],
        enrolment["state"],
        enrolment["by"],
        moment(enrolment["enrolled_at"]),
        "-" if revoked_at is None else moment(revoked_at),
    ]
