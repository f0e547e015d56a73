"""Flags that say what a rollout is to do, and the plan that they make with a file's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provisioning.cli import run_options
from provisioning.cli.arguments import names_of, positive_seconds, tags_of
from provisioning.cli.documents import Json
from provisioning.cli.errors import ApiError, UsageError
from provisioning.cli.rollout import values
from provisioning.cli.rollout.plan_file import PlanFile, key_of, load_plan_file
from provisioning.retries import KINDS

# By the keys of the plan that they set: what the service says of a key is told by the flag.
_FLAGS: Mapping[str, str] = {
    "name": "--name",
    "release": "--release",
    "targets.devices": "--devices",
    "targets.models": "--model",
    "targets.firmware_versions": "--firmware-version",
    "targets.tags": "--tag",
    "targets.states": "--states",
    "targets.percent": "--percent",
    "targets.failed_in": "--failed-in",
    "targets.exclude": "--exclude",
    "targets.continuous": "--continuous",
    "waves": "--waves",
    "pace.in_flight": "--in-flight",
    "pace.per_minute": "--per-minute",
    "pace.order": "--order",
    "pace.seed": "--seed",
    "abort": "--abort",
    "deadlines.rollout_s": "--deadline",
    **{f"options.{option}": flag for option, flag in run_options.FLAGS.items()},
    **{f"options.retries.{kind}": "--retry" for kind in KINDS},
    "schedule.start_at": "--start-at",
    "schedule.end_at": "--end-at",
    "schedule.at_end": "--at-end",
    "schedule.windows": "--window",
    "overlap": "--overlap",
}

_ABSENT: Any = object()
"""Not given; None is a value, which takes back what a file has."""
_MAY_BE_NONE = frozenset({"per_minute", "devices", "failed_in", "models", "firmware_versions", "tags"})


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all that a plan has; what is not given the service's defaults say."""
    parser.add_argument(
        "--file",
        type=Path,
        metavar="PLAN",
        help="a plan as TOML or JSON; flags go before it; `muster rollout example` prints one",
    )
    parser.add_argument("--name", help="what the rollout is called")
    parser.add_argument(
        "--release",
        metavar="NAME",
        help="what devices get, of `muster release list` (default: the service's)",
    )
    _add_targets(parser.add_argument_group("which devices"))
    _add_waves(parser.add_argument_group("waves"))
    pace = parser.add_argument_group("pace")
    add_pace_arguments(pace)
    _add_order(pace)
    _add_schedule(parser.add_argument_group("abort and schedule"))
    run_options.add_run_options(parser.add_argument_group("each device"))


def _add_targets(group: argparse._ArgumentGroup) -> None:
    whom = group.add_mutually_exclusive_group()
    whom.add_argument("--all-new", action="store_true", help="all new devices (the default)")
    whom.add_argument("--devices", action="append", metavar="ID,…", help="these; may be repeated")
    whom.add_argument("--failed-in", metavar="ROLLOUT", help="those that failed or timed out there")
    group.add_argument("--model", action="append", metavar="MODEL,…", help="only these models")
    group.add_argument(
        "--tag", action="append", metavar="NAME=VALUE", help="only with this tag; several: all"
    )
    group.add_argument("--firmware-version", action="append", metavar="VERSION,…", help="only with these")
    group.add_argument("--states", action="append", metavar="STATE,…", help="in these states (default: new)")
    group.add_argument("--percent", type=values.percent, help="this share of them, always the same ones")
    group.add_argument("--exclude", action="append", metavar="ID,…", help="not these; may be repeated")
    group.add_argument(
        "--overlap",
        choices=("refuse", "skip", "wait", "join"),
        help=(
            "devices that another run has: an error (the default), left out, started when they are free,"
            " or counted as they end there"
        ),
    )
    group.add_argument(
        "--continuous", action="store_true", default=None, help="devices that register later join"
    )


def _add_waves(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--waves",
        type=values.waves,
        metavar="WAVES",
        help="5%%,25%%,100%% (cumulative) or 10,100,rest (devices of each); default: one wave",
    )
    group.add_argument(
        "--threshold",
        type=values.threshold,
        metavar="PERCENT",
        help="share of a wave's devices that must be provisioned, else the rollout pauses",
    )
    group.add_argument(
        "--gate", choices=("none", "approval", "pause"), help="between waves: wait for somebody, or a while"
    )
    group.add_argument(
        "--pause", type=positive_seconds, metavar="SECONDS", help="how long to wait between waves"
    )


