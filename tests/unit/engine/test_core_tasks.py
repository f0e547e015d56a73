"""Tasks, composites and external events on the pure core."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from durabletask import task

from provisioning.engine.options import EngineOptions
from provisioning.engine.records import Kind, Status, to_datetime
from tests.unit.engine.driving import SECOND, START, Ctx, Driver, Steps, Task, asked, failure_of, output_of


def test_task_ids_start_at_one_and_children_are_named_after_them() -> None:
    """SEMANTICS Identity: `{parent}:{seq:04x}`; task ids start at 1 per execution."""

    def main(ctx: Ctx, _: Any) -> Steps:
        ctx.call_activity("A")
        ctx.create_timer(timedelta(hours=1))
        child: Task = ctx.call_sub_orchestrator("Child")
        named: Task = ctx.call_sub_orchestrator("Child", instance_id="own-name")
        yield task.when_all([child, named])

    driver = Driver(main, instance_id="parent")
    turn = driver.start()
    assert [a.task_id for a in turn.actions] == [1, 2, 3, 4]
    assert [a.ref for a in turn.actions if a.kind == Kind.CHILD_CREATED] == ["parent:0003", "own-name"]


def test_new_uuid_is_that_of_the_sdk() -> None:
    """SEMANTICS Identity: uuid5 over namespace, instance id, orchestration time and a counter."""

    def main(ctx: Ctx, _: Any) -> Steps:
        first = [ctx.new_uuid(), ctx.new_uuid()]
        yield ctx.wait_for_external_event("go")
        return [*first, ctx.new_uuid()]

    import uuid

    driver = Driver(main, instance_id="abc")
    driver.start()
    driver.reload()
    ids = output_of(driver.turn(driver.event("go")))
    namespace = uuid.uuid5(uuid.NAMESPACE_OID, "9e952958-5e33-4daf-827f-2fa12937b875")
    times = [to_datetime(START + n * SECOND).strftime("%Y-%m-%dT%H:%M:%S.%fZ") for n in (1, 1, 2)]
    assert ids == [str(uuid.uuid5(namespace, f"abc_{at}_{n}")) for n, at in enumerate(times)]


def test_time_is_naive_utc_and_stands_still_within_a_turn() -> None:
    """SEMANTICS Identity: `current_utc_datetime` is naive UTC, fixed for a dispatch."""
    seen: list[datetime] = []

    def main(ctx: Ctx, _: Any) -> Steps:
        for name in ("a", "b", "c"):
            seen.append(ctx.current_utc_datetime)
            yield ctx.wait_for_external_event(name)

    driver = Driver(main)
    driver.turn(driver.start_message(), driver.event("a"))
    live = seen[:2]
    assert live == [to_datetime(START + SECOND)] * 2
    assert all(at.tzinfo is None for at in live)


def test_is_replaying_is_false_for_the_new_batch_only() -> None:
    """SEMANTICS Identity: `is_replaying` is False for all of the new batch."""
    seen: list[bool] = []

    def main(ctx: Ctx, _: Any) -> Steps:
        for name in ("a", "b", "c"):
            seen.append(ctx.is_replaying)
            yield ctx.wait_for_external_event(name)
        seen.append(ctx.is_replaying)

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("a"))
    driver.reload()
    seen.clear()
    replayed = driver.replayed()
    assert seen == [True, True]
    seen.clear()
    replayed.turn(driver.now, [driver.event("b"), driver.event("c")])
    assert seen == [False, False]


def test_when_all_gives_results_in_input_order() -> None:
    """SEMANTICS Tasks: `when_all` waits for every child, then gives results in input order."""

    def main(ctx: Ctx, _: Any) -> Steps:
        results = yield task.when_all([ctx.call_activity(name) for name in "ABC"])
        return results

    driver = Driver(main)
    driver.start()
    driver.turn(driver.done(3, "c"))
    driver.turn(driver.done(1, "a"))
    assert output_of(driver.turn(driver.done(2, "b"))) == ["a", "b", "c"]


def test_when_all_raises_the_first_observed_failure_after_all_have_ended() -> None:
    """SEMANTICS Tasks: `when_all` … raises the first *observed* failure."""

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield task.when_all([ctx.call_activity(name) for name in "ABC"])
        except task.TaskFailedError as error:
            return [str(error), ctx.current_utc_datetime.isoformat()]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.failed(2, "second"))
    driver.turn(driver.failed(1, "first"))
    message, at = output_of(driver.turn(driver.done(3)))
    assert message == "i: Activity task #2 failed: second"
    assert at == to_datetime(START + 4 * SECOND).isoformat()


def test_when_any_returns_a_failed_task_too_and_losers_go_on() -> None:
    """SEMANTICS Tasks: `when_any` returns the first finished task, failed ones too; losers go on."""

    def main(ctx: Ctx, _: Any) -> Steps:
        a: Task = ctx.call_activity("A")
        b: Task = ctx.call_activity("B")
        winner = yield task.when_any([a, b])
        later = yield b
        return [winner is a, winner.is_failed, later]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.failed(1))
    driver.reload()
    assert output_of(driver.turn(driver.done(2, "late"))) == [True, True, "late"]


def test_a_task_may_belong_to_several_composites() -> None:
    """SEMANTICS Tasks: a task may belong to several composites."""

    def main(ctx: Ctx, _: Any) -> Steps:
        tasks: list[Task] = [ctx.call_activity(name) for name in "ABC"]
        a, b, c = tasks
        any_of, all_of = task.when_any([a, b]), task.when_all([a, c])
        winner = yield any_of
        both = yield all_of
        return [winner is a, both]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.done(1, 1))
    assert output_of(driver.turn(driver.done(3, 3))) == [True, [1, 3]]


def test_when_all_of_nothing_is_done_at_once() -> None:
    """SEMANTICS Tasks, ours: `when_all([])` completes with `[]`, as the first yield too."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield task.when_all([]))

    assert output_of(Driver(main).start()) == []


