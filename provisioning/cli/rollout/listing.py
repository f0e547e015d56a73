"""``muster rollout list``."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import ShortRollout
from provisioning.cli.errors import UsageError
from provisioning.cli.release.words import release_of
from provisioning.cli.rollout.words import STATE_STYLES, ended_devices, missed_devices, wave_of
from provisioning.cli.terminal import Terminal, state_word
from provisioning.states import DeviceState

DEFAULT_LIMIT = 20


def add_parsers(commands: Subparsers) -> None:
    listing = add_command(
        commands,
        "list",
        run_list,
        summary="list the rollouts",
        description="List the rollouts, the latest first.",
        examples="muster rollout list\nmuster rollout list --json | jq -r '.rollouts[].rollout_id'",
    )
    listing.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"at most this many; 0 for all (default: {DEFAULT_LIMIT})",
    )
    add_client_arguments(listing)


def run_list(args: argparse.Namespace) -> int:
    if args.limit < 0:
        raise UsageError(f"--limit must be 0 (all) or more, not {args.limit}")
    found = client_of(args).rollouts()
    shown = found[: args.limit or None]
    terminal = Terminal()
    if args.json:
        terminal.json({"rollouts": shown, "total": len(found)})
        return 0
    if not found:
        terminal.line("no rollouts; start one with `muster rollout create`")
        return 0
    terminal.table(
        ["rollout", "state", "wave", "devices", "ended", "ok", "not ok", "release", "name"],
        [_row(rollout) for rollout in shown],
        right=(2, 3, 4, 5, 6),
        styles={1: {state_word(state): style for state, style in STATE_STYLES.items()}},
        fold=False,
    )
    if len(found) > len(shown):
        terminal.line(f"{len(shown):,} of {len(found):,}; --limit 0 shows all", style="dim")
    return 0


def _row(rollout: ShortRollout) -> list[str]:
    counts, devices = rollout["counts"], rollout["devices"]
    return [
        rollout["rollout_id"],
        state_word(rollout["state"]),
        wave_of(rollout["wave"], rollout["waves"]),
        f"{devices:,}",
        f"{ended_devices(counts) / devices:.0%}" if devices else "-",
        f"{counts.get(DeviceState.PROVISIONED, 0):,}",
        f"{missed_devices(counts):,}",
        release_of(rollout.get("release")),
        rollout.get("name") or "",
    ]
