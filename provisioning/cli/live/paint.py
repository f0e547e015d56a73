"""What pictures are made of: lines that fit a width, blocks side by side, sections that share rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.text import Text

from provisioning.cli.errors import one_line, printable

NARROW: Final = 60
"""Below so many columns words are short and everything is stacked."""
WIDE: Final = 140
"""From so many columns on there are two blocks side by side."""
GAP: Final = 3
GAPS_FROM: Final = 2
"""With so many rows to spare for each, there are empty lines between the parts of a page."""

Line = Text


def line(*parts: str | tuple[str, str], style: str = "") -> Line:
    """Return a line of parts, each a text or a text with its style; control characters are made visible."""
    text = Text(style=style, no_wrap=True, end="")
    for part in parts:
        if isinstance(part, tuple):
            text.append(printable(part[0]), style=part[1])
        else:
            text.append(printable(part))
    return text


def fitted(text: Line, width: int) -> Line:
    """Return the line, cut with an ellipsis where it is wider than ``width``."""
    if text.cell_len <= width:
        return text
    cut = text.copy()
    cut.truncate(max(width, 0), overflow="ellipsis")
    return cut


def padded(text: Line, width: int) -> Line:
    """Return the line exactly ``width`` wide."""
    fit = fitted(text, width).copy()
    fit.append(" " * (width - fit.cell_len))
    return fit


def joined(parts: Sequence[Line], width: int, gap: int = 2) -> list[Line]:
    """Return the parts in as few lines as they fit into, none of them broken."""
    lines: list[Line] = []
    for part in parts:
        if lines and lines[-1].cell_len + gap + part.cell_len <= width:
            lines[-1].append(" " * gap)
            lines[-1].append_text(part)
        else:
            lines.append(fitted(part, width).copy())
    return lines


def wrapped(text: str, width: int, *, most: int, style: str = "", indent: int = 2) -> list[Line]:
    """Return the text in at most ``most`` lines, broken between words; the last is cut."""
    lines = [""]
    for word in one_line(text).split(" "):
        start = "" if len(lines) == 1 else " " * indent
        glued = f"{lines[-1]} {word}" if lines[-1].strip() else f"{start}{word}"
        if cell_len(glued) <= width or not lines[-1].strip() or len(lines) == most:
            lines[-1] = glued
        else:
            lines.append(" " * indent + word)
    return [fitted(line(one, style=style), width) for one in lines]


def beside(left: Sequence[Line], right: Sequence[Line], left_width: int) -> list[Line]:
    """Return two blocks next to each other."""
    lines: list[Line] = []
    for index in range(max(len(left), len(right))):
        row = padded(left[index] if index < len(left) else Text(), left_width + GAP)
        if index < len(right):
            row.append_text(right[index])
        row.rstrip()
        lines.append(row)
    return lines


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: ``draw`` makes it of a number of rows, between ``least`` and ``most``.

    What has the lower ``rank`` gets its rows first; what does not get ``least`` is left out.
    """

    draw: Callable[[int], Sequence[Line]]
    least: int
    most: int
    rank: int
    apart: bool = True
    """Whether an empty line before it is wanted, where there is room."""


def fixed(lines: Sequence[Line], *, rank: int, least: int | None = None, apart: bool = True) -> Section:
    """Return a section of lines of which the first are shown where there is no room for all."""
    return Section(
        draw=lambda rows: lines[:rows],
        least=min(len(lines), 1 if least is None else least),
        most=len(lines),
        rank=rank,
        apart=apart,
    )


def stacked(sections: Sequence[Section], rows: int) -> list[Line]:
    """Return sections one below the other, in at most ``rows`` lines."""
    given = [0] * len(sections)
    left = rows
    in_order = sorted(range(len(sections)), key=lambda index: sections[index].rank)
    for index in in_order:
        section = sections[index]
        if 0 < section.least <= left:
            given[index] = section.least
            left -= section.least
    # Empty lines between the parts, where that does not leave the parts with their least.
    gaps = sum(1 for index in range(1, len(sections)) if given[index] and sections[index].apart)
    gaps = gaps if left >= GAPS_FROM * gaps else 0
    left -= gaps
    for index in in_order:
        if given[index]:
            more = min(sections[index].most - given[index], left)
            given[index] += more
            left -= more
    lines: list[Line] = []
    for section, count in zip(sections, given, strict=True):
        if not count:
            continue
        if gaps and section.apart and lines:
            lines.append(Text())
        lines += list(section.draw(count))[:count]
    return lines


def shares(amounts: Sequence[int], width: int) -> list[int]:
    """Return how many of ``width`` characters each amount gets: what there is at all has at least one."""
    total = sum(amounts)
    if not total or width <= 0:
        return [0] * len(amounts)
    found = [max(round(amount * width / total), 1) if amount else 0 for amount in amounts]
    # Rounding may be off by a few: the largest ones give or take them.
    while (off := width - sum(found)) != 0:
        largest = found.index(max(found))
        found[largest] += off if off > 0 else -1
    return found


def gauge(part: float, width: int, style: str = "cyan") -> Line:
    """Return a bar that is filled to a part of it."""
    filled = max(0, min(width, round(part * width)))
    return line(("█" * filled, style), ("░" * (width - filled), "dim"))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Line]],
    width: int,
    *,
    right: Sequence[int] = (),
    limits: Mapping[int, int] | None = None,
) -> list[Line]:
    """Return a table with a head: columns as wide as their cells, at most as ``limits`` say, the last cut."""
    widths = [
        min(
            max([cell_len(name), *(row[index].cell_len for row in rows)]),
            (limits or {}).get(index, width),
        )
        for index, name in enumerate(columns)
    ]
    lines = []
    for row in [[line((name, "dim")) for name in columns], *rows]:
        made = Text(no_wrap=True, end="")
        for index, cell in enumerate(row):
            fit = fitted(cell, widths[index])
            space = " " * (widths[index] - fit.cell_len)
            made.append(" " * (2 if index else 0) + (space if index in right else ""))
            made.append_text(fit)
            made.append("" if index in right else space)
        made.rstrip()
        lines.append(fitted(made, width))
    return lines