def test_when_any_of_nothing_is_an_error() -> None:
    """SEMANTICS Tasks, ours: `when_any([])` is an error."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield task.when_any([])

    assert failure_of(Driver(main).start()).error_type == "builtins.ValueError"


def test_a_complete_task_resumes_at_once_even_as_first_yield() -> None:
    """SEMANTICS Tasks, ours: yielding a task that is already complete resumes at once."""

    def main(ctx: Ctx, _: Any) -> Steps:
        timer = ctx.create_timer(timedelta(hours=1))
        timer.cancel()
        try:
            yield timer
        except task.TaskCancelledError:
            return "cancelled"

    turn = Driver(main).start()
    assert output_of(turn) == "cancelled"
    assert turn.actions == []


@pytest.mark.parametrize("first", [True, False])
def test_yielding_no_task_is_a_type_error_into_the_orchestrator(first: bool) -> None:
    """SEMANTICS Tasks, ours: yielding something that is no task is a `TypeError` into the orchestrator."""

    def main(ctx: Ctx, _: Any) -> Any:
        if not first:
            yield ctx.wait_for_external_event("go")
        try:
            yield 42
        except TypeError as error:
            return str(error)

    driver = Driver(main)
    turn = driver.start()
    if not first:
        turn = driver.turn(driver.event("go"))
    assert "yields tasks, not 'int'" in output_of(turn)


def test_actions_never_awaited_are_dispatched_at_the_end() -> None:
    """SEMANTICS Tasks: actions that were emitted and never awaited are still dispatched."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        ctx.call_activity("Cleanup")
        ctx.send_event("other", "bye")
        return "done"

    driver = Driver(main)
    driver.start()
    turn = driver.turn(driver.event("go"))
    assert output_of(turn) == "done"
    assert asked(turn) == [("TASK_SCHEDULED", 1, "Cleanup"), ("EVENT_SENT", 2, "bye")]


def test_a_composite_with_a_cancelled_task_fails_the_orchestration_alone() -> None:
    """SEMANTICS Tasks: as in the SDK, `when_all` over a cancelled task ends in TaskCancelledError."""

    def main(ctx: Ctx, _: Any) -> Steps:
        timer = ctx.create_timer(timedelta(hours=1))
        group = task.when_all([timer, ctx.call_activity("A")])
        timer.cancel()
        yield group

    driver = Driver(main)
    driver.start()
    failure = failure_of(driver.turn(driver.done(2)))
    assert failure.error_type == "durabletask.task.TaskCancelledError"


@pytest.mark.parametrize("how", ["fired", "failed", "event"])
def test_a_cancelled_task_in_a_composite_never_escapes_the_core(how: str) -> None:
    """As above for each kind of message that can complete the composite."""

    def main(ctx: Ctx, _: Any) -> Steps:
        cancelled = ctx.create_timer(timedelta(hours=1))
        last: task.Task[Any]
        if how == "fired":
            last = ctx.create_timer(timedelta(seconds=1))
        elif how == "failed":
            last = ctx.call_activity("A")
        else:
            last = ctx.wait_for_external_event("E")
        group = task.when_all([cancelled, last])
        cancelled.cancel()
        yield group

    driver = Driver(main)
    driver.start()
    message = {"fired": driver.fired(2), "failed": driver.failed(2), "event": driver.event("e")}[how]
    assert failure_of(driver.turn(message)) is not None


