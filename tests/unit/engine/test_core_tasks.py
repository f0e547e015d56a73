"""Tasks, composites and external events on the pure core."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from durabletask import task

from provisioning.engine.records import Kind, Status, to_datetime
from tests.unit.engine.driving import SECOND, START, Ctx, Driver, Steps, Task, asked, failure_of, output_of


def test_task_ids_start_at_one_and_children_are_named_after_them() -> None:
    """S-ID-2: `{parent}:{seq:04x}`; task ids start at 1 per execution."""

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
    """S-ID-5: uuid5 over namespace, instance id, orchestration time and a counter."""

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
    """S-ID-6: `current_utc_datetime` is naive UTC, fixed for a dispatch."""
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
    """S-ID-8: `is_replaying` is False for all of the new batch."""
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
    """S-TASK-1: `when_all` waits for every child, then gives results in input order."""

    def main(ctx: Ctx, _: Any) -> Steps:
        results = yield task.when_all([ctx.call_activity(name) for name in "ABC"])
        return results

    driver = Driver(main)
    driver.start()
    driver.turn(driver.done(3, "c"))
    driver.turn(driver.done(1, "a"))
    assert output_of(driver.turn(driver.done(2, "b"))) == ["a", "b", "c"]


def test_when_all_raises_the_first_observed_failure_after_all_have_ended() -> None:
    """S-TASK-2: `when_all` … raises the first *observed* failure."""

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
    """S-TASK-3: `when_any` returns the first finished task, failed ones too; losers go on."""

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
    """S-TASK-4: a task may belong to several composites."""

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
    """S-TASK-5: `when_all([])` completes with `[]`, as the first yield too."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield task.when_all([]))

    assert output_of(Driver(main).start()) == []


def test_when_any_of_nothing_is_an_error() -> None:
    """S-TASK-6: `when_any([])` is an error."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield task.when_any([])

    assert failure_of(Driver(main).start()).error_type == "builtins.ValueError"


def test_a_complete_task_resumes_at_once_even_as_first_yield() -> None:
    """S-TASK-7: yielding a task that is already complete resumes at once."""

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
    """S-TASK-8: yielding something that is no task is a `TypeError` into the orchestrator."""

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
    """S-TASK-10: actions that were emitted and never awaited are still dispatched."""

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
    """S-TASK-9: as in the SDK, `when_all` over a cancelled task ends in TaskCancelledError."""

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


def test_composites_hear_in_the_order_in_which_they_were_made() -> None:
    """S-TASK-4: of two races over the same tasks, the one that was made first ends first."""

    def main(ctx: Ctx, _: Any) -> Steps:
        a: task.Task[Any] = ctx.call_activity("A")
        second, first = task.when_any([a]), task.when_any([a])
        both: list[task.Task[Any]] = [first, second]
        winner = yield task.when_any(both)
        return winner is second

    driver = Driver(main)
    driver.start()
    driver.reload()
    assert output_of(driver.turn(driver.done(1))) is True


def test_composites_of_composites_and_the_same_task_twice() -> None:
    """S-TASK-4: as deep as one likes; a task counts as often as it is given."""

    def main(ctx: Ctx, _: Any) -> Steps:
        a: task.Task[Any] = ctx.call_activity("A")
        b: task.Task[Any] = ctx.call_activity("B")
        inner: list[task.Task[Any]] = [task.when_all([a, a]), task.when_all([a, b])]
        return (yield task.when_all(inner))

    driver = Driver(main)
    driver.start()
    driver.turn(driver.done(2, "b"))
    driver.reload()
    assert output_of(driver.turn(driver.done(1, "a"))) == [["a", "a"], ["a", "b"]]


@pytest.mark.parametrize("where", ["first yield", "later yield", "within any"])
def test_a_cancelled_task_raises_in_the_code_that_yields_it(where: str) -> None:
    """S-TASK-9: TaskCancelledError; a race that a cancelled task ends gives that task."""

    def main(ctx: Ctx, _: Any) -> Steps:
        timer = ctx.create_timer(timedelta(hours=1))
        if where == "later yield":
            yield ctx.call_activity("A")
        if where == "within any":
            race: task.Task[Any] = task.when_any([timer, ctx.wait_for_external_event("e")])
            timer.cancel()
            winner = yield race
            assert winner is timer
        timer.cancel()
        seen = []
        for _ in range(2):
            try:
                yield timer
            except task.TaskCancelledError as error:
                seen.append(str(error))
        return seen

    driver = Driver(main)
    turn = driver.start()
    if where == "later yield":
        turn = driver.turn(driver.done(2))
    assert output_of(turn) == ["The task was cancelled."] * 2


def test_a_failed_task_raises_each_time_that_it_is_yielded() -> None:
    """S-TASK-12: with the same failure."""

    def main(ctx: Ctx, _: Any) -> Steps:
        one: Task = ctx.call_activity("A")
        seen = []
        for _ in range(2):
            try:
                yield one
            except task.TaskFailedError as error:
                seen.append(error)
        return [seen[0] is seen[1], str(seen[0])]

    driver = Driver(main)
    driver.start()
    assert output_of(driver.turn(driver.failed(1))) == [True, "i: Activity task #1 failed: boom"]


def test_the_context_knows_who_it_is() -> None:
    """S-ID-9: instance, version, parent; after a replay too."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        return [ctx.instance_id, ctx.version, ctx.parent_instance_id]

    driver = Driver(main, instance_id="child", parent_id="parent", version="1.2")
    driver.start()
    driver.reload()
    assert output_of(driver.turn(driver.event("go"))) == ["child", "1.2", "parent"]
    alone = Driver(main)
    alone.start()
    assert output_of(alone.turn(alone.event("go"))) == ["i", None, None]


# Names that the disk can't keep


@pytest.mark.parametrize("what", ["activity", "child", "child id", "event", "target", "version"])
def test_text_that_can_not_be_stored_fails_the_orchestration_that_made_it(what: str) -> None:
    """S-ID-10: what crosses a boundary is checked at the edge, in the code that hands it over."""
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
    """S-ID-10: ids are text; a number would be another key in memory than on disk."""

    def main(ctx: Ctx, _: Any) -> None:
        ctx.call_sub_orchestrator("Child", instance_id=5)  # type: ignore[call-overload]

    assert failure_of(Driver(main).start()).error_type == "builtins.TypeError"


def test_a_plain_function_is_an_orchestrator_too() -> None:
    """S-TASK-11: a function that is no generator completes with what it returns."""

    def main(ctx: Ctx, value: Any) -> Any:
        ctx.set_custom_status({"was": value})
        return value

    driver = Driver(main)
    turn = driver.start([1, None, "x"])
    assert output_of(turn) == [1, None, "x"]
    assert driver.execution.custom_status == '{"was": [1, null, "x"]}'
    assert turn.completion is not None
    assert turn.completion.status == Status.COMPLETED
