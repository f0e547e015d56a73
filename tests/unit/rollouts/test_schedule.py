"""Windows: when they open and close."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.rollouts.parts import DAYS
from provisioning.rollouts.plan import Window
from provisioning.rollouts.schedule import next_change, open_at

MONDAY = datetime(2030, 1, 7, tzinfo=UTC)


def at(day: str, clock: str, *, week: int = 0) -> datetime:
    hours, minutes = clock.split(":")
    days = DAYS.index(day) + 7 * week
    return MONDAY + timedelta(days=days, hours=int(hours), minutes=int(minutes))


def window(text: str) -> Window:
    """``"22:00-06:00 mon,fri"``."""
    clocks, _, days = text.partition(" ")
    opens, closes = clocks.split("-")
    return Window.from_json({"from": opens, "to": closes, **({"days": days.split(",")} if days else {})})


@pytest.mark.parametrize(
    ("windows", "moment", "is_open", "change"),
    [
        (["08:00-12:00"], at("mon", "07:59"), False, at("mon", "08:00")),
        (["08:00-12:00"], at("mon", "08:00"), True, at("mon", "12:00")),
        (["08:00-12:00"], at("mon", "12:00"), False, at("tue", "08:00")),
        (["22:00-06:00"], at("tue", "03:00"), True, at("tue", "06:00")),
        (["22:00-06:00"], at("tue", "23:00"), True, at("wed", "06:00")),
        (["22:00-06:00"], at("tue", "06:00"), False, at("tue", "22:00")),
        (["22:00-06:00 fri"], at("sat", "03:00"), True, at("sat", "06:00")),
        (["22:00-06:00 fri"], at("fri", "03:00"), False, at("fri", "22:00")),
        (["22:00-06:00 fri"], at("sat", "06:00"), False, at("fri", "22:00", week=1)),
        (["22:00-06:00 sun"], at("mon", "05:59"), True, at("mon", "06:00")),
        (["22:00-00:00"], at("mon", "23:59"), True, at("tue", "00:00")),
        (["22:00-00:00"], at("tue", "00:00"), False, at("tue", "22:00")),
        (["08:00-12:00", "11:00-13:00"], at("mon", "09:00"), True, at("mon", "13:00")),
        (["08:00-12:00", "12:00-13:00"], at("mon", "09:00"), True, at("mon", "13:00")),
        (["11:00-13:00", "08:00-20:00"], at("mon", "09:00"), True, at("mon", "20:00")),
        (["08:00-12:00", "14:00-16:00"], at("mon", "12:30"), False, at("mon", "14:00")),
        (["00:00-12:00", "12:00-00:00"], at("mon", "09:00"), True, None),
        (["12:00-11:59", "11:00-12:00 mon"], at("sun", "15:00"), True, at("tue", "11:59", week=1)),
        ([], at("mon", "09:00"), True, None),
    ],
)
def test_when_it_is_open_and_when_that_changes(
    windows: list[str], moment: datetime, is_open: bool, change: datetime | None
) -> None:
    given_windows = [window(text) for text in windows]
    assert open_at(given_windows, moment) is is_open
    assert next_change(given_windows, moment) == change


def test_other_zones_are_the_same_moments() -> None:
    there = at("tue", "03:00").astimezone(timezone(timedelta(hours=-11)))
    assert open_at([window("22:00-06:00 mon")], there)
    assert next_change([window("22:00-06:00 mon")], there) == at("tue", "06:00")


def test_from_midnight_to_midnight_is_a_whole_day() -> None:
    weekend = [window("00:00-00:00 sat"), window("00:00-00:00 sun")]
    assert not open_at(weekend, at("fri", "23:59"))
    assert open_at(weekend, at("sat", "00:00"))
    assert next_change(weekend, at("sat", "00:00")) == at("sat", "00:00") + timedelta(days=2)


minutes = st.integers(0, 1439).map(lambda minute: f"{minute // 60:02d}:{minute % 60:02d}")
some_windows = st.lists(
    st.tuples(minutes, minutes, st.none() | st.lists(st.sampled_from(DAYS), min_size=1, unique=True))
    .filter(lambda one: one[0] != one[1] or one[0] == "00:00")
    .map(lambda one: Window.from_json({"from": one[0], "to": one[1], "days": one[2]})),
    min_size=1,
    max_size=4,
)


def slowly(windows: list[Window], moment: datetime) -> bool:
    """The same by going through the minutes of a week."""
    minute = moment.weekday() * 1440 + moment.hour * 60 + moment.minute
    for one in windows:
        opens, closes = (int(clock[:2]) * 60 + int(clock[3:]) for clock in (one.opens, one.closes))
        length = (closes - opens) % 1440 or 1440
        for day in range(7):
            if (one.days is None or DAYS[day] in one.days) and (
                minute - day * 1440 - opens
            ) % 10_080 < length:
                return True
    return False


@settings(deadline=None)
@given(some_windows, st.integers(0, 10_079))
def test_the_next_change_is_the_first_minute_that_differs(windows: list[Window], minute: int) -> None:
    moment = MONDAY + timedelta(minutes=minute, seconds=30)
    now = slowly(windows, moment)
    assert open_at(windows, moment) is now
    expected: Any = next(
        (
            change
            for later in range(1, 10_082)
            if slowly(windows, change := MONDAY + timedelta(minutes=minute + later)) is not now
        ),
        None,
    )
    assert next_change(windows, moment) == expected
