"""Durable Functions style: calls and the context, on the embedded engine and on the SDK's own."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest
from durabletask import task
from durabletask.client import OrchestrationStatus

import provisioning.engine.durable_functions as df
from provisioning.engine import UnsupportedError
from tests.unit.engine.hosts import SDK, Function, Host

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


@dataclass(frozen=True, kw_only=True)
class Device:
    name: str
    ports: int = 1


@activity
def echo(value: Any) -> Any:
    return value


@activity
def fail(message: str) -> None:
    raise ValueError(message)


@activity
def device_of(name: str) -> Device:
    return Device(name=name)


@activity
def ports_of(device: Device) -> int:
    return device.ports


@activity
async def shout(text: str) -> str:
    return text.upper()


TRIES: dict[str, int] = {}
TRIES_LOCK = threading.Lock()


@activity
def third_time(key: str) -> int:
    """Succeeds at the third try for a key."""
    with TRIES_LOCK:
        TRIES[key] = TRIES.get(key, 0) + 1
        tries = TRIES[key]
    if tries < 3:
        raise OSError(f"try {tries}")
    return tries


# Activities


@orchestrator
def calls(context: Context) -> Steps:
    given = context.get_input()
    return [
        (yield context.call_activity("echo", given)),
        (yield context.call_activity(echo, input_=given)),
        (yield context.call_activity("echo")),
        (yield context.call_activity("shout", "loud")),
    ]


async def test_activities_by_name_and_by_function_with_and_without_input(host: Host) -> None:
    given = {"id": "a", "tags": [1, None]}
    assert await host.run(calls, given) == [given, given, None, "LOUD"]


@orchestrator
def rebuilds(context: Context) -> Steps:
    given = context.get_input(Device)
    assert given == Device(name="in", ports=2)
    assert context.get_input() == {"name": "in", "ports": 2}
    by_hand = yield context.call_activity("echo", given, expected_type=Device)
    by_annotation = yield context.call_activity(device_of, "annotated")
    raw = yield context.call_activity("device_of", "raw")
    assert by_hand == given
    assert by_annotation == Device(name="annotated")
    assert raw == {"name": "raw", "ports": 1}
    event = yield context.wait_for_external_event("Found", Device)
    assert event == Device(name="event", ports=3)
    return (yield context.call_activity("ports_of", event))


async def test_expected_types_and_annotations_say_what_data_is_rebuilt_to(host: Host) -> None:
    instance_id = await host.start(rebuilds, {"name": "in", "ports": 2})
    await host.event(instance_id, "Found", {"name": "event", "ports": 3})
    assert await host.output_of(instance_id) == 3


@orchestrator
def catches(context: Context) -> Steps:
    failing = context.call_activity("fail", "no disk")
    with pytest.raises(task.TaskFailedError) as raised:
        yield failing
    assert raised.value is failing.result is failing.exception
    return [raised.value.details.error_type, failing.is_completed, failing.is_faulted, failing.state.name]


async def test_a_failed_activity_is_an_exception_at_its_yield(host: Host) -> None:
    assert await host.run(catches) == ["builtins.ValueError", True, True, "FAILED"]


@orchestrator
def retries(context: Context) -> Steps:
    options = df.RetryOptions(first_retry_interval_in_milliseconds=1, max_number_of_attempts=3)
    return (yield context.call_activity_with_retry("third_time", options, context.instance_id))


@orchestrator
def gives_up(context: Context) -> Steps:
    return (yield context.call_activity_with_retry("third_time", df.RetryOptions(1, 2), input_="given up"))


async def test_an_activity_is_tried_again_as_often_as_the_options_say(host: Host) -> None:
    assert await host.run(retries) == 3
    TRIES.pop("given up", None)
    state = await host.ended(await host.start(gives_up))
    assert state.runtime_status == OrchestrationStatus.FAILED
    assert TRIES["given up"] == 2
    assert state.failure_details is not None
    assert state.failure_details.message.endswith("try 2")


# Sub-orchestrations


@orchestrator
def child(context: Context) -> Steps:
    given = yield context.call_activity("echo", context.get_input())
    return [given, context.instance_id, context.parent_instance_id, context.version]


@orchestrator
def parent(context: Context) -> Steps:
    assert context.parent_instance_id is None
    return (
        yield context.task_all(
            [
                context.call_sub_orchestrator("child", 1, f"{context.instance_id}:own"),
                context.call_sub_orchestrator(child, input_=2, instance_id=None, version="1.2.0"),
            ]
        )
    )


async def test_sub_orchestrations_with_an_id_a_version_or_neither(host: Host) -> None:
    instance_id = await host.start(parent)
    # The in-memory backend is alone in not telling a child whose it is.
    told = None if host.kind == SDK else instance_id
    assert await host.output_of(instance_id) == [
        [1, f"{instance_id}:own", told, None],
        [2, f"{instance_id}:0002", told, "1.2.0"],
    ]


@orchestrator
def child_of_the_third_try(context: Context) -> Steps:
    tries = yield context.call_activity("third_time", context.get_input())
    return [tries, context.instance_id]


@orchestrator
def retries_child(context: Context) -> Steps:
    return (
        yield context.call_sub_orchestrator_with_retry(
            "child_of_the_third_try",
            df.RetryOptions(1, 3),
            input_=f"child of {context.instance_id}",
            instance_id=f"{context.instance_id}:again",
        )
    )


async def test_a_sub_orchestration_is_tried_again_under_its_id(host: Host) -> None:
    assert await host.run(retries_child, instance_id=f"of-{host.kind}") == [3, f"of-{host.kind}:again"]


# The context


@orchestrator
def describes(context: Context) -> Steps:
    assert context.custom_status is None
    context.set_custom_status({"step": 1})
    assert context.custom_status == {"step": 1}
    ids = [context.new_guid(), context.new_guid(), uuid.UUID(context.new_uuid())]
    assert len(set(ids)) == 3
    sent = yield context.call_activity("echo", [str(i) for i in ids])
    return {
        "same on replay": sent == [str(i) for i in ids],
        "replaying": context.is_replaying,
        "instance_id": context.instance_id,
        "version": context.version,
        "continues": context.will_continue_as_new,
    }


async def test_what_the_context_says(host: Host) -> None:
    instance_id = await host.start(describes, instance_id="described", version="2.0.0")
    assert await host.output_of(instance_id) == {
        "same on replay": True,
        "replaying": False,
        "instance_id": "described",
        "version": "2.0.0",
        "continues": False,
    }
    await host.shows(instance_id, {"step": 1})


@orchestrator
def counts(context: Context) -> Steps:
    count = yield context.call_activity("echo", context.get_input() + 1)
    if count < 3:
        context.continue_as_new(count)
        assert context.will_continue_as_new
        return None
    return count


RAN_ON: list[str] = []


@orchestrator
def counts_at_a_yield(context: Context) -> Steps:
    done = context.task_all([])
    if context.get_input() == 0:
        yield context.continue_as_new(1)  # type: ignore[func-returns-value]
        RAN_ON.append("after a yield of what it gives")
    if context.get_input() == 1:
        context.continue_as_new(2)
        yield done
        RAN_ON.append("after a yield of what is done")
    return context.get_input()


@orchestrator
def counts_without_tasks(context: Context) -> str | None:
    if context.get_input() >= 3:
        return "done"
    context.continue_as_new(context.get_input() + 1)
    return None


async def test_an_orchestration_begins_anew_with_another_input(host: Host) -> None:
    assert await host.run(counts, 0) == 3
    assert await host.run(counts_at_a_yield, 0) == 2
    assert not RAN_ON
    assert await host.run(counts_without_tasks, 0) == "done"


@orchestrator
def asks_for_more(context: Context) -> list[str]:
    errors = []
    anything: Any = context
    for name in ("call_http", "call_entity", "signal_entity", "function_context", "histories"):
        assert not hasattr(context, name)
        try:
            getattr(anything, name)("GET", "http://localhost")
        except UnsupportedError as error:
            errors.append(str(error))
    with pytest.raises(AttributeError, match="no attribute 'call_activty'"):
        anything.call_activty("echo")
    return errors


async def test_what_is_not_there_is_named_with_the_remedy(host: Host) -> None:
    errors = await host.run(asks_for_more)
    assert errors[0] == (
        "call_http of Durable Functions is not supported here: call an activity that makes the request"
    )
    assert len(errors) == 5
