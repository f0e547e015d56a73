"""``muster watch``: a run as it goes."""

from __future__ import annotations

import argparse
import json
import time

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.client import ServiceClient
from provisioning.cli.errors import CliError
from provisioning.cli.progress import POLL_INTERVAL_S, follow_run, run_view
from provisioning.cli.summary import plain_summary, show_summary
from provisioning.cli.terminal import Terminal
from provisioning.cli.views import Fetcher


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "watch",
        run,
        summary="follow a run until it ends",
        description=(
            "Follow a provisioning run: devices by state, devices per second, elapsed and expected time,\n"
            "the last failures. Ends with the run: 0 if every device was provisioned, 1 if not."
        ),
        examples="muster watch\nmuster watch --json | jq .counts\nmuster watch > progress.log",
    )
    parser.add_argument("run_id", nargs="?", metavar="RUN", help="the run to follow (default: the newest)")
    add_client_arguments(parser)


def run(args: argparse.Namespace) -> int:
    client = client_of(args)
    run_id = args.run_id or newest_run(client)
    return watch_run(args, client, run_id)


def newest_run(client: ServiceClient) -> str:
    """Return the id of the run that started last; a CliError where there was none."""
    runs = client.runs()
    if not runs:
        raise CliError("there was no run yet: start one with `muster provision`")
    return max(runs, key=lambda run: run.get("started_at") or "")["run_id"]


def watch_run(args: argparse.Namespace, client: ServiceClient, run_id: str) -> int:
    """Follow a run to its end, show what it came to, and return the exit code."""
    terminal = Terminal()
    if args.json:
        return _watch_json(client, run_id, terminal)
    view = run_view(terminal)
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
