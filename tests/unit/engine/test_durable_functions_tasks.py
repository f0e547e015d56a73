"""Durable Functions style: tasks, alone and together, on the embedded engine and on the SDK's own."""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from durabletask import task

import provisioning.engine.durable_functions as df
from tests.unit.engine.hosts import Function, Host

pytestmark = pytest.mark.asyncio(loop_scope="module")

Context = df.DurableOrchestrationContext
Steps = Generator[Any, Any, Any]

ORCHESTRATORS: list[Function] = []
ACTIVITIES: list[Function] = []


def orchestrator(fn: Callable[[Context], Any]) -> Function:
    """As `df.orchestrator`, and on the hosts of this module."""
    ORCHESTRATORS.append(df.orchestrator(fn))
    return ORCHESTRATORS[-1]


def activity(fn: Callable[[Any], Any]) -> Function:
    """As `df.activity`, and on the hosts of this module."""
    ACTIVITIES.append(df.activity(fn))
    return ACTIVITIES[-1]


@activity
def echo(value: Any) -> Any:
    return value


@activity
def fail(message: str) -> None:
    raise ValueError(message)


# Composites


@orchestrator
def gathers(context: Context) -> Steps:
    return (yield context.task_all([context.call_activity("echo", n) for n in context.get_input()]))


async def test_task_all_gives_results_in_order(host: Host) -> None:
    assert await host.run(gathers, [3, 1, 2]) == [3, 1, 2]


async def test_task_all_of_nothing_is_done_at_once_also_as_the_first_yield(host: Host) -> None:
    assert await host.run(gathers, []) == []


@orchestrator
def fails_fast(context: Context) -> Steps:
    never = context.wait_for_external_event("never")
    all_ = context.task_all([never, context.call_activity("fail", "one"), context.call_activity("echo", 1)])
    try:
        yield all_
    except Exception as error:
        return [str(error).rpartition(" ")[2], all_.state.name, never.state.name, never.result]


async def test_task_all_fails_with_the_first_that_fails_and_waits_for_no_other(host: Host) -> None:
    assert await host.run(fails_fast) == ["one", "FAILED", "RUNNING", None]


@orchestrator
def races(context: Context) -> Steps:
    event = context.wait_for_external_event("answer")
    timer = context.create_timer(context.current_utc_datetime + timedelta(days=30))
    assert (event.state, event.result) == (df.TaskState.RUNNING, None)
    winner = yield context.task_any([timer, event])
    assert winner is event
    assert winner == event
    assert winner != timer
    if not timer.is_completed:
        timer.cancel()
    assert timer.is_cancelled
    return [winner.result, winner.is_completed, winner.is_faulted, winner.state.name]


async def test_task_any_gives_the_task_that_was_passed(host: Host) -> None:
    instance_id = await host.start(races)
    await host.event(instance_id, "answer", 42)
    assert await host.output_of(instance_id) == [42, True, False, "SUCCEEDED"]


@orchestrator
def loses_well(context: Context) -> Steps:
    failing = context.call_activity("fail", "lost")
    winner = yield context.task_any([context.wait_for_external_event("never"), failing])
    return [winner is failing, winner.is_faulted, isinstance(winner.result, Exception)]


async def test_task_any_raises_nothing_where_the_first_to_end_has_failed(host: Host) -> None:
    assert await host.run(loses_well) == [True, True, True]


@orchestrator
def nests(context: Context) -> Steps:
    never = context.wait_for_external_event("never")
    pair = [context.call_activity("echo", "a"), context.call_activity("echo", "b")]
    both = context.task_all(pair)
    first = context.task_any([never, both])
    winner = yield context.task_any([never, first])
    assert winner is first
    assert winner.result is both
    assert both.result == ["a", "b"]
    # The same tasks again, alone, twice, and in other composites.
    again = yield context.task_all([pair[1], both, pair[1], pair[0]])
    assert (yield pair[0]) == "a"
    assert (yield pair[0]) == "a"
    assert (yield context.task_any([never, pair[1]])) is pair[1]
    return again


async def test_composites_nest_and_share_tasks(host: Host) -> None:
    assert await host.run(nests) == ["b", ["a", "b"], "b", "a"]


@orchestrator
def mixes(context: Context) -> Steps:
    one, two = context.call_activity("echo", 1), context.call_activity("echo", 2)
    results = yield task.when_all([one, context.task_all([two])])
    return [results, (yield task.when_any([one])) is one]


