"""``muster rollout show``, and a rollout for people in tables."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Held, Rollout, Wave
from provisioning.cli.progress import rate
from provisioning.cli.release.words import release_of
from provisioning.cli.rollout.choice import add_rollout_choice, chosen_rollout
from provisioning.cli.rollout.words import (
    STATE_STYLES,
    counts_line,
    device_facts,
    ended_devices,
    expected_end,
    further_steps,
    headline,
    missed_devices,
    moment,
    next_steps,
    state_line,
)
from provisioning.cli.terminal import STATE_STYLES as DEVICE_STYLES
from provisioning.cli.terminal import Terminal, clock, counted, state_word
from provisioning.states import WORKING, DeviceState

MAX_REASONS_SHOWN = 10


def add_parsers(commands: Subparsers) -> None:
    show = add_command(
        commands,
        "show",
        run_show,
        summary="one rollout: its waves, counts, reasons, rate, expected end",
        description=(
            "Show one rollout: its waves with their devices, why devices failed, its rate and expected\n"
            "end, and what can be done next. `muster rollout devices` lists its devices."
        ),
        examples="""muster rollout show
            muster rollout show rollout-20300801-220000-3f2a
            muster rollout show --json | jq .counts""",
    )
    add_rollout_choice(show)
    add_client_arguments(show)


def run_show(args: argparse.Namespace) -> int:
    client = client_of(args)
    rollout = client.rollout(chosen_rollout(args, client, or_latest=True))
    terminal = Terminal()
    if args.json:
        terminal.json(rollout)
    else:
        show_rollout(rollout, terminal)
    return 0


def show_rollout(rollout: Rollout, terminal: Terminal) -> None:
    """Write a rollout: what it is, its waves, the reasons of failures, what to do next."""
    terminal.line(headline(rollout), style="bold")
    facts = _facts(rollout)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        style = STATE_STYLES.get(rollout["state"]) if name == "state" else None
        terminal.line(f"  {name.ljust(width)}  {value}", style=style)
    terminal.line()
    _show_waves(rollout, terminal)
    _show_reasons(rollout, terminal)
    show_steps(further_steps(rollout), terminal, indent=2)


def _facts(rollout: Rollout) -> list[tuple[str, str]]:
    ended = ended_devices(rollout["counts"])
    facts = [
        ("state", state_line(rollout)),
        ("release", release_of(rollout.get("release"))),
        (
            "devices",
            (
                f"{counted(rollout['devices'], 'device')}, {ended:,} ended,"
                f" {rollout.get('in_flight', 0):,} in flight,"
                f" {rollout['counts'].get('pending', 0):,} to be started"
            ),
        ),
        ("by state", counts_line(rollout["counts"]) or "-"),
        ("time", f"{clock(rollout.get('elapsed_s'))}, {rate(rollout.get('devices_per_s'))}"),
    ]
    if end := expected_end(rollout, datetime.datetime.now(datetime.UTC)):
        facts.append(("expected end", end))
    facts += [
        ("held" if held["how"] == "wait" else "joined", held_line(held)) for held in rollout.get("held") or []
    ]
    for name, key in (("created", "created_at"), ("started", "started_at"), ("ended", "ended_at")):
        if (timestamp := rollout.get(key)) is not None:
            facts.append((name, moment(str(timestamp))))
    facts += device_facts(rollout.get("plan") or {})
    if retry_of := rollout.get("retry_of"):
        facts.append(("retry of", retry_of))
    return facts


def held_line(held: Held) -> str:
    """Return which run has how many of a rollout's devices, and what becomes of them."""
    devices, run_id = counted(held["devices"], "device"), held["run_id"]
    if held["how"] == "wait":
        return f"{devices}, until {run_id} has done with them"
    return f"{devices}, whose outcome in {run_id} counts"


def _show_waves(rollout: Rollout, terminal: Terminal) -> None:
    """Write the waves, narrow enough for 80 columns."""
    rows = []
    for wave in rollout["waves"]:
        counts = wave["counts"]
        figures = (
            wave["devices"],
            counts.get("pending", 0),
            sum(counts.get(state, 0) for state in WORKING),
            counts.get(DeviceState.PROVISIONED, 0),
            missed_devices(counts),
        )
        rows.append(
            [
                str(wave["number"]),
                state_word(wave["state"]),
                *(f"{figure:,}" for figure in figures),
                success(wave),
            ]
        )
    columns = ["wave", "state", "devices", "to start", "in flight", "ok", "not ok", "success"]
    terminal.table(
        columns,
        rows,
        right=[0, *range(2, len(columns))],
        styles={1: {state_word(state): style for state, style in STATE_STYLES.items()}},
        indent=2,
        fold=False,
    )


def _show_reasons(rollout: Rollout, terminal: Terminal) -> None:
    reasons = rollout.get("reasons") or []
    if not reasons:
        return
    terminal.line()
    terminal.table(
        ["devices", "ended", "such as", "reason"],
        [
            [f"{one['count']:,}", state_word(one["state"]), one.get("example") or "-", one["reason"] or "-"]
            for one in reasons[:MAX_REASONS_SHOWN]
        ],
        right=(0,),
        styles={1: {state_word(state): style for state, style in DEVICE_STYLES.items()}},
        indent=2,
    )
    if (more := len(reasons) - MAX_REASONS_SHOWN) > 0:
        terminal.line(f"  … and {counted(more, 'more reason')}; --json has all", style="dim")


def success(wave: Wave) -> str:
    """Return the share of a wave's ended devices that were provisioned; a dash before there is one."""
    percent = wave.get("success_percent")
    return "-" if percent is None else f"{percent:.3g}%"


def show_end(rollout: Rollout, terminal: Terminal, *, good: bool) -> None:
    """Write what a rollout came to, which was watched."""
    provisioned = rollout["counts"].get(DeviceState.PROVISIONED, 0)
    completed = rollout["state"] == "completed"
    how = "" if completed else f"; {state_line(rollout)}"
    terminal.line(
        f"{provisioned:,} of {rollout['devices']:,} provisioned in {clock(rollout.get('elapsed_s'))}"
        f", {rate(rollout.get('devices_per_s'))}{how}",
        style="bold green" if good else "bold red",
    )
    terminal.line()
    _show_waves(rollout, terminal)
    _show_reasons(rollout, terminal)
    show_steps(next_steps(rollout) if completed else further_steps(rollout), terminal)


def show_steps(steps: Sequence[str], terminal: Terminal, *, indent: int = 0) -> None:
    """Write what can be done now, after an empty line."""
    if steps:
        terminal.line()
    for step in steps:
        terminal.line(f"{' ' * indent}next: {step}")
