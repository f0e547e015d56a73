"""Questions: states by query, ids by pages, histories, and what the engine does not have."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import history, task
from durabletask.client import OrchestrationQuery
from durabletask.entities import EntityInstanceId

from provisioning.engine import (
    AsyncTaskHubClient,
    EngineError,
    EngineOptions,
    EngineStoppedError,
    EntitiesUnsupportedError,
    OrchestrationNotFoundError,
    histories,
)
from provisioning.engine import queries as queries_module
from provisioning.engine.records import Kind, to_datetime
from tests.unit.engine.driving import SECOND, START, Ctx, Steps
from tests.unit.engine.operating import Bench, Status, ends_as
from tests.unit.engine.stores import ManualClock
from tests.unit.engine.waiting import LONG_S, ended, output_of


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries_module, "OUTLINES_AT_ONCE", 2)


# States


@pytest.mark.usefixtures("small_portions")
async def test_states_by_query(path: Path, bench: Bench, clock: ManualClock) -> None:
    """S-LIFE-12, S-HUB-6: max_instance_count is the page size, not a limit; created from is
    included, to excluded."""

    def refuse(ctx: Ctx, _: Any) -> Any:
        ctx.set_custom_status("refusing")
        raise ValueError("no")

    bench.add(refuse)
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        assert await client.get_all_orchestration_states() == []
        for n, name in enumerate(["echo", "refuse", "one_event", "echo", "refuse"]):
            await client.schedule_new_orchestration(name, instance_id=f"{name}-{n}", input=n)
            if name == "one_event":
                await client.wait_for_orchestration_start(f"{name}-{n}", timeout=LONG_S)
            else:
                await ended(client, f"{name}-{n}")
            clock.advance(1)
        at = [to_datetime(START + n * SECOND) for n in range(5)]

        async def ids(**kwargs: Any) -> list[str]:
            states = await client.get_all_orchestration_states(OrchestrationQuery(**kwargs))
            return [s.instance_id for s in states]

        everything = ["echo-0", "refuse-1", "one_event-2", "echo-3", "refuse-4"]
        assert await ids() == await ids(max_instance_count=1) == await ids(max_instance_count=None)
        assert await ids(runtime_status=[]) == everything
        assert await ids(runtime_status=[Status.FAILED]) == ["refuse-1", "refuse-4"]
        two = [Status.RUNNING, Status.COMPLETED]
        assert await ids(runtime_status=two) == ["echo-0", "one_event-2", "echo-3"]
        assert await ids(created_time_from=at[1], created_time_to=at[3]) == ["refuse-1", "one_event-2"]
        assert await ids(created_time_from=at[1].replace(tzinfo=UTC), instance_id_prefix="echo") == ["echo-3"]
        assert await ids(instance_id_prefix="%") == []

        for whole in (False, True):
            query = OrchestrationQuery(fetch_inputs_and_outputs=whole)
            for state in await client.get_all_orchestration_states(query):
                alone = await client.get_orchestration_state(state.instance_id, fetch_payloads=whole)
                assert state == alone
        failed = await client.get_orchestration_state("refuse-1", fetch_payloads=False)
        assert failed is not None
        assert (failed.serialized_input, failed.serialized_output) == (None, None)
        assert failed.get_custom_status() == "refusing"
        assert failed.failure_details is not None


# States by pages


@pytest.mark.usefixtures("small_portions")
async def test_states_by_pages(path: Path, bench: Bench) -> None:
    """S-LIFE-12: a page goes on from the instance that the last one ended with: what was purged or created
    meanwhile shifts nothing."""
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(7):
            await client.schedule_new_orchestration("echo", instance_id=f"echo-{n}", input=n)
            await ended(client, f"echo-{n}")
        page = await client.get_orchestration_states_page(page_size=3)
        assert [state.instance_id for state in page.items] == ["echo-0", "echo-1", "echo-2"]
        assert page.items[0].serialized_input is None
        for gone in ("echo-2", "echo-3"):
            assert (await client.purge_orchestration(gone)).deleted_instance_count == 1
        await client.schedule_new_orchestration("echo", instance_id="echo-7")
        await ended(client, "echo-7")
        query = OrchestrationQuery(instance_id_prefix="echo", fetch_inputs_and_outputs=True)
        second = await client.get_orchestration_states_page(
            query, page_size=3, continuation_token=page.continuation_token
        )
        assert [state.get_input() for state in second.items] == [4, 5, 6]
        last = await client.get_orchestration_states_page(
            query, page_size=3, continuation_token=second.continuation_token
        )
        assert [state.instance_id for state in last.items] == ["echo-7"]
        assert last.continuation_token is None
        rest = await client.get_orchestration_states_page(OrchestrationQuery(instance_id_prefix="none"))
        assert (rest.items, rest.continuation_token) == ([], None)
        with pytest.raises(ValueError, match="no continuation token"):
            await client.get_orchestration_states_page(continuation_token="9" * 30 + "|echo-1")


async def test_a_page_of_states_ends_where_its_payloads_get_too_large(path: Path, bench: Bench) -> None:
    """S-LIFE-12, S-DATA-6: one instance there is at least."""
    async with bench.engine(path, EngineOptions(max_payload_bytes=1_000)) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(3):
            await client.schedule_new_orchestration("echo", instance_id=f"echo-{n}", input="x" * 900)
            await ended(client, f"echo-{n}")
        assert len((await client.get_orchestration_states_page()).items) == 3
        query = OrchestrationQuery(fetch_inputs_and_outputs=True)
        first = await client.get_orchestration_states_page(query)
        assert [state.instance_id for state in first.items] == ["echo-0"]
        token = first.continuation_token
        second = await client.get_orchestration_states_page(query, continuation_token=token)
        assert [state.instance_id for state in second.items] == ["echo-1"]


async def test_the_first_events_of_a_history(path: Path, bench: Bench) -> None:
    """S-LIFE-12: a long history need not be read whole."""
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration("echo", instance_id="echo-1", input=1)
        await ended(client, "echo-1")
        whole = await client.get_orchestration_history("echo-1")
        assert len(whole) > 1
        assert await client.get_orchestration_history("echo-1", max_events=1) == whole[:1]
        assert await client.get_orchestration_history("echo-1", max_events=99) == whole


# Ids by pages


@pytest.mark.usefixtures("small_portions")
async def test_ids_of_ended_ones_by_pages(path: Path, bench: Bench, clock: ManualClock) -> None:
    """S-HUB-6: a token of id lists contains an instance id; a page goes on there,
    whatever was created or purged meanwhile."""
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(7):
            await client.schedule_new_orchestration("echo", instance_id=f"e|{n}")
            await client.schedule_new_orchestration("one_event", instance_id=f"w{n}")
            await ended(client, f"e|{n}")
            clock.advance(1)
        await client.terminate_orchestration("w3")
        await ends_as(client, "w3", Status.TERMINATED)

        first = await client.list_instance_ids(page_size=3)
        assert first.items == ["e|0", "e|1", "e|2"]
        assert first.continuation_token is not None
        assert "e|2" in first.continuation_token
        await client.purge_orchestration("e|2")
        second = await client.list_instance_ids(page_size=3, continuation_token=first.continuation_token)
        assert second.items == ["e|3", "w3", "e|4"]
        third = await client.list_instance_ids(page_size=3, continuation_token=second.continuation_token)
        assert third.items == ["e|5", "e|6"]
        assert third.continuation_token is None
        whole = await client.list_instance_ids(page_size=7)
        assert (len(whole.items), whole.continuation_token) == (7, None)

        at = [to_datetime(START + n * SECOND) for n in range(8)]
        by_time = await client.list_instance_ids(completed_time_from=at[3], completed_time_to=at[5])
        assert by_time.items == ["e|3", "e|4"]
        by_status = await client.list_instance_ids([Status.TERMINATED, Status.RUNNING])
        assert by_status.items == ["w3"]
        assert (await client.list_instance_ids([Status.RUNNING])).items == []


async def test_pages_have_a_hundred_ids_unless_asked_otherwise(path: Path, bench: Bench) -> None:
    """S-HUB-6: as the SDK's own backend."""
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(101):
            await client.schedule_new_orchestration("echo", instance_id=f"e{n}")
        for n in range(101):
            await ended(client, f"e{n}")
        page = await client.list_instance_ids()
        assert len(page.items) == 100
        assert await client.list_instance_ids(page_size=-1) == page
        rest = await client.list_instance_ids(continuation_token=page.continuation_token)
        assert (rest.items, rest.continuation_token) == (["e100"], None)