async def test_tasks_go_into_the_composites_of_the_sdk_too(host: Host) -> None:
    assert await host.run(mixes) == [[1, [2]], True]


@orchestrator
def misuses(context: Context) -> Steps:
    errors = []
    for wrong in ([], "ab", [None]):
        try:
            yield context.task_any(wrong)
        except (TypeError, ValueError) as error:
            errors.append(str(error))
    for value in (None, [context.call_activity("echo", 1)]):
        try:
            yield value
        except TypeError as error:
            errors.append(str(error))
    return errors


async def test_what_is_no_task_is_an_error_at_its_place(host: Host) -> None:
    errors = await host.run(misuses)
    assert [e.partition(":")[0] for e in errors] == [
        "task_any([]) never completes",
        "task_any takes a list of tasks, not of 'str'",
        "task_any takes a list of tasks, not of 'NoneType'",
        "an orchestrator yields tasks, not 'NoneType'",
        "an orchestrator yields tasks, not 'list'",
    ]


# Events and timers


@orchestrator
def collects(context: Context) -> Steps:
    yield context.wait_for_external_event("start")
    return [
        (yield context.wait_for_external_event("Part")),
        (yield context.wait_for_external_event("Part")),
        (yield context.wait_for_external_event("part")),
    ]


async def test_events_that_came_early_are_taken_in_order_whatever_the_case_of_their_name(host: Host) -> None:
    instance_id = await host.start(collects)
    for part in ("a", None, "c"):
        await host.event(instance_id, "pART", part)
    await host.event(instance_id, "start")
    assert await host.output_of(instance_id) == ["a", None, "c"]


@orchestrator
def reminds(context: Context) -> Steps:
    """As Durable Functions code does it: a new wait in each round, and none is ever cancelled."""
    for reminders in range(100):
        answer = context.wait_for_external_event("Answer")
        winner = yield context.task_any([answer, context.wait_for_external_event("Remind")])
        if winner == answer:
            return [reminders, answer.result]
        context.set_custom_status(reminders + 1)
    return None


async def test_an_event_goes_to_the_latest_wait_for_it(host: Host) -> None:
    instance_id = await host.start(reminds)
    for reminders in (1, 2):
        await host.event(instance_id, "Remind")
        await host.shows(instance_id, reminders)
    await host.event(instance_id, "Answer", "yes")
    assert await host.output_of(instance_id) == [2, "yes"]


@orchestrator
def votes(context: Context) -> Steps:
    return (
        yield context.task_all([context.wait_for_external_event(name) for name in ("vote", "VOTE", "Vote")])
    )


async def test_as_many_events_as_waits_fill_them_all(host: Host) -> None:
    instance_id = await host.start(votes)
    for vote in (1, 2, 3):
        await host.event(instance_id, "vote", vote)
    assert await host.output_of(instance_id) == [3, 2, 1]


@orchestrator
def times(context: Context) -> Steps:
    begin = context.current_utc_datetime
    aware = context.create_timer(begin + timedelta(milliseconds=20))
    elsewhere = (begin + timedelta(milliseconds=10)).astimezone(tz=None)
    yield context.create_timer(elsewhere)
    yield context.create_timer(begin.replace(tzinfo=None) + timedelta(milliseconds=10))
    assert (yield aware) is None
    try:
        aware.cancel()
    except ValueError as error:
        passed = context.current_utc_datetime - begin
        return [str(error), passed >= timedelta(milliseconds=20), aware.is_cancelled, begin.isoformat()]


async def test_timers_are_due_at_a_time_and_once_fired_are_not_cancelled(host: Host) -> None:
    error, in_time, cancelled, begin = await host.run(times)
    assert (error, in_time, cancelled) == ("Cannot cancel a completed task.", True, False)
    assert datetime.fromisoformat(begin).utcoffset() == timedelta(0)
    assert abs(datetime.fromisoformat(begin) - datetime.now(UTC)) < timedelta(minutes=5)


@orchestrator
def cancels(context: Context) -> Steps:
    timer = context.create_timer(context.current_utc_datetime + timedelta(days=400))
    all_ = context.task_all([timer, context.call_activity("echo", 1)])
    timer.cancel()
    timer.cancel()
    caught = []
    for cancelled in (timer, all_):
        try:
            yield cancelled
        except task.TaskCancelledError:
            caught.append(cancelled.state.name)
    return caught


async def test_a_cancelled_timer_is_an_error_where_it_is_waited_for(host: Host) -> None:
    assert await host.run(cancels) == ["FAILED", "FAILED"]
