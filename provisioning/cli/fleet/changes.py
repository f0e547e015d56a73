"""What an operator does to devices of a fleet that runs: add, kill, start, offline, online, behave, storm."""

from __future__ import annotations

import argparse
from typing import Any

from provisioning.cli.arguments import (
    Subparsers,
    add_client_arguments,
    add_command,
    client_of,
    device_count,
    positive_seconds,
)
from provisioning.cli.documents import Json
from provisioning.cli.errors import UsageError
from provisioning.cli.fleet.choice import add_fleet_choice, add_selection, chosen_fleet, selection_of
from provisioning.cli.fleet.groups import add_group_arguments, group_of
from provisioning.cli.terminal import Terminal, counted

# What a group takes from the one that it is to be like.
_LIKE = ("model", "firmware_version", "tags", "behaviours", "prefix", "bandwidth_bytes_per_s")


def add_parsers(commands: Subparsers) -> None:
    _add_add(commands)
    _add_change(
        commands,
        "kill",
        summary="end devices without a goodbye",
        description=(
            "End devices without a DISCONNECT, as if they lost power: the broker publishes their wills.\n"
            "They stay down until `muster fleet start`."
        ),
        examples="muster fleet kill --share 10%\nmuster fleet kill fleet-1 --devices dev-00001,dev-00002",
    )
    _add_change(
        commands,
        "start",
        summary="start devices that were stopped or killed",
        description=(
            "Start devices again that were stopped or killed, as if switched on; also processes of the\n"
            "fleet that died too often and were given up."
        ),
        examples="muster fleet start\nmuster fleet start fleet-1 --group field",
    )
    offline = _add_change(
        commands,
        "offline",
        summary="take devices off the network",
        description="Take devices off the network, for a while or until `muster fleet online`.",
        examples="muster fleet offline --group field --for 30\nmuster fleet offline --share 0.5",
    )
    offline.add_argument("--for", dest="for_s", type=positive_seconds, metavar="SECONDS", help="how long")
    _add_change(
        commands,
        "online",
        summary="bring devices back to the network",
        description="Give devices the network again that `muster fleet offline` took from them.",
        examples="muster fleet online\nmuster fleet online --group field",
    )
    _add_change(
        commands,
        "behave",
        summary="change how devices behave",
        description="Have devices behave like BEHAVIOUR from now on; `muster fleet behaviours` lists all.",
        examples="muster fleet behave never-answers --share 5%\nmuster fleet behave healthy fleet-1",
        behaviour=True,
    )
    storm = _add_change(
        commands,
        "storm",
        summary="a reconnect storm: all drop and come back at once",
        description=(
            "Have devices lose their connections all at once, and connect again within --spread seconds,\n"
            "past the ramp that else keeps a fleet from overrunning the broker."
        ),
        examples="muster fleet storm\nmuster fleet storm --spread 2 --share 0.5",
    )
    storm.add_argument(
        "--spread",
        dest="spread_s",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long the connections may take to begin (default: 0, all at once)",
    )


def _add_add(commands: Subparsers) -> None:
    add = add_command(
        commands,
        "add",
        run_add,
        summary="add a group of devices to a fleet",
        description=(
            "Add a group of devices to a fleet that runs. Their ids go on from the highest number that\n"
            "there is of their prefix."
        ),
        examples="""muster fleet add --count 50
            muster fleet add fleet-1 --count 10 --like field --behaviours corrupt
            muster fleet add --count 5 --name bench --prefix bench --model demo-2""",
    )
    add_fleet_choice(add)
    add.add_argument("--count", type=device_count, required=True, metavar="N", help="number of devices")
    add.add_argument("--name", metavar="GROUP", help="the new group's name (default: one that is free)")
    add.add_argument("--like", metavar="GROUP", help="take from this group what is not given")
    add_group_arguments(add)
    add_client_arguments(add)


def _add_change(
    commands: Subparsers,
    name: str,
    *,
    summary: str,
    description: str,
    examples: str,
    behaviour: bool = False,
) -> argparse.ArgumentParser:
    parser = add_command(
        commands, name, run_change, summary=summary, description=description, examples=examples
    )
    parser.set_defaults(do=name)
    if behaviour:
        parser.add_argument("to_behaviour", metavar="BEHAVIOUR", help="a name, or several joined by '+'")
    add_fleet_choice(parser)
    add_selection(parser)
    add_client_arguments(parser)
    return parser


def run_change(args: argparse.Namespace) -> int:
    change: Json = {"do": args.do, "which": selection_of(args)}
    for name in ("for_s", "spread_s"):
        if getattr(args, name, None):
            change[name] = getattr(args, name)
    if args.do == "behave":
        change["behaviour"] = args.to_behaviour
    client = client_of(args)
    return report(client.change_fleet(chosen_fleet(args, client), change), args, _done(args))


def run_add(args: argparse.Namespace) -> int:
    client = client_of(args)
    fleet_id = chosen_fleet(args, client)
    group: dict[str, Any] = {}
    if args.like is not None:
        groups = client.fleet(fleet_id)["groups"]
        like = next((one for one in groups if one["name"] == args.like), None)
        if like is None:
            names = ", ".join(one["name"] for one in groups)
            raise UsageError(f"{fleet_id} has no group {args.like!r}: use one of {names}")
        group = {name: like[name] for name in _LIKE if name in like}  # type: ignore[literal-required]
    group |= {"count": args.count, **group_of(args)}
    if args.name is not None:
        group["name"] = args.name
    answer = client.change_fleet(fleet_id, {"do": "add", "group": group})
    added = answer["group"]
    first = f"{added['prefix']}-{added['first']:05d}"
    return report(answer, args, f"joined as group {added['name']}, from {first}; next: muster provision")


def report(answer: Json, args: argparse.Namespace, done: str) -> int:
    """Write what a change came to; returns the exit code."""
    terminal = Terminal()
    if args.json:
        terminal.json(answer)
        return 0
    if not answer["affected"]:
        terminal.line(f"{answer['fleet_id']}: no device is like that; nothing has changed", style="yellow")
        return 0
    terminal.line(f"{answer['fleet_id']}: {counted(answer['affected'], 'device')} {done}")
    if missed := answer.get("missed"):
        processes = f"{missed} of {counted(answer['processes'], 'process', 'processes')}"
        terminal.line(
            f"{processes} did not answer and {'are' if missed > 1 else 'is'} started again with the change"
            if answer["lasts"]
            else f"{processes} did not answer: their devices know nothing of it; try again",
            style="yellow",
        )
    return 0


def _done(args: argparse.Namespace) -> str:
    match args.do:
        case "kill":
            return "killed; `muster fleet start` starts them again"
        case "start":
            return "running"
        case "offline" if args.for_s:
            return f"offline for {args.for_s:g} s"
        case "offline":
            return "offline until `muster fleet online`"
        case "online":
            return "online"
        case "behave":
            return f"now {args.to_behaviour}"
        case "storm":
            return "dropped, and connecting again" + (f" within {args.spread_s:g} s" if args.spread_s else "")
    raise AssertionError(args.do)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value
