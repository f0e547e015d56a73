"""What operators do to a rollout that goes on: pause, resume, approve, next, cancel, exclude, add, pace."""

from __future__ import annotations

import argparse
from typing import Any

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of, names_of
from provisioning.cli.documents import Rollout, RolloutAnswer
from provisioning.cli.errors import UsageError
from provisioning.cli.rollout.choice import actor_of, add_actor, add_rollout_choice, chosen_rollout
from provisioning.cli.rollout.plan_flags import add_pace_arguments, pace_of
from provisioning.cli.rollout.words import further_steps
from provisioning.cli.terminal import Terminal, counted, state_word


def add_parsers(commands: Subparsers) -> None:
    _add_action(
        commands,
        "pause",
        summary="start no more devices",
        description="Start no more devices until `muster rollout resume`; those in flight go on.",
        examples="muster rollout pause\nmuster rollout pause --reason 'too many reboots'",
    )
    _add_action(
        commands,
        "resume",
        summary="go on with a rollout that is paused",
        description=(
            "Go on with a rollout that is paused, by an operator, a threshold or a criterion to abort."
        ),
        examples="muster rollout resume\nmuster rollout resume rollout-20300801-220000-3f2a",
    )
    _add_action(
        commands,
        "approve",
        summary="let the next wave start that waits for approval",
        description="Let the next wave start, which waits for somebody's approval.",
        examples="muster rollout approve\nmuster rollout approve --actor ada --reason 'canaries are fine'",
    )
    _add_action(
        commands,
        "next",
        summary="start the next wave now",
        description="Start the next wave now, without waiting for the pause or the end of this one.",
        examples="muster rollout next\nmuster rollout next rollout-20300801-220000-3f2a --json",
    )
    cancel = _add_action(
        commands,
        "cancel",
        summary="end a rollout",
        description=(
            "End a rollout: no more devices are started, and those in flight may finish; with --force they\n"
            "are told to stop."
        ),
        examples="muster rollout cancel\nmuster rollout cancel --force --reason 'wrong firmware'",
    )
    cancel.add_argument("--force", action="store_true", help="tell the devices in flight to stop, too")
    exclude = _add_action(
        commands,
        "exclude",
        summary="take devices out that were not started yet",
        description="Take devices out of a rollout that it has not started yet.",
        examples="""muster rollout exclude --devices dev-00007,dev-00012
            muster rollout exclude rollout-20300801-220000-3f2a --devices dev-00007""",
    )
    add = _add_action(
        commands,
        "add",
        summary="have more devices in a rollout",
        description="Have more devices in a rollout; they come in its last wave.",
        examples="muster rollout add --devices dev-00201\nmuster rollout add --devices dev-00201 --json",
    )
    for parser in (exclude, add):
        parser.add_argument(
            "--devices", action="append", required=True, metavar="ID,…", help="which; may be repeated"
        )
    pace = _add_action(
        commands,
        "pace",
        summary="change how fast devices are started",
        description="Change how fast devices are started; what is not given stays as it is.",
        examples="""muster rollout pace --in-flight 50
            muster rollout pace --per-minute 60 --grow 2/100:succeeded --max-per-minute 1000
            muster rollout pace --per-minute none""",
    )
    add_pace_arguments(pace)


def _add_action(
    commands: Subparsers, name: str, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    parser = add_command(
        commands, name, run_action, summary=summary, description=description, examples=examples
    )
    parser.set_defaults(action=name)
    add_rollout_choice(parser)
    parser.add_argument("--reason", metavar="TEXT", help="why, for the rollout's log")
    add_actor(parser)
    add_client_arguments(parser)
    return parser


def run_action(args: argparse.Namespace) -> int:
    action, details = _request_of(args)
    client = client_of(args)
    answer = client.act_on_rollout(
        chosen_rollout(args, client), action, actor=actor_of(args), reason=args.reason, **details
    )
    _report(answer, args, details)
    return 0


def _request_of(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the action as the API has it, and what it needs."""
    match args.action:
        case "cancel" if args.force:
            return "force_cancel", {}
        case "exclude" | "add":
            return args.action, {"devices": names_of(args.devices)}
        case "pace":
            pace = pace_of(args, {})
            if not pace:
                raise UsageError("say what to change: --in-flight, --per-minute, --grow")
            return args.action, {"pace": pace}
    return args.action, {}


def _report(answer: RolloutAnswer, args: argparse.Namespace, details: dict[str, Any]) -> None:
    terminal = Terminal()
    if args.json:
        terminal.json(answer)
        return
    rollout = answer["view"]
    if answer["changed"]:
        terminal.line(f"{rollout['rollout_id']}: {_done(args, rollout, details)}")
    else:
        terminal.line(f"{rollout['rollout_id']}: nothing to change; it is {state_word(rollout['state'])}")
    # What --force has been asked for need not be proposed.
    for step in [] if args.action == "cancel" and args.force else further_steps(rollout):
        terminal.line(f"next: {step}")


def _done(args: argparse.Namespace, rollout: Rollout, details: dict[str, Any]) -> str:
    """Return what was done; the rollout itself may take a moment to follow."""
    match args.action:
        case "pause":
            return "paused" + _in_flight(rollout, "go on to the end")
        case "resume":
            return "goes on"
        case "approve":
            return "approved; the next wave starts"
        case "next":
            return "the next wave starts"
        case "cancel":
            return "cancelled" + (_in_flight(rollout, "told to stop") if args.force else "")
        case "exclude":
            return f"{_asked(details)} out; {counted(rollout['devices'], 'device')} now"
        case "add":
            return f"{_asked(details)} in; {counted(rollout['devices'], 'device')} now"
        case "pace":
            return f"the pace is {_pace(rollout)}"
    raise AssertionError(args.action)


def _in_flight(rollout: Rollout, how: str) -> str:
    in_flight = rollout.get("in_flight", 0)
    return f"; {counted(in_flight, 'device')} in flight {how}" if in_flight else ""


def _asked(details: dict[str, Any]) -> str:
    return counted(len(details["devices"]), "device")


def _pace(rollout: Rollout) -> str:
    """Return the pace as it is now, in words."""
    pace = rollout.get("plan", {}).get("pace") or {}
    words = [f"{pace['in_flight']:,} in flight"] if "in_flight" in pace else []
    match pace.get("per_minute"):
        case None:
            words.append("no limit per minute")
        case {"base": base, "factor": factor}:
            words.append(f"{base:g} per minute, growing by {factor:g}")
        case rate:
            words.append(f"{rate:g} per minute")
    return ", ".join(words)
