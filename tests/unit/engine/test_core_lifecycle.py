"""Suspension, termination, continue_as_new and custom status on the pure core."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import Any

import pytest
from durabletask import task

from provisioning.engine.options import EngineOptions
from provisioning.engine.records import Kind, Status
from tests.unit.engine.driving import Ctx, Driver, Steps, Task, asked, failure_of, output_of


def collects(ctx: Ctx, count: int) -> Steps:
    got = []
    for _ in range(count):
        got.append((yield ctx.wait_for_external_event("e")))  # noqa: PERF401 -- yields
    return got


# Suspension


def test_suspension_holds_everything_and_resume_delivers_in_order() -> None:
    """S-LIFE-3: suspend buffers everything but resume and terminate; resume delivers in order."""
    driver = Driver(collects)
    driver.start(3)
    driver.turn(driver.event("e", 1), driver.suspend(), driver.event("e", 2))
    assert driver.execution.suspended
    driver.turn(driver.event("e", 3))
    driver.reload()
    assert driver.execution.suspended
    assert output_of(driver.turn(driver.resume())) == [1, 2, 3]


def test_resume_of_one_that_is_not_suspended_leaves_no_trace() -> None:
    """S-LIFE-4: resume of an instance that is not suspended is a no-op."""
    driver = Driver(collects)
    driver.start(1)
    assert driver.turn(driver.resume()).events == []
    driver.turn(driver.suspend())
    assert driver.turn(driver.suspend()).events == []


def test_results_and_timers_are_held_too() -> None:
    """S-LIFE-3: suspend buffers everything but resume and terminate."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield task.when_all([ctx.call_activity("A"), ctx.create_timer(timedelta(1))]))

    driver = Driver(main)
    driver.start()
    driver.turn(driver.suspend())
    driver.turn(driver.done(1, "a"), driver.fired(2))
    assert output_of(driver.turn(driver.resume())) == ["a", None]


def test_terminate_reaches_a_suspended_one() -> None:
    """S-LIFE-5: suspend buffers everything but resume and terminate."""
    driver = Driver(collects)
    driver.start(1)
    driver.turn(driver.suspend())
    turn = driver.turn(driver.event("e", 1), driver.terminate({"why": "tired"}))
    assert output_of(turn) == {"why": "tired"}


def test_an_activity_whose_result_is_held_is_not_outstanding() -> None:
    """S-LIFE-3: an activity whose completion was recorded while suspended has been answered."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield task.when_all([ctx.call_activity("A"), ctx.call_activity("B")])

    driver = Driver(main)
    driver.start()
    driver.turn(driver.suspend())
    driver.turn(driver.done(1))
    driver.turn(driver.terminate())
    assert [a.name for a in driver.execution.outstanding(Kind.TASK_SCHEDULED)] == ["B"]


def test_an_activity_whose_result_is_delivered_after_the_end_is_not_outstanding() -> None:
    """DESIGN 2, Recovery: a completion that is in the history is not asked for again (simulation)."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield task.when_any([ctx.create_timer(timedelta(seconds=1)), ctx.call_activity("work")])

    driver = Driver(main)
    driver.start()
    driver.turn(driver.suspend())
    driver.turn(driver.fired(1), driver.done(2))
    turn = driver.turn(driver.resume())
    assert turn.completion is not None
    assert driver.execution.outstanding(Kind.TASK_SCHEDULED) == []


def test_what_is_delivered_after_the_end_by_a_resume_starts_nothing() -> None:
    """S-LIFE-3: what was held after that which ended the execution asks for nothing."""
    retry = task.RetryPolicy(first_retry_interval=timedelta(seconds=1), max_number_of_attempts=3)

    def main(ctx: Ctx, _: Any) -> Steps:
        flaky: Task = ctx.call_activity("Flaky", retry_policy=retry)
        other: Task = ctx.call_activity("Other", retry_policy=retry)
        yield task.when_any([flaky, other, ctx.wait_for_external_event("stop")])
        return "over"

    driver = Driver(main)
    driver.start()
    driver.turn(driver.failed(1))
    driver.turn(driver.suspend())
    driver.turn(driver.event("stop"), driver.fired(3), driver.failed(2))
    turn = driver.turn(driver.resume())
    assert output_of(turn) == "over"
    assert turn.actions == []


