"""Programs on which clients operate: rewind, restart, purge, reuse of ids, queries, histories."""

from __future__ import annotations

import typing
from datetime import timedelta
from typing import Any

from durabletask import history, task
from durabletask.client import AsyncTaskHubGrpcClient, OrchestrationQuery, OrchestrationStatus

from tests.integration.engine.catalogue import LONG_S, Client, Ctx, Refusals, Steps, child, program
from tests.integration.engine.programs_tasks import started

# Rewind


async def ended(client: Client, instance_id: str) -> str:
    state = await client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
    return str(state.runtime_status.name)


async def rewind(client: Client, instance_id: str) -> list[str]:
    seen = [await ended(client, instance_id)]
    await client.rewind_orchestration(instance_id, reason="it works now")
    return seen


@program(drive=rewind)
def rewound(ctx: Ctx, _: Any) -> Steps:
    first = yield ctx.call_activity("count", input="before the rewind")
    second = yield ctx.call_activity("fail_until", input=["rewound", 2])
    return [first, second, (yield ctx.call_activity("count", input="before the rewind"))]


async def rewind_twice(client: Client, instance_id: str) -> list[str]:
    return await rewind(client, instance_id) + await rewind(client, instance_id)


@program(drive=rewind_twice)
def rewound_twice(ctx: Ctx, _: Any) -> Steps:
    return (yield ctx.call_activity("fail_until", input=["rewound twice", 3]))


@program(drive=rewind)
def rewound_side_by_side(ctx: Ctx, _: Any) -> Steps:
    """Both that failed run again, what succeeded does not."""
    tasks: list[task.Task[Any]] = [
        ctx.call_activity("fail_until", input=["on the left", 2]),
        ctx.call_activity("count", input="in the middle"),
        ctx.call_activity("fail_until", input=["on the right", 2]),
    ]
    return (yield task.when_all(tasks))


@program(drive=rewind)
def rewound_for_its_code(ctx: Ctx, _: Any) -> Steps:
    """No activity has failed: it is only replayed, and fails again."""
    n = yield ctx.call_activity("count", input="before the error")
    raise ValueError(f"still broken after {n}")


@child
def breaks_once(ctx: Ctx, key: str) -> Steps:
    before = yield ctx.call_activity("count", input=f"before {key}")
    return [before, (yield ctx.call_activity("fail_until", input=[key, 2]))]


@child
def has_a_child_that_breaks_once(ctx: Ctx, key: str) -> Steps:
    return (yield ctx.call_sub_orchestrator("breaks_once", input=key))


@program(drive=rewind)
def rewound_with_its_children(ctx: Ctx, _: Any) -> Steps:
    tasks: list[task.Task[Any]] = [
        ctx.call_sub_orchestrator("has_a_child_that_breaks_once", input="grandchild"),
        ctx.call_sub_orchestrator("breaks_once", input="child"),
        ctx.call_activity("count", input="beside the children"),
    ]
    return (yield task.when_all(tasks))


async def rewind_after_purge(client: Client, instance_id: str) -> Any:
    seen = await ended(client, instance_id)
    purged = await client.purge_orchestration("purged child", recursive=False)
    await client.rewind_orchestration(instance_id)
    return [seen, purged.deleted_instance_count]


@program(drive=rewind_after_purge)
def rewound_after_a_purge(ctx: Ctx, _: Any) -> Steps:
    """A child that is gone begins anew."""
    return (yield ctx.call_sub_orchestrator("breaks_once", input="purged", instance_id="purged child"))


# Restart, purge, reuse


async def restart(client: Client, instance_id: str) -> Any:
    first = await client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
    same = await client.restart_orchestration(instance_id)
    again = await client.wait_for_orchestration_completion(same, timeout=LONG_S)
    other = await client.restart_orchestration(instance_id, restart_with_new_instance_id=True)
    copy = await client.wait_for_orchestration_completion(other, timeout=LONG_S)
    outputs = [state.get_output() for state in (first, again, copy)]
    return [same == instance_id, other != instance_id, len(other), outputs]


@program(input={"a": [1]}, drive=restart)
def restarted(ctx: Ctx, value: Any) -> Steps:
    return [value, (yield ctx.call_activity("count", input="restarts"))]


async def operate_on_the_wrong_ones(client: Client, instance_id: str) -> list[Any]:
    await started(client, instance_id)
    refusals = Refusals()
    for target in (instance_id, "nobody at all"):
        await refusals.note(client.rewind_orchestration(target))
        await refusals.note(client.restart_orchestration(target))
    for asked in (
        client.suspend_orchestration("nobody at all"),
        client.resume_orchestration("nobody at all"),
        client.get_orchestration_history("nobody at all"),
        client.terminate_orchestration("nobody at all"),
        client.purge_orchestrations_by(timeout=timedelta(0)),
    ):
        await refusals.note(asked)
    purged = [await client.purge_orchestration(target) for target in (instance_id, "nobody at all")]
    await client.raise_orchestration_event(instance_id, "go")
    await ended(client, instance_id)
    await refusals.note(client.rewind_orchestration(instance_id))
    return [refusals.seen, [(p.deleted_instance_count, p.is_complete) for p in purged]]


