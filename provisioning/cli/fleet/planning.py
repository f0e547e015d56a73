"""What can be said of a fleet before it runs: plan, behaviours, example. None of them needs a service."""

from __future__ import annotations

import argparse
from collections import Counter

from provisioning.cli.arguments import Subparsers, add_command, add_json
from provisioning.cli.documents import Json
from provisioning.cli.errors import UsageError
from provisioning.cli.fleet.groups import add_spec_arguments, fleet_errors, spec_of
from provisioning.cli.terminal import Terminal, counted, state_word
from provisioning.settings import RunOptions


def add_parsers(commands: Subparsers) -> None:
    plan = add_command(
        commands,
        "plan",
        run_plan,
        summary="which devices a fleet would have",
        description=(
            "Say which devices a fleet would have, by group, behaviour and expected outcome, and check a\n"
            "fleet file by the way. Nothing is started."
        ),
        examples="""muster fleet plan --file fleet.toml
            muster fleet plan --count 200 --behaviours all
            muster fleet plan --count 20 --seed 7 --devices --attempts 1""",
    )
    add_spec_arguments(plan)
    plan.add_argument("--shard", default="1/1", metavar="K/N", help="only the K-th of N parts of the fleet")
    plan.add_argument("--devices", action="store_true", help="list each device")
    _add_attempts(plan)
    add_json(plan)

    behaviours = add_command(
        commands,
        "behaviours",
        run_behaviours,
        summary="how devices can behave",
        description=(
            "List the built-in behaviours with their parameters and how a run should end such a device.\n"
            "They combine, as in slow+flaky; a fleet file sets parameters, and names your own behaviours."
        ),
        examples="""muster fleet behaviours
            muster fleet behaviours --attempts 1
            muster fleet behaviours --json""",
    )
    _add_attempts(behaviours)
    add_json(behaviours)

    add_command(
        commands,
        "example",
        run_example,
        summary="print a fleet file to begin with",
        description="Print a fleet file with comments, to be changed and launched.",
        examples="""muster fleet example > fleet.toml
            muster fleet launch --file fleet.toml""",
    )


def _add_attempts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--attempts",
        type=int,
        default=RunOptions.max_attempts,
        metavar="N",
        help=f"how often a run tries a device (default: {RunOptions.max_attempts})",
    )


def run_plan(args: argparse.Namespace) -> int:
    from devices.roster import Roster, parse_shard

    _check_attempts(args.attempts)
    spec = spec_of(args)
    with fleet_errors():
        roster = Roster(spec, shard=parse_shard(args.shard))
        devices = [
            {
                "device_id": device_id,
                "group": entry.plan.group,
                "behaviour": entry.behaviour,
                "expected": roster.expected_outcome(entry, max_attempts=args.attempts),
            }
            for device_id, entry in roster.entries.items()
        ]
    terminal = Terminal()
    counts = Counter((d["group"], d["behaviour"], d["expected"]) for d in devices)
    rows = [
        {"group": group, "behaviour": behaviour, "expected": expected, "devices": count}
        for (group, behaviour, expected), count in counts.items()
    ]
    if args.json:
        document: Json = {"seed": spec.seed, "devices": len(devices), "plan": rows}
        terminal.json({**document, "each": devices} if args.devices else document)
    elif args.devices:
        terminal.table(
            ["device", "group", "expected", "behaviour"],
            [
                [str(d["device_id"]), str(d["group"]), state_word(str(d["expected"])), str(d["behaviour"])]
                for d in devices
            ],
        )
    else:
        ramp = [f"at {stage.devices_per_s:g}/s for {stage.for_s:g} s, then " for stage in spec.ramp.stages]
        terminal.line(
            f"{counted(len(devices), 'device')}, seed {spec.seed}, connecting {''.join(ramp)}at"
            f" {spec.ramp.devices_per_s:g}/s",
            style="bold",
        )
        order = {
            (group.name, behaviour): (index, place)
            for index, group in enumerate(spec.groups)
            for place, behaviour in enumerate(group.behaviours)
        }
        rows.sort(key=lambda row: order[str(row["group"]), str(row["behaviour"])])
        terminal.table(
            ["group", "devices", "expected", "behaviour"],
            [
                [
                    str(row["group"]),
                    f"{row['devices']:,}",
                    state_word(str(row["expected"])),
                    str(row["behaviour"]),
                ]
                for row in rows
            ],
            right=(1,),
            indent=2,
        )
    return 0


def run_behaviours(args: argparse.Namespace) -> int:
    from provisioning.cli.behaviour_list import behaviour_list

    _check_attempts(args.attempts)
    behaviours = behaviour_list(max_attempts=args.attempts)
    terminal = Terminal()
    if args.json:
        terminal.json({"behaviours": behaviours})
        return 0
    terminal.table(
        ["behaviour", "expected", "what it does; parameters with their defaults"],
        [
            [
                str(one["name"]),
                state_word(str(one["expected"])),
                str(one["summary"]) + _parameters(one["parameters"]),
            ]
            for one in behaviours
        ],
        styles={1: {"provisioned": "green", "failed": "red", "timed out": "red", "rejected": "red"}},
    )
    return 0


def run_example(args: argparse.Namespace) -> int:
    from devices.fleet_file import EXAMPLE

    Terminal().stream.write(EXAMPLE.read_text(encoding="utf-8"))
    return 0


def _check_attempts(attempts: int) -> None:
    if not 1 <= attempts <= 100:
        raise UsageError(f"--attempts {attempts} can't be: give 1 to 100")


def _parameters(parameters: object) -> str:
    assert isinstance(parameters, dict)
    shown = ", ".join(f"{name}={_value(value)}" for name, value in parameters.items())
    return f" ({shown})" if shown else ""


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