@pytest.mark.parametrize("token", ["garbage", "1", "|i", "x|i", "-1|i", "²|i"])
async def test_a_token_that_is_none_is_refused(path: Path, bench: Bench, token: str) -> None:
    """DESIGN, clear errors: it names the token."""
    async with bench.engine(path) as engine:
        with pytest.raises(ValueError, match="no continuation token"):
            await AsyncTaskHubClient(engine).list_instance_ids(continuation_token=token)


# Histories


async def test_a_history_has_the_sdks_events(path: Path, bench: Bench, clock: ManualClock) -> None:
    """S-LIFE-12: history's events, made from the engine's records."""

    def child(ctx: Ctx, value: Any) -> Steps:
        return (yield ctx.call_activity("work", input=value, tags={"k": "v"}))

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.call_activity("work", input="bad")
        except task.TaskFailedError:
            ctx.send_event("other", "ping", data=[1])
        good = yield ctx.call_sub_orchestrator(child, input="good", instance_id="c")
        try:
            yield ctx.call_sub_orchestrator(child, input="bad", instance_id="d")
        except task.TaskFailedError:
            yield ctx.create_timer(timedelta(seconds=5))
        return [good, (yield ctx.wait_for_external_event("e"))]

    bench.add(main, child)
    bench.broken = {"bad"}
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration("one_event", instance_id="other")
        await client.schedule_new_orchestration(main, instance_id="i", input=0, version="1", tags={"a": "b"})
        await ends_as(client, "d", Status.FAILED)
        clock.advance(5)
        await client.suspend_orchestration("i", reason="lunch")
        await client.resume_orchestration("i", reason="back")
        await client.raise_orchestration_event("i", "e", data={"n": 1})
        assert await output_of(client, "i") == ["good done", {"n": 1}]
        events = await client.get_orchestration_history("i")
        of_child = await client.get_orchestration_history("c")
        assert await client.get_orchestration_history("i", execution_id="1") == events
        with pytest.raises(OrchestrationNotFoundError, match="only the latest"):
            await client.get_orchestration_history("i", execution_id="7")
        await client.terminate_orchestration("other", output="out", recursive=True)
        await ends_as(client, "other", Status.TERMINATED)
        of_other = await client.get_orchestration_history("other")

    start = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    suspension = (history.ExecutionSuspendedEvent, history.ExecutionResumedEvent, history.TimerFiredEvent)
    # Whether the timer fires before or after the suspension is chance.
    fixed = [e for e in events if not isinstance(e, suspension)]
    assert [type(e).__name__.removesuffix("Event") for e in fixed] == [
        "ExecutionStarted",
        "TaskScheduled",
        "TaskFailed",
        "EventSent",
        "SubOrchestrationInstanceCreated",
        "SubOrchestrationInstanceCompleted",
        "SubOrchestrationInstanceCreated",
        "SubOrchestrationInstanceFailed",
        "TimerCreated",
        "EventRaised",
        "ExecutionCompleted",
    ]
    started, scheduled, failed, sent, created, completed, _, child_failed, timer, raised, end = fixed
    me = history.OrchestrationInstance("i", "1")
    assert started == history.ExecutionStartedEvent(
        -1, start, "main", version="1", input="0", orchestration_instance=me, tags={"a": "b"}
    )
    assert scheduled == history.TaskScheduledEvent(1, start, "work", input='"bad"')
    assert isinstance(failed, history.TaskFailedEvent)
    assert failed.task_scheduled_id == 1
    assert failed.failure_details is not None
    assert failed.failure_details.message == "bad is broken"
    assert sent == history.EventSentEvent(2, start, "other", "ping", input="[1]")
    assert created == history.SubOrchestrationInstanceCreatedEvent(3, start, "c", "child", input='"good"')
    assert completed == history.SubOrchestrationInstanceCompletedEvent(-1, start, 3, result='"good done"')
    assert isinstance(child_failed, history.SubOrchestrationInstanceFailedEvent)
    assert child_failed.task_scheduled_id == 4
    assert timer == history.TimerCreatedEvent(5, start, start + timedelta(seconds=5))
    assert isinstance(raised, history.EventRaisedEvent)
    assert (raised.name, raised.input) == ("e", '{"n": 1}')
    assert isinstance(end, history.ExecutionCompletedEvent)
    assert (end.orchestration_status, end.failure_details) == (Status.COMPLETED.value, None)
    assert json.loads(end.result or "") == ["good done", {"n": 1}]
    other = {type(e): e for e in events if isinstance(e, suspension)}
    assert [getattr(other[kind], "input", None) for kind in suspension] == ["lunch", "back", None]
    fired = other[history.TimerFiredEvent]
    assert isinstance(fired, history.TimerFiredEvent)
    assert (fired.timer_id, fired.fire_at) == (5, start + timedelta(seconds=5))

    assert isinstance(of_child[0], history.ExecutionStartedEvent)
    assert of_child[0].parent_instance == history.ParentInstanceInfo(3, orchestration_instance=me)
    assert isinstance(of_child[1], history.TaskScheduledEvent)
    assert of_child[1].tags == {"k": "v"}
    assert isinstance(of_other[-2], history.ExecutionTerminatedEvent)
    assert (of_other[-2].input, of_other[-2].recurse) == ('"out"', True)
    assert all(json.dumps(e.to_dict()) for e in [*events, *of_child, *of_other])