@program(drive=operate_on_the_wrong_ones)
def operated_on_wrongly(ctx: Ctx, _: Any) -> Steps:
    yield ctx.wait_for_external_event("go")
    return "unharmed"


async def purge_and_begin_again(client: Client, instance_id: str) -> Any:
    await client.schedule_new_orchestration("kept_or_purged", input=1, instance_id=instance_id)
    await ended(client, instance_id)
    purged = await client.purge_orchestration(instance_id)
    gone = await client.get_orchestration_state(instance_id)
    await client.schedule_new_orchestration("kept_or_purged", input=2, instance_id=instance_id)
    return [purged.deleted_instance_count, purged.is_complete, gone]


@program(drive=purge_and_begin_again, started=False)
def kept_or_purged(ctx: Ctx, value: Any) -> Any:
    return value


def policy(*statuses: OrchestrationStatus) -> Any:
    """The SDK's own policy: it is public by the signature alone."""
    hints = typing.get_type_hints(AsyncTaskHubGrpcClient.schedule_new_orchestration)
    kind = next(one for one in typing.get_args(hints["reuse_id_policy"]) if one is not type(None))
    return kind(replaceableStatus=[status.value for status in statuses])


async def schedule_over(client: Client, instance_id: str) -> Any:
    refusals = Refusals()

    async def schedule(name: str, value: Any, *statuses: OrchestrationStatus) -> None:
        given = policy(*statuses) if statuses else None
        await refusals.note(
            client.schedule_new_orchestration(
                name, input=value, instance_id=instance_id, reuse_id_policy=given
            )
        )

    completed, running = OrchestrationStatus.COMPLETED, OrchestrationStatus.RUNNING
    await schedule("replaced", "waits", completed)
    await started(client, instance_id)
    await schedule("replaced", "refused", completed)
    await schedule("replaced", "ends", completed, running)
    await ended(client, instance_id)
    await schedule("replaced", "refused without a policy")
    await schedule("replaced", "refused by status", running)
    await schedule("replaced", "ends well", completed)
    return refusals.seen


@program(drive=schedule_over, started=False)
def replaced(ctx: Ctx, value: str) -> Steps:
    if value == "waits":
        yield ctx.wait_for_external_event("go")
    return [value, (yield ctx.call_activity("echo", input=value))]


# Questions


async def ask_for_many(client: Client, instance_id: str) -> Any:
    ids = [f"{instance_id}-{n}" for n in range(5)]
    for n, one in enumerate(ids):
        await client.schedule_new_orchestration("asked_for", input=n, instance_id=one)
        await ended(client, one)
    query = OrchestrationQuery(
        instance_id_prefix=f"{instance_id}-", max_instance_count=2, fetch_inputs_and_outputs=True
    )
    states = await client.get_all_orchestration_states(query)
    bare = await client.get_all_orchestration_states(
        OrchestrationQuery(
            instance_id_prefix=f"{instance_id}-",
            runtime_status=[OrchestrationStatus.FAILED],
            created_time_from=states[1].created_at,
            created_time_to=states[3].created_at,
        )
    )
    pages, token = [], None
    while True:
        page = await client.list_instance_ids(page_size=3, continuation_token=token)
        assert 0 < len(page.items) <= 3
        pages += page.items
        token = page.continuation_token
        if token is None:
            break
        assert page.items[-1] in token
    waiting = await client.list_instance_ids([OrchestrationStatus.RUNNING])
    return [
        [(s.instance_id, s.runtime_status.name, s.serialized_input, s.serialized_output) for s in states],
        [(s.instance_id, s.serialized_input, s.serialized_custom_status) for s in bare],
        sorted(one for one in pages if one in ids),
        waiting.items,
    ]


@program(input=0, drive=ask_for_many)
def asked_for(ctx: Ctx, n: int) -> Any:
    ctx.set_custom_status({"n": n})
    if n % 2:
        raise ValueError("odd")
    return [n]


FRAMES = (history.OrchestratorStartedEvent, history.OrchestratorCompletedEvent)


async def read_history(client: Client, instance_id: str) -> Any:
    await started(client, instance_id)
    await client.suspend_orchestration(instance_id, reason="to see it")
    await client.resume_orchestration(instance_id, reason="seen")
    await client.raise_orchestration_event(instance_id, "go", data=[1])
    await ended(client, instance_id)
    told = ("name", "input", "result", "task_scheduled_id", "instance_id", "orchestration_status", "timer_id")
    found = []
    for event in await client.get_orchestration_history(instance_id):
        if not isinstance(event, FRAMES):
            facts = {name: getattr(event, name) for name in told if hasattr(event, name)}
            if getattr(event, "failure_details", None) is not None:
                facts["failure"] = event.failure_details.message
            found.append([type(event).__name__, event.event_id, facts])
    return found


@program(input="in", drive=read_history)
def read(ctx: Ctx, value: str) -> Steps:
    yield ctx.wait_for_external_event("go")
    try:
        yield ctx.call_activity("fail", input="as expected")
    except task.TaskFailedError:
        ctx.send_event("nobody at all", "hello", data=1)
    done = yield ctx.call_sub_orchestrator("kept_or_purged", input=value, instance_id="read child")
    timer = ctx.create_timer(ctx.current_utc_datetime)
    yield timer
    return done
