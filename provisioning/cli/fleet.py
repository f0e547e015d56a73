"""``muster fleet``: launch, list and stop fleets of emulated devices."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import (
    DEFAULT_PREFIX,
    Subparsers,
    add_client_arguments,
    add_command,
    add_fleet_arguments,
    client_of,
    device_count,
)
from provisioning.cli.documents import Fleet
from provisioning.cli.errors import UsageError
from provisioning.cli.terminal import Terminal


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "fleet",
        lambda args: args.parser.error("say what to do: launch, list or stop"),
        summary="launch, list and stop fleets of devices",
        description="Fleets of emulated devices, run by the service on this machine.",
        examples="""muster fleet launch --count 200
            muster fleet list
            muster fleet stop --all""",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    launch = add_command(
        commands,
        "launch",
        run_launch,
        summary="start a fleet",
        description=(
            "Start devices that connect, register and wait for their package. A fleet is part of the\n"
            "service's state: it comes back with the next `muster up` until `muster fleet stop`."
        ),
        examples="""muster fleet launch --count 200
            muster fleet launch --count 50 --seed 7 --behaviours healthy=0.8,never-answers=0.2
            muster fleet launch --count 1000 --prefix lab --tag site=lab --json""",
    )
    launch.add_argument(
        "--count", type=device_count, required=True, metavar="N", help="number of devices to start"
    )
    add_fleet_arguments(launch)
    launch.add_argument("--prefix", default=DEFAULT_PREFIX, help="device ids are PREFIX-00000 and on")
    launch.add_argument("--model", default="demo-1", help="the model that the devices register with")
    launch.add_argument(
        "--firmware-version", default="0.9.0", metavar="VERSION", help="the firmware that they say they have"
    )
    launch.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a tag that the devices register with; may be repeated",
    )
    add_client_arguments(launch)

    listing = add_command(
        commands,
        "list",
        run_list,
        summary="list the fleets",
        description="List the fleets of this service.",
        examples="muster fleet list\nmuster fleet list --json",
    )
    add_client_arguments(listing)

    stop = add_command(
        commands,
        "stop",
        run_stop,
        summary="stop fleets",
        description="Stop fleets: their devices disconnect, and don't come back with the next `muster up`.",
        examples="muster fleet stop fleet-1\nmuster fleet stop --all",
    )
    stop.add_argument("fleet_ids", nargs="*", metavar="FLEET", help="ids, as `muster fleet list` shows them")
    stop.add_argument("--all", action="store_true", help="stop every fleet")
    add_client_arguments(stop)


def run_launch(args: argparse.Namespace) -> int:
    spec: dict[str, object] = {
        "count": args.count,
        "seed": args.seed,
        "behaviours": args.behaviours,
        "model": args.model,
        "firmware_version": args.firmware_version,
        "tags": _tags(args.tag),
        "prefix": args.prefix,
    }
    if args.processes is not None:
        spec["processes"] = args.processes
    fleet = client_of(args).launch_fleet(spec)
    terminal = Terminal()
    if args.json:
        terminal.json(fleet)
    else:
        count = fleet["count"]
        terminal.line(
            f"{fleet['fleet_id']}: {count:,} device{'s' if count != 1 else ''} launched"
            f" (seed {fleet['seed']}); next: muster provision"
        )
    return 0


def run_list(args: argparse.Namespace) -> int:
    fleets = client_of(args).fleets()
    terminal = Terminal()
    if args.json:
        terminal.json({"fleets": fleets})
    elif not fleets:
        terminal.line("no fleets; start one with `muster fleet launch --count 200`")
    else:
        terminal.table(
            ["fleet", "devices", "seed", "state", "processes", "behaviours"],
            [
                [
                    fleet["fleet_id"],
                    f"{fleet['count']:,}",
                    str(fleet["seed"]),
                    "running" if fleet.get("running") else "not running",
                    str(len(fleet.get("pids", []))),
                    _behaviours(fleet),
                ]
                for fleet in fleets
            ],
            right=(1, 2, 4),
            styles={3: {"running": "green", "not running": "red"}},
        )
        for fleet in fleets:
            if error := fleet.get("error"):
                terminal.line(f"{fleet['fleet_id']}: {error}", style="red")
    return 0


def run_stop(args: argparse.Namespace) -> int:
    if args.all == bool(args.fleet_ids):
        raise UsageError("say which fleets to stop: ids as `muster fleet list` shows them, or --all")
    client = client_of(args)
    fleet_ids = [fleet["fleet_id"] for fleet in client.fleets()] if args.all else args.fleet_ids
    for fleet_id in fleet_ids:
        client.stop_fleet(fleet_id)
    terminal = Terminal()
    if args.json:
        terminal.json({"stopped": fleet_ids})
    else:
        terminal.line(f"stopped: {', '.join(fleet_ids)}" if fleet_ids else "no fleet to stop")
    return 0


def _behaviours(fleet: Fleet) -> str:
    weights = fleet.get("behaviours")
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items()) if weights else "default"


def _tags(pairs: list[str]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"{pair!r} is no tag: write NAME=VALUE")
        tags[name] = value
    return tags
