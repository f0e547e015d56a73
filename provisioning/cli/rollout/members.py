"""``muster rollout devices`` and ``muster rollout device``: what became of each device in a rollout."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

from provisioning.cli.arguments import (
    Subparsers,
    add_client_arguments,
    add_command,
    client_of,
    names_of,
)
from provisioning.cli.client import ServiceClient
from provisioning.cli.devices import next_attempt, percentage, show_steps
from provisioning.cli.documents import RolloutDevice
from provisioning.cli.errors import UsageError
from provisioning.cli.rollout.choice import add_rollout_choice, chosen_rollout
from provisioning.cli.rollout.words import moment
from provisioning.cli.terminal import STATE_STYLES, Terminal, duration, state_word
from provisioning.states import FINAL, WORKING, DeviceState

DEFAULT_LIMIT = 50
STATES = ("pending", *WORKING, *(state for state in DeviceState if state in FINAL))


def add_parsers(commands: Subparsers) -> None:
    many = add_command(
        commands,
        "devices",
        run_devices,
        summary="its devices: wave, state, attempts, progress, last error",
        description="List the devices of a rollout, and what became of each in it.",
        examples="""muster rollout devices
            muster rollout devices --state failed,timed-out
            muster rollout devices --wave 1 --limit 0 --json | jq -r '.devices[].device_id'""",
    )
    add_rollout_choice(many)
    many.add_argument(
        "--state", action="append", metavar="STATE,…", help=f"only in these states: {', '.join(STATES)}"
    )
    many.add_argument("--wave", type=int, metavar="N", help="only of this wave, from 1")
    many.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"at most this many; 0 for all (default: {DEFAULT_LIMIT})",
    )
    add_client_arguments(many)

    one = add_command(
        commands,
        "device",
        run_device,
        summary="one of its devices: steps with times, attempts, progress, last error",
        description=(
            "Show one device of a rollout with its steps in it, also after later rollouts. `muster device`\n"
            "shows where it is now."
        ),
        examples="""muster rollout device dev-00007
            muster rollout device rollout-20300801-220000-3f2a dev-00007 --json""",
    )
    add_rollout_choice(one)
    one.add_argument("device_id", metavar="DEVICE", help="the device's id")
    add_client_arguments(one)


def run_devices(args: argparse.Namespace) -> int:
    if args.limit < 0:
        raise UsageError(f"--limit must be 0 (all) or more, not {args.limit}")
    states = [_state(name) for name in names_of(args.state or [])]
    client = client_of(args)
    rollout_id = chosen_rollout(args, client, or_latest=True)
    total = client.rollout_devices_page(rollout_id, states=states, wave=args.wave, limit=1)["total"]
    devices = list(itertools.islice(_all(client, rollout_id, states, args.wave), args.limit or None))
    terminal = Terminal()
    if args.json:
        terminal.json({"rollout_id": rollout_id, "devices": devices, "total": total})
        return 0
    if not devices:
        terminal.line(f"no such devices in {rollout_id}; `muster rollout show {rollout_id}` counts them")
        return 0
    terminal.table(
        ["device", "wave", "state", "attempts", "progress", "took", "error"],
        [_row(device) for device in devices],
        right=(1, 3, 4, 5),
        styles={2: {state_word(state): style for state, style in STATE_STYLES.items()}},
        fold=False,
    )
    if total > len(devices):
        terminal.line(f"{len(devices):,} of {total:,}; --limit 0 shows all", style="dim")
    return 0


def run_device(args: argparse.Namespace) -> int:
    client = client_of(args)
    rollout_id = chosen_rollout(args, client, or_latest=True)
    device = client.rollout_device(rollout_id, args.device_id)
    terminal = Terminal()
    if args.json:
        terminal.json(device)
        return 0
    state = device["state"]
    terminal.line(f"{device['device_id']} in {rollout_id}", style="bold")
    facts = _facts(device)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        style = STATE_STYLES.get(state) if name == "state" else None
        terminal.line(f"  {name.ljust(width)}  {value}", style=style)
    if steps := device.get("steps"):
        show_steps(steps, terminal)
    return 0


def _all(
    client: ServiceClient, rollout_id: str, states: list[str], wave: int | None
) -> Iterator[RolloutDevice]:
    after: str | None = None
    while True:
        page = client.rollout_devices_page(rollout_id, states=states, wave=wave, after=after)
        yield from page["devices"]
        after = page["next"]
        if after is None:
            return


def _state(name: str) -> str:
    state = name.lower().replace("-", "_")
    if state not in STATES:
        raise UsageError(f"--state: {name!r} is no state; choose from {', '.join(STATES)}")
    return state


def _row(device: RolloutDevice) -> list[str]:
    took_s = device.get("device_s")
    return [
        device["device_id"],
        str(device["wave"]),
        state_word(device["state"]),
        str(device["attempts"]) if device["attempts"] else "-",
        percentage(device["progress"]),
        "-" if took_s is None else duration(took_s),
        device["error"] or _held(device),
    ]


def _held(device: RolloutDevice) -> str:
    if device["held"] is None or device["state"] in FINAL:
        return ""
    return f"{'waits for' if device['held'] == 'wait' else 'ends as in'} {device['held_by']}"


def _facts(device: RolloutDevice) -> list[tuple[str, str]]:
    facts = [
        ("state", state_word(device["state"])),
        ("wave", str(device["wave"])),
        ("attempts", str(device["attempts"])),
        ("progress", percentage(device["progress"])),
        ("online", "yes" if device["online"] else "no"),
        ("model", device["model"]),
        ("firmware", device["firmware_version"]),
    ]
    if retrying_at := device.get("retrying_at"):
        facts.append(("next attempt", next_attempt(retrying_at, device.get("retrying_after"))))
    if held := _held(device):
        facts.append(("held", held))
    if ended_at := device["ended_at"]:
        facts.append(("ended", moment(ended_at)))
    if error := device["error"]:
        facts.append(("error", error))
    return facts