def test_events_that_a_suspension_holds_have_the_bound_of_those_that_nobody_takes() -> None:
    """S-DATA-7: limits are ours to name: events buffered, by a suspension too."""
    driver = Driver(collects, options=EngineOptions(max_buffered_events=3))
    driver.start(9)
    driver.turn(driver.event("other"), driver.suspend(), driver.event("e", 0), driver.event("e", 1))
    failure = failure_of(driver.turn(driver.event("e", 2)))
    assert failure.error_type == "builtins.BufferError"
    assert "resume this instance" in failure.message


def test_events_held_by_earlier_suspensions_count_no_more() -> None:
    """S-DATA-7: as above: what was delivered has made room."""
    driver = Driver(collects, options=EngineOptions(max_buffered_events=3))
    driver.start(9)
    for n in range(3):
        driver.turn(driver.suspend(), *(driver.event("e", 3 * n + k) for k in range(3)))
        driver.reload()
        turn = driver.turn(driver.resume())
    assert output_of(turn) == list(range(9))


# Termination


def test_terminate_keeps_its_output_and_ends_the_code() -> None:
    """S-LIFE-5: terminate: output is kept as JSON."""
    ended = []

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.wait_for_external_event("e")
        finally:
            ended.append(True)

    driver = Driver(main)
    driver.start()
    turn = driver.turn(driver.terminate([1, {"a": None}]), driver.event("e"))
    assert turn.completion is not None
    assert turn.completion.status == Status.TERMINATED
    assert output_of(turn) == [1, {"a": None}]
    assert ended


def test_terminate_before_the_start() -> None:
    """S-LIFE-5: terminate of a pending instance."""
    driver = Driver(collects)
    turn = driver.turn(driver.event("e"), driver.terminate("never began"))
    assert output_of(turn) == "never began"


# continue_as_new


def test_the_code_runs_on_to_its_next_yield_and_its_result_is_ignored() -> None:
    """S-CAN-1, S-CAN-2: runs on to its next yield or return; a later exception loses."""
    reached = []

    def to_yield(ctx: Ctx, n: Any) -> Steps:
        ctx.continue_as_new(n + 1)
        ctx.call_activity("Dispatched")
        reached.append("yield")
        yield ctx.call_activity("Dispatched too")
        reached.append("never")

    def to_return(ctx: Ctx, n: Any) -> Steps:
        yield ctx.wait_for_external_event("e")
        ctx.continue_as_new(n + 1)
        ctx.continue_as_new("the first call wins")
        return "ignored"

    def to_raise(ctx: Ctx, n: Any) -> Steps:
        yield ctx.wait_for_external_event("e")
        ctx.continue_as_new(n + 1)
        raise ValueError("loses")

    def plain(ctx: Ctx, n: Any) -> Any:
        ctx.continue_as_new(n + 1)
        raise ValueError("loses")

    for orchestrator in (to_yield, to_return, to_raise, plain):
        driver = Driver(orchestrator)
        turn = driver.turn(driver.start_message(1), driver.event("e"))
        assert turn.completion is not None
        assert turn.completion.status == Status.CONTINUED_AS_NEW
        assert turn.completion.new_input == "2"
        if orchestrator is to_yield:
            assert asked(turn) == [
                ("TASK_SCHEDULED", 1, "Dispatched"),
                ("TASK_SCHEDULED", 2, "Dispatched too"),
            ]
    assert reached == ["yield"]


