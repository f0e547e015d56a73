"""What people type for the parts of a plan, as the plan has them: pure, errors say what to write instead."""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from typing import Any

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
REST = "rest"

_WINDOW = re.compile(r"(?:([a-z,-]+)\s+)?(\d\d?:\d\d)\s*-\s*(\d\d?:\d\d)")
_ABORT = re.compile(r"([a-z_]+)=([\d.]+)%?(?:/(\d+))?(?::([a-z]+))?")
_GROWTH = re.compile(r"([\d.]+)/(\d+)(?::(notified|succeeded))?")


def waves(text: str) -> list[dict[str, Any]]:
    """Parse ``5%,25%,100%`` (cumulative) or ``10,100,rest`` (devices of each wave)."""
    parts = [part.strip() for part in text.split(",")]
    found = [_wave(part, text) for part in parts]
    # The last wave takes what is left whatever it says: so it must say that.
    if found[-1] != {"percent": 100.0}:
        raise argparse.ArgumentTypeError(
            f"{text!r} leaves devices out: end it with 100% or {REST}, as in {text},{REST}"
        )
    return found


def _wave(part: str, text: str) -> dict[str, Any]:
    if part == REST:
        return {"percent": 100.0}
    if part.endswith("%"):
        return {"percent": percent(part)}
    if part.isascii() and part.isdigit() and int(part) > 0:
        return {"count": int(part)}
    raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is no wave: write 5%,25%,100% or 10,100,{REST}")


def percent(text: str) -> float:
    """Parse ``5`` or ``5%``: above 0, at most 100."""
    value = threshold(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage above 0: give one such as 5%")
    return value


def threshold(text: str) -> float:
    """Parse ``95`` or ``95%``: 0 to 100."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage from 0 to 100")
    return value


def positive_count(text: str) -> int:
    """Parse a whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def per_minute(text: str) -> float | str:
    """Parse devices per minute; ``none`` is no limit."""
    if text == "none":
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of devices a minute: give one, or 'none'")
    return int(value) if value.is_integer() else value


def growth(text: str) -> dict[str, Any]:
    """Parse ``2/1000``: the rate grows by this factor each time so many devices were notified.

    ``2/1000:succeeded`` counts those that were provisioned instead.
    """
    match = _GROWTH.fullmatch(text)
    if match is None or not _is_number(match[1]) or int(match[2]) == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no growth: write FACTOR/AFTER, as in 2/1000, or 2/1000:succeeded"
        )
    return {"factor": float(match[1]), f"grow_after_{match[3] or 'notified'}": int(match[2])}


def abort(text: str) -> dict[str, Any]:
    """Parse ``failed=20%/10:pause``: at 20 % of at least 10 ended devices the rollout is paused."""
    match = _ABORT.fullmatch(text.replace("timed-out", "timed_out"))
    outcomes = ("failed", "rejected", "timed_out", "all")
    if match is None or match[1] not in outcomes or not _is_number(match[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no criterion: write OUTCOME=PERCENT/SAMPLE:ACTION, as in failed=20%/10:pause"
            f" (outcomes: {', '.join(outcomes)}; actions: pause, cancel)"
        )
    if match[4] not in (None, "pause", "cancel"):
        raise argparse.ArgumentTypeError(f"{match[4]!r} in {text!r} is no action: use pause or cancel")
    criterion: dict[str, Any] = {"on": match[1], "threshold_percent": threshold(match[2])}
    if match[3] is not None:
        criterion["min_sample"] = int(match[3])
    if match[4] is not None:
        criterion["action"] = match[4]
    return criterion


def window(text: str) -> dict[str, Any]:
    """Parse ``mon-fri 22:00-06:00`` (UTC); without days it is every day."""
    match = _WINDOW.fullmatch(text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no window: write one such as 'mon-fri 22:00-06:00' or '22:00-06:00' (UTC)"
        )
    found: dict[str, Any] = {"days": _days(match[1], text)} if match[1] else {}
    return {**found, "from": _clock_time(match[2], text), "to": _clock_time(match[3], text)}


def _days(given: str, text: str) -> list[str]:
    days: set[str] = set()
    for part in given.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is no day: use {', '.join(DAYS)}")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        # sat-mon goes round the end of the week.
        days |= {DAYS[(begin + offset) % 7] for offset in range((end - begin) % 7 + 1)}
    return sorted(days, key=DAYS.index)


def _clock_time(given: str, text: str) -> str:
    hour, minute = (int(part) for part in given.split(":"))
    if (hour, minute) == (24, 0):
        hour = 0  # the same moment
    if hour > 23 or minute > 59:
        raise argparse.ArgumentTypeError(f"{given!r} in {text!r} is no time of day: use 00:00 to 24:00")
    return f"{hour:02}:{minute:02}"


def moment(text: str) -> str:
    """Parse an ISO 8601 time; without a zone it is this machine's."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: write one such as 2026-08-01T22:00, or 2026-08-01T22:00Z for UTC"
        ) from None
    return (parsed if parsed.tzinfo else parsed.astimezone()).isoformat()


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False
