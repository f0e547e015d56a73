"""Programs of continue_as_new, lifecycle and data."""

from __future__ import annotations

import asyncio
from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

from durabletask import task

from tests.integration.engine.catalogue import (
    FAILED,
    LONG_S,
    Client,
    Ctx,
    Refusals,
    Steps,
    child,
    program,
)
from tests.integration.engine.programs_tasks import NEVER, SOON, started

# continue_as_new


@program(input=0)
def again_and_again(ctx: Ctx, n: int) -> Steps:
    first = yield ctx.call_activity("identify")
    if n < 4:
        ctx.set_custom_status(n)
        ctx.continue_as_new(n + 1)
        return "ignored"
    return [n, first]


async def raise_more_than_taken(client: Client, instance_id: str) -> None:
    await started(client, instance_id)
    for name, data in (("b", 1), ("a", 2), ("b", 3), ("go", None)):
        await client.raise_orchestration_event(instance_id, name, data=data)


@program(input=0, drive=raise_more_than_taken)
def again_with_its_events(ctx: Ctx, n: int) -> Steps:
    if n == 0:
        yield ctx.wait_for_external_event("go")
        ctx.continue_as_new(1, save_events=True)
        return None
    got = []
    for name in ("a", "b", "b"):
        got.append((yield ctx.wait_for_external_event(name)))  # noqa: PERF401 -- yields
    return got


@program(input=0, drive=raise_more_than_taken)
def again_without_its_events(ctx: Ctx, n: int) -> Steps:
    if n == 0:
        yield ctx.wait_for_external_event("go")
        ctx.continue_as_new(1)
        return None
    wait, timer = ctx.wait_for_external_event("a"), ctx.create_timer(SOON)
    winner = yield task.when_any([wait, timer])
    return winner is timer


@program(input=0)
def again_and_an_error(ctx: Ctx, n: int) -> Any:
    if n:
        return ["second", ctx.version]
    ctx.continue_as_new(1, new_version="2.0")
    ctx.continue_as_new(2)
    raise ValueError("comes too late")


@program(input=0)
def again_with_work_left(ctx: Ctx, n: int) -> Steps:
    """What was asked for is done; what it results in belongs to the execution that asked."""
    if n == 0:
        ctx.call_activity("count", input="left")
        ctx.continue_as_new(1)
        yield ctx.create_timer(NEVER)
    while (yield ctx.call_activity("count", input="left")) < 2:
        yield ctx.create_timer(SOON)
    return "done"


# Lifecycle


async def hold_and_let_go(client: Client, instance_id: str) -> None:
    await started(client, instance_id)
    await client.suspend_orchestration(instance_id)
    for n in range(3):
        await client.raise_orchestration_event(instance_id, "e", data=n)
    async with asyncio.timeout(LONG_S):  # the SDK's worker suspends in a turn of its own
        while (  # noqa: ASYNC110 -- only asking tells
            await client.get_orchestration_state(instance_id)
        ).runtime_status.name != "SUSPENDED":
            await asyncio.sleep(0.01)
    await client.resume_orchestration(instance_id)


@program(drive=hold_and_let_go)
def suspended_and_resumed(ctx: Ctx, _: Any) -> Steps:
    got = []
    for _n in range(3):
        got.append((yield ctx.wait_for_external_event("e")))  # noqa: PERF401 -- yields
    return got


async def terminate(client: Client, instance_id: str) -> None:
    await started(client, instance_id)
    await client.terminate_orchestration(instance_id, output={"why": ["tired", None]})


@program(drive=terminate)
def terminated_with_an_output(ctx: Ctx, _: Any) -> Steps:
    ctx.set_custom_status("waits")
    yield ctx.wait_for_external_event("never")


async def terminate_suspended(client: Client, instance_id: str) -> None:
    await started(client, instance_id)
    await client.suspend_orchestration(instance_id)
    await client.terminate_orchestration(instance_id)


@program(drive=terminate_suspended)
def terminated_while_suspended(ctx: Ctx, _: Any) -> Steps:
    yield ctx.wait_for_external_event("never")


async def terminate_parent(client: Client, instance_id: str) -> Any:
    await client.wait_for_orchestration_start(f"{instance_id}:0001", timeout=LONG_S)
    await client.terminate_orchestration(instance_id, output="all", recursive=True)
    state = await client.wait_for_orchestration_completion(f"{instance_id}:0001", timeout=LONG_S)
    return [state.runtime_status.name, state.serialized_output]


