"""``muster rollout log``: what was done to a rollout, by whom and when."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import LogEntry
from provisioning.cli.rollout.choice import add_rollout_choice, chosen_rollout
from provisioning.cli.rollout.words import moment
from provisioning.cli.terminal import Terminal, state_word


def add_parsers(commands: Subparsers) -> None:
    log = add_command(
        commands,
        "log",
        run_log,
        summary="what was done to a rollout, by whom and when",
        description="Show what was done to a rollout and what it did by itself, the oldest first.",
        examples="muster rollout log\nmuster rollout log rollout-20300801-220000-3f2a --json",
    )
    add_rollout_choice(log)
    add_client_arguments(log)


def run_log(args: argparse.Namespace) -> int:
    client = client_of(args)
    rollout_id = chosen_rollout(args, client, or_latest=True)
    entries = client.rollout_log(rollout_id)
    terminal = Terminal()
    if args.json:
        terminal.json({"rollout_id": rollout_id, "log": entries})
    elif not entries:
        terminal.line(f"nothing is in the log of {rollout_id} yet")
    else:
        terminal.table(
            ["time", "who", "what", "detail"],
            [
                [moment(entry["at"]), entry["actor"], state_word(entry["what"]), detail_of(entry)]
                for entry in entries
            ],
        )
    return 0


def detail_of(entry: LogEntry) -> str:
    """Return what an entry of the log says beside what was done."""
    detail = entry.get("detail")
    if isinstance(detail, dict):
        return ", ".join(f"{state_word(name)} {value}" for name, value in detail.items())
    return detail or ""
