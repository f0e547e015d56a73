"""When devices may be started: windows of the day, in UTC. All times are aware."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, time, timedelta

from .parts import DAYS
from .plan import Window

_DAY = timedelta(days=1)
_WEEK = timedelta(weeks=1)
# Windows repeat after a week; the one of the day before may still be open.
_AHEAD = range(-1, 9)


def open_at(windows: Sequence[Window], at: datetime) -> bool:
    """Whether a window is open: from the moment at which it opens, until just before it closes.

    Where there are no windows it is always open.
    """
    return not windows or any(
        opens <= at < closes for opens, closes in _spans(windows, at, days=range(-1, 1))
    )


def next_change(windows: Sequence[Window], at: datetime) -> datetime | None:
    """When, after `at`, it opens or closes next; None: never, as no window or no gap is left."""
    spans = sorted(_spans(windows, at, days=_AHEAD))
    if not open_at(windows, at):
        return next((opens for opens, _ in spans if opens > at), None)
    until = at
    for opens, closes in spans:
        if opens <= until < closes:
            until = closes
    return until if at < until < at + _WEEK else None


def _spans(windows: Sequence[Window], at: datetime, *, days: range) -> Iterator[tuple[datetime, datetime]]:
    """When the windows of some days (0: that of `at`) open and close."""
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for day in days:
        start = midnight + day * _DAY
        for window in windows:
            if window.days is None or DAYS[start.weekday()] in window.days:
                opens, closes = (_at(start, clock) for clock in (window.opens, window.closes))
                yield opens, closes if closes > opens else closes + _DAY


def _at(midnight: datetime, clock: str) -> datetime:
    return datetime.combine(midnight, time.fromisoformat(clock), UTC)