# External events


def test_event_names_match_by_casefold_and_are_buffered_in_order() -> None:
    """SEMANTICS Events: names match by `casefold()`; earlier events are buffered, in order."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        first = yield ctx.wait_for_external_event("STRASSE")
        second = yield ctx.wait_for_external_event("straße")
        return [first, second]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("Straße", 1), driver.event("strasse", 2))
    driver.reload()
    assert output_of(driver.turn(driver.event("GO"))) == [1, 2]


def test_the_earliest_waiter_gets_the_earliest_event() -> None:
    """SEMANTICS Events: the earliest waiter gets the earliest event; a waiter left behind takes the next."""

    def main(ctx: Ctx, _: Any) -> Steps:
        left_behind = ctx.wait_for_external_event("e")
        mine = ctx.wait_for_external_event("e")
        value = yield mine
        return [left_behind.get_result(), value]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("e", "first"))
    assert output_of(driver.turn(driver.event("e", "second"))) == ["first", "second"]


def test_a_cancelled_waiter_takes_no_event() -> None:
    """SEMANTICS Events: one races the wait with a timer and must cancel the loser."""

    def main(ctx: Ctx, _: Any) -> Steps:
        wait, timer = ctx.wait_for_external_event("e"), ctx.create_timer(timedelta(minutes=1))
        winner = yield task.when_any([wait, timer])
        assert winner is timer
        wait.cancel()
        return (yield ctx.wait_for_external_event("e"))

    driver = Driver(main)
    driver.start()
    driver.turn(driver.fired(1))
    assert output_of(driver.turn(driver.event("e", "kept"))) == "kept"


def test_a_cancelled_timer_is_reported_for_removal_once_it_is_on_disk() -> None:
    """SEMANTICS Events, ours: a timer left behind keeps nothing running; Timers: cancellable."""

    def main(ctx: Ctx, _: Any) -> Steps:
        wait, timer = ctx.wait_for_external_event("e"), ctx.create_timer(timedelta(minutes=1))
        yield task.when_any([wait, timer])
        assert timer.cancel()
        assert not timer.cancel()
        yield ctx.wait_for_external_event("end")

    driver = Driver(main)
    driver.start()
    turn = driver.turn(driver.event("e"))
    assert turn.cancelled_timers == [1]
    late = driver.turn(driver.fired(1))
    assert late.events == []


def test_events_are_decoded_by_the_waiters_type() -> None:
    """SEMANTICS Events: the payload is kept as raw JSON and decoded by the waiter's `data_type`."""
    from dataclasses import dataclass

    @dataclass
    class Ack:
        size: int

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        buffered = yield ctx.wait_for_external_event("ack", data_type=Ack)
        direct = yield ctx.wait_for_external_event("ack", data_type=Ack)
        return [isinstance(buffered, Ack), buffered.size, isinstance(direct, Ack), direct.size]

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("ack", {"size": 1}))
    driver.turn(driver.event("go"))
    assert output_of(driver.turn(driver.event("ack", {"size": 2}))) == [True, 1, True, 2]


def test_an_idempotency_key_is_applied_once() -> None:
    """SEMANTICS Events, ours: the same key is applied once to an instance, after a replay too."""

    def main(ctx: Ctx, _: Any) -> Steps:
        got = []
        for _n in range(3):
            got.append((yield ctx.wait_for_external_event("e")))  # noqa: PERF401 -- yields
        return got

    driver = Driver(main)
    driver.start()
    driver.turn(driver.event("e", 1, key="k1"), driver.event("e", 1, key="k1"))
    driver.reload()
    assert driver.turn(driver.event("e", 1, key="k1")).events == []
    driver.turn(driver.event("e", 2, key="k2"))
    assert output_of(driver.turn(driver.event("e", 3))) == [1, 2, 3]


