"""The command line of a fleet process, from both sides: who starts one and the process itself.

Only the standard library is imported here, besides `devices.plan`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from devices.errors import FleetSpecError
from devices.plan import DEFAULT_BEHAVIOURS, FleetSpec, parse_behaviours, parse_shard

DEFAULT_CONNECTS_PER_S: Final = 500.0


@dataclass(frozen=True, kw_only=True)
class FleetArguments:
    """Everything a fleet process is told: a spec, its shard of it, and where to go."""

    spec: FleetSpec
    broker_url: str
    trust: Sequence[str]
    shard: tuple[int, int] = (1, 1)
    connects_per_s: float = DEFAULT_CONNECTS_PER_S
    stats_file: Path | None = None
    log_level: str = "warning"


def to_argv(arguments: FleetArguments) -> list[str]:
    """What follows ``python -m devices``; `parse` gives the same arguments back."""
    spec = arguments.spec
    argv = [
        f"--broker={arguments.broker_url}",
        f"--count={spec.count}",
        f"--seed={spec.seed}",
        f"--behaviours={','.join(f'{name}={weight!r}' for name, weight in spec.behaviours.items())}",
        f"--model={spec.model}",
        f"--firmware-version={spec.firmware_version}",
        f"--prefix={spec.prefix}",
        f"--shard={arguments.shard[0]}/{arguments.shard[1]}",
        f"--connects-per-s={arguments.connects_per_s!r}",
        f"--log-level={arguments.log_level}",
    ]
    argv += [f"--trust={key}" for key in arguments.trust]
    argv += [f"--tag={key}={value}" for key, value in spec.tags.items()]
    if arguments.stats_file is not None:
        argv.append(f"--stats-file={arguments.stats_file}")
    return argv


def parse(argv: Sequence[str]) -> FleetArguments:
    """Read a fleet process's arguments.

    Raises `FleetSpecError` for values that can't be; exits (as argparse does) for options that aren't.
    """
    given = _parser().parse_args(argv)
    return FleetArguments(
        spec=FleetSpec(
            count=given.count,
            seed=given.seed,
            behaviours=DEFAULT_BEHAVIOURS if given.behaviours is None else parse_behaviours(given.behaviours),
            model=given.model,
            firmware_version=given.firmware_version,
            tags=dict(_parse_tag(tag) for tag in given.tag),
            prefix=given.prefix,
        ),
        broker_url=given.broker,
        trust=tuple(given.trust),
        shard=parse_shard(given.shard),
        connects_per_s=given.connects_per_s,
        stats_file=given.stats_file,
        log_level=given.log_level,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devices",
        description="Run emulated devices against an MQTT broker until SIGTERM or SIGINT.",
        epilog="example: python -m devices --broker mqtt://127.0.0.1:1883 --count 20 --trust BASE64KEY",
    )
    option = parser.add_argument
    option("--broker", required=True, metavar="URL", help="mqtt://[user:password@]host[:port] or mqtts://…")
    option("--count", required=True, type=int, help="devices in the whole fleet")
    option("--seed", type=int, default=1, help="the same seed gives the same fleet (default 1)")
    option("--behaviours", metavar="NAME=WEIGHT,…", help="how many behave how, as in healthy=0.9,slow=0.1")
    option(
        "--trust",
        action="append",
        required=True,
        metavar="BASE64KEY",
        help="the Ed25519 public key that packages must be signed by (repeatable)",
    )
    option("--model", default="demo-1", help="the model that devices register as")
    option("--firmware-version", default="0.9.0", help="the firmware version that devices begin with")
    option("--tag", action="append", default=[], metavar="KEY=VALUE", help="a tag to register (repeatable)")
    option("--prefix", default="dev", help="device ids are PREFIX-00001 and so on")
    option("--shard", default="1/1", metavar="K/N", help="run only the K-th of N parts of the fleet")
    option("--connects-per-s", type=float, default=DEFAULT_CONNECTS_PER_S, help="the ramp (default 500)")
    option(
        "--stats-file", type=Path, metavar="PATH", help="where to keep statistics as JSON, anew each second"
    )
    option("--log-level", choices=("debug", "info", "warning", "error"), default="warning")
    return parser


def _parse_tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise FleetSpecError("tags", f"{text!r} has no value", "write KEY=VALUE")
    return key, value