async def test_the_history_is_that_of_the_latest_execution(path: Path, bench: Bench) -> None:
    """S-CAN-3, S-LIFE-12: history starts over; a failure is in its end."""

    def main(ctx: Ctx, n: int) -> Steps:
        yield ctx.call_activity("work", input=str(n))
        if n < 3:
            ctx.continue_as_new(n + 1)
        elif n == 3:
            raise ValueError("three is enough")

    bench.add(main)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i", input=1)
        await ends_as(client, "i", Status.FAILED)
        started, scheduled, _, end = await client.get_orchestration_history("i")
        assert isinstance(started, history.ExecutionStartedEvent)
        assert started.input == "3"
        assert started.orchestration_instance == history.OrchestrationInstance("i", "3")
        assert scheduled.event_id == 1
        assert isinstance(end, history.ExecutionCompletedEvent)
        assert (end.orchestration_status, end.result) == (Status.FAILED.value, None)
        assert end.failure_details is not None
        assert end.failure_details.message == "three is enough"
        with pytest.raises(OrchestrationNotFoundError, match="'nobody'"):
            await client.get_orchestration_history("nobody")


def test_every_kind_of_event_has_a_public_one() -> None:
    """S-LIFE-12: a kind that is added to the records is added there too."""
    assert set(histories._CONVERTERS) | histories.INTERNAL == set(Kind)
    assert {f.name for f in fields(history.HistoryEvent)} == {"event_id", "timestamp"}


