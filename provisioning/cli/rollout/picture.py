"""A rollout as a picture on a terminal: a stacked bar for each wave, counters, what to do next."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING

from provisioning.cli.documents import Rollout, Wave
from provisioning.cli.errors import printable
from provisioning.cli.progress import MAX_FAILURES_SHOWN, rate
from provisioning.cli.rollout.showing import success
from provisioning.cli.rollout.words import (
    MISSES,
    STATE_STYLES,
    ended_devices,
    expected_end,
    further_steps,
    headline,
    missed_devices,
    state_line,
)
from provisioning.cli.terminal import STATE_STYLES as DEVICE_STYLES
from provisioning.cli.terminal import clock, counted, state_word
from provisioning.states import WORKING, DeviceState

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

BAR_WIDTH = 30
MAX_WAVES_SHOWN = 8
# What each part of a bar is drawn with: to be told from each other without colours too.
PARTS = (("█", "green"), ("▓", "red"), ("─", "yellow"), ("▒", "cyan"), ("░", "dim"))


def picture(rollout: Rollout, now: datetime.datetime, *, note: str = "") -> Group:
    """Return a rollout as something that rich can draw, at most 80 columns wide."""
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    heading = Text(printable(headline(rollout)), style="bold", no_wrap=True, overflow="ellipsis")
    state = Text(printable(state_line(rollout)), style=STATE_STYLES.get(rollout["state"], ""))
    ended = ended_devices(rollout["counts"])
    numbers = Table.grid(padding=(0, 2))
    figures = [
        Text(f"{ended:,}/{rollout['devices']:,} ended", style="bold"),
        Text(rate(rollout.get("devices_per_s"))),
        Text(clock(rollout.get("elapsed_s")), style="cyan"),
    ]
    if end := expected_end(rollout, now):
        figures.append(Text(f"end at {end}", style="cyan"))
    numbers.add_row(*figures)

    parts: list[RenderableType] = [heading, state, numbers, _waves(rollout), _counters(rollout["counts"])]
    misses = [
        f"{state_word(state)} {rollout['counts'][state]:,}"
        for state in MISSES
        if rollout["counts"].get(state)
    ]
    if misses:
        parts.append(Text("  ".join(misses), style="red"))
    reasons = rollout.get("reasons") or []
    for one in reasons[:MAX_FAILURES_SHOWN]:
        such = one.get("example") or "-"
        line = printable(f"  {one['count']:,} {state_word(one['state'])}: {one['reason']} ({such})")
        parts.append(Text(line, style="red", no_wrap=True, overflow="ellipsis"))
    if (more := len(reasons) - MAX_FAILURES_SHOWN) > 0:
        parts.append(Text(f"  … and {counted(more, 'more reason')}", style="dim"))
    parts += [Text(f"next: {step}", style="yellow") for step in further_steps(rollout)]
    if note:
        parts.append(Text(note, style="yellow"))
    return Group(*parts)


def stacked(counts: Mapping[str, int], width: int = BAR_WIDTH) -> list[int]:
    """Return how many characters of a bar are provisioned, failed, cancelled, in flight, to be started.

    They add up to ``width``, and what there is at all has at least one.
    """
    cancelled = counts.get(DeviceState.CANCELLED, 0)
    amounts = [
        counts.get(DeviceState.PROVISIONED, 0),
        missed_devices(counts) - cancelled,
        cancelled,
        sum(counts.get(state, 0) for state in WORKING),
        counts.get("pending", 0),
    ]
    total = sum(amounts)
    if not total:
        return [0, 0, 0, 0, width]
    shares = [max(round(amount * width / total), 1) if amount else 0 for amount in amounts]
    # Rounding may be off by a few: the largest part gives or takes them.
    largest = shares.index(max(shares))
    shares[largest] += width - sum(shares)
    return shares


def bar(counts: Mapping[str, int]) -> Text:
    """Return a bar of what the devices of a wave have come to."""
    from rich.text import Text

    text = Text()
    for (mark, style), share in zip(PARTS, stacked(counts), strict=True):
        text.append(mark * share, style=style)
    return text


def shown_waves(rollout: Rollout) -> list[Wave]:
    """Return the waves around the current one, as many as there is room for."""
    waves = rollout["waves"]
    first = max(0, min(rollout.get("wave", 0) - MAX_WAVES_SHOWN // 2, len(waves) - MAX_WAVES_SHOWN))
    return waves[first : first + MAX_WAVES_SHOWN]


def _waves(rollout: Rollout) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    shown = shown_waves(rollout)
    for index in range(5):
        table.add_column(justify="right" if index in (2, 4) else "left", no_wrap=True)
    for wave in shown:
        current = wave["number"] == rollout.get("wave")
        style = STATE_STYLES.get(wave["state"], "")
        table.add_row(
            Text(f"wave {wave['number']}", style="bold" if current else ""),
            bar(wave["counts"]),
            Text(f"{ended_devices(wave['counts']):,}/{wave['devices']:,}", style="bold" if current else ""),
            Text(state_word(wave["state"]), style=style),
            Text("" if wave.get("success_percent") is None else f"{success(wave)} ok"),
        )
    if (more := len(rollout["waves"]) - len(shown)) > 0:
        table.add_row(Text(f"… and {more:,} more", style="dim"))
    return table


def _counters(counts: Mapping[str, int]) -> Table:
    """Return how many devices are at which step, in two rows."""
    from rich.table import Table
    from rich.text import Text

    stages = ("pending", *WORKING, DeviceState.PROVISIONED)
    table = Table.grid(padding=(0, 1))
    for _ in stages:
        table.add_column(justify="right", no_wrap=True)
    table.add_row(*[Text(state_word(stage), style="dim") for stage in stages])
    table.add_row(
        *[
            Text(
                f"{counts.get(stage, 0):,}",
                style=DEVICE_STYLES.get(stage, "cyan") if counts.get(stage) else "dim",
            )
            for stage in stages
        ]
    )
    return table