def add_pace_arguments(group: argparse._ActionsContainer) -> None:
    """Add how fast devices are started."""
    group.add_argument(
        "--in-flight", type=values.positive_count, metavar="N", help="devices at once (default: 500)"
    )
    group.add_argument(
        "--per-minute", type=values.per_minute, metavar="N", help="devices started a minute; 'none': no limit"
    )
    group.add_argument(
        "--grow",
        type=values.growth,
        metavar="FACTOR/AFTER",
        help="the rate grows: 2/1000 is twice as fast each time 1,000 were notified; 2/1000:succeeded",
    )
    group.add_argument("--max-per-minute", type=values.per_minute, metavar="N", help="where --grow ends")


def _add_order(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--order", choices=("id", "random"), help="by id (the default), or at random by --seed"
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same order")


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--abort",
        type=values.abort,
        action="append",
        metavar="CRITERION",
        help="failed=20%%/10:pause is: pause at 20%% failed of at least 10 that ended; may be repeated",
    )
    group.add_argument(
        "--deadline", type=positive_seconds, metavar="SECONDS", help="cancel when it has run so long"
    )
    group.add_argument("--start-at", type=values.moment, metavar="TIME", help="2026-08-01T22:00, local or …Z")
    group.add_argument("--end-at", type=values.moment, metavar="TIME", help="start no device after this")
    group.add_argument(
        "--at-end",
        choices=("finish", "cancel", "force-cancel"),
        help="what becomes of it at --end-at",
    )
    group.add_argument(
        "--window",
        type=values.window,
        action="append",
        metavar="WINDOW",
        help="start devices only then: 'mon-fri 22:00-06:00' (UTC); may be repeated",
    )


class PlanSource:
    """A plan made of a file and of flags, which remembers what came from where."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.file: PlanFile | None = None if args.file is None else load_plan_file(args.file)
        before: Json = {} if self.file is None else self.file.document
        self._given = flags_of(args, before)
        self.plan = _merged(before, self._given)

    def located(self, error: ApiError) -> UsageError | ApiError:
        """Return the service's ``error`` about a key with the place that the key was given at."""
        key = key_of(error.detail) if error.status in (400, 422) else None
        if key is None:
            return error
        flag = next((flag for name, flag in _FLAGS.items() if _covers(name, key, self._given)), None)
        place = flag or (self.file.place_of(key) if self.file is not None else None)
        return error if place is None else UsageError(f"{place}: {error.detail}")


def flags_of(args: argparse.Namespace, before: Mapping[str, Any]) -> Json:
    """Return what was given by flags, by the keys of a plan; ``before`` is a file's plan."""
    plan: Json = {
        "name": args.name,
        "release": args.release,
        "targets": _present(_targets_of(args, before)),
        "pace": _present({**pace_of(args, _table(before, "pace")), "order": args.order, "seed": args.seed}),
        "abort": args.abort,
        "deadlines": _present({"rollout_s": args.deadline}),
        "options": run_options.run_options_of(args),
        "schedule": _present(
            {
                "start_at": args.start_at,
                "end_at": args.end_at,
                "at_end": args.at_end and args.at_end.replace("-", "_"),
                "windows": args.window,
            }
        ),
        "overlap": args.overlap,
        "waves": _waves_of(args, before),
    }
    return {name: value for name, value in plan.items() if value not in (None, {})}


def _targets_of(args: argparse.Namespace, before: Mapping[str, Any]) -> Json:
    targets: Json = {
        "models": names_of(args.model or []) or _ABSENT,
        "firmware_versions": names_of(args.firmware_version or []) or _ABSENT,
        "tags": tags_of(args.tag) if args.tag else _ABSENT,
        "states": [state.replace("-", "_") for state in names_of(args.states or [])] or _ABSENT,
        "percent": _ABSENT if args.percent is None else args.percent,
        "exclude": names_of(args.exclude or []) or _ABSENT,
        "continuous": _ABSENT if args.continuous is None else args.continuous,
    }
    if not (args.all_new or args.devices or args.failed_in):
        return targets
    in_file = _table(before, "targets")
    targets["devices"] = names_of(args.devices or []) or _ABSENT
    targets["failed_in"] = args.failed_in or _ABSENT
    # Whom the file chooses otherwise is not meant then.
    others = (
        ("failed_in", "models", "firmware_versions", "tags") if args.devices else ("devices", "failed_in")
    )
    for name in others:
        if targets[name] is _ABSENT and name in in_file:
            targets[name] = None
    return targets


