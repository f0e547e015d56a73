"""Programs of tasks, composites, events, timers and identity."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from durabletask import task

from tests.integration.engine.catalogue import LONG_S, Client, Ctx, Refusals, Steps, Task, child, program

SOON = timedelta(milliseconds=20)
NEVER = timedelta(hours=1)
MINDS = itertools.count(1)


async def started(client: Client, instance_id: str) -> None:
    await client.wait_for_orchestration_start(instance_id, timeout=LONG_S)


# Tasks and composites


@program(input=[1, None, {"a": "é"}])
def plain_function(ctx: Ctx, value: Any) -> Any:
    ctx.set_custom_status({"was": value})
    return value


@program(input="x")
def chain_of_activities(ctx: Ctx, value: str) -> Steps:
    for n in range(4):
        value = yield ctx.call_activity("echo", input=f"{value}{n}")
    return value


@program(input=12)
def fan_out(ctx: Ctx, width: int) -> Steps:
    tasks: list[task.Task[Any]] = [ctx.call_activity("echo", input=n) for n in range(width)]
    return (yield task.when_all(tasks))


@program(input=5)
def fan_out_of_children(ctx: Ctx, width: int) -> Steps:
    tasks: list[task.Task[Any]] = [ctx.call_sub_orchestrator("child_echo", input=n) for n in range(width)]
    return (yield task.when_all(tasks))


@child
def child_echo(ctx: Ctx, value: Any) -> Steps:
    return (yield ctx.call_activity("echo", input=value))


@program()
def all_with_one_failure(ctx: Ctx, _: Any) -> Steps:
    tasks: list[task.Task[Any]] = [ctx.call_activity("echo"), ctx.call_activity("fail", input="one")]
    try:
        yield task.when_all(tasks)
    except task.TaskFailedError as error:
        return [str(error), all(one.is_complete for one in tasks), [one.is_failed for one in tasks]]


@program()
def all_fails_unhandled(ctx: Ctx, _: Any) -> Steps:
    yield task.when_all([ctx.call_activity("echo"), ctx.call_activity("fail", input="one")])


@program()
def composites_of_composites(ctx: Ctx, _: Any) -> Steps:
    pairs: list[task.Task[Any]] = []
    for n in range(3):
        both: list[task.Task[Any]] = [ctx.call_activity("echo", input=n), ctx.call_activity("echo", input=-n)]
        pairs.append(task.when_all(both))
    return (yield task.when_all(pairs))


@program()
def any_of_timer_and_event(ctx: Ctx, _: Any) -> Steps:
    wait, timer = ctx.wait_for_external_event("never"), ctx.create_timer(SOON)
    winner = yield task.when_any([wait, timer])
    return [winner is timer, wait.is_complete, wait.cancel(), wait.is_cancelled, timer.cancel()]


async def raise_go(client: Client, instance_id: str) -> None:
    await client.raise_orchestration_event(instance_id, "go", data="gone")


@program(drive=raise_go)
def any_of_event_and_timer(ctx: Ctx, _: Any) -> Steps:
    wait, timer = ctx.wait_for_external_event("go"), ctx.create_timer(NEVER)
    winner = yield task.when_any([wait, timer])
    timer.cancel()
    return [winner is wait, wait.get_result(), timer.is_cancelled]


@program()
def any_that_failed(ctx: Ctx, _: Any) -> Steps:
    tasks: list[task.Task[Any]] = [ctx.create_timer(NEVER), ctx.call_activity("fail", input="lost")]
    winner = yield task.when_any(tasks)
    return [winner is tasks[1], winner.is_failed, str(winner.get_exception())]


@program()
def the_same_task_twice(ctx: Ctx, _: Any) -> Steps:
    one: Task = ctx.call_activity("echo", input=1)
    twice = yield task.when_all([one, one])
    again = yield one
    return [twice, again]


@program()
def a_task_in_several_composites(ctx: Ctx, _: Any) -> Steps:
    a: Task = ctx.call_activity("echo", input="a")
    b: Task = ctx.call_activity("echo", input="b")
    first: task.Task[Any] = task.when_any([a])
    both: task.Task[Any] = task.when_all([a, b])
    either = task.when_any([both, first])
    winner = yield either
    return [winner is first, (yield first) is a, (yield both)]


@program()
def a_failed_task_fails_each_time(ctx: Ctx, _: Any) -> Steps:
    one: Task = ctx.call_activity("fail", input="always")
    seen = []
    for _n in range(2):
        try:
            yield one
        except task.TaskFailedError as error:
            seen.append(str(error))
    return seen


@program(differs="S-TASK-5: nothing to wait for is done", ours={"status": "COMPLETED", "output": "[]"})
def all_of_nothing(ctx: Ctx, _: Any) -> Steps:
    return (yield task.when_all([]))


@program(
    differs="S-TASK-6: what can never complete is an error",
    ours={
        "status": "FAILED",
        "failure": (("builtins.ValueError", "when_any([]) never completes: give it at least one task"),),
    },
)
def any_of_nothing(ctx: Ctx, _: Any) -> Steps:
    yield task.when_any([])


@program(
    differs="S-TASK-7: a complete task resumes at once, as the first yield too", ours={"output": '"at once"'}
)
def complete_at_the_first_yield(ctx: Ctx, _: Any) -> Steps:
    yield task.when_all([])
    timer = ctx.create_timer(NEVER)
    timer.cancel()
    try:
        yield timer
    except task.TaskCancelledError:
        return "at once"


@program(
    differs="S-TASK-8: the first yield is checked like any other",
    ours={
        "output": "\"an orchestrator yields tasks, not 'int': yield what call_activity, create_timer, "
        'when_all, \\u2026 return"'
    },
)
def no_task_at_the_first_yield(ctx: Ctx, _: Any) -> Any:
    try:
        yield 42
    except TypeError as error:
        return str(error)


@program(
    differs="S-TASK-8: the error is raised in the code that made it, which may handle it",
    sdk={
        "status": "FAILED",
        "output": None,
        "failure": (("builtins.TypeError", "The orchestrator generator yielded a non-Task object"),),
    },
    ours={"status": "COMPLETED", "output": '"handled"', "failure": ()},
)
def no_task_at_a_later_yield(ctx: Ctx, _: Any) -> Any:
    yield ctx.call_activity("echo")
    try:
        yield "not a task"
    except TypeError:
        return "handled"


@program()
def a_cancelled_task_unhandled(ctx: Ctx, _: Any) -> Steps:
    timer = ctx.create_timer(NEVER)
    yield ctx.call_activity("echo")
    timer.cancel()
    yield timer


@program(
    differs="S-TASK-9: TaskCancelledError is raised in the code that yields, which may handle it",
    sdk={
        "status": "FAILED",
        "output": None,
        "failure": (("durabletask.task.TaskCancelledError", "The task was cancelled."),),
    },
    ours={"status": "COMPLETED", "output": '"handled"', "failure": ()},
)
def a_cancelled_task_handled(ctx: Ctx, _: Any) -> Steps:
    timer = ctx.create_timer(NEVER)
    yield ctx.call_activity("echo")
    timer.cancel()
    try:
        yield timer
    except task.TaskCancelledError:
        return "handled"


@program()
def all_of_a_cancelled_task(ctx: Ctx, _: Any) -> Steps:
    timer = ctx.create_timer(NEVER)
    group = task.when_all([timer, ctx.call_activity("echo")])
    timer.cancel()
    yield group


# Events


async def raise_three(client: Client, instance_id: str) -> None:
    await started(client, instance_id)
    for name, data in (("Straße", 1), ("STRASSE", 2), ("strasse", 3), ("go", None)):
        await client.raise_orchestration_event(instance_id, name, data=data)


@program(drive=raise_three)
def events_before_their_waits(ctx: Ctx, _: Any) -> Steps:
    gone = yield ctx.wait_for_external_event("GO")
    got = [gone]
    for _n in range(3):
        got.append((yield ctx.wait_for_external_event("Strasse")))  # noqa: PERF401 -- yields
    return got


async def raise_e_twice(client: Client, instance_id: str) -> None:
    for data in ("first", "second"):
        await client.raise_orchestration_event(instance_id, "e", data=data)


@program(drive=raise_e_twice)
def the_earliest_waiter_first(ctx: Ctx, _: Any) -> Steps:
    earlier, later = ctx.wait_for_external_event("e"), ctx.wait_for_external_event("e")
    value = yield later
    return [earlier.get_result(), value]


@program(drive=raise_e_twice)
def a_cancelled_waiter_takes_nothing(ctx: Ctx, _: Any) -> Steps:
    cancelled = ctx.wait_for_external_event("e")
    cancelled.cancel()
    return [(yield ctx.wait_for_external_event("e")), (yield ctx.wait_for_external_event("e"))]


@program(drive=raise_e_twice)
def a_waiter_left_behind_takes_one(ctx: Ctx, _: Any) -> Steps:
    left = ctx.wait_for_external_event("e")
    value = yield ctx.wait_for_external_event("e")
    return [left.is_complete, value]


async def raise_at_the_wrong(client: Client, instance_id: str) -> Any:
    await client.raise_orchestration_event(instance_id, "end")
    await client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
    refused = Refusals()
    await refused.note(client.raise_orchestration_event(instance_id, "end", data="too late"))
    await refused.note(client.raise_orchestration_event("p-nobody", "end"))
    return refused.seen


@program(drive=raise_at_the_wrong)
def events_for_the_ended_and_the_unknown(ctx: Ctx, _: Any) -> Steps:
    return (yield ctx.wait_for_external_event("end"))


@program()
def events_between_orchestrations(ctx: Ctx, _: Any) -> Steps:
    me = ctx.instance_id
    listener: Task = ctx.call_sub_orchestrator("child_listens", input=me, instance_id=f"{me}-l")
    yield ctx.wait_for_external_event("ready")
    ctx.send_event(f"{me}-l", "News", data={"n": [1, None]})
    ctx.send_event("p-nobody", "news")
    return (yield listener)


@child
def child_listens(ctx: Ctx, parent: str) -> Steps:
    ctx.send_event(parent, "ready")
    return (yield ctx.wait_for_external_event("news"))


@program()
def what_send_event_refuses(ctx: Ctx, _: Any) -> Any:
    refused = []
    for target, name in (("", "e"), (" ", "e"), ("@e@k", "e"), ("x", ""), ("x", " ")):
        try:
            ctx.send_event(target, name)
        except ValueError:
            refused.append(True)
    return refused


# Timers


@program()
def timers_in_their_order(ctx: Ctx, _: Any) -> Steps:
    timers = [ctx.create_timer(timedelta(milliseconds=ms)) for ms in (150, 10, 80)]
    order = []
    for _n in range(3):
        left = [timer for timer in timers if timer not in order]
        order.append((yield task.when_any(left)))
    began = ctx.current_utc_datetime
    return [[timers.index(timer) for timer in order], began.tzinfo is None]


@program()
def a_timer_of_several_pieces(ctx: Ctx, _: Any) -> Steps:
    began = ctx.current_utc_datetime
    yield ctx.create_timer(timedelta(milliseconds=700))
    return ctx.current_utc_datetime - began >= timedelta(milliseconds=700)


@program()
def a_timer_of_several_pieces_cancelled(ctx: Ctx, _: Any) -> Steps:
    long = ctx.create_timer(NEVER)
    yield ctx.create_timer(timedelta(milliseconds=350))
    child_id: Task = ctx.call_activity("identify")
    return [long.is_complete, long.cancel(), (yield child_id)]


@program()
def timers_in_the_past_and_aware(ctx: Ctx, _: Any) -> Steps:
    past = datetime(2001, 1, 1)  # noqa: DTZ001 -- naive is UTC here
    aware = datetime(2001, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    yield task.when_all([ctx.create_timer(past), ctx.create_timer(aware), ctx.create_timer(timedelta(0))])
    soon = ctx.current_utc_datetime.replace(tzinfo=UTC) + SOON
    yield ctx.create_timer(soon)
    return ctx.current_utc_datetime >= soon.replace(tzinfo=None)


# Identity


@program()
def who_is_who(ctx: Ctx, _: Any) -> Steps:
    mine = [ctx.instance_id, ctx.parent_instance_id, ctx.version]
    first = yield ctx.call_activity("identify")
    theirs = yield ctx.call_sub_orchestrator("child_who")
    named = yield ctx.call_sub_orchestrator("child_who", instance_id="own-name", version="1.2")
    return [mine, first, theirs, named]


@child
def child_who(ctx: Ctx, _: Any) -> Steps:
    act = yield ctx.call_activity("identify")
    return [ctx.instance_id, ctx.version, act]


@program(
    differs="S-ID-9: a child knows its parent; the SDK's in-memory backend does not say it",
    sdk={"output": "[null]"},
    ours={"output": '["p-whose_child"]'},
)
def whose_child(ctx: Ctx, _: Any) -> Steps:
    return (yield ctx.call_sub_orchestrator("child_of_whom"))


@child
def child_of_whom(ctx: Ctx, _: Any) -> Any:
    return [ctx.parent_instance_id]


@program()
def made_up_ids(ctx: Ctx, _: Any) -> Steps:
    import uuid

    ids = [ctx.new_uuid(), ctx.new_uuid()]
    yield ctx.call_activity("echo")
    ids.append(ctx.new_uuid())
    return [len(set(ids)), [uuid.UUID(one).version for one in ids]]


@program()
def a_child_id_used_again_after_its_end(ctx: Ctx, _: Any) -> Steps:
    seen = []
    for n in range(2):
        seen.append((yield ctx.call_sub_orchestrator("child_echo", input=n, instance_id="p-again")))  # noqa: PERF401 -- yields
    return seen


@program(
    differs="S-ID-4: the error has a type of its own",
    sdk={"output": '["an id that is taken", "builtins.ValueError"]'},
    ours={"output": '["an id that is taken", "provisioning.engine.errors.OrchestrationAlreadyExistsError"]'},
)
def a_child_id_that_still_runs(ctx: Ctx, _: Any) -> Steps:
    first: Task = ctx.call_sub_orchestrator("child_listens", input="p-nobody", instance_id="p-taken")
    try:
        yield ctx.call_sub_orchestrator("child_echo", instance_id="p-taken")
    except task.TaskFailedError as error:
        ctx.send_event("p-taken", "news")
        yield first
        taken = "'p-taken' already exists" in str(error)
        return ["an id that is taken" if taken else str(error), error.details.error_type]


@program(
    differs="S-FAIL-11: replay is for restarts: changed code is found out there, not at each turn",
    sdk={"status": "FAILED", "output": None},
    ours={"status": "COMPLETED", "output": '"made up its mind"', "failure": ()},
)
def of_two_minds(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_activity("identify" if next(MINDS) % 2 else "echo")
    return "made up its mind"
