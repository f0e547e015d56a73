"""``muster key``: the keys that packages are signed with."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.rollout.words import moment
from provisioning.cli.terminal import Terminal


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "key",
        lambda args: args.parser.error("say what to do: list, rotate or retire"),
        summary="the keys that packages are signed with: list, replace, retire them",
        description=(
            "Packages are signed with the newest key. Devices trust it and those before it, until these are\n"
            "retired: then they refuse what these have signed. Fleets that the service has launched follow\n"
            "at once; to fleets on other machines the public keys have to be brought (--trust-file)."
        ),
        examples="""muster key list
            muster key rotate
            muster key retire 3f2a9c51d07b8e64""",
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    listing = add_command(
        commands,
        "list",
        run_list,
        summary="list the keys: which one signs, which are trusted, which are retired",
        description="List the keys, the oldest first, with the public keys that devices have to know.",
        examples="""muster key list
            muster key list --json | jq -r '.keys[] | select(.state != "retired").public_key'""",
    )
    add_client_arguments(listing)
    rotate = add_command(
        commands,
        "rotate",
        run_rotate,
        summary="make a new key, which signs from now on",
        description=(
            "Make a new key, which signs from now on. The secret half of the one before it is destroyed;\n"
            "devices trust it on until it is retired, as its packages may be on their way. For devices that\n"
            "the service has not launched: --prepare, bring them the public key, and then rotate."
        ),
        examples="""muster key rotate
            muster key rotate --prepare --json | jq -r .public_key""",
    )
    rotate.add_argument(
        "--prepare",
        action="store_true",
        help="make the key now, trusted already, and sign with it when the keys are rotated next",
    )
    add_client_arguments(rotate)
    retire = add_command(
        commands,
        "retire",
        run_retire,
        summary="have devices refuse what a key has signed",
        description=(
            "Retire a key that was replaced: devices refuse what it has signed from now on, also what they\n"
            "have downloaded and not activated yet. They get it anew, signed by the newest key."
        ),
        examples="muster key retire 3f2a9c51d07b8e64",
    )
    retire.add_argument("key_id", metavar="KEY", help="a key, as `muster key list` shows them")
    add_client_arguments(retire)


def run_list(args: argparse.Namespace) -> int:
    keys = client_of(args).keys()
    terminal = Terminal()
    if args.json:
        terminal.json({"keys": keys})
        return 0
    terminal.table(
        ["key", "state", "made", "retired", "public key"],
        [
            [
                key["key_id"],
                key["state"],
                moment(key["created_at"]),
                moment(key["retired_at"]),
                key["public_key"],
            ]
            for key in keys
        ],
        fold=False,
    )
    return 0


def run_rotate(args: argparse.Namespace) -> int:
    key = client_of(args).rotate_key(prepare=args.prepare)
    terminal = Terminal()
    if args.json:
        terminal.json(key)
    elif args.prepare:
        terminal.line(f"{key['key_id']} is trusted, and signs when you rotate: {key['public_key']}")
    else:
        terminal.line(
            f"{key['key_id']} signs from now on; those before it are trusted until they are retired"
        )
    return 0


def run_retire(args: argparse.Namespace) -> int:
    key = client_of(args).retire_key(args.key_id)
    terminal = Terminal()
    if args.json:
        terminal.json(key)
    else:
        terminal.line(f"{key['key_id']} is retired: devices refuse what it has signed")
    return 0