@program(
    drive=terminate_parent,
    differs="S-LIFE-5: the SDK's in-memory backend can't terminate children, which then wait for ever",
    ours={"status": "TERMINATED", "output": '"all"', "notes": ["TERMINATED", '"all"']},
)
def terminated_with_its_child(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_sub_orchestrator("child_waits")


@child
def child_waits(ctx: Ctx, _: Any) -> Steps:
    yield ctx.wait_for_external_event("never")


async def ask_for_the_impossible(client: Client, instance_id: str) -> Any:
    refused = Refusals()
    await refused.note(client.schedule_new_orchestration("plain_function", instance_id=instance_id))
    await client.wait_for_orchestration_completion(instance_id, timeout=LONG_S)
    await refused.note(client.schedule_new_orchestration("plain_function", instance_id=instance_id))
    return [refused.seen, await client.get_orchestration_state("p-nobody")]


@program(drive=ask_for_the_impossible)
def what_clients_are_refused(ctx: Ctx, _: Any) -> Any:
    return "once"


async def start_later(client: Client, instance_id: str) -> Any:
    at = datetime.now(UTC) + timedelta(milliseconds=400)
    await client.schedule_new_orchestration(
        "delayed", input=at.replace(tzinfo=None).isoformat(), instance_id=instance_id, start_at=at
    )
    await client.raise_orchestration_event(instance_id, "e", data="early")


@program(
    drive=start_later,
    started=False,
)
def delayed(ctx: Ctx, at: str) -> Steps:
    in_time = ctx.current_utc_datetime >= datetime.fromisoformat(at)
    return [in_time, (yield ctx.wait_for_external_event("e"))]


async def resume_twice(client: Client, instance_id: str) -> Any:
    await started(client, instance_id)
    await client.resume_orchestration(instance_id)
    await client.suspend_orchestration(instance_id)
    await client.suspend_orchestration(instance_id)
    await client.resume_orchestration(instance_id)
    await client.resume_orchestration(instance_id)
    await client.raise_orchestration_event(instance_id, "e", data="after")


@program(
    drive=resume_twice,
    differs="S-LIFE-4: to resume what is not suspended does nothing",
    sdk={
        "status": "FAILED",
        "output": None,
        "failure": (
            (
                "durabletask.task.OrchestrationStateError",
                "Don't know how to handle event of type 'executionResumed'",
            ),
        ),
    },
    ours={"status": "COMPLETED", "output": '"after"', "failure": ()},
)
def resumed_too_often(ctx: Ctx, _: Any) -> Steps:
    return (yield ctx.wait_for_external_event("e"))


TERMINATED = "sub-orchestration 'p-its_child_was_terminated:0001' was terminated"


async def terminate_child(client: Client, instance_id: str) -> None:
    await client.wait_for_orchestration_start(f"{instance_id}:0001", timeout=LONG_S)
    await client.terminate_orchestration(f"{instance_id}:0001", output="out")


@program(
    drive=terminate_child,
    differs="S-FAIL-13: the parent hears that its child was terminated",
    sdk={
        "failure": (
            (FAILED, "Sub-orchestration task #1 failed: Sub-orchestration failed"),
            ("builtins.Exception", "Sub-orchestration failed"),
        )
    },
    ours={
        "failure": (
            (FAILED, f"Sub-orchestration task #1 failed: {TERMINATED}"),
            ("provisioning.engine.errors.ChildTerminatedError", TERMINATED),
        )
    },
)
def its_child_was_terminated(ctx: Ctx, _: Any) -> Steps:
    yield ctx.call_sub_orchestrator("child_waits")


# Data


@dataclass
class Part:
    name: str
    size: int = 1


class Hooked:
    def __init__(self, value: int) -> None:
        self.value = value

    def to_json(self) -> Any:
        return {"hooked": self.value}

    @classmethod
    def from_json(cls, raw: Any) -> Hooked:
        return cls(raw["hooked"])


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


Pair = namedtuple("Pair", "a b")


@program(input={"name": "wheel", "size": 4})
def an_input_of_a_dataclass(ctx: Ctx, part: Part) -> Steps:
    same = yield ctx.call_activity("echo", input=part, return_type=Part)
    raw = yield ctx.call_activity("echo", input=part)
    theirs: Part = yield ctx.call_sub_orchestrator(child_of_a_part, input=part, return_type=Part)
    return [type(part).__name__, same == part, raw, theirs]


@child
def child_of_a_part(ctx: Ctx, part: Part) -> Part:
    return Part(part.name.upper(), part.size + 1)


async def raise_a_part(client: Client, instance_id: str) -> None:
    for _n in range(2):
        await client.raise_orchestration_event(instance_id, "part", data=Part("bolt"))


@program(drive=raise_a_part)
def events_of_a_dataclass(ctx: Ctx, _: Any) -> Steps:
    typed = yield ctx.wait_for_external_event("part", data_type=Part)
    raw = yield ctx.wait_for_external_event("part")
    return [typed == Part("bolt"), raw]


@program()
def all_kinds_of_data(ctx: Ctx, _: Any) -> Steps:
    values: list[Any] = [
        None,
        True,
        10**20,
        -1.5,
        "é\u2028😀",
        (1, 2),
        Pair(1, Part("x")),
        {1: "one", None: 2, 2.5: 3},
        {"deep": [{"part": Part("y")}]},
        Hooked(3),
        SimpleNamespace(a=1),
        Color.RED,
        Level.LOW,
    ]
    seen = []
    for value in values:
        seen.append((yield ctx.call_activity("echo", input=value)))  # noqa: PERF401 -- yields
    hooked = yield ctx.call_activity("echo", input=Hooked(4), return_type=Hooked)
    ctx.set_custom_status(values)
    return [seen, type(hooked).__name__, values]


@program()
def nothing_at_all(ctx: Ctx, value: Any) -> Steps:
    assert value is None
    got = yield ctx.call_activity("echo")
    assert got is None
    ctx.set_custom_status("something")
    yield ctx.create_timer(timedelta(0))
    ctx.set_custom_status(None)


@program()
def tags_and_versions(ctx: Ctx, _: Any) -> Steps:
    return (yield ctx.call_activity("echo", input=1, tags={"a": "b"}))
