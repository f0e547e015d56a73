"""``muster watch devices`` without a terminal: a line for each device that has another state than before."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import TypeAlias

from provisioning.cli.devices import percentage
from provisioning.cli.followed import Followed
from provisioning.cli.live.looks import DEVICES_EVERY_S, Look, Looker, Member, document
from provisioning.cli.rollout.words import succeeded
from provisioning.cli.summary import plain_summary
from provisioning.cli.terminal import Terminal, state_word
from provisioning.cli.views import Fetcher, LinesView, SilentView, View

DevicesView: TypeAlias = "View[Look]"


def watch_devices(
    args: argparse.Namespace, followed: Followed, wait: Callable[[float], object] = time.sleep
) -> int:
    """Follow the devices in flight and those that failed, until what is followed ends or Ctrl-C."""
    terminal = Terminal()
    view: DevicesView = JsonDevicesView(terminal) if args.json else PlainDevicesView(terminal)
    looker = Looker(followed)
    fetch = Fetcher(args, lambda client: looker.look(client, "devices"), view)
    with view:
        while True:
            look = fetch()
            view.update(look)
            if look.ended:
                return 0 if _good(look) else 1
            wait(DEVICES_EVERY_S)


def _good(look: Look) -> bool:
    """Whether what was followed ended with every device provisioned."""
    if look.rollout is not None:
        return succeeded(look.rollout)
    return look.run is None or plain_summary(look.run).as_expected


class JsonDevicesView(SilentView[Look]):
    """One line of JSON whenever something has changed."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._before = ""

    def update(self, look: Look, /) -> None:
        text = json.dumps(document(look), ensure_ascii=False)
        if text != self._before:
            print(text, file=self._terminal.stream, flush=True)
        self._before = text


class PlainDevicesView(LinesView[Look]):
    """A line for each device whose state or attempt is another one than before."""

    def __init__(self, terminal: Terminal, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(terminal, now)
        self._before: dict[str, tuple[str, int | None]] = {}
        self._totals = (-1, -1)

    def update(self, look: Look, /) -> None:
        members = look.members
        shown = [*members.in_flight, *members.missed]
        for one in shown:
            if self._before.get(one.device_id) != (one.state, one.attempt):
                self._terminal.line(plain_line(one))
        # Only those that are still shown are remembered, or the memory would grow with the devices.
        self._before = {one.device_id: (one.state, one.attempt) for one in shown}
        totals = (members.in_flight_total, members.missed_total)
        if totals != self._totals:
            self._totals = totals
            self._terminal.line(f"{totals[0]:,} in flight, {totals[1]:,} not ok")


def plain_line(one: Member) -> str:
    """Return a device in one line."""
    parts = [one.device_id, state_word(one.state)]
    if one.progress is not None:
        parts.append(percentage(one.progress))
    if (one.attempt or 0) > 1:
        parts.append(f"attempt {one.attempt}")
    return "  ".join(parts) + (f"  {one.error}" if one.error else "")