def test_history_status_and_ids_start_over() -> None:
    """S-CAN-3: history, custom status and task ids start over; version kept or new."""

    def main(ctx: Ctx, n: Any) -> Steps:
        if n == 0:
            ctx.set_custom_status("first")
        yield ctx.call_activity("A")
        if n < 2:
            ctx.continue_as_new(n + 1, new_version="2" if n == 1 else None)
        return [n, ctx.version]

    driver = Driver(main, version="1")
    driver.start(0)
    for _ in range(2):
        turn = driver.turn(driver.done(1))
        assert turn.completion is not None
        begun = driver.continue_as_new(turn.completion)
        assert asked(begun) == [("TASK_SCHEDULED", 1, "A")]
        assert driver.execution.custom_status is None
    assert output_of(driver.turn(driver.done(1))) == [2, "2"]


@pytest.mark.parametrize("save", [True, False])
def test_unconsumed_events_are_carried_over_in_order_or_dropped(save: bool) -> None:
    """S-CAN-4: save_events=True carries buffered events in arrival order, False drops."""

    def main(ctx: Ctx, n: Any) -> Steps:
        if n == 0:
            yield ctx.wait_for_external_event("go")
            ctx.continue_as_new(1, save_events=save)
            return None
        got = []
        for name in ("b", "a", "a"):
            got.append((yield ctx.wait_for_external_event(name)))  # noqa: PERF401 -- yields
        return got

    driver = Driver(main)
    driver.start(0)
    turn = driver.turn(
        driver.event("a", 1), driver.event("b", 2), driver.event("go"), driver.event("a", 3, key="k")
    )
    assert turn.completion is not None
    events = [m for m in turn.completion.carried if m.kind == Kind.EVENT_RAISED]
    carried = [(m.name, json.loads(m.data or ""), m.ref) for m in events]
    assert carried == ([("a", 1, None), ("b", 2, None), ("a", 3, "k")] if save else [])
    begun = driver.continue_as_new(turn.completion)
    if save:
        assert output_of(begun) == [2, 1, 3]
    else:
        assert begun.completion is None