def _waves_of(args: argparse.Namespace, before: Mapping[str, Any]) -> list[Json] | None:
    """Return the waves with the threshold of each, and the gate before each next one."""
    gate = args.gate or ("pause" if args.pause is not None else None)
    if args.pause is not None and gate != "pause":
        raise UsageError(f"--pause is for --gate pause, not for {gate}: leave one of them out")
    if args.gate == "pause" and args.pause is None:
        raise UsageError("--gate pause needs --pause SECONDS: how long to wait between waves")
    more = {"success_threshold_percent": args.threshold, "gate": gate, "pause_s": args.pause}
    given = {name: value for name, value in more.items() if value is not None}
    waves = args.waves if args.waves is not None else before.get("waves")
    if not given:
        return args.waves  # type: ignore[no-any-return]  # what `values.waves` has made
    if waves is None:
        waves = [{"percent": 100.0}]
    if not isinstance(waves, list) or (gate is not None and len(waves) < 2):
        raise UsageError("--gate and --pause are between waves: give several, as in --waves 5%,25%,100%")
    last = {name: value for name, value in given.items() if name == "success_threshold_percent"}
    return [{**wave, **given} for wave in waves[:-1]] + [{**wave, **last} for wave in waves[-1:]]


def pace_of(args: argparse.Namespace, before: Mapping[str, Any]) -> Json:
    """Return the pace that was given; what grows begins with --per-minute, or what ``before`` has."""
    pace: Json = {} if args.in_flight is None else {"in_flight": args.in_flight}
    if args.grow is None and args.max_per_minute is None:
        if args.per_minute is not None:
            pace["per_minute"] = None if args.per_minute == "none" else args.per_minute
        return pace
    rate: Any = before.get("per_minute")
    growth: Json = dict(rate) if isinstance(rate, dict) else {} if rate is None else {"base": rate}
    if args.per_minute is not None:
        growth["base"] = args.per_minute
    if args.grow is not None:
        growth = {name: value for name, value in growth.items() if not name.startswith("grow_after")}
        growth |= args.grow
    if args.max_per_minute is not None:
        growth["maximum"] = args.max_per_minute
    if not isinstance(growth.get("base"), int | float):
        raise UsageError("--grow and --max-per-minute need --per-minute N, the rate to begin with")
    if "factor" not in growth:
        raise UsageError("--max-per-minute needs --grow FACTOR/AFTER: without it the rate stays as it is")
    if not isinstance(growth.get("maximum"), int | float):
        raise UsageError("--grow needs --max-per-minute N, the rate at which it stops growing")
    return {**pace, "per_minute": growth}


def _present(found: Json) -> Json:
    """Return what was given; None is left where it takes back what a file has."""
    return {
        name: value
        for name, value in found.items()
        if value is not _ABSENT and (value is not None or name in _MAY_BE_NONE)
    }


def _merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> Json:
    """Return ``before`` with what was ``given``, which wins key by key, and kind by kind of failure."""
    plan = dict(before)
    for name, value in given.items():
        if isinstance(value, dict):
            table = _table(before, name)
            plan[name] = {**table, **value}
            if "retries" in value and isinstance(table.get("retries"), Mapping):
                plan[name]["retries"] = {**table["retries"], **value["retries"]}
        else:
            plan[name] = value
    return plan


def _table(plan: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = plan.get(name, {})
    if not isinstance(table, Mapping):
        raise UsageError(f"{name} must be a table of keys, not {table!r}: see `muster rollout example`")
    return table


def _covers(name: str, key: str, given: Mapping[str, Any]) -> bool:
    """Return whether ``key`` lies in what the flag of ``name`` has set."""
    if not (key == name or key.startswith((f"{name}.", f"{name}["))):
        return False
    found: Any = given
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True
