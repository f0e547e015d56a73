"""Programs of failures and retries."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from durabletask import task

from tests.integration.engine.catalogue import (
    FAILED,
    Client,
    Ctx,
    PartError,
    Properties,
    Steps,
    chain_of,
    child,
    program,
)
from tests.integration.engine.programs_tasks import SOON

FLATTENED = (
    "S-FAIL-4: a child's own error reaches the parent; the SDK's in-memory backend makes another of it"
)

# Failures


@program()
def an_activity_fails_unhandled(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("fail", input="no space")


@program()
def an_activity_fails_handled(ctx: Ctx, _: Any) -> Steps:
    try:
        yield ctx.call_activity("fail_with_cause")
    except task.TaskFailedError as error:
        caused = [error.details.is_caused_by(kind) for kind in (RuntimeError, Exception, KeyError)]
        return [str(error), chain_of(error.details), caused, bool(error.details.stack_trace)]


@program()
def an_error_with_a_cause_from_an_activity(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("fail_with_cause")


@program()
def an_error_of_its_own_with_a_cause(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("echo")
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise RuntimeError("outer") from error


@program()
def an_error_of_its_own_with_a_context(ctx: Ctx, _: Any) -> Any:
    try:
        raise KeyError("missing")
    except KeyError:
        raise PartError("seven")  # noqa: B904 -- the context is the point


@program()
def properties_of_an_error(ctx: Ctx, _: Any) -> Steps:
    try:
        yield ctx.call_activity("fail_with_properties", input="eight")
    except task.TaskFailedError as error:
        seen = error.details.properties == Properties().get_exception_properties(PartError("eight"))
        ctx.set_custom_status(seen)
    raise PartError("nine")


@program(
    differs="S-FAIL-9: an error without a message is one; the SDK's in-memory backend takes it for success",
    sdk={"custom_status": None},
    ours={
        "custom_status": '["p-an_error_without_a_message: Activity task #1 failed: ", '
        '[["builtins.LookupError", ""]]]'
    },
)
def an_error_without_a_message(ctx: Ctx, _: Any) -> Steps:
    try:
        yield ctx.call_activity("fail_silently")
    except task.TaskFailedError as error:
        ctx.set_custom_status([str(error), chain_of(error.details)])
    raise LookupError


@program()
def an_unhandled_failure_wrapped(ctx: Ctx, _: Any) -> Steps:
    """Deep causes are kept to ten within the outermost."""
    yield ctx.call_activity("echo")
    error: Exception = ValueError("0")
    for n in range(1, 20):
        outer = ValueError(str(n))
        outer.__cause__ = error
        error = outer
    raise error


@program(
    differs="S-FAIL-5: what a TaskFailedError stands for is kept, within another error too",
    sdk={
        "failure": (
            ("builtins.RuntimeError", "gave up"),
            (FAILED, "p-a_failure_within_an_error: Activity task #1 failed: no space"),
        )
    },
    ours={
        "failure": (
            ("builtins.RuntimeError", "gave up"),
            (FAILED, "p-a_failure_within_an_error: Activity task #1 failed: no space"),
            ("builtins.ValueError", "no space"),
        )
    },
)
def a_failure_within_an_error(ctx: Ctx, _: Any) -> Steps:
    try:
        yield ctx.call_activity("fail", input="no space")
    except task.TaskFailedError as error:
        raise RuntimeError("gave up") from error


@child
def child_fails(ctx: Ctx, message: str) -> Steps:
    yield ctx.call_activity("echo")
    raise PartError(message) from ValueError("flat")


@child
def child_of_a_failing_activity(ctx: Ctx, message: str) -> Steps:
    yield ctx.call_activity("fail", input=message)


@program(
    differs=FLATTENED,
    sdk={"output": '["Sub-orchestration task #1 failed: part wheel is broken", "Exception", []]'},
    ours={
        "output": '["Sub-orchestration task #1 failed: part wheel is broken", "PartError", '
        '[["builtins.ValueError", "flat"]]]'
    },
)
def a_child_fails_handled(ctx: Ctx, _: Any) -> Steps:
    try:
        yield ctx.call_sub_orchestrator("child_fails", input="wheel")
    except task.TaskFailedError as error:
        kind = error.details.error_type.rsplit(".")[-1]
        return [str(error), kind, chain_of(error.details.inner_failure)]


DEEP = "p-a_grandchild_fails_unhandled:0001:0001: Activity task #1 failed: deep down"


@program(
    differs=FLATTENED,
    sdk={
        "failure": (
            (FAILED, f"Sub-orchestration task #1 failed: Sub-orchestration task #1 failed: {DEEP}"),
            ("builtins.Exception", f"Sub-orchestration task #1 failed: {DEEP}"),
        )
    },
    ours={
        "failure": (
            (FAILED, f"Sub-orchestration task #1 failed: Sub-orchestration task #1 failed: {DEEP}"),
            (FAILED, f"Sub-orchestration task #1 failed: {DEEP}"),
            (FAILED, DEEP),
            ("builtins.ValueError", "deep down"),
        )
    },
)
def a_grandchild_fails_unhandled(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_sub_orchestrator("child_between")


@child
def child_between(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_sub_orchestrator("child_of_a_failing_activity", input="deep down")


async def start_nobody(client: Client, instance_id: str) -> None:
    await client.schedule_new_orchestration("nobody", instance_id=instance_id)


@program(drive=start_nobody, started=False)
def an_orchestrator_that_is_not_registered(ctx: Ctx, _: Any) -> None: ...


@program()
def an_activity_that_is_not_registered(ctx: Ctx, _: Any) -> Steps:
    retry = task.RetryPolicy(first_retry_interval=SOON, max_number_of_attempts=2)
    yield ctx.call_activity("Nobody", retry_policy=retry)


@program(
    differs=FLATTENED,
    sdk={"output": '["Exception", "A \'nobody\' orchestrator was not registered."]'},
    ours={
        "output": '["OrchestratorNotRegisteredError", "A \'nobody\' orchestrator was not registered."]',
    },
)
def a_child_that_is_not_registered(ctx: Ctx, _: Any) -> Steps:
    try:
        yield ctx.call_sub_orchestrator("nobody")
    except task.TaskFailedError as error:
        return [error.details.error_type.rsplit(".")[-1], error.details.message]


NO_JSON = "Object of type 'set' is not JSON serializable"
NO_DATA = f"Failed to serialize object of type 'set' to JSON: {NO_JSON}"


@program(
    differs="S-FAIL-8: the failure says why the output can't be kept, and has a type that is public",
    sdk={
        "failure": (
            (
                "durabletask.internal.json_encode_output_exception.JsonEncodeOutputException",
                "The orchestration result could not be encoded. Object details: {1, 2}",
            ),
        )
    },
    ours={
        "failure": (
            ("builtins.TypeError", f"the output of the orchestration can't be kept: {NO_DATA}"),
            ("builtins.TypeError", NO_DATA),
            ("builtins.TypeError", NO_JSON),
        )
    },
)
def an_output_that_is_no_data(ctx: Ctx, _: Any) -> Any:
    return {1, 2}


@program()
def an_input_that_is_no_data(ctx: Ctx, _: Any) -> Steps:
    try:
        yield ctx.call_activity("echo", input={1, 2})
    except TypeError as error:
        return str(error)


@program()
def a_result_that_is_no_data(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("no_data")


# Retries


def retry_of(attempts: int, **more: Any) -> task.RetryPolicy:
    return task.RetryPolicy(first_retry_interval=SOON, max_number_of_attempts=attempts, **more)


@program()
def a_retry_that_works(ctx: Ctx, _: Any) -> Steps:
    n = yield ctx.call_activity("fail_until", input=["a", 3], retry_policy=retry_of(3))
    # Each timer has taken an id: two retries, so the next is the fourth.
    return [n, (yield ctx.call_activity("identify"))]


@program()
def retries_used_up(ctx: Ctx, _: Any) -> Steps:
    policy = retry_of(3, backoff_coefficient=2.0, max_retry_interval=timedelta(milliseconds=30))
    try:
        yield ctx.call_activity("fail_until", input=["b", 9], retry_policy=policy)
    except task.TaskFailedError as error:
        return [str(error), chain_of(error.details)]


@program(
    differs="S-RTY-3: orchestration time decides; by the wall clock a replay loses its way, and never ends",
    ours={"output": '"builtins.ConnectionError"'},
)
def retries_until_their_time_is_up(ctx: Ctx, _: Any) -> Steps:
    policy = task.RetryPolicy(
        first_retry_interval=timedelta(milliseconds=100),
        max_number_of_attempts=1_000,
        retry_timeout=timedelta(milliseconds=250),
    )
    try:
        yield ctx.call_activity("fail_until", input=["c", 1_000], retry_policy=policy)
    except task.TaskFailedError as error:
        return error.details.error_type


@program()
def retries_within_a_composite(ctx: Ctx, _: Any) -> Steps:
    tasks: list[task.Task[Any]] = [
        ctx.call_activity("fail_until", input=[f"d{n}", n], retry_policy=retry_of(4)) for n in (1, 2, 4)
    ]
    return (yield task.when_all(tasks))


@program()
def a_child_retried(ctx: Ctx, _: Any) -> Steps:
    return (yield ctx.call_sub_orchestrator("child_fails_once", input="e", retry_policy=retry_of(3)))


@child
def child_fails_once(ctx: Ctx, key: str) -> Steps:
    first = yield ctx.call_activity("identify")
    n = yield ctx.call_activity("count", input=key)
    if n < 2:
        raise ConnectionError("not yet")
    return [n, first, ctx.instance_id]


@program(
    differs=FLATTENED,
    sdk={
        "failure": (
            (FAILED, "Sub-orchestration task #1 failed: part f is broken"),
            ("builtins.Exception", "part f is broken"),
        )
    },
    ours={
        "failure": (
            (FAILED, "Sub-orchestration task #1 failed: part f is broken"),
            (f"{PartError.__module__}.PartError", "part f is broken"),
            ("builtins.ValueError", "flat"),
        )
    },
)
def a_childs_retries_used_up(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_sub_orchestrator("child_fails", input="f", retry_policy=retry_of(2))
