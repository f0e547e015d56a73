"""``muster enrolment token``: what a device logs in with, made here from the group key."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from time import time as now

from provisioning.cli.arguments import Subparsers, add_command, add_json, add_state_dir, state_dir_of
from provisioning.cli.errors import UsageError
from provisioning.cli.terminal import Terminal
from provisioning.settings import Environment


def add_parsers(commands: Subparsers) -> None:
    token = add_command(
        commands,
        "token",
        run_token,
        summary="print the MQTT password of a device",
        description=(
            "Print the token that a device logs in with now: its MQTT user name and client id are its id.\n"
            "It is made from the group key, in the state directory or in MUSTER_GROUP_KEY_FILE; no service\n"
            "is asked. A device that has its key (--key) can make its tokens itself. Both are secrets.\n"
            "--check reads a token on standard input instead and says what the local broker makes of it."
        ),
        examples="""muster enrolment token meter-1
            muster enrolment token meter-1 --json | jq -r .expires_at
            muster enrolment token meter-1 --key > meter-1.key
            muster enrolment token meter-1 --check < token.txt""",
    )
    token.add_argument("device", metavar="DEVICE", help="the id of a device")
    what = token.add_mutually_exclusive_group()
    what.add_argument("--key", action="store_true", help="print the device's key instead")
    what.add_argument(
        "--check", action="store_true", help="say whether a token on standard input lets the device in"
    )
    add_state_dir(token)
    add_json(token)


def run_token(args: argparse.Namespace) -> int:
    from broker.errors import BadIdError
    from broker.identity import (
        MAX_TOKEN_CHARS,
        GroupKeyError,
        device_key,
        expiry_of,
        make_token,
        read_group_key,
    )
    from broker.topics import check_device_id
    from provisioning.enrolment.group_key import FILE

    environment = Environment.read()
    try:
        device_id = check_device_id(args.device)
        group_key = read_group_key(environment.group_key_file or state_dir_of(args) / FILE)
    except BadIdError as error:
        raise UsageError(f"{args.device!r} can't be a device: {error.problem}") from error
    except GroupKeyError as error:
        raise UsageError(f"{error}; a service makes one at its first start (`muster up`)") from error
    key = device_key(group_key, device_id)
    expires_at = expiry_of(device_id, now=now(), lifetime_s=environment.token_lifetime_s)
    if args.check:
        return _check(
            sys.stdin.read(MAX_TOKEN_CHARS + 2).strip(), device_id, key, expires_at, as_json=args.json
        )
    token = make_token(key, device_id, expires_at)
    if args.json:
        Terminal().json(
            {
                "device_id": device_id,
                "username": device_id,
                "client_id": device_id,
                "key": key,
                "token": token,
                "expires_at": datetime.fromtimestamp(expires_at, UTC).isoformat(),
            }
        )
    else:
        print(key if args.key else token)
    return 0


def _check(text: str, device_id: str, key: str, expires_at: int, *, as_json: bool) -> int:
    """Say what a broker makes of a token; 1 where it lets nobody in."""
    from broker.identity import TokenError, check_token

    reason: str | None = None
    try:
        token = check_token(text, device_id=device_id, key=key, now=now())
    except TokenError as error:
        reason, said = error.reason, str(error)
    else:
        said = f"the token is good until {datetime.fromtimestamp(token.expires_at, UTC).isoformat()}"
        if token.expires_at != expires_at:
            said += f"; Mosquitto takes the present period's alone, which has se={expires_at}"
    if as_json:
        Terminal().json({"device_id": device_id, "good": reason is None, "reason": reason, "detail": said})
    else:
        print(said)
    return 0 if reason is None else 1
