"""The command line of a fleet process, from both sides: who starts one and the process itself.

A fleet comes from a file (``--fleet``), or from flags where it is of one group. Only the standard library is
imported here, besides modules that keep to it too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.identity import DEFAULT_TOKEN_LIFETIME_S
from devices.errors import FleetSpecError
from devices.fleet_file import FleetFile
from devices.roster import parse_shard
from devices.spec import DEFAULT_BEHAVIOURS, DEFAULT_DEVICES_PER_S, FleetSpec, RampSpec, parse_behaviours

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, kw_only=True)
class FleetArguments:
    """Everything a fleet process is told: a fleet, its shard of it, and where to go.

    ``broker_file`` is a file that holds ``broker_url``, which may have a password in it: everybody on the
    machine can read a command line.
    """

    fleet: Path | FleetSpec
    broker_url: str = field(repr=False)
    trust: Sequence[str] = ()
    """Public keys in base64, where there is no ``trust_file`` to follow."""
    trust_file: Path | None = None
    broker_file: Path | None = None
    shard: tuple[int, int] = (1, 1)
    group_key_file: Path | None = None
    ca_file: Path | None = None
    certificates: Path | None = None
    """A directory with the key and certificate of each device."""
    token_lifetime_s: int = DEFAULT_TOKEN_LIFETIME_S
    stats_file: Path | None = None
    control_file: Path | None = None
    trace_file: Path | None = None
    owned: bool = False
    """End when standard input does: with whoever started the process, however that one ends."""
    held: bool = False
    """Begin when a byte comes on standard input; end where that ends before. So whoever starts the process
    can put it on record before it does anything, and leaves nothing behind that is on no record."""
    log_level: str = "warning"

    def read(self) -> FleetFile:
        """The fleet; raises `FleetSpecError`."""
        return FleetFile.read(self.fleet) if isinstance(self.fleet, Path) else FleetFile(spec=self.fleet)


def to_argv(arguments: FleetArguments) -> list[str]:
    """What follows ``python -m devices`` for a fleet from a file; `parse` gives the same arguments back."""
    assert isinstance(arguments.fleet, Path)
    argv = [
        f"--fleet={arguments.fleet}",
        f"--broker={arguments.broker_url}"
        if arguments.broker_file is None
        else f"--broker-file={arguments.broker_file}",
        f"--shard={arguments.shard[0]}/{arguments.shard[1]}",
        f"--token-lifetime={arguments.token_lifetime_s}",
        f"--log-level={arguments.log_level}",
    ]
    argv += [f"--trust={key}" for key in arguments.trust]
    for option, path in (
        ("trust-file", arguments.trust_file),
        ("group-key-file", arguments.group_key_file),
        ("ca-file", arguments.ca_file),
        ("certificates", arguments.certificates),
        ("stats-file", arguments.stats_file),
        ("control-file", arguments.control_file),
        ("trace-file", arguments.trace_file),
    ):
        if path is not None:
            argv.append(f"--{option}={path}")
    if arguments.owned:
        argv.append("--owned")
    if arguments.held:
        argv.append("--held")
    return argv


def parse(argv: Sequence[str]) -> FleetArguments:
    """Read a fleet process's arguments.

    Raises `FleetSpecError` for values that can't be; exits (as argparse does) for options that aren't.
    """
    given = _parser().parse_args(argv)
    return FleetArguments(
        fleet=given.fleet if given.fleet is not None else _from_flags(given),
        broker_url=given.broker if given.broker_file is None else _read_url(given.broker_file),
        broker_file=given.broker_file,
        trust=tuple(given.trust or ()),
        trust_file=given.trust_file,
        shard=parse_shard(given.shard),
        group_key_file=given.group_key_file,
        ca_file=given.ca_file,
        certificates=given.certificates,
        token_lifetime_s=given.token_lifetime,
        stats_file=given.stats_file,
        control_file=given.control_file,
        trace_file=given.trace_file,
        owned=given.owned,
        held=given.held,
        log_level=given.log_level,
    )


def _from_flags(given: argparse.Namespace) -> FleetSpec:
    if given.count is None:
        raise FleetSpecError("count", "it is missing", "give --count, or a fleet file by --fleet")
    return FleetSpec.of(
        seed=given.seed,
        ramp=RampSpec(devices_per_s=given.connects_per_s),
        count=given.count,
        behaviours=DEFAULT_BEHAVIOURS if given.behaviours is None else parse_behaviours(given.behaviours),
        model=given.model,
        firmware_version=given.firmware_version,
        tags=dict(_parse_tag(tag) for tag in given.tag),
        prefix=given.prefix,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devices",
        description="Run emulated devices against an MQTT broker until SIGTERM or SIGINT.",
        epilog="example: python -m devices --broker mqtt://127.0.0.1:1883 --count 20 --trust BASE64KEY",
    )
    option = parser.add_argument
    broker = parser.add_mutually_exclusive_group(required=True)
    broker.add_argument("--broker", metavar="URL", help="mqtt://[user:password@]host[:port] or mqtts://…")
    broker.add_argument(
        "--broker-file", type=Path, metavar="PATH", help="a file with that URL, out of sight of others"
    )
    option("--fleet", type=Path, metavar="PATH", help="a fleet file (.toml), in the place of flags")
    option("--count", type=int, help="devices in the whole fleet")
    option("--seed", type=int, default=1, help="the same seed gives the same fleet (default 1)")
    option("--behaviours", metavar="NAME=WEIGHT,…", help="how many behave how, as in healthy=0.9,slow=0.1")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument(
        "--trust",
        action="append",
        metavar="BASE64KEY",
        help="the Ed25519 public key that packages must be signed by (repeatable)",
    )
    trust.add_argument(
        "--trust-file",
        type=Path,
        metavar="PATH",
        help="a file with such keys, a line for each, which is read again whenever it changes",
    )
    option("--model", default="demo-1", help="the model that devices register as")
    option("--firmware-version", default="0.9.0", help="the firmware version that devices begin with")
    option("--tag", action="append", default=[], metavar="KEY=VALUE", help="a tag to register (repeatable)")
    option("--prefix", default="dev", help="device ids are PREFIX-00001 and so on")
    option("--shard", default="1/1", metavar="K/N", help="run only the K-th of N parts of the fleet")
    option(
        "--connects-per-s",
        type=float,
        default=DEFAULT_DEVICES_PER_S,
        help="the ramp of the whole fleet (default 500)",
    )
    option(
        "--group-key-file",
        type=Path,
        metavar="PATH",
        help="log in as each device, with a token by a key derived from this one (base64)",
    )
    option(
        "--token-lifetime",
        type=_seconds,
        default=DEFAULT_TOKEN_LIFETIME_S,
        metavar="SECONDS",
        help=f"the period of these tokens, which the broker must know (default {DEFAULT_TOKEN_LIFETIME_S})",
    )
    option(
        "--ca-file",
        type=Path,
        metavar="PATH",
        help="trust the broker's certificate by this authority's (PEM)",
    )
    option(
        "--certificates",
        type=Path,
        metavar="DIR",
        help="log in as each device, by DIR/<device id>.pem with its key and certificate (mqtts:// only)",
    )
    option(
        "--stats-file", type=Path, metavar="PATH", help="where to keep statistics as JSON, anew each second"
    )
    option("--control-file", type=Path, metavar="PATH", help="take changes, and write here where and how")
    option("--trace-file", type=Path, metavar="PATH", help="write each random choice as a line of JSON")
    option("--owned", action="store_true", help="end when standard input ends")
    option("--held", action="store_true", help="begin when a byte comes on standard input")
    option("--log-level", choices=LOG_LEVELS, default="warning")
    return parser


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= 10**8:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 1 on")
    return int(text)


def _read_url(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FleetSpecError(
            "broker-file", f"{path} can't be read ({error})", "give a file with the broker's URL"
        ) from error


def _parse_tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise FleetSpecError("tags", f"{text!r} has no value", "write KEY=VALUE")
    return key, value
