"""Failures, retries and non-determinism on the pure core."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from durabletask import task

from provisioning.engine import failures
from provisioning.engine.records import HistoryEvent, Kind, Message
from provisioning.engine.retries import Retry
from tests.unit.engine.driving import SECOND, Ctx, Driver, Steps, asked, failure_of, output_of


def test_the_parent_sees_type_message_and_inner_failure() -> None:
    """S-FAIL-1, S-FAIL-2: TaskFailedError with details; its message names instance and task."""

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.call_activity("A")
        except task.TaskFailedError as error:
            return [str(error), error.details.error_type, error.details.message]

    driver = Driver(main, instance_id="dev-1")
    driver.start()
    assert output_of(driver.turn(driver.failed(1, "no space", "builtins.OSError"))) == [
        "dev-1: Activity task #1 failed: no space",
        "builtins.OSError",
        "no space",
    ]


def test_an_unhandled_task_failure_is_the_inner_failure() -> None:
    """S-FAIL-3: FAILED with TaskFailedError's type and the task's failure as inner."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_sub_orchestrator("Child")

    driver = Driver(main)
    driver.start()
    failure = failure_of(driver.turn(driver.child_failed(1, "child broke")))
    assert failure.error_type == "durabletask.task.TaskFailedError"
    assert failure.message == "Sub-orchestration task #1 failed: child broke"
    assert failure.inner_failure is not None
    assert failure.inner_failure.error_type == "builtins.ValueError"
    assert failure.inner_failure.message == "child broke"


def test_an_own_exception_keeps_its_type_and_its_causes() -> None:
    """S-FAIL-3: any other exception with its own type; inner follows __cause__ or __context__."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise RuntimeError("outer") from error

    driver = Driver(main)
    driver.start()
    failure = failure_of(driver.turn(driver.event("go")))
    assert (failure.error_type, failure.message) == ("builtins.RuntimeError", "outer")
    assert failure.inner_failure is not None
    assert failure.inner_failure.error_type == "builtins.KeyError"


def test_inner_failures_are_at_most_ten_deep() -> None:
    """S-FAIL-1: inner failures at most 10 deep, from live exceptions and from records."""
    error: Exception = ValueError("0")
    for n in range(1, 50):
        outer = ValueError(str(n))
        outer.__cause__ = error
        error = outer
    details: task.FailureDetails | None = failures.details_of(error)
    depth = 0
    while details is not None:
        depth, details = depth + 1, details.inner_failure
    assert depth <= failures.MAX_DEPTH + 1

    record = task.FailureDetails("leaf", "T", "")
    for n in range(5_000):
        record = task.FailureDetails(str(n), "T", "", inner_failure=record)
    text = failures.encode(failures.details_of(failures.StoredFailure("top", record)))
    kept: task.FailureDetails | None = failures.decode(text)
    depth = 0
    while kept is not None:
        depth, kept = depth + 1, kept.inner_failure
    assert depth <= failures.MAX_DEPTH + 1


def test_what_an_orchestrator_catches_goes_by_the_name_of_the_sdk_s_error() -> None:
    """S-FAIL-1: whoever prints its type, or its traceback, sees no other than on any backend."""

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.call_activity("A")
        except task.TaskFailedError as error:
            return [type(error).__name__, type(error).__qualname__, type(error).__module__, repr(error)]

    driver = Driver(main)
    driver.start()
    assert output_of(driver.turn(driver.failed(1, "bad"))) == [
        "TaskFailedError",
        "TaskFailedError",
        "durabletask.task",
        "TaskFailedError('i: Activity task #1 failed: bad')",
    ]


def test_a_failure_with_an_empty_message_is_a_failure() -> None:
    """S-FAIL-9: an exception with an empty message is still a failure."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity("A")

    driver = Driver(main)
    driver.start()
    assert failure_of(driver.turn(driver.failed(1, ""))).inner_failure is not None

    def empty(ctx: Ctx, _: Any) -> None:
        raise ValueError

    assert failure_of(Driver(empty).start()).error_type == "builtins.ValueError"


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class StubbornExit(BaseException):
    pass


@pytest.mark.parametrize(
    "make",
    [
        UnprintableError,
        StubbornExit,
        SystemExit,
        asyncio.CancelledError,
        GeneratorExit,
        RecursionError,
        lambda: task.TaskFailedError("own", ValueError("x")),
        lambda: failures.StoredFailure(
            "odd", task.FailureDetails("m", "t", "", properties={"not json": object()})
        ),
    ],
)
@pytest.mark.parametrize("where", ["call", "first step", "later step"])
def test_whatever_user_code_raises_fails_only_the_orchestration(
    make: Callable[[], BaseException], where: str
) -> None:
    """S-FAIL-12: any exception of user code is that orchestration's failure."""

    def plain(ctx: Ctx, _: Any) -> None:
        raise make()

    def steps(ctx: Ctx, _: Any) -> Steps:
        if where == "later step":
            yield ctx.wait_for_external_event("go")
        raise make()
        yield

    driver = Driver(plain if where == "call" else steps)
    turn = driver.start()
    if where == "later step":
        turn = driver.turn(driver.event("go"))
    assert failure_of(turn).error_type


