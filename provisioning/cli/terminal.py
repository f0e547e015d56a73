"""Where output goes: a terminal gets rich tables and a live picture, anything else gets plain lines.

rich is imported only where a terminal shows it, so that commands in scripts start at once and write no
escape codes. NO_COLOR (https://no-color.org) is honoured by rich itself; TERM=dumb counts as a pipe.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from provisioning.cli.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

# One place says which state is shown how; the words themselves are the service's.
STATE_STYLES: Mapping[str, str] = {
    "provisioned": "green",
    "failed": "red",
    "timed_out": "red",
    "rejected": "red",
    "cancelled": "yellow",
    "new": "dim",
    "queued": "dim",
}


# Device ids have up to 64 characters; hardly any has.
MAX_FIRM_COLUMN_CHARS = 32


class Terminal:
    """One output stream, and whether a person watches it."""

    def __init__(self, stream: TextIO | None = None, *, console: Console | None = None) -> None:
        """Write to ``stream`` (stdout), or to a ``console`` of the caller's, which counts as a terminal."""
        self.stream = sys.stdout if stream is None else stream
        self.interactive = console is not None or (
            self.stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        )
        self._console = console

    @property
    def console(self) -> Console:
        """The rich console of an interactive terminal."""
        if self._console is None:
            from rich.console import Console

            # highlight and markup off: ids and device texts are shown as they are.
            self._console = Console(file=self.stream, highlight=False, markup=False, emoji=False)
        return self._console

    def line(self, text: str = "", *, style: str | None = None) -> None:
        """Write one line, control characters made visible; ``style`` is for interactive terminals only."""
        if self.interactive:
            self.console.print(printable(text), style=style, soft_wrap=True)
        else:
            print(printable(text), file=self.stream, flush=True)

    def json(self, document: object) -> None:
        """Write ``document`` as JSON: indented for a person, one line for a program."""
        indent = 2 if self.stream.isatty() else None
        print(json.dumps(document, indent=indent, ensure_ascii=False), file=self.stream, flush=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[int] = (),
        styles: Mapping[int, Mapping[str, str]] | None = None,
        indent: int = 0,
        fold: bool = True,
    ) -> None:
        """Write a table.

        ``right`` holds the indexes of columns of figures, ``styles`` maps a column to the style of each
        of its values. On a terminal the last column is folded where it is too narrow, or cut with ``fold``
        False; in a pipe columns are padded with spaces and never shortened.
        """
        cleaned = [[printable(cell) for cell in row] for row in rows]
        if not self.interactive:
            for line in plain_table(columns, cleaned, right=right):
                self.line(" " * indent + line)
            return
        from rich import box
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0)
        )
        for index, column in enumerate(columns):
            last = index == len(columns) - 1
            folded = fold and last
            widest = max(len(row[index]) for row in [columns, *cleaned])
            table.add_column(
                column,
                justify="right" if index in right else "left",
                overflow="fold" if folded else "ellipsis",
                no_wrap=not folded,
                # What is too wide is taken from the last column, which holds free text.
                min_width=None if last else min(widest, MAX_FIRM_COLUMN_CHARS),
            )
        for row in cleaned:
            cells = [Text(cell, style=(styles or {}).get(i, {}).get(cell, "")) for i, cell in enumerate(row)]
            table.add_row(*cells)
        self.console.print(Padding(table, (0, 0, 0, indent)))


def plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> list[str]:
    """Return the lines of a table padded with spaces, the header first; no line ends in a space."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [columns, *rows]
    ]


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number of things: ``1 device``, ``1,200 devices``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def data_size(size_bytes: float) -> str:
    """Return a number of bytes for people: ``512 B``, ``1.2 kB``, ``34 MB``."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Return a duration for people: ``42 ms``, ``3.21 s``, ``2:05``, ``1:02:03``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    return clock(seconds)


def clock(seconds: float | None) -> str:
    """Return a running time as minutes and seconds: ``0:07``, ``12:34``, ``1:02:03``."""
    if seconds is None:
        return "-:--"
    total = round(seconds)
    minutes, second = divmod(total, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def time_of_day(timestamp: str | None, *, milliseconds: bool = False) -> str:
    """Return the local time of day of an ISO 8601 timestamp in UTC; a dash for None."""
    moment = parse_timestamp(timestamp)
    if moment is None:
        return "-"
    return str(moment.astimezone().time().isoformat("milliseconds" if milliseconds else "seconds"))


def parse_timestamp(timestamp: str | None) -> Any:
    """Return an aware datetime, or None; timestamps without an offset are UTC."""
    from datetime import UTC, datetime

    if not timestamp:
        return None
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def state_word(state: str) -> str:
    """Return a state as people write it: ``timed_out`` is ``timed out``."""
    return state.replace("_", " ")
