"""``muster fleet run``: a fleet in the foreground, without a service; for further hosts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from provisioning.cli.arguments import (
    Subparsers,
    add_command,
    add_json,
    port_number,
    positive_seconds,
)
from provisioning.cli.errors import UsageError
from provisioning.cli.fleet.groups import add_share_arguments, add_spec_arguments, spec_of
from provisioning.settings import LOCAL_BROKERS, Environment

if TYPE_CHECKING:
    from devices.spec import FleetSpec


def add_parsers(commands: Subparsers) -> None:
    run = add_command(
        commands,
        "run",
        run_fleet,
        summary="run a fleet in the foreground, on this or another host",
        description=(
            "Run a fleet against any broker until Ctrl-C, with live numbers and a summary at the end. It\n"
            "needs no service here; the key that packages are signed with is in a service's /api/health.\n"
            "The broker's URL and a group key may come by MUSTER_BROKER and MUSTER_GROUP_KEY_FILE."
        ),
        examples="""muster fleet run --count 1000 --broker mqtt://broker.lan:1883 --trust BASE64KEY
            muster fleet run --file fleet.toml --shard 2/2 --broker mqtt://broker.lan --trust BASE64KEY
            muster fleet run --count 100 --for 60 --json --broker mqtt://broker.lan --trust BASE64KEY""",
    )
    add_spec_arguments(run)
    add_share_arguments(run)
    run.add_argument(
        "--broker",
        metavar="URL",
        help="mqtt://[user:password@]host[:port] or mqtts://… (default: $MUSTER_BROKER)",
    )
    trust = run.add_mutually_exclusive_group(required=True)
    trust.add_argument(
        "--trust",
        action="append",
        metavar="BASE64KEY",
        help="a public key that packages are signed with; may be repeated",
    )
    trust.add_argument(
        "--trust-file",
        type=Path,
        metavar="FILE",
        help="a file with such keys, a line for each; devices follow its changes",
    )
    run.add_argument(
        "--for", dest="for_s", type=positive_seconds, metavar="SECONDS", help="stop after so long"
    )
    run.add_argument(
        "--metrics-port", type=port_number, metavar="PORT", help="serve Prometheus' metrics on 127.0.0.1:PORT"
    )
    add_json(run)


def run_fleet(args: argparse.Namespace) -> int:
    environment = Environment.read()
    broker = args.broker or environment.broker
    if broker in LOCAL_BROKERS:
        raise UsageError("say where the broker is: --broker mqtt://host:port, or MUSTER_BROKER")
    _check(broker)
    spec: FleetSpec = spec_of(args)
    group_key: Path | None = environment.group_key_file
    # Here, because the parser imports this module for every command.
    from provisioning.cli.fleet.foreground import Options, run_in_foreground

    return run_in_foreground(
        Options(
            spec=spec.to_document(),
            processes=args.processes,
            shard=args.shard,
            broker_url=broker,
            trust=args.trust or (),
            trust_file=args.trust_file,
            group_key_file=group_key,
            ca_file=environment.broker_tls.ca_file,
            for_s=args.for_s,
            metrics_port=args.metrics_port,
            as_json=args.json,
        )
    )


def _check(broker: str) -> None:
    from broker.address import BrokerAddress, BrokerAddressError

    try:
        BrokerAddress.parse(broker)
    except BrokerAddressError as error:
        raise UsageError(str(error)) from error
