"""``muster doctor``: what is missing on this machine, and how to get it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from provisioning.cli.arguments import Subparsers, add_command, add_json, add_state_dir, state_dir_of
from provisioning.cli.terminal import Terminal

if TYPE_CHECKING:
    from provisioning.cli.check import Check


def add_parser(subparsers: Subparsers) -> None:
    """Add the command ``doctor``."""
    parser = add_command(
        subparsers,
        "doctor",
        run,
        summary="say what is missing on this machine, and how to get it",
        description=(
            "Look at everything that Muster needs: Python, Node, the broker, the cache of the local stack,\n"
            "ports, file descriptors, the state directory. Nothing is changed and nothing is fetched.\n"
            "Exits with 0 if a demo can work, else with 1."
        ),
        examples="muster doctor\nmuster doctor --json",
    )
    add_state_dir(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the checks; 0 if none of them is a problem, else 1."""
    from provisioning.cli.doctor_checks import all_checks
    from provisioning.settings import Environment

    checks = all_checks(Environment.read(), state_dir_of(args))
    healthy = not any(check.status == "problem" for check in checks)
    terminal = Terminal()
    if args.json:
        terminal.json({"ok": healthy, "checks": [check.to_json() for check in checks]})
    else:
        _show(terminal, checks, healthy=healthy)
    return 0 if healthy else 1


def _show(terminal: Terminal, checks: Sequence[Check], *, healthy: bool) -> None:
    terminal.table(
        ("check", "status", "what is there"),
        [(check.name, check.status, check.detail) for check in checks],
        styles={1: {"ok": "green", "note": "yellow", "problem": "red"}},
    )
    advice = [check for check in checks if check.remedy is not None]
    if advice:
        terminal.line()
    for check in advice:
        terminal.line(f"{check.name}: {check.remedy}")
    terminal.line()
    if healthy:
        terminal.line("Muster can run here: try `muster demo`.", style="green")
    else:
        problems = ", ".join(check.name for check in checks if check.status == "problem")
        terminal.line(f"Muster can't run here before this is put right: {problems}.", style="red")
