"""Arguments that name a fleet, and devices of it."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import names_of
from provisioning.cli.client import ServiceClient
from provisioning.cli.documents import Json
from provisioning.cli.errors import CliError, UsageError

MAX_NAMED = 5


def add_fleet_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "fleet_id",
        nargs="?",
        metavar="FLEET",
        help="an id, as `muster fleet list` shows them (may be left out where there is one fleet)",
    )


def chosen_fleet(args: argparse.Namespace, client: ServiceClient) -> str:
    """Return the fleet that was named, or the only one that there is."""
    if args.fleet_id is not None:
        return str(args.fleet_id)
    return only_fleet([fleet["fleet_id"] for fleet in client.fleets()])


def only_fleet(fleet_ids: list[str], *, otherwise: str = "") -> str:
    """Return the one id; a CliError where there are none or several, ``otherwise`` being a further way."""
    if not fleet_ids:
        raise CliError("there is no fleet: start one with `muster fleet launch --count 200`")
    if len(fleet_ids) > 1:
        shown = ", ".join(fleet_ids[:MAX_NAMED]) + (", …" if len(fleet_ids) > MAX_NAMED else "")
        raise UsageError(f"there are {len(fleet_ids)} fleets ({shown}): name the one you mean{otherwise}")
    return fleet_ids[0]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add what chooses some devices of a fleet; together they narrow it down."""
    parser.add_argument("--group", metavar="GROUP", help="only devices of this group")
    parser.add_argument(
        "--devices",
        action="append",
        default=[],
        metavar="ID,…",
        help="only these devices; may be repeated",
    )
    parser.add_argument("--behaviour", metavar="NAME", help="only devices that behave so at the moment")
    parser.add_argument(
        "--share",
        type=_share,
        metavar="SHARE",
        help="only this share of them, as 0.25 or 25%%: always the same",
    )


def selection_of(args: argparse.Namespace) -> Json:
    """Return the devices that are meant, as the API has it; empty for the whole fleet."""
    given = {
        "group": args.group,
        "devices": names_of(args.devices) or None,
        "behaviour": args.behaviour,
        "share": args.share,
    }
    return {name: value for name, value in given.items() if value is not None}


def _share(text: str) -> float:
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give one such as 0.25, or 25%")
    return share