# What there is not


async def test_entities_are_one_clear_error(path: Path, bench: Bench) -> None:
    """S-ENT-1: not yet, as the context says."""
    entity = EntityInstanceId("counter", "one")
    async with bench.engine(path) as engine:
        async with AsyncTaskHubClient(engine) as client:
            for asked in (
                client.signal_entity(entity, "add", 1),
                client.get_entity(entity),
                client.get_all_entities(),
                client.clean_entity_storage(),
            ):
                with pytest.raises(EntitiesUnsupportedError, match="no durable entities"):
                    await asked
        assert await client.get_all_orchestration_states() == []  # closing a client closes nothing
    assert issubclass(EntitiesUnsupportedError, EngineError)


async def test_all_operations_say_that_the_engine_is_not_running(path: Path, bench: Bench) -> None:
    """DESIGN, clear errors: EngineStoppedError from each."""
    client = AsyncTaskHubClient(bench.engine(path))
    for asked in (
        client.schedule_new_orchestration("echo"),
        client.get_orchestration_state("i"),
        client.get_orchestration_history("i"),
        client.list_instance_ids(),
        client.get_all_orchestration_states(),
        client.terminate_orchestration("i"),
        client.suspend_orchestration("i"),
        client.rewind_orchestration("i"),
        client.restart_orchestration("i"),
        client.purge_orchestration("i"),
        client.purge_orchestrations_by(),
    ):
        with pytest.raises(EngineStoppedError, match="not running"):
            await asked
