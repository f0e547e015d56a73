"""``muster devices`` and ``muster device``: where each device is in its provisioning."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Device, Step
from provisioning.cli.errors import UsageError
from provisioning.cli.terminal import (
    STATE_STYLES,
    Terminal,
    duration,
    parse_timestamp,
    state_word,
    time_of_day,
)
from provisioning.states import DeviceState

DEFAULT_LIMIT = 50


def add_parser(subparsers: Subparsers) -> None:
    many = add_command(
        subparsers,
        "devices",
        run_devices,
        summary="list devices and where they are",
        description="List the devices that have registered, and where each is in its provisioning.",
        examples="""muster devices
            muster devices --state timed_out
            muster devices --limit 0 --json | jq -r '.devices[].device_id'""",
    )
    many.add_argument(
        "--state",
        metavar="STATE",
        type=_state,
        help="only devices in this state: " + ", ".join(DeviceState),
    )
    many.add_argument("--run", dest="run_id", metavar="RUN", help="only the devices of this run")
    many.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"at most this many; 0 for all (default: {DEFAULT_LIMIT})",
    )
    add_client_arguments(many)

    one = add_command(
        subparsers,
        "device",
        run_device,
        summary="show one device: its steps with times, attempts, progress, errors",
        description="Show one device: its steps with times, attempts, progress and errors.",
        examples="muster device dev-00007\nmuster device dev-00007 --json",
    )
    one.add_argument("device_id", metavar="DEVICE", help="the device's id")
    add_client_arguments(one)


def run_devices(args: argparse.Namespace) -> int:
    if args.limit < 0:
        raise UsageError(f"--limit must be 0 (all) or more, not {args.limit}")
    client = client_of(args)
    total = client.devices_page(state=args.state, run_id=args.run_id, limit=1).get("total", 0)
    found = client.devices(state=args.state, run_id=args.run_id)
    devices = list(itertools.islice(found, args.limit or None))
    terminal = Terminal()
    if args.json:
        terminal.json({"devices": devices, "total": total})
        return 0
    if not devices:
        what = f"no devices are {state_word(args.state)}" if args.state else "no devices have registered"
        terminal.line(what if args.state else f"{what}; start some with `muster fleet launch --count 200`")
        return 0
    terminal.table(
        ["device", "state", "online", "attempt", "progress", "since", "error"],
        [_row(device) for device in devices],
        right=(3, 4),
        styles={1: {state_word(state): style for state, style in STATE_STYLES.items()}},
        fold=False,
    )
    if total > len(devices):
        terminal.line(f"{len(devices):,} of {total:,}; --limit 0 shows all", style="dim")
    return 0


def run_device(args: argparse.Namespace) -> int:
    device = client_of(args).device(args.device_id)
    terminal = Terminal()
    if args.json:
        terminal.json(device)
        return 0
    state = device["state"]
    terminal.line(device["device_id"], style="bold")
    facts = [("state", state_word(state)), *_facts(device)]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        terminal.line(
            f"  {name.ljust(width)}  {value}", style=STATE_STYLES.get(state) if name == "state" else None
        )
    if steps := device.get("steps"):
        show_steps(steps, terminal)
    elif state == DeviceState.NEW:
        terminal.line()
        terminal.line(f"  not provisioned yet: muster provision {device['device_id']}")
    return 0


def show_steps(steps: Sequence[Step], terminal: Terminal) -> None:
    """Write a device's steps with their times, after an empty line."""
    terminal.line()
    terminal.table(
        ["step", "attempt", "started", "took", "error"],
        [_step_row(step) for step in steps],
        right=(1, 3),
        indent=2,
    )


def _state(text: str) -> str:
    state = text.strip().lower().replace("-", "_").replace(" ", "_")
    if state not in set(DeviceState):
        raise argparse.ArgumentTypeError(f"{text!r} is no state: choose from {', '.join(DeviceState)}")
    return state


def _row(device: Device) -> list[str]:
    attempt = device.get("attempt")
    return [
        device["device_id"],
        state_word(device["state"]),
        "yes" if device.get("online") else "no",
        str(attempt) if attempt else "-",
        percentage(device.get("progress")),
        time_of_day(device.get("updated_at")),
        device.get("error") or "",
    ]


def percentage(progress: float | None) -> str:
    """Return how far a download is."""
    return "-" if progress is None else f"{progress:.0%}"


def _facts(device: Device) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = [
        ("online", "yes" if device.get("online") else "no, revoked" if device.get("revoked") else "no"),
        ("model", device.get("model") or "-"),
        ("firmware", device.get("firmware_version") or "-"),
    ]
    if tags := device.get("tags"):
        facts.append(("tags", ", ".join(f"{name}={value}" for name, value in tags.items())))
    facts.append(("registered", time_of_day(device.get("registered_at"))))
    if device.get("run_id"):
        facts.append(("run", device["run_id"] or "-"))
    if device.get("attempt"):
        facts.append(("attempt", str(device["attempt"])))
    if retrying_at := device.get("retrying_at"):
        facts.append(("next attempt", next_attempt(retrying_at, device.get("retrying_after"))))
    if device.get("progress") is not None:
        facts.append(("progress", percentage(device["progress"])))
    if package := device.get("package"):
        facts.append(("package", f"{package['id']} ({package['size_bytes']:,} bytes)"))
        facts.append(("sha256", package["sha256"]))
    if error := device.get("error"):
        facts.append(("error", error))
    return facts


def _step_row(step: Step) -> list[str]:
    started, ended = parse_timestamp(step.get("started_at")), parse_timestamp(step.get("ended_at"))
    took = duration((ended - started).total_seconds()) if started and ended else "running"
    return [
        step["step"],
        str(step.get("attempt", 1)),
        time_of_day(step.get("started_at"), milliseconds=True),
        took,
        step.get("error") or "",
    ]


def next_attempt(retrying_at: str, retrying_after: str | None) -> str:
    """Return when a device that waits is tried again, and after what."""
    return f"retrying at {time_of_day(retrying_at)}, after {retrying_after}"
