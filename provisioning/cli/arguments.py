"""Arguments that several commands share, and the parser that says what is wrong in one line."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from provisioning.cli.client import ServiceClient, find_service
from provisioning.cli.errors import UsageError
from provisioning.settings import MAX_FLEET_DEVICES, MAX_FLEET_PROCESSES, Environment

Run = Callable[[argparse.Namespace], int]


# The place that a command's `add_parser` adds itself to; argparse has no public name for its type.
Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors: one line that names the command's --help."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def add_command(
    subparsers: Subparsers, name: str, run: Run, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add the command ``name``; ``examples`` are shell lines, shown at the end of its help."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog="examples:\n" + "".join(f"  {line.strip()}\n" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where the service keeps its state (default: $MUSTER_STATE, or .muster)",
    )


def add_client_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command that asks the service takes: where it is, and --json."""
    add_state_dir(parser)
    parser.add_argument(
        "--url",
        metavar="URL",
        help="address of the service (default: $MUSTER_URL, or the one of the state directory)",
    )
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON for programs instead of text")


def state_dir_of(args: argparse.Namespace) -> Path:
    """Return the state directory that ``args`` or the environment names."""
    return args.state_dir if args.state_dir is not None else Environment.read().state_dir


def client_of(args: argparse.Namespace) -> ServiceClient:
    """Return a client of the service that ``args`` or the environment names.

    A --state-dir on the command line wins over a MUSTER_URL in the environment.
    """
    environment = Environment.read()
    api = environment.api
    if args.url is None and args.state_dir is not None:
        return find_service(args.state_dir, api=api)
    url = args.url if args.url is not None else environment.url
    client = find_service(environment.state_dir, url, api=api)
    if url is not None and client.in_the_clear:
        _warn_once(f"the token goes to {client.url} in the clear: use https, or a tunnel (ssh -L)")
    return client


@functools.cache
def _warn_once(message: str) -> None:
    print(f"muster: {message}", file=sys.stderr, flush=True)


def device_count(text: str) -> int:
    """Parse the size of a fleet; the message of the error says the bounds."""
    try:
        count = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of devices") from None
    if not 1 <= count <= MAX_FLEET_DEVICES:
        raise argparse.ArgumentTypeError(
            f"a fleet has 1 to {MAX_FLEET_DEVICES:,} devices, not {count:,}: choose a number in that range"
        )
    return count


def process_count(text: str) -> int:
    """Parse how many processes share a fleet; the message of the error says the bounds."""
    count = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= count <= MAX_FLEET_PROCESSES:
        raise argparse.ArgumentTypeError(
            f"a fleet has 1 to {MAX_FLEET_PROCESSES} processes, not {text}: choose a number in that range"
        )
    return count


def behaviour_weights(text: str) -> dict[str, float]:
    """Parse ``healthy=0.9,slow=0.1``; unknown names are an error here already."""
    from devices.errors import FleetSpecError
    from devices.spec import parse_behaviours

    try:
        return parse_behaviours(text)
    except FleetSpecError as error:
        # argparse names the argument, which is the outermost part of the key.
        key = error.key.removeprefix("behaviours").removeprefix(".")
        told = FleetSpecError(key, error.problem, error.remedy)
        raise argparse.ArgumentTypeError(str(told)) from error


def positive_seconds(text: str) -> float:
    """Parse a duration in seconds, more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def port_number(text: str) -> int:
    """Parse a TCP port, 0 for any free one."""
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give 0 (any free one) to 65535")
    return port


def public_broker(text: str) -> str:
    """Parse which broker, without a password; what is refused is not repeated."""
    from broker.address import holds_password

    if holds_password(text):
        raise argparse.ArgumentTypeError(
            "it has a password, and a command line is seen by everybody on the machine: give the URL by"
            " MUSTER_BROKER, or in a file that MUSTER_BROKER_FILE names"
        )
    return text


def add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the seed and the behaviours of a fleet."""
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed gives the same fleet")
    parser.add_argument(
        "--behaviours",
        type=behaviour_weights,
        metavar="NAME=WEIGHT,…",
        help="how the devices behave, by weight; 'all' is each of `muster fleet behaviours`",
    )
    parser.add_argument(
        "--processes",
        type=process_count,
        metavar="N",
        help="processes to share the devices (default: by their number)",
    )


def tags_of(pairs: list[str]) -> dict[str, str]:
    """Return the tags that were given as ``NAME=VALUE``."""
    tags: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"{pair!r} is no tag: write NAME=VALUE")
        tags[name] = value
    return tags


def names_of(parts: list[str]) -> list[str]:
    """Return the names in arguments that may be repeated and may hold several, joined by commas.

    One that names nothing, as an unset variable of a shell, is a UsageError: it must not stand for all.
    """
    for part in parts:
        if not part.strip(" ,"):
            raise UsageError(f"{part!r} names nothing: give a name, or leave the flag out")
    return [name.strip() for part in parts for name in part.split(",") if name.strip()]
