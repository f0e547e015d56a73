"""``muster enrolment add``, ``revoke``, ``restore`` and ``remove``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Final

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.terminal import Terminal, counted
from provisioning.errors import name_some

_ACTIONS: Final = {
    "revoke": (
        "disconnect devices, and refuse them from now on",
        (
            "Revoke devices: the broker disconnects them and lets them in no more, runs reject them, and\n"
            "what they say all the same is dropped. `muster enrolment restore` takes it back."
        ),
        "revoked",
    ),
    "restore": (
        "let devices in again that were revoked",
        (
            "Let revoked devices in again. They have the same keys as before: where a key has leaked,\n"
            "choose another group key (MUSTER_GROUP_KEY_FILE) instead, which gives all devices new ones."
        ),
        "restored",
    ),
    "remove": (
        "forget devices: they are refused until they are enrolled again",
        (
            "Remove the enrolments of devices that are gone. What is known of their provisioning stays. A\n"
            "device of a fleet is enrolled again when the fleet is started; to keep it out, revoke it."
        ),
        "removed",
    ),
}


def add_parsers(commands: Subparsers) -> None:
    add = add_command(
        commands,
        "add",
        run_add,
        summary="let devices connect that no fleet has",
        description=(
            "Enrol devices, so that the local broker lets them in. `muster enrolment token` has what they\n"
            "log in with. One that was revoked stays so."
        ),
        examples="muster enrolment add meter-1 meter-2\nmuster enrolment add --json meter-1",
    )
    _add_devices(add)
    for action, (summary, description, _) in _ACTIONS.items():
        command = add_command(
            commands,
            action,
            partial(run_action, action),
            summary=summary,
            description=description,
            examples=f"muster enrolment {action} dev-00007\nmuster enrolment {action} --json meter-1 meter-2",
        )
        _add_devices(command)


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("devices", nargs="+", metavar="DEVICE", help="ids of devices")
    add_client_arguments(parser)


def run_add(args: argparse.Namespace) -> int:
    answer = client_of(args).enrol(args.devices)
    terminal = Terminal()
    if args.json:
        terminal.json(answer)
        return 0
    there = answer["devices"] - answer["new"]
    also = f"; {counted(there, 'device')} had an enrolment already" if there else ""
    terminal.line(f"{counted(answer['new'], 'device')} enrolled{also}")
    return 0


def run_action(action: str, args: argparse.Namespace) -> int:
    answer = client_of(args).act_on_enrolments(action, args.devices)
    terminal = Terminal()
    if args.json:
        terminal.json(answer)
        return 0
    terminal.line(_done(_ACTIONS[action][2], answer["changed"], args.devices))
    return 0


def _done(verb: str, changed: Sequence[str], asked: Sequence[str]) -> str:
    if not changed:
        return (
            f"nothing has changed: {'that was so' if len(set(asked)) == 1 else 'all of that was so'} already"
        )
    return f"{name_some(changed)} {verb}"
