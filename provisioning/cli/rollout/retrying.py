"""``muster rollout retry``: a new rollout over those that an earlier one did not bring home."""

from __future__ import annotations

import argparse

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of, names_of
from provisioning.cli.errors import UsageError
from provisioning.cli.rollout.choice import actor_of, add_actor, add_rollout_choice, chosen_rollout
from provisioning.cli.rollout.creating import report_created
from provisioning.cli.rollout.words import MISSES, RETRIED


def add_parsers(commands: Subparsers) -> None:
    retry = add_command(
        commands,
        "retry",
        run_retry,
        summary="try those again that failed or timed out",
        description=(
            "Start a new rollout, by the same plan, over the devices that failed or timed out in an\n"
            "earlier one."
        ),
        examples="""muster rollout retry
            muster rollout retry rollout-20300801-220000-3f2a --follow
            muster rollout retry --states failed,timed_out,cancelled""",
    )
    add_rollout_choice(retry)
    retry.add_argument(
        "--states",
        action="append",
        metavar="STATE,…",
        help=f"how the devices ended: {', '.join(MISSES)} (default: {','.join(RETRIED)})",
    )
    add_actor(retry)
    retry.add_argument("-f", "--follow", action="store_true", help="stay and show it until it ends")
    add_client_arguments(retry)


def run_retry(args: argparse.Namespace) -> int:
    states = [state.replace("-", "_") for state in names_of(args.states or [])] or list(RETRIED)
    for state in states:
        if state not in MISSES:
            raise UsageError(f"{state!r} is no end to retry: choose from {', '.join(MISSES)}")
    client = client_of(args)
    rollout_id = chosen_rollout(args, client)
    created = client.retry_rollout(rollout_id, states, actor=actor_of(args))
    return report_created(created, args, what=f" of {rollout_id} again")
