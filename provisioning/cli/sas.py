"""``muster sas``: the URLs by which devices read their packages, and their revocation."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Json
from provisioning.cli.terminal import Terminal


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "sas",
        lambda args: args.parser.error("say what to do: show or revoke"),
        summary="the URLs by which devices read their packages: revoke them",
        description=(
            "Each device gets a URL that reads its own package, for as long as the device is waited for.\n"
            "All of them name one access policy of the container in blob storage."
        ),
        examples="muster sas revoke\nmuster sas show --json",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    show = add_command(
        commands,
        "show",
        lambda args: _say(client_of(args).sas(), args, revoked=False),
        summary="the access policy that URLs name",
        description="Show the access policy that URLs name, and whether blob storage has yet to take it.",
        examples="muster sas show\nmuster sas show --json",
    )
    add_client_arguments(show)
    revoke = add_command(
        commands,
        "revoke",
        lambda args: _say(client_of(args).revoke_sas(), args, revoked=True),
        summary="make all URLs useless that were handed out",
        description=(
            "Make all URLs useless that were handed out, at once. New ones name another access policy.\n"
            "A device that is downloading by one is refused at its next request, and gets a new one with\n"
            "its next attempt: one attempt is spent. Where blob storage is away, it is done as soon as\n"
            "that answers, and the exit code is 1 until then."
        ),
        examples="muster sas revoke\nmuster sas revoke --json",
    )
    add_client_arguments(revoke)


def _say(urls: Json, args: argparse.Namespace, *, revoked: bool) -> int:
    terminal = Terminal()
    if args.json:
        terminal.json(urls)
    elif urls["pending"]:
        terminal.line(
            f"blob storage does not answer: URLs get the policy {urls['policy']} as soon as it does"
        )
    elif revoked:
        terminal.line(f"all URLs are revoked; those to come have the policy {urls['policy']}")
    else:
        terminal.line(f"URLs have the policy {urls['policy']}")
    return int(bool(urls["pending"]))