def test_events_before_the_start_are_kept() -> None:
    """SEMANTICS Events: an event for an instance that is pending is kept."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.wait_for_external_event("e"))

    driver = Driver(main)
    assert output_of(driver.turn(driver.start_message(), driver.event("e", 7))) == 7


def test_send_event_is_fire_and_forget_with_a_task_id() -> None:
    """SEMANTICS Events: `send_event` from an orchestrator: fire and forget."""

    def main(ctx: Ctx, _: Any) -> Steps:
        ctx.send_event("other", "Hello", data={"n": 1})
        return (yield ctx.call_activity("A"))

    driver = Driver(main)
    turn = driver.start()
    sent = turn.actions[0]
    assert (sent.kind, sent.task_id, sent.name, sent.ref, sent.data) == (
        Kind.EVENT_SENT,
        1,
        "Hello",
        "other",
        '{"n": 1}',
    )
    assert output_of(driver.turn(driver.done(2, "x"))) == "x"


@pytest.mark.parametrize(("target", "name"), [("", "e"), (" ", "e"), ("@entity", "e"), ("x", ""), ("x", " ")])
def test_send_event_checks_its_arguments(target: str, name: str) -> None:
    """As the SDK: empty names and entity ids are a ValueError into the orchestrator."""

    def main(ctx: Ctx, _: Any) -> None:
        ctx.send_event(target, name)

    assert failure_of(Driver(main).start()).error_type == "builtins.ValueError"


def test_buffered_events_have_a_bound() -> None:
    """SEMANTICS Data: limits are ours to name: events buffered."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("never")

    driver = Driver(main, options=EngineOptions(max_buffered_events=2))
    driver.start()
    driver.turn(driver.event("e"), driver.event("e"))
    failure = failure_of(driver.turn(driver.event("e")))
    assert failure.error_type == "builtins.BufferError"
    assert "'e'" in failure.message


# Timers


def test_aware_times_become_naive_utc() -> None:
    """SEMANTICS Identity: aware datetimes given to timers become naive UTC."""
    due = to_datetime(START + 3600 * SECOND)

    def main(ctx: Ctx, _: Any) -> Steps:
        aware = due.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=5)))
        yield task.when_all([ctx.create_timer(due), ctx.create_timer(aware)])

    turn = Driver(main).start()
    assert [a.due for a in turn.actions] == [START + 3600 * SECOND] * 2


def test_long_timers_are_made_of_several_each_with_its_id() -> None:
    """SEMANTICS Timers: longer than the maximum interval: chunks, each with a new task id."""

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
    """SEMANTICS Timers: cancellable, in chunks too."""

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
    """SEMANTICS Timers: fire no earlier than due; a time before 1970 is no trouble for the store."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(ago)

    due = Driver(main).start().actions[0].due
    assert 0 <= due < START + SECOND


def test_a_far_timer_fits_the_disk() -> None:
    """SEMANTICS Timers: chunks: what is stored is never far off."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta.max)

    assert Driver(main).start().actions[0].due == START + SECOND + 3 * 86_400 * SECOND


# Names that the disk can't keep


@pytest.mark.parametrize("what", ["activity", "child", "child id", "event", "target", "version"])
def test_text_that_can_not_be_stored_fails_the_orchestration_that_made_it(what: str) -> None:
    """SEMANTICS Data: what crosses a boundary is checked at the edge, in the code that hands it over."""
    bad = "\ud800"

    def main(ctx: Ctx, _: Any) -> None:
        match what:
            case "activity":
                ctx.call_activity(bad)
            case "child":
                ctx.call_sub_orchestrator(bad)
            case "child id":
                ctx.call_sub_orchestrator("Child", instance_id=bad)
            case "event":
                ctx.send_event("other", bad)
            case "target":
                ctx.send_event(bad, "e")
            case "version":
                ctx.continue_as_new(None, new_version=bad)

    turn = Driver(main).start()
    assert failure_of(turn).error_type == "builtins.ValueError"
    assert turn.actions == []


def test_a_child_id_that_is_no_text_fails_the_orchestration() -> None:
    """SEMANTICS Identity: ids are text; a number would be another key in memory than on disk."""

    def main(ctx: Ctx, _: Any) -> None:
        ctx.call_sub_orchestrator("Child", instance_id=5)  # type: ignore[call-overload]

    assert failure_of(Driver(main).start()).error_type == "builtins.TypeError"


def test_a_plain_function_is_an_orchestrator_too() -> None:
    """As the SDK: a function that is no generator completes with what it returns."""

    def main(ctx: Ctx, value: Any) -> Any:
        ctx.set_custom_status({"was": value})
        return value

    driver = Driver(main)
    turn = driver.start([1, None, "x"])
    assert output_of(turn) == [1, None, "x"]
    assert driver.execution.custom_status == '{"was": [1, null, "x"]}'
    assert turn.completion is not None
    assert turn.completion.status == Status.COMPLETED