def test_finally_blocks_that_misbehave_change_nothing() -> None:
    """S-LIFE-6: what ends an execution lets its code go, whatever the code thinks of it."""

    def swallows(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.wait_for_external_event("e")
        except GeneratorExit:
            yield ctx.wait_for_external_event("e")

    def raises(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.wait_for_external_event("e")
        finally:
            raise asyncio.CancelledError

    def asks(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.wait_for_external_event("e")
        finally:
            ctx.call_activity("A")
            ctx.send_event("x", "y")

    for orchestrator in (swallows, raises, asks):
        driver = Driver(orchestrator)
        driver.start()
        driver.reload()
        turn = driver.turn(driver.terminate("out"))
        assert output_of(turn) == "out"
        assert turn.actions == []


def test_an_unregistered_orchestrator_fails_with_the_sdks_name() -> None:
    """S-FAIL-6: unregistered orchestrator: FAILED with OrchestratorNotRegisteredError."""
    failure = failure_of(Driver(None).start())
    assert failure.error_type == "durabletask.worker.OrchestratorNotRegisteredError"
    assert "main" in failure.message


def test_an_orchestrator_unregistered_since_says_so_and_not_non_determinism() -> None:
    """S-FAIL-6: an orchestrator that is no longer registered when its instance comes back."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity("A")

    driver = Driver(main)
    driver.start()
    del driver.functions.orchestrators["main"]
    driver.reload()
    failure = failure_of(driver.turn(driver.event("e")))
    assert failure.error_type == "durabletask.worker.OrchestratorNotRegisteredError"
    assert [a.name for a in driver.execution.outstanding(Kind.TASK_SCHEDULED)] == ["A"]


def test_output_that_can_not_be_serialised_is_a_failure_that_says_so() -> None:
    """S-FAIL-8: output that can't be serialised: a failure that says so."""

    def main(ctx: Ctx, _: Any) -> Any:
        return object()

    assert "output" in failure_of(Driver(main).start()).message


def test_a_failure_within_another_error_keeps_what_it_stands_for() -> None:
    """S-FAIL-5: the task's failure is within the TaskFailedError, wherever that one is."""

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.call_activity("A")
        except task.TaskFailedError as error:
            raise RuntimeError("gave up") from error

    driver = Driver(main)
    driver.start()
    failure: task.FailureDetails | None = failure_of(driver.turn(driver.failed(1, "no space")))
    found = []
    while failure is not None:
        found.append((failure.error_type, failure.message))
        failure = failure.inner_failure
    assert found == [
        ("builtins.RuntimeError", "gave up"),
        ("durabletask.task.TaskFailedError", "i: Activity task #1 failed: no space"),
        ("builtins.ValueError", "no space"),
    ]


def test_a_failure_goes_up_through_its_levels_with_type_and_properties() -> None:
    """S-FAIL-1, S-FAIL-4: each level adds its own; ten are kept within the outermost."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_sub_orchestrator("Child")

    leaf = task.FailureDetails("leaf", "app.LeafError", "", properties={"part": 7})
    text = failures.encode(leaf)
    depths = []
    for level in range(1, 15):
        driver = Driver(main)
        driver.start()
        failed = Message(Kind.CHILD_FAILED, task_id=1, data=text, execution=1)
        turn = driver.turn(failed)
        failure: task.FailureDetails | None = failure_of(turn)
        assert turn.completion is not None
        text = turn.completion.failure or ""
        chain = []
        while failure is not None:
            chain.append(failure)
            failure = failure.inner_failure
        depths.append(len(chain))
        assert chain[0].error_type == "durabletask.task.TaskFailedError"
        if level <= failures.MAX_DEPTH:
            assert (chain[-1].error_type, chain[-1].properties) == ("app.LeafError", {"part": 7})
    assert depths == [*range(2, failures.MAX_DEPTH + 2), *[failures.MAX_DEPTH + 1] * 4]


# Properties


class PartError(Exception):
    pass


class Provider:
    """What the tests' application says of its errors."""

    def __init__(self, properties: Any) -> None:
        self.properties = properties

    def get_exception_properties(self, exception: Exception) -> Any:
        if isinstance(self.properties, Exception):
            raise self.properties
        return self.properties if isinstance(exception, PartError) else None


def test_properties_are_plain_data_for_the_errors_that_have_some() -> None:
    """S-FAIL-14: inner failures too; what is no JSON becomes text."""
    given = {"part": 7, 8: Decimal("1.5"), "list": (1, None, True), "at": timedelta(1), "deep": {"a": [b"x"]}}
    properties_of = failures.properties_from(Provider(given), logging.getLogger("test"))
    try:
        raise RuntimeError("outer") from PartError("inner")
    except RuntimeError as error:
        details = failures.decode(failures.encode(failures.details_of(error, properties_of)))
    assert details.properties is None
    assert details.inner_failure is not None
    assert details.inner_failure.properties == {
        "part": 7,
        "8": 1.5,
        "list": [1, None, True],
        "at": "1 day, 0:00:00",
        "deep": {"a": ["b'x'"]},
    }


@pytest.mark.parametrize("given", [LookupError("no provider today"), "no mapping", 5])
def test_a_provider_that_fails_is_logged_and_has_said_nothing(
    given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """S-FAIL-14: the failure itself is what matters."""
    properties_of = failures.properties_from(Provider(given), logging.getLogger("test"))
    details = failures.details_of(PartError("broken"), properties_of)
    assert (details.message, details.properties) == ("broken", None)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert failures.details_of(SystemExit(1), properties_of).properties is None


# Retries


def policy(**kwargs: Any) -> task.RetryPolicy:
    defaults: dict[str, Any] = {"first_retry_interval": timedelta(seconds=10), "max_number_of_attempts": 3}
    return task.RetryPolicy(**(defaults | kwargs))


def test_delays_grow_up_to_the_maximum() -> None:
    """S-RTY-1: min(first * coefficient**(n-1), max); the first try counts; no jitter."""
    retry = Retry(
        policy(max_number_of_attempts=6, backoff_coefficient=2.0, max_retry_interval=timedelta(seconds=35)),
        started_at=0,
    )
    delays = []
    while (delay := retry.next_delay(0)) is not None:
        delays.append(delay / SECOND)
        retry.attempt += 1
    assert delays == [10, 20, 35, 35, 35]


@pytest.mark.parametrize(("now_s", "delay_s"), [(0, 10), (89, 10), (90, None), (200, None)])
def test_retry_timeout_is_by_orchestration_time(now_s: int, delay_s: int | None) -> None:
    """S-RTY-3: stop when orchestration time + delay >= first try + retry_timeout."""
    retry = Retry(policy(retry_timeout=timedelta(seconds=100)), started_at=0)
    delay = retry.next_delay(now_s * SECOND)
    assert delay == (None if delay_s is None else delay_s * SECOND)


def test_absurd_policies_do_not_overflow() -> None:
    """S-RTY-1: the formula's result has a bound."""
    retry = Retry(policy(max_number_of_attempts=100_000, backoff_coefficient=10.0), started_at=0)
    retry.attempt = 50_000
    delay = retry.next_delay(0)
    assert delay is not None
    assert 0 < delay < 2**62


def test_a_retry_asks_again_under_the_same_id_and_timers_take_new_ones() -> None:
    """S-RTY-2: the same task id is used again, timers take new ids."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_activity("A", input="in", retry_policy=policy()))

    driver = Driver(main)
    driver.start()
    turn = driver.turn(driver.failed(1))
    assert asked(turn) == [("TIMER_CREATED", 2, None)]
    assert turn.actions[0].due == driver.now + 10 * SECOND
    driver.reload()
    turn = driver.turn(driver.fired(2))
    assert asked(turn) == [("TASK_SCHEDULED", 1, "A")]
    assert turn.actions[0].data == '"in"'
    driver.turn(driver.failed(1))
    driver.reload()
    driver.turn(driver.fired(3))
    assert output_of(driver.turn(driver.done(1, "third time"))) == "third time"


def test_a_child_is_retried_under_the_same_instance_id() -> None:
    """S-RTY-2: the same child id is used again."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_sub_orchestrator("Child", retry_policy=policy(max_number_of_attempts=2)))

    driver = Driver(main)
    first = driver.start().actions[0]
    driver.turn(driver.child_failed(1))
    again = driver.turn(driver.fired(2)).actions[0]
    assert (again.kind, again.task_id, again.ref) == (first.kind, first.task_id, first.ref)
    assert failure_of(driver.turn(driver.child_failed(1, "last"))).inner_failure is not None


def test_a_retried_task_completes_its_composites_once() -> None:
    """S-RTY-6: a composite sees only the last attempt."""

    def main(ctx: Ctx, _: Any) -> Steps:
        tries: list[task.Task[Any]] = [ctx.call_activity("A", retry_policy=policy()), ctx.call_activity("B")]
        return (yield task.when_all(tries))

    driver = Driver(main)
    driver.start()
    driver.turn(driver.failed(1), driver.done(2, "b"))
    driver.turn(driver.fired(3))
    assert output_of(driver.turn(driver.done(1, "a"))) == ["a", "b"]


# Non-determinism


def recorded() -> list[HistoryEvent]:
    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity("A")
        ctx.send_event("other", "Hello")
        yield ctx.create_timer(timedelta(seconds=5))
        yield ctx.call_sub_orchestrator("Child")

    driver = Driver(main)
    driver.start()
    driver.turn(driver.done(1))
    driver.turn(driver.fired(3))
    return driver.history


def test_the_recorded_steps_are_those_expected() -> None:
    kinds = [Kind(e.kind).name for e in recorded()]
    assert kinds == [
        "EXECUTION_STARTED",
        "TASK_SCHEDULED",
        "TASK_COMPLETED",
        "EVENT_SENT",
        "TIMER_CREATED",
        "TIMER_FIRED",
        "CHILD_CREATED",
    ]


def other_kind(ctx: Ctx, _: Any) -> Steps:
    yield ctx.create_timer(timedelta(seconds=1))


def other_name(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("B")


def nothing(ctx: Ctx, _: Any) -> Steps:
    yield ctx.wait_for_external_event("e")


def more(ctx: Ctx, _: Any) -> Steps:
    yield task.when_any([ctx.call_activity("A"), ctx.call_activity("Extra")])
    yield ctx.wait_for_external_event("e")


def other_target(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("A")
    ctx.send_event("another", "Hello")
    yield ctx.create_timer(timedelta(seconds=5))


def other_child(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("A")
    ctx.send_event("other", "Hello")
    yield ctx.create_timer(timedelta(seconds=5))
    yield ctx.call_sub_orchestrator("Kid")


def ends_early(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("A")
    return "too early"


@pytest.mark.parametrize(
    ("changed", "before", "now"),
    [
        (other_kind, "call_activity('A')", "create_timer"),
        (other_name, "call_activity('A')", "call_activity('B')"),
        (nothing, "call_activity('A')", "does not"),
        (more, "send_event('Hello')", "call_activity('Extra')"),
        (other_target, "send_event('Hello')", "'another'"),
        (other_child, "call_sub_orchestrator('Child')", "call_sub_orchestrator('Kid')"),
        (ends_early, "send_event('Hello')", "does not"),
    ],
)
def test_code_that_asks_for_something_else_is_found_out(
    changed: Callable[..., Any], before: str, now: str
) -> None:
    """S-FAIL-10: non-determinism: FAILED with NonDeterminismError naming both."""
    driver = Driver(changed)
    driver.history = recorded()
    driver.reload()
    turn = driver.execution.turn(driver.now + 60 * SECOND, [driver.event("wake")])
    failure = failure_of(turn)
    assert failure.error_type == "durabletask.task.NonDeterminismError"
    assert before in failure.message
    assert now in failure.message
    assert turn.actions == []


def test_inputs_are_not_compared() -> None:
    """S-FAIL-10: non-determinism: inputs are not compared."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_activity("A", input="now"))

    driver = Driver(main)
    driver.start()
    (scheduled,) = (n for n, e in enumerate(driver.history) if e.kind == Kind.TASK_SCHEDULED)
    driver.history[scheduled] = driver.history[scheduled]._replace(data='"then"')
    driver.reload()
    assert output_of(driver.turn(driver.done(1, "fine"))) == "fine"


def test_after_non_determinism_what_is_outstanding_is_what_the_history_says() -> None:
    """S-TASK-10: what only the changed code asks for is not taken for dispatched."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield task.when_any([ctx.call_activity("A"), ctx.call_activity("B"), ctx.create_timer(timedelta(1))])
        yield ctx.wait_for_external_event("e")

    def changed(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity("X")

    driver = Driver(main)
    driver.start()
    driver.turn(driver.done(1))
    driver.functions.orchestrators.clear()
    driver.functions.add_orchestrator("main", changed)
    driver.reload()
    failure_of(driver.execution.turn(driver.now, [driver.event("e")]))
    assert [a.name for a in driver.execution.outstanding(Kind.TASK_SCHEDULED)] == ["B"]
    assert [a.task_id for a in driver.execution.outstanding(Kind.TIMER_CREATED)] == [3]


def test_failures_survive_the_disk() -> None:
    """S-FAIL-1: type, message, stack trace, inner failure, properties: there and back."""
    details = task.FailureDetails(
        "m", "t", "stack", inner_failure=task.FailureDetails("im", "it", None), properties={"a": [1, None]}
    )
    text = failures.encode(details)
    json.loads(text)
    assert failures.decode(text) == details
