"""How states look: one place for colours, marks and short words of devices on full screens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.text import Text

from provisioning.cli.live.paint import Line, line, shares
from provisioning.cli.terminal import state_word
from provisioning.states import FINAL, WORKING, DeviceState

PENDING: Final = "pending"
CELL: Final = "■"

# In the order of a device's way: the order of bars and legends too.
COLOURS: Final[Mapping[str, str]] = {
    "provisioned": "green",
    "failed": "red",
    "timed_out": "magenta",
    "rejected": "bright_red",
    "cancelled": "yellow",
    "activating": "bright_cyan",
    "downloaded": "cyan",
    "downloading": "bright_blue",
    "notified": "blue",
    "packaging": "blue",
    "queued": "bright_black",
    "pending": "bright_black",
    "new": "bright_black",
}
# To be told from each other without colours.
LETTERS: Final[Mapping[str, str]] = {
    "provisioned": "■",
    "failed": "F",
    "timed_out": "T",
    "rejected": "R",
    "cancelled": "C",
    "activating": "a",
    "downloaded": "D",
    "downloading": "d",
    "notified": "n",
    "packaging": "p",
    "queued": "q",
    "pending": "·",
    "new": "·",
}
SHORT: Final[Mapping[str, str]] = {
    "provisioned": "ok",
    "timed_out": "late",
    "cancelled": "cncl",
    "rejected": "rej",
    "activating": "activ",
    "downloaded": "got",
    "downloading": "load",
    "notified": "told",
    "packaging": "pack",
    "queued": "queue",
    "pending": "wait",
}
# The parts of a bar: what each is drawn with, and in which colour.
BAR_PARTS: Final = (("█", "green"), ("▓", "red"), ("─", "yellow"), ("▒", "cyan"), ("░", "bright_black"))
BAR_WORDS: Final = ("ok", "not ok", "cancelled", "in flight", "to start")


def style_of(state: str) -> str:
    return COLOURS.get(state, "")


def word_of(state: str, *, short: bool = False) -> str:
    return SHORT.get(state, state_word(state)) if short else state_word(state)


def amounts_of(counts: Mapping[str, int]) -> list[int]:
    """Return how many devices are provisioned, ended otherwise, cancelled, in flight, to be started."""
    cancelled = counts.get(DeviceState.CANCELLED, 0)
    provisioned = counts.get(DeviceState.PROVISIONED, 0)
    return [
        provisioned,
        sum(counts.get(state, 0) for state in FINAL) - provisioned - cancelled,
        cancelled,
        sum(counts.get(state, 0) for state in WORKING),
        counts.get(PENDING, 0),
    ]


def bar(counts: Mapping[str, int], width: int) -> Line:
    """Return a bar of what devices have come to; what there is at all has a mark of it."""
    amounts = amounts_of(counts)
    widths = shares(amounts, width) if any(amounts) else [0, 0, 0, 0, width]
    return line(*((mark * part, style) for (mark, style), part in zip(BAR_PARTS, widths, strict=True)))


def bar_legend(counts: Mapping[str, int]) -> list[Line]:
    """Return what the parts of a bar mean, with their numbers: of what there is."""
    return [
        line((mark, style), f" {word} ", (f"{amount:,}", "bold"))
        for (mark, style), word, amount in zip(BAR_PARTS, BAR_WORDS, amounts_of(counts), strict=True)
        if amount
    ]


def in_order(counts: Mapping[str, int]) -> list[str]:
    """Return the states with devices in them, in the order of bars."""
    return [state for state in COLOURS if counts.get(state)]


def cells(states: Sequence[str], width: int, rows: int, *, colours: bool) -> list[Line]:
    """Return a map with one cell for each device, two in each character where they don't fit otherwise."""
    if len(states) <= width * rows or not colours:
        return [_row(states[at : at + width], colours) for at in range(0, len(states), width)][:rows]
    lines = []
    for at in range(0, len(states), 2 * width):
        upper, lower = states[at : at + width], states[at + width : at + 2 * width]
        row = Text(no_wrap=True, end="")
        for index, state in enumerate(upper):
            below = f" on {COLOURS[lower[index]]}" if index < len(lower) else ""
            row.append("▀", style=f"{COLOURS[state]}{below}")
        lines.append(row)
    return lines[:rows]


def _row(states: Sequence[str], colours: bool) -> Line:
    row = Text(no_wrap=True, end="")
    for state in states:
        mark = LETTERS[state] if not colours or state == PENDING else CELL
        row.append(mark, style=COLOURS[state])
    return row


def sampled(counts: Mapping[str, int], amount: int) -> list[str]:
    """Return ``amount`` states that stand for many devices, in the order of bars."""
    states = in_order(counts)
    return [
        state
        for state, part in zip(states, shares([counts[one] for one in states], amount), strict=True)
        for _ in range(part)
    ]


def cell_legend(counts: Mapping[str, int], *, colours: bool, short: bool) -> list[Line]:
    """Return what the cells mean, with numbers."""
    return [
        line(
            (LETTERS[state] if not colours or state == PENDING else CELL, COLOURS[state]),
            f" {word_of(state, short=short)} ",
            (f"{counts[state]:,}", "bold"),
        )
        for state in in_order(counts)
    ]
