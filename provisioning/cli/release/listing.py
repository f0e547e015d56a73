"""``muster release list`` and ``muster release show``."""

from __future__ import annotations

import argparse
import json

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Release
from provisioning.cli.rollout.words import moment
from provisioning.cli.terminal import Terminal, data_size


def add_parsers(commands: Subparsers) -> None:
    listing = add_command(
        commands,
        "list",
        run_list,
        summary="list the releases",
        description="List the releases, the latest first; the last is the one that comes with the service.",
        examples="muster release list\nmuster release list --json | jq -r '.releases[].name'",
    )
    add_client_arguments(listing)
    show = add_command(
        commands,
        "show",
        run_show,
        summary="one release: version, models, firmware, configuration",
        description="Show one release with the SHA-256 of its firmware and its configuration template.",
        examples="muster release show thermo-2.1.0\nmuster release show thermo-2.1.0 --json | jq .firmware",
    )
    show.add_argument("name", metavar="NAME", help="a release, as `muster release list` shows them")
    add_client_arguments(show)


def run_list(args: argparse.Namespace) -> int:
    releases = client_of(args).releases()
    terminal = Terminal()
    if args.json:
        terminal.json({"releases": releases})
        return 0
    terminal.table(
        ["release", "version", "size", "added", "models", "notes"],
        [_row(release) for release in releases],
        right=(2,),
        fold=False,
    )
    return 0


def _row(release: Release) -> list[str]:
    return [
        release["name"],
        release["version"],
        data_size(release["firmware"]["size_bytes"]),
        "-" if release.get("default") else moment(release["created_at"]),
        ", ".join(release["models"]) or "all",
        " ".join(release["notes"].split()),
    ]


def run_show(args: argparse.Namespace) -> int:
    release = client_of(args).release(args.name)
    terminal = Terminal()
    if args.json:
        terminal.json(release)
        return 0
    firmware = release["firmware"]
    terminal.line(release["name"], style="bold")
    for name, value in (
        ("version", release["version"]),
        ("models", ", ".join(release["models"]) or "all"),
        ("firmware", f"{data_size(firmware['size_bytes'])} ({firmware['size_bytes']:,} bytes)"),
        ("sha256", firmware["sha256"]),
        ("added", "with the service" if release.get("default") else moment(release["created_at"])),
        ("notes", release["notes"] or "-"),
    ):
        terminal.line(f"  {name.ljust(8)}  {value}")
    if release["configuration"] is None:
        terminal.line("  config    each device's model and tags")
        return 0
    terminal.line("  config")
    for line in json.dumps(release["configuration"], indent=2, ensure_ascii=False).splitlines():
        terminal.line(f"    {line}")
    return 0
