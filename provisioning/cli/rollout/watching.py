"""``muster rollout watch``: a rollout as it goes, until it ends."""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import time
from collections.abc import Callable
from typing import TypeAlias

from provisioning.cli.arguments import Subparsers, add_client_arguments, add_command, client_of
from provisioning.cli.documents import Rollout
from provisioning.cli.errors import InterruptedBySignalError
from provisioning.cli.followed import Followed, Page
from provisioning.cli.progress import (
    LARGE_RUN_DEVICES,
    LARGE_RUN_POLL_INTERVAL_S,
    PLAIN_INTERVAL_S,
    POLL_INTERVAL_S,
    rate,
)
from provisioning.cli.rollout.choice import add_rollout_choice, chosen_rollout
from provisioning.cli.rollout.showing import show_end
from provisioning.cli.rollout.words import (
    PARKED,
    counts_line,
    ended_devices,
    expected_end,
    further_steps,
    has_ended,
    state_line,
    succeeded,
    wave_of,
)
from provisioning.cli.terminal import Terminal, clock, state_word
from provisioning.cli.views import Fetcher, LinesView, SilentView, View


def add_parsers(commands: Subparsers) -> None:
    watch = add_command(
        commands,
        "watch",
        run_watch,
        summary="follow a rollout until it ends",
        description=(
            "Follow a rollout: each wave, counters, rate, expected end, its state with the reason and what\n"
            "can be done next. Ends with the rollout: 0 if it was completed and every device provisioned,\n"
            "1 if not. q and Ctrl-C end the watching only. `muster watch` has the keys."
        ),
        examples="""muster rollout watch
            muster rollout watch --json | jq -r '[.state, .wave] | @tsv'
            muster rollout watch > rollout.log""",
    )
    add_rollout_choice(watch)
    add_client_arguments(watch)


def run_watch(args: argparse.Namespace) -> int:
    return watch_rollout(args, chosen_rollout(args, client_of(args), or_latest=True))


def watch_rollout(args: argparse.Namespace, rollout_id: str, page: Page = "progress") -> int:
    """Follow a rollout to its end, show what it came to, and return the exit code."""
    terminal = Terminal()
    if terminal.interactive and not args.json:
        from provisioning.cli.live.watching import watch

        end = watch(args, terminal, Followed(kind="rollout", id=rollout_id), page)
        if not end.ended or end.look is None or end.look.rollout is None:
            return 0
        last = end.look.rollout
    else:
        last = _follow_in_lines(args, rollout_id, terminal)
    good = succeeded(last)
    if not args.json:
        terminal.line()
        show_end(last, terminal, good=good)
    return 0 if good else 1


def _follow_in_lines(args: argparse.Namespace, rollout_id: str, terminal: Terminal) -> Rollout:
    view: RolloutView = JsonView(terminal) if args.json else PlainView(terminal)
    fetch = Fetcher(args, lambda client: client.rollout(rollout_id), view)
    try:
        return follow_rollout(fetch, view)
    except KeyboardInterrupt as interrupt:
        raise InterruptedBySignalError(
            f"interrupted; {rollout_id} goes on, and `muster rollout watch {rollout_id}` shows it again",
            signum=signal.SIGINT,
        ) from interrupt


def follow_rollout(
    fetch: Callable[[], Rollout], view: RolloutView, wait: Callable[[float], object] = time.sleep
) -> Rollout:
    """Show a rollout until it has ended and return its last state."""
    with view:
        while True:
            rollout = fetch()
            view.update(rollout)
            if has_ended(rollout["state"]):
                return rollout
            slow = rollout["devices"] > LARGE_RUN_DEVICES or rollout["state"] in PARKED
            wait(LARGE_RUN_POLL_INTERVAL_S if slow else POLL_INTERVAL_S)


RolloutView: TypeAlias = "View[Rollout]"


class JsonView(SilentView[Rollout]):
    """One line of JSON whenever a count or a state has changed."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._before: object = None

    def update(self, rollout: Rollout, /) -> None:
        now = _changing(rollout)
        if now != self._before:
            print(json.dumps(rollout, ensure_ascii=False), file=self._terminal.stream, flush=True)
        self._before = now


class PlainView(LinesView[Rollout]):
    """A line every PLAIN_INTERVAL_S seconds where something has changed, and at once for each new state."""

    def __init__(self, terminal: Terminal, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(terminal, now)
        self._state: object = None
        self._before: object = None
        self._reasons: set[tuple[str, str]] = set()

    def update(self, rollout: Rollout, /) -> None:
        parked = rollout["state"] in PARKED
        # The reason of what goes on has figures in it, which change all the time.
        state = (rollout["state"], rollout.get("wave"), rollout.get("reason") if parked else None)
        changing = _changing(rollout)
        if state == self._state and (self._now() < self._next_s or (parked and changing == self._before)):
            return
        self._next_s = self._now() + PLAIN_INTERVAL_S
        self._before = changing
        self._terminal.line(plain_line(rollout, datetime.datetime.now(datetime.UTC)))
        if state != self._state and not has_ended(rollout["state"]):
            self._state_lines(rollout)
        self._state = state
        for one in rollout.get("reasons") or []:
            key = (one["state"], one["reason"])
            if key not in self._reasons:
                self._reasons.add(key)
                example = one.get("example") or "-"
                self._terminal.line(f"  {state_word(one['state'])}: {one['reason']} (such as {example})")

    def _state_lines(self, rollout: Rollout) -> None:
        if rollout.get("reason"):
            self._terminal.line(f"  {state_line(rollout)}")
        for step in further_steps(rollout):
            self._terminal.line(f"  next: {step}")


def plain_line(rollout: Rollout, now: datetime.datetime) -> str:
    """Return a rollout's numbers in one line."""
    counts, devices = rollout["counts"], rollout["devices"]
    parts = [
        clock(rollout.get("elapsed_s")),
        state_word(rollout["state"]),
        f"wave {wave_of(rollout.get('wave', 0), len(rollout['waves']))}",
        f"{ended_devices(counts):,}/{devices:,} ended",
        rate(rollout.get("devices_per_s")),
    ]
    if end := expected_end(rollout, now):
        parts.append(f"end at {end}")
    return "  ".join([*parts, counts_line(counts)])


def _changing(rollout: Rollout) -> object:
    waves = [wave["state"] for wave in rollout["waves"]]
    return [rollout["state"], rollout.get("reason"), rollout.get("wave"), rollout["counts"], waves]