def test_control_messages_in_the_turn_of_the_change_reach_the_next_execution() -> None:
    """S-CAN-6: a terminate or suspend that comes just then is not lost."""

    def main(ctx: Ctx, n: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        ctx.continue_as_new(n + 1)

    driver = Driver(main)
    driver.start(0)
    turn = driver.turn(driver.event("go"), driver.suspend(), driver.terminate("out"))
    assert turn.completion is not None
    assert turn.completion.status == Status.CONTINUED_AS_NEW
    assert output_of(driver.continue_as_new(turn.completion)) == "out"


def test_results_of_the_earlier_execution_never_reach_the_new_one() -> None:
    """S-CAN-5: work is tagged by execution."""

    def main(ctx: Ctx, n: Any) -> Steps:
        both = task.when_any([ctx.call_activity("A"), ctx.wait_for_external_event("go")])
        yield both
        if n == 0:
            ctx.continue_as_new(1)
        return "ended"

    driver = Driver(main)
    driver.start(0)
    late = driver.done(1, "of the first")
    late_timer = driver.fired(1)
    turn = driver.turn(driver.event("go"))
    assert turn.completion is not None
    driver.continue_as_new(turn.completion)
    assert driver.turn(late, late_timer).events == []
    assert output_of(driver.turn(driver.done(1))) == "ended"


# Custom status


def test_custom_status_is_the_last_one_set_and_none_clears_it() -> None:
    """S-DATA-5: custom status goes through the converter."""

    def main(ctx: Ctx, _: Any) -> Steps:
        for status in ({"step": 1}, "two", None):
            ctx.set_custom_status(status)
            yield ctx.wait_for_external_event("e")

    driver = Driver(main)
    driver.start()
    seen = [driver.execution.custom_status]
    for _ in range(2):
        driver.turn(driver.event("e"))
        seen.append(driver.execution.custom_status)
    assert seen == ['{"step": 1}', '"two"', None]


def test_a_custom_status_over_its_limit_is_an_error_in_the_code() -> None:
    """S-DATA-6: limits are ours to name: custom status size."""

    def main(ctx: Ctx, _: Any) -> Any:
        ctx.set_custom_status("x" * 100)

    failure = failure_of(Driver(main, options=EngineOptions(max_custom_status_bytes=50)).start())
    assert failure.error_type == "provisioning.engine.errors.PayloadTooLargeError"


def test_a_payload_over_its_limit_is_an_error_in_the_code() -> None:
    """S-DATA-6: limits are ours to name: payload size, in bytes of UTF-8."""

    def main(ctx: Ctx, _: Any) -> Any:
        ctx.call_activity("A", input="x" * 100)

    failure = failure_of(Driver(main, options=EngineOptions(max_payload_bytes=50)).start())
    assert failure.error_type == "provisioning.engine.errors.PayloadTooLargeError"


@pytest.mark.parametrize("method", ["call_entity", "signal_entity", "lock_entities"])
def test_entities_say_that_they_come_later(method: str) -> None:
    """S-ENT-1: one clear error until then; there is no critical section to leave."""

    def main(ctx: Ctx, _: Any) -> Any:
        ctx._exit_critical_section()
        getattr(ctx, method)("@counter@one", "op")

    failure = failure_of(Driver(main).start())
    assert failure.error_type == "provisioning.engine.errors.EntitiesUnsupportedError"
    assert "no durable entities" in failure.message


# The length of a history


def eats(ctx: Ctx, stop_at: int) -> Steps:
    """Takes events for ever, or until one that says to continue as new."""
    for n in itertools.count(1):
        yield ctx.wait_for_external_event("e")
        if n == stop_at:
            ctx.continue_as_new(0)


def test_a_history_that_is_too_long_fails_and_says_what_to_do() -> None:
    """S-DATA-8: an error that says to continue as new; what fits is no trouble, after a replay too."""
    driver = Driver(eats, options=EngineOptions(max_history_events=5))
    driver.start(0)
    for _ in range(4):
        assert driver.turn(driver.event("e")).completion is None
        driver.reload()
    failure = failure_of(driver.turn(driver.event("e")))
    assert failure.error_type == "provisioning.engine.errors.HistoryTooLongError"
    assert "continue_as_new" in failure.message
    assert "EngineOptions.max_history_events" in failure.message


def test_to_continue_as_new_in_time_is_all_it_takes() -> None:
    """S-DATA-8: the new execution has the whole length to itself."""
    driver = Driver(eats, options=EngineOptions(max_history_events=5))
    driver.start(5)
    for _ in range(4):
        driver.turn(driver.event("e"))
    turn = driver.turn(driver.event("e"))
    assert turn.completion is not None
    assert turn.completion.status == Status.CONTINUED_AS_NEW
    driver.continue_as_new(turn.completion)
    for _ in range(4):
        assert driver.turn(driver.event("e")).completion is None


def test_what_a_too_long_history_has_no_room_for_is_not_begun() -> None:
    """S-DATA-8: nothing is dispatched that is not on record."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity("First")
        yield task.when_all([ctx.call_activity(f"Many {n}") for n in range(10)])

    driver = Driver(main, options=EngineOptions(max_history_events=10))
    driver.start()
    turn = driver.turn(driver.done(1))
    assert failure_of(turn).error_type == "provisioning.engine.errors.HistoryTooLongError"
    assert turn.actions == []
    assert [Kind(e.kind) for e in turn.events] == [Kind.TASK_COMPLETED, Kind.EXECUTION_COMPLETED]
    assert driver.execution.outstanding(Kind.TASK_SCHEDULED) == []


def test_code_that_asks_without_end_is_stopped() -> None:
    """S-DATA-8: it never yields, so it is told where it asks."""

    def main(ctx: Ctx, _: Any) -> Steps:
        while True:
            ctx.call_activity("Again")
        yield

    turn = Driver(main, options=EngineOptions(max_history_events=10)).start()
    assert failure_of(turn).error_type == "provisioning.engine.errors.HistoryTooLongError"
    assert turn.actions == []


def test_the_default_limits_have_room_for_large_work() -> None:
    """S-DATA-8: 100,000 sub-orchestrations, or 50,000 events, in one execution and without a warning."""
    options = EngineOptions()
    assert 2 * 100_000 + 2 < options.history_warning_events < options.max_history_events
    assert options.max_buffered_events > 50_000
