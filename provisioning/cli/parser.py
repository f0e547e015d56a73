"""The parser of the whole command line."""

from __future__ import annotations

import argparse

from provisioning import __version__
from provisioning.cli import (
    certificates,
    demo,
    devices,
    doctor,
    down,
    enrolment,
    fleet,
    keys,
    provision,
    release,
    rollout,
    sas,
    tokens,
    up,
    watch,
)
from provisioning.cli.arguments import OneLineParser
from provisioning.cli.report import command as report


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; each command's function is in the result's ``run``."""
    parser = OneLineParser(
        prog="muster",
        description="Provision a fleet of simulated IoT devices, durably.",
        epilog=(
            "the three jobs:\n"
            "  muster fleet launch --count 200   launch a device fleet\n"
            "  muster provision                  trigger bulk provisioning\n"
            "  muster watch                      inspect progress; muster device dev-00007 for one device\n"
            "\n`muster demo` does all three and cleans up; `muster up` starts the service that they ask.\n"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"muster {__version__}")
    parser.set_defaults(run=lambda args: parser.error("say what to do"))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (
        demo,
        up,
        down,
        fleet,
        provision,
        release,
        rollout,
        devices,
        enrolment,
        watch,
        report,
        certificates,
        keys,
        sas,
        tokens,
        doctor,
    ):
        module.add_parser(subparsers)
    return parser
