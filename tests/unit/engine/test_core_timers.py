"""Timers on the pure core."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone
from typing import Any

import pytest
from durabletask import task

from provisioning.engine.options import EngineOptions
from provisioning.engine.records import to_datetime
from tests.unit.engine.driving import SECOND, START, Ctx, Driver, Steps, asked, output_of


def test_aware_times_become_naive_utc() -> None:
    """S-ID-7: aware datetimes given to timers become naive UTC."""
    due = to_datetime(START + 3600 * SECOND)

    def main(ctx: Ctx, _: Any) -> Steps:
        aware = due.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=5)))
        yield task.when_all([ctx.create_timer(due), ctx.create_timer(aware)])

    turn = Driver(main).start()
    assert [a.due for a in turn.actions] == [START + 3600 * SECOND] * 2


@pytest.mark.parametrize("due", ["tomorrow", 5, None])
def test_what_is_no_time_is_an_error_in_the_code(due: Any) -> None:
    """S-TMR-1: it says what is wanted."""

    def main(ctx: Ctx, _: Any) -> str:
        try:
            ctx.create_timer(due)
        except TypeError as error:
            return str(error)
        return "no error"

    assert (
        output_of(Driver(main).start()) == f"a timer is due at a datetime or after a timedelta, not {due!r}"
    )


def test_long_timers_are_made_of_several_each_with_its_id() -> None:
    """S-TMR-3: longer than the maximum interval: chunks, each with a new task id."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta(days=7))
        return ctx.current_utc_datetime.isoformat()

    driver = Driver(main)
    begun = START + SECOND
    three_days = 3 * 86_400
    assert driver.start().actions[0].due == begun + three_days * SECOND
    turn = driver.turn(driver.fired(1), after_s=three_days)
    assert asked(turn) == [("TIMER_CREATED", 2, None)]
    driver.reload()
    turn = driver.turn(driver.fired(2), after_s=three_days)
    assert turn.actions[0].due == begun + 7 * 86_400 * SECOND
    assert output_of(driver.turn(driver.fired(3), after_s=86_400)) is not None


def test_a_long_timer_is_cancelled_in_any_of_its_pieces() -> None:
    """S-TMR-3: cancellable, in chunks too."""

    def main(ctx: Ctx, _: Any) -> Steps:
        timer = ctx.create_timer(timedelta(days=7))
        yield ctx.wait_for_external_event("stop")
        timer.cancel()
        yield ctx.wait_for_external_event("end")

    driver = Driver(main)
    driver.start()
    driver.turn(driver.fired(1), after_s=3 * 86_400)
    assert driver.turn(driver.event("stop")).cancelled_timers == [2]


@pytest.mark.parametrize("ago", [timedelta.min, timedelta(days=-30_000), timedelta(seconds=-1)])
def test_a_timer_in_the_past_is_due_at_once_and_fits_the_disk(ago: timedelta) -> None:
    """S-TMR-4: fire no earlier than due; a time before 1970 is no trouble for the store."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(ago)

    due = Driver(main).start().actions[0].due
    assert 0 <= due < START + SECOND


def test_a_far_timer_fits_the_disk() -> None:
    """S-TMR-3: chunks: what is stored is never far off."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta.max)

    assert Driver(main).start().actions[0].due == START + SECOND + 3 * 86_400 * SECOND


def test_a_timer_beyond_all_dates_fits_the_disk() -> None:
    """S-TMR-3: without pieces too: there is no later date than the end of the year 9999."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta.max)

    due = Driver(main, options=EngineOptions(maximum_timer_interval=timedelta.max)).start().actions[0].due
    assert due < 2**63
    assert to_datetime(due).year == 9999


def test_a_retry_that_waits_longer_than_a_piece() -> None:
    """S-TMR-3, S-RTY-2: a retry's timer is made of pieces like any other."""
    retry = task.RetryPolicy(first_retry_interval=timedelta(seconds=25), max_number_of_attempts=2)

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_activity("A", retry_policy=retry))

    driver = Driver(main, options=EngineOptions(maximum_timer_interval=timedelta(seconds=10)))
    driver.start()
    assert asked(driver.turn(driver.failed(1))) == [("TIMER_CREATED", 2, None)]
    assert asked(driver.turn(driver.fired(2), after_s=10)) == [("TIMER_CREATED", 3, None)]
    driver.reload()
    assert asked(driver.turn(driver.fired(3), after_s=10)) == [("TIMER_CREATED", 4, None)]
    assert asked(driver.turn(driver.fired(4), after_s=5)) == [("TASK_SCHEDULED", 1, "A")]
    assert output_of(driver.turn(driver.done(1, "done"))) == "done"


@pytest.mark.parametrize("retries", [True, False])
def test_a_timer_that_the_engine_needs_when_the_ids_are_used_up(retries: bool) -> None:
    """S-TMR-3, S-RTY-1: timers cancelled at once use up ids, and leave nothing in the history."""
    options = EngineOptions(max_history_events=10, maximum_timer_interval=timedelta(seconds=10))
    retry = task.RetryPolicy(first_retry_interval=timedelta(seconds=5), max_number_of_attempts=2)
    soon = timedelta(seconds=15)

    def main(ctx: Ctx, _: Any) -> Steps:
        asked: Any = ctx.call_activity("A", retry_policy=retry) if retries else ctx.create_timer(soon)
        for _n in range(9):
            ctx.create_timer(soon).cancel()
        yield asked
        return "done"

    driver = Driver(main, options=options)
    driver.start()
    turn = driver.turn(driver.failed(1) if retries else driver.fired(1), after_s=10)
    assert asked(turn) == [("TIMER_CREATED", 11, None)]
