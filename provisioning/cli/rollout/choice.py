"""Arguments that name a rollout, and who acts on it."""

from __future__ import annotations

import argparse
import os

from provisioning.cli.client import ServiceClient
from provisioning.cli.errors import CliError, UsageError
from provisioning.cli.rollout.words import has_ended

MAX_NAMED = 3


def add_rollout_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rollout_id",
        nargs="?",
        metavar="ROLLOUT",
        help="an id, as `muster rollout list` shows them (may be left out where only one has not ended)",
    )


def add_actor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--actor", metavar="NAME", help="who does this, for the rollout's log (default: your login name)"
    )


def actor_of(args: argparse.Namespace) -> str:
    """Return who acts: as given, or the user's login name."""
    return str(args.actor) if args.actor else login_name()


def login_name() -> str:
    """Return the name that the user has logged in by; without a terminal that of the environment."""
    try:
        return os.getlogin()
    except OSError:
        return os.environ.get("USER") or os.environ.get("LOGNAME") or "cli"


def chosen_rollout(args: argparse.Namespace, client: ServiceClient, *, or_latest: bool = False) -> str:
    """Return the rollout that was named, or the only one that has not ended, or the only one that there is.

    Where all have ended it is the latest with ``or_latest``, for commands that only look.
    """
    if args.rollout_id is not None:
        return str(args.rollout_id)
    known = client.rollouts()
    if not known:
        raise CliError("there is no rollout yet: start one with `muster rollout create`")
    going_on = [rollout["rollout_id"] for rollout in known if not has_ended(rollout["state"])]
    if len(going_on) == 1:
        return going_on[0]
    if len(known) == 1:
        return known[0]["rollout_id"]
    if going_on:
        raise UsageError(
            f"{len(going_on)} rollouts have not ended ({_some(going_on)}): name the one you mean"
        )
    if or_latest:
        return known[0]["rollout_id"]
    ended = _some([rollout["rollout_id"] for rollout in known])
    raise UsageError(f"every rollout has ended ({ended}): name the one you mean")


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:MAX_NAMED]) + (", …" if len(ids) > MAX_NAMED else "")
