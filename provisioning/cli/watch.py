"""``muster watch``: what is under way as it goes; the full screen on a terminal, lines anywhere else."""

from __future__ import annotations

import argparse
import json
import time

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.choosing import NO_RUN, latest, named, under_way
from provisioning.cli.client import ServiceClient
from provisioning.cli.errors import CliError, UsageError
from provisioning.cli.fleet.watching import watch_fleet
from provisioning.cli.followed import Followed, Page
from provisioning.cli.progress import POLL_INTERVAL_S, follow_run, plain_run_view
from provisioning.cli.rollout.watching import watch_rollout
from provisioning.cli.summary import plain_summary, show_summary
from provisioning.cli.terminal import Terminal
from provisioning.cli.views import Fetcher
from provisioning.cli.watch_devices import watch_devices

DEVICES = "devices"


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "watch",
        run,
        summary="follow what is under way: a rollout or run, its devices, the fleet",
        description=(
            "Follow a rollout, a run or a fleet: on a terminal on the full screen, in a pipe line by line.\n"
            "Without a name it is what is under way; else the fleet, or what ended last. `muster watch\n"
            "devices` begins with the devices in flight and those that failed. Ends with what is followed:\n"
            "0 if every device was provisioned, 1 if not. q ends the watching only (0), Ctrl-C too (130).\n"
            "\n"
            "keys: q quit, tab next page, r rollout or run, d devices, f fleet, arrows and page keys scroll"
        ),
        examples="""muster watch
            muster watch devices
            muster watch rollout-20300801-220000-3f2a
            muster watch fleet-1
            muster watch --json | jq .counts
            muster watch > progress.log""",
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="ROLLOUT|RUN|FLEET|devices",
        help="what to follow, by its id (default: what is under way)",
    )
    parser.add_argument(
        "--devices", action="store_true", help="begin with the devices, as `muster watch devices`"
    )
    add_client_arguments(parser)


def run(args: argparse.Namespace) -> int:
    client = client_of(args)
    what = None if args.what == DEVICES else args.what
    if args.devices or args.what == DEVICES:
        followed = (None if what is None else named(client, what)) or under_way(client)
        if followed is not None and followed.kind == "fleet":
            raise UsageError(f"{what} is a fleet: `muster watch {what}` follows it")
        return _watch(args, client, followed or Followed(kind="all"), "devices")
    followed = named(client, what) if what is not None else _chosen(client, live=_is_live(args))
    return _watch(args, client, followed, "fleet" if followed.kind == "fleet" else "progress")


def _chosen(client: ServiceClient, *, live: bool) -> Followed:
    """What is under way; else a person sees the fleet, and a script what ended last, so that it ends too."""
    if (found := under_way(client)) is not None:
        return found
    fleets = [Followed(kind="fleet", id=fleet["fleet_id"]) for fleet in client.fleets()]
    ended = latest(client)
    in_order = [*reversed(fleets), ended] if live else [ended, *reversed(fleets)]
    for one in in_order:
        if one is not None and (live or one.kind != "fleet"):
            return one
    raise CliError(NO_RUN)


def _is_live(args: argparse.Namespace) -> bool:
    return Terminal().interactive and not args.json


def _watch(args: argparse.Namespace, client: ServiceClient, followed: Followed, page: Page) -> int:
    if page == "devices" and not _is_live(args):
        return watch_devices(args, followed)
    match followed.kind:
        case "rollout":
            return watch_rollout(args, followed.id, page)
        case "run":
            return watch_run(args, client, followed.id, page)
        case _:
            return watch_fleet(args, followed, page)


def watch_run(args: argparse.Namespace, client: ServiceClient, run_id: str, page: Page = "progress") -> int:
    """Follow a run to its end, show what it came to, and return the exit code."""
    terminal = Terminal()
    if args.json:
        return _watch_json(client, run_id, terminal)
    if terminal.interactive:
        from provisioning.cli.live.watching import watch

        end = watch(args, terminal, Followed(kind="run", id=run_id), page)
        if not end.ended or end.look is None or end.look.run is None:
            return 0
        last = end.look.run
    else:
        view = plain_run_view(terminal)
        last = follow_run(Fetcher(args, lambda service: service.run(run_id), view), view)
    summary = plain_summary(last)
    terminal.line()
    show_summary(summary, terminal)
    return 0 if summary.as_expected else 1


def _watch_json(client: ServiceClient, run_id: str, terminal: Terminal) -> int:
    before = ""
    while True:
        found = client.run(run_id)
        if (counts := json.dumps([found.get("counts"), found["status"]])) != before:
            print(json.dumps(found), file=terminal.stream, flush=True)
            before = counts
        if found["status"] != "running":
            return 0 if plain_summary(found).as_expected else 1
        time.sleep(POLL_INTERVAL_S)
