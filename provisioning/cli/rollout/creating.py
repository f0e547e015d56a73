"""``muster rollout create`` and ``muster rollout example``."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from typing import Any

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, add_json, client_of
from provisioning.cli.documents import Json, PlannedRollout, Rollout
from provisioning.cli.errors import ApiError
from provisioning.cli.release.words import misfits_of
from provisioning.cli.rollout.choice import actor_of, add_actor
from provisioning.cli.rollout.plan_file import EXAMPLE
from provisioning.cli.rollout.plan_flags import PlanSource, add_plan_arguments
from provisioning.cli.rollout.showing import held_line
from provisioning.cli.rollout.watching import watch_rollout
from provisioning.cli.rollout.words import device_facts, moment
from provisioning.cli.terminal import Terminal, clock, counted

MAX_WAVES_NAMED = 6


def add_parsers(commands: Subparsers) -> None:
    create = add_command(
        commands,
        "create",
        run_create,
        summary="start a rollout: from flags, a plan file or both",
        description=(
            "Start a rollout over all new devices, or those that the flags or a plan file choose. It goes\n"
            "on by itself, whatever happens to this terminal. --dry-run only says what it would come to."
        ),
        examples="""muster rollout create
            muster rollout create --waves 5%,25%,100% --threshold 95 --gate approval --follow
            muster rollout create --release thermo-2.1.0 --model thermo-1 --waves 5%,100%
            muster rollout create --waves 10,100,rest --gate pause --pause 600 --abort failed=20%/10:pause
            muster rollout create --tag site=lab --per-minute 60 --grow 2/100 --max-per-minute 960
            muster rollout create --window 'mon-fri 22:00-06:00' --start-at 2030-08-01T22:00 --name night
            muster rollout create --attempts 5 --retry no_ack=5,delay=5s,factor=2 --device-timeout 900
            muster rollout create --file plan.toml --percent 10 --dry-run""",
    )
    add_plan_arguments(create)
    add_actor(create)
    create.add_argument(
        "--dry-run", action="store_true", help="say which waves there would be, start nothing"
    )
    create.add_argument("-f", "--follow", action="store_true", help="stay and show the rollout until it ends")
    add_client_arguments(create)

    example = add_command(
        commands,
        "example",
        run_example,
        summary="print a plan to begin with",
        description="Print a plan with comments, to be changed and rolled out.",
        examples="""muster rollout example > plan.toml
            muster rollout create --file plan.toml --dry-run
            muster rollout example --json > plan.json""",
    )
    add_json(example)


def run_create(args: argparse.Namespace) -> int:
    source = PlanSource(args)
    client = client_of(args)
    terminal = Terminal()
    try:
        if args.dry_run:
            _show_planned(client.plan_rollout(source.plan), terminal, as_json=args.json)
            return 0
        created = client.create_rollout(source.plan, actor=actor_of(args))
    except ApiError as error:
        located = source.located(error)
        if located is error:
            raise
        raise located from error
    return report_created(created, args)


def report_created(created: Rollout, args: argparse.Namespace, *, what: str = "") -> int:
    """Write what was begun, and follow it where that is asked; returns the exit code."""
    terminal = Terminal()
    if args.json and not args.follow:
        terminal.json(created)
    elif not args.json:
        rollout_id = created["rollout_id"]
        waves = _waves([wave["devices"] for wave in created["waves"]])
        misfits = misfits_of(created.get("not_fitting", 0), created.get("release"))
        start = _start(created["plan"]) if created["state"] == "scheduled" else ""
        start = _joining(created["plan"]) + start
        hint = "" if args.follow else f"; follow it with: muster rollout watch {rollout_id}"
        terminal.line(
            f"{rollout_id}: {counted(created['devices'], 'device')}{waves}{what}{start}{misfits}{hint}"
        )
    return watch_rollout(args, created["rollout_id"]) if args.follow else 0


def run_example(args: argparse.Namespace) -> int:
    text = EXAMPLE.read_text(encoding="utf-8")
    terminal = Terminal()
    if args.json:
        terminal.json(tomllib.loads(text))
    else:
        terminal.stream.write(text)
    return 0


def _show_planned(planned: PlannedRollout, terminal: Terminal, *, as_json: bool) -> None:
    if as_json:
        terminal.json(planned)
        return
    sizes, plan = planned["waves"], planned["plan"]
    start = _joining(plan) + _start(plan)
    misfits = misfits_of(planned.get("not_fitting", 0), plan.get("release"))
    terminal.line(
        f"{counted(planned['devices'], 'device')} in {counted(len(sizes), 'wave')}{start}{misfits};"
        " nothing was started: leave out --dry-run for that",
        style="bold",
    )
    for held in planned.get("held") or []:
        terminal.line(f"  {held_line(held)}")
    for name, told in device_facts(plan):
        terminal.line(f"  {name}: {told}")
    waves = plan.get("waves") or [{}] * len(sizes)
    rows, total = [], 0
    for number, (size, wave) in enumerate(zip(sizes, waves, strict=False), start=1):
        total += size
        share = f"{total / planned['devices']:.0%}" if planned["devices"] else "-"
        rows.append([str(number), f"{size:,}", f"{total:,}", share, _conditions(wave, number < len(sizes))])
    terminal.table(["wave", "devices", "so far", "share", "condition"], rows, right=range(4), indent=2)


def _conditions(wave: Json, more: bool) -> str:
    """Return what must be for the wave to be good, and before the next one starts."""
    conditions = []
    if (threshold := wave.get("success_threshold_percent")) is not None:
        conditions.append(f"{threshold:g}% provisioned")
    match wave.get("gate") if more else None:
        case "approval":
            conditions.append("approval")
        case "pause":
            conditions.append(f"a pause of {clock(wave.get('pause_s'))}")
    return ", ".join(conditions) or "-"


def _waves(sizes: Sequence[int]) -> str:
    """Return the sizes of the waves, where there are several."""
    if len(sizes) < 2:
        return ""
    named = ", ".join(f"{size:,}" for size in sizes[:MAX_WAVES_NAMED])
    return f" in {len(sizes)} waves ({named}{', …' if len(sizes) > MAX_WAVES_NAMED else ''})"


def _joining(plan: dict[str, Any]) -> str:
    return ", and such as register later" if (plan.get("targets") or {}).get("continuous") else ""


def _start(plan: dict[str, Any]) -> str:
    start_at = (plan.get("schedule") or {}).get("start_at")
    return f", from {moment(start_at)} on" if start_at else ""
