"""Arguments that say what a fleet, or a group of it, is."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provisioning.cli.arguments import behaviour_weights, device_count, process_count, tags_of
from provisioning.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.spec import FleetSpec

# What the flags of a fleet of one group are called, by the keys that errors name.
_FLAGS = {
    "groups[0].count": "--count",
    "groups[0].behaviours": "--behaviours",
    "groups[0].prefix": "--prefix",
    "groups[0].model": "--model",
    "groups[0].firmware_version": "--firmware-version",
    "groups[0].tags": "--tag",
    "groups[0].bandwidth_bytes_per_s": "--bandwidth",
    "devices_per_s": "--connects-per-s",
    "seed": "--seed",
    "speed": "--speed",
}
# The flags that describe a group, by the names of its keys in a fleet file.
_GROUP_FLAGS = ("model", "firmware_version", "prefix", "behaviours", "bandwidth_bytes_per_s")


def add_group_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a group of devices is: all but its number and its name."""
    parser.add_argument(
        "--behaviours",
        type=behaviour_weights,
        metavar="NAME=WEIGHT,…",
        help="how many behave how: healthy=0.9,slow=0.1, or 'all'; see `muster fleet behaviours`",
    )
    parser.add_argument("--prefix", help="device ids are PREFIX-00001 and on (default: dev)")
    parser.add_argument("--model", help="the model that the devices register with (default: demo-1)")
    parser.add_argument(
        "--firmware-version", metavar="VERSION", help="the firmware that they say they have (default: 0.9.0)"
    )
    parser.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a tag that the devices register with; may be repeated",
    )
    parser.add_argument(
        "--bandwidth",
        type=int,
        dest="bandwidth_bytes_per_s",
        metavar="BYTES_PER_S",
        help="cap on each download of a device",
    )


def group_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of a group, by the keys of a fleet file."""
    given = {name: getattr(args, name) for name in _GROUP_FLAGS}
    group = {name: value for name, value in given.items() if value is not None}
    return {**group, "tags": tags_of(args.tag)} if args.tag else group


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a whole fleet is: a file, or flags for one of a single group."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--count", type=device_count, metavar="N", help="number of devices")
    what.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="a fleet file, which may have several groups; `muster fleet example` prints one",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same fleet (default: 1)"
    )
    add_group_arguments(parser)
    parser.add_argument(
        "--speed",
        type=float,
        metavar="FACTOR",
        help="how many times as fast what devices wait for by themselves goes by (default: 1)",
    )
    parser.add_argument(
        "--connects-per-s", type=float, metavar="N", help="how fast the fleet connects (default: 500)"
    )


def add_share_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how a fleet is shared among processes and hosts."""
    parser.add_argument(
        "--processes",
        type=process_count,
        metavar="N",
        help="processes to share the devices (default: by their number)",
    )
    parser.add_argument(
        "--shard", metavar="K/N", help="only the K-th of N parts of the fleet, for a fleet on N hosts"
    )


def spec_of(args: argparse.Namespace) -> FleetSpec:
    """Return the fleet that ``args`` describe; a UsageError names the key and the remedy."""
    from devices.fleet_file import load_fleet_file
    from devices.spec import FleetSpec, RampSpec

    group = group_of(args)
    with fleet_errors(flags=args.file is None):
        if args.file is None:
            document = {"groups": [{"count": args.count, **group}]}
            spec = FleetSpec.from_document(document)
        elif group:
            raise UsageError(f"{next(iter(group))} is the groups' in {args.file}: write it there")
        else:
            spec = load_fleet_file(args.file)
        if args.seed is not None:
            spec = replace(spec, seed=args.seed)
        if args.speed is not None:
            spec = replace(spec, speed=args.speed)
        if args.connects_per_s is not None:
            spec = replace(spec, ramp=RampSpec(devices_per_s=args.connects_per_s))
    return spec


@contextmanager
def fleet_errors(*, flags: bool = False) -> Iterator[None]:
    """Turn what is wrong with a fleet into an error of the command line; with ``flags`` it names the flag."""
    from devices.errors import FleetSpecError

    try:
        yield
    except FleetSpecError as error:
        key = next((_FLAGS[k] for k in _FLAGS if flags and error.key.startswith(k)), error.key)
        raise UsageError(str(FleetSpecError(key, error.problem, error.remedy))) from error
