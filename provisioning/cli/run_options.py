"""Flags for what holds for each device of a run or a rollout, and the same in words.

The service knows the defaults, and has the last word on what fits together.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from provisioning.cli.arguments import positive_seconds
from provisioning.cli.errors import UsageError
from provisioning.cli.terminal import clock
from provisioning.retries import KINDS

Json = dict[str, Any]

FLAGS: Mapping[str, str] = {
    "ack_timeout_s": "--ack-timeout",
    "activation_timeout_s": "--activation-timeout",
    "packaging_timeout_s": "--packaging-timeout",
    "notifying_timeout_s": "--notifying-timeout",
    "device_timeout_s": "--device-timeout",
    "sas_lifetime_s": "--sas-lifetime",
    "max_attempts": "--attempts",
    "allow_downgrade": "--allow-downgrade",
}
"""By option; `retries` has --retry."""

_RETRY_KEYS: Mapping[str, str] = {
    "delay": "delay_s",
    "factor": "factor",
    "max": "max_delay_s",
    "jitter": "jitter",
}
_UNITS: Mapping[str, float] = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_RETRY = "write KIND=N,delay=TIME,factor=NUMBER,max=TIME,jitter=SHARE, as in no_ack=3,delay=5s,factor=2"


def add_run_options(parser: argparse._ActionsContainer) -> None:
    """Add what holds for each device."""
    for flag, told in (
        ("--ack-timeout", "how long a device may take to acknowledge its package before it is sent again"),
        ("--activation-timeout", "how long a device may take to activate the firmware that it downloaded"),
        ("--packaging-timeout", "how long making and uploading a package may take, all tries together"),
        ("--notifying-timeout", "how long telling a device of its package may take, all tries together"),
        ("--device-timeout", "for a whole device, from its start over all attempts (default: no end)"),
        ("--sas-lifetime", "the longest that a package's URL is good for (default: as long as it is of use)"),
    ):
        parser.add_argument(flag, type=positive_seconds, metavar="SECONDS", help=told)
    parser.add_argument(
        "--attempts", type=int, metavar="N", help="how often a device is tried, whatever goes wrong"
    )
    parser.add_argument(
        "--retry",
        type=retry,
        action="append",
        metavar="KIND=N,…",
        help=(
            "attempts that may end in a failure of this kind, and what is waited before the next: with"
            " no_ack=3,delay=5s,factor=2,max=60s,jitter=0.2 5 s, then 10 s, by device up to a fifth less;"
            f" may be repeated; kinds: {', '.join(KINDS)}"
        ),
    )
    parser.add_argument(
        "--allow-downgrade",
        action="store_true",
        default=None,
        help="devices may go back to an older version than they run; else they reject it",
    )


def run_options_of(args: argparse.Namespace) -> Json:
    """Return the options of a run that were given; the service knows the defaults."""
    given: Json = {
        option: getattr(args, flag.removeprefix("--").replace("-", "_")) for option, flag in FLAGS.items()
    }
    retries: Json = {}
    for kind, policy in args.retry or ():
        if kind in retries:
            raise UsageError(f"--retry {kind} is given twice: say all of a kind at once")
        retries[kind] = policy
    given["retries"] = retries or None
    return {name: value for name, value in given.items() if value is not None}


def retry(text: str) -> tuple[str, Json]:
    """Parse ``no_ack=3,delay=5s,factor=2,max=60s,jitter=0.2``; the number may be left out with a delay."""
    first, *more = (part.strip() for part in text.split(","))
    name, equals, attempts = first.partition("=")
    kind = name.strip().replace("-", "_")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(
            f"{name!r} in {text!r} is no kind of failure: use {', '.join(KINDS)}"
        )
    policy: Json = {}
    if equals:
        if not (attempts.isascii() and attempts.isdigit() and int(attempts) > 0):
            raise argparse.ArgumentTypeError(
                f"{attempts!r} in {text!r} is no number of attempts from 1 on: {_RETRY}"
            )
        policy["max_attempts"] = int(attempts)
    for part in more:
        key, _, value = part.partition("=")
        if key not in _RETRY_KEYS or _RETRY_KEYS[key] in policy:
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} can't be read: {_RETRY}")
        policy[_RETRY_KEYS[key]] = _duration(value, text) if key in ("delay", "max") else _number(value, text)
    if not policy:
        raise argparse.ArgumentTypeError(f"{text!r} says nothing of {name}: {_RETRY}")
    return kind, policy


def _duration(value: str, text: str) -> float:
    found = _DURATION.fullmatch(value)
    if found is None:
        raise argparse.ArgumentTypeError(f"{value!r} in {text!r} is no time: write one such as 5s, 2m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def _number(value: str, text: str) -> float:
    if not _NUMBER.fullmatch(value):
        raise argparse.ArgumentTypeError(f"{value!r} in {text!r} is no number: {_RETRY}")
    return float(value)


def deadlines_in_words(options: Mapping[str, Any]) -> str:
    """Return the deadlines of each device, as ``acknowledgement 1:00, activation 0:30, device 1:00:00``."""
    names = {
        "packaging_timeout_s": "packaging",
        "notifying_timeout_s": "notifying",
        "ack_timeout_s": "acknowledgement",
        "activation_timeout_s": "activation",
        "device_timeout_s": "device in all",
    }
    return ", ".join(
        f"{what} {_time(options[name])}" for name, what in names.items() if options.get(name) is not None
    )


def retries_in_words(options: Mapping[str, Any]) -> str:
    """Return how often devices are tried: ``3 attempts; no_ack: 2, after 5 s, then 2 times as long, …``."""
    said = [f"{options['max_attempts']} attempts"] if options.get("max_attempts") is not None else []
    for kind, policy in (options.get("retries") or {}).items():
        parts = [str(policy["max_attempts"])] if policy.get("max_attempts") is not None else []
        if (delay_s := policy.get("delay_s")) is not None:
            parts.append(f"after {_time(delay_s)}")
            if (factor := policy.get("factor")) is not None:
                parts.append(f"each time {factor:g} times as long")
            if (most_s := policy.get("max_delay_s")) is not None:
                parts.append(f"at most {_time(most_s)}")
            if jitter := policy.get("jitter"):
                parts.append(f"up to {jitter:.0%} earlier")
        said.append(f"{kind} {', '.join(parts)}")
    return "; ".join(said)


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else clock(seconds)
