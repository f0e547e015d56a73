"""Rules that want the whole engine: converters at every boundary, keys, lengths, retries of children."""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task
from durabletask.client import OrchestrationStatus
from durabletask.serialization import DataConverter

from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions
from provisioning.engine.records import Kind
from provisioning.engine.sqlite_store import SqliteStore
from provisioning.engine.store import Batch
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.stores import abandon
from tests.unit.engine.waiting import LONG_S, ended, output_of

# Converters


class Money:
    """A type that the SDK's own converter knows nothing of."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


class SealedConverter(DataConverter):
    """All data in base64: whatever gets by it is not readable. Knows Money."""

    def serialize(self, value: Any) -> str | None:
        if value is None:
            return None
        text = json.dumps(value, default=lambda money: {"cents": money.cents})
        return "sealed:" + base64.b64encode(text.encode()).decode()

    def deserialize(self, data: str | None, target_type: type | None = None) -> Any:
        if data is None:
            return None
        assert data.startswith("sealed:"), data
        return self.coerce(json.loads(base64.b64decode(data.removeprefix("sealed:"))), target_type)

    def coerce(self, value: Any, target_type: type | None = None) -> Any:
        return Money(value["cents"]) if target_type is Money else value

    def can_reconstruct(self, target_type: Any) -> bool:
        return target_type is Money


def on_disk(path: Path) -> bytes:
    """All that was written: the file, and what is not in it yet."""
    return b"".join(part.read_bytes() for part in path.parent.glob(f"{path.name}*"))


async def test_all_data_goes_through_the_one_converter(path: Path) -> None:
    """S-DATA-1: inputs, results, outputs, events of both kinds, custom status, continue_as_new, terminate."""

    async def double(ctx: task.ActivityContext, money: Money) -> Money:
        return Money(2 * money.cents)

    def listens(ctx: Ctx, money: Money) -> Steps:
        sent = yield ctx.wait_for_external_event("sent", data_type=Money)
        return Money(money.cents + sent.cents)

    def main(ctx: Ctx, money: Money) -> Steps:
        if money.cents == 1:
            ctx.continue_as_new(Money(100))
            return None
        ctx.set_custom_status({"has": money})
        doubled = yield ctx.call_activity(double, input=money)
        child: task.Task[Any] = ctx.call_sub_orchestrator(listens, input=doubled, return_type=Money)
        ctx.send_event(f"{ctx.instance_id}:0002", "sent", data=Money(1))
        more = yield ctx.wait_for_external_event("more", data_type=Money)
        summed = yield child
        return Money(summed.cents + more.cents)

    engine = Engine(path, data_converter=SealedConverter())
    for orchestrator in (listens, main):
        engine.add_orchestrator(orchestrator)
    engine.add_activity(double)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i", input=Money(1))
        await client.raise_orchestration_event("i", "more", data=Money(7))
        state = await ended(client, "i")
        await client.schedule_new_orchestration(listens, instance_id="j", input=Money(1))
        await client.terminate_orchestration("j", output=Money(9))
        stopped = await ended(client, "j")
    result = state.get_output(Money)
    assert result is not None
    assert result.cents == 208, state.failure_details
    assert state.get_custom_status() == {"has": {"cents": 100}}
    assert stopped.get_output() == {"cents": 9}
    assert b"cents" not in on_disk(path)


# Retries of sub-orchestrations


async def test_a_child_is_retried_as_a_fresh_execution(path: Path) -> None:
    """S-RTY-5: its history, custom status, buffered events and task ids start over; its id is the same."""
    calls: Counter[str] = Counter()
    seen: list[int] = []

    async def attempt(ctx: task.ActivityContext, _: Any) -> int:
        seen.append(ctx.task_id)
        calls[ctx.orchestration_id] += 1
        return calls[ctx.orchestration_id]

    def child(ctx: Ctx, text: str) -> Steps:
        n = yield ctx.call_activity(attempt)
        if n == 1:
            ctx.set_custom_status("of the first attempt")
            ctx.send_event(ctx.instance_id, "left")
            yield ctx.create_timer(timedelta(0))
            raise ConnectionError("not yet")
        wait, timer = ctx.wait_for_external_event("left"), ctx.create_timer(timedelta(milliseconds=1))
        winner = yield task.when_any([wait, timer])
        return [text, n, winner is timer]

    def main(ctx: Ctx, _: Any) -> Steps:
        retry = task.RetryPolicy(first_retry_interval=timedelta(0), max_number_of_attempts=3)
        return (yield ctx.call_sub_orchestrator(child, input="in", retry_policy=retry))

    engine = Engine(path)
    for orchestrator in (child, main):
        engine.add_orchestrator(orchestrator)
    engine.add_activity(attempt)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        assert await output_of(client, "i") == ["in", 2, True]
        again = await ended(client, "i:0001")
    assert again.serialized_custom_status is None
    assert seen == [1, 1]
    assert calls == {"i:0001": 2}


# Events


def takes_three(ctx: Ctx, had: list[int]) -> Steps:
    """One event for each execution."""
    got = yield ctx.wait_for_external_event("e")
    if len(had) == 2:
        return [*had, got]
    ctx.continue_as_new([*had, got])


async def test_a_key_is_applied_once_through_crashes_and_executions(path: Path) -> None:
    """S-EVT-8: what a client raises again after a crash is dropped, in whichever execution it arrives."""
    for n in range(3):
        engine = Engine(path)
        engine.add_orchestrator(takes_three)
        await engine.start()
        client = AsyncTaskHubClient(engine)
        if n == 0:
            await client.schedule_new_orchestration(takes_three, instance_id="i", input=[])
        for key in range(n):
            await client.raise_orchestration_event("i", "e", data="again", idempotency_key=f"k{key}")
        await client.raise_orchestration_event("i", "e", data=n, idempotency_key=f"k{n}")
        if n < 2:
            abandon(engine)
            continue
        assert await output_of(client, "i") == [0, 1, 2]
        await engine.stop()


class WatchedStore(SqliteStore):
    """Remembers what kinds of history each of its batches had."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[set[int]] = []

    def commit(self, batch: Batch) -> None:
        self.batches.append({row[2] for row in batch.history} | {row[2] for row in batch.messages})
        super().commit(batch)


async def test_an_event_is_sent_in_the_transaction_of_its_sender(path: Path) -> None:
    """S-EVT-9: the two are on disk together; to one that has ended, or does not exist, it is nothing."""

    def listens(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.wait_for_external_event("news"))

    def sends(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("go")
        for target in ("listener", "listener", "nobody"):
            ctx.send_event(target, "News", data=target)
        yield ctx.wait_for_external_event("go")
        ctx.send_event("listener", "news", data="too late")

    store = WatchedStore(path)
    engine = Engine(store)
    for orchestrator in (listens, sends):
        engine.add_orchestrator(orchestrator)
    async with engine:
        client = AsyncTaskHubClient(engine)
        for orchestrator, instance_id in ((listens, "listener"), (sends, "sender")):
            await client.schedule_new_orchestration(orchestrator, instance_id=instance_id)
            await client.wait_for_orchestration_start(instance_id, timeout=LONG_S)
        await client.raise_orchestration_event("sender", "go")
        assert await output_of(client, "listener") == "listener"
        await client.raise_orchestration_event("sender", "go")
        assert await output_of(client, "sender") is None
        assert await output_of(client, "listener") == "listener"
    sent = [kinds for kinds in store.batches if Kind.EVENT_SENT in kinds]
    assert Kind.EVENT_RAISED in sent[0]


# Limits


async def test_a_history_that_grows_is_warned_of_once_and_ends_at_its_limit(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S-DATA-8: one warning that names the instance and the remedy; then a failure that does."""

    def for_ever(ctx: Ctx, _: Any) -> Steps:
        while True:
            yield ctx.wait_for_external_event("e")

    options = EngineOptions(history_warning_events=10, max_history_events=20, max_live_instances=1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # a restart says nothing again
            engine = Engine(path, options=options)
            engine.add_orchestrator(for_ever)
            async with engine:
                client = AsyncTaskHubClient(engine)
                if await client.get_orchestration_state("long-one") is None:
                    await client.schedule_new_orchestration(for_ever, instance_id="long-one")
                for n in range(10):
                    await client.raise_orchestration_event("long-one", "e", data=n)
                state = await client.get_orchestration_state("long-one")
    assert state is not None
    assert state.runtime_status == OrchestrationStatus.FAILED
    assert state.failure_details is not None
    assert state.failure_details.error_type == "provisioning.engine.errors.HistoryTooLongError"
    warnings = [record.getMessage() for record in caplog.records if "history" in record.getMessage()]
    assert len(warnings) == 1
    assert "'long-one' (for_ever)" in warnings[0]
    assert "continue as new" in warnings[0]


# Failures


class PartError(Exception):
    def __init__(self, part: str) -> None:
        super().__init__(f"part {part} is broken")
        self.part = part


class Provider:
    def get_exception_properties(self, exception: Exception) -> dict[str, Any] | None:
        return {"part": exception.part} if isinstance(exception, PartError) else None


async def test_properties_of_errors_reach_parents_and_clients(path: Path) -> None:
    """S-FAIL-14: from activities of both kinds, orchestrations, and through levels."""

    def in_a_thread(ctx: task.ActivityContext, _: Any) -> None:
        raise PartError("one")

    async def on_the_loop(ctx: task.ActivityContext, _: Any) -> None:
        raise PartError("two")

    def child(ctx: Ctx, _: Any) -> None:
        raise PartError("three")

    def main(ctx: Ctx, _: Any) -> Steps:
        seen = []
        for call in (ctx.call_activity(in_a_thread), ctx.call_activity(on_the_loop)):
            try:
                yield call
            except task.TaskFailedError as error:
                seen.append(error.details.properties)
        ctx.set_custom_status(seen)
        yield ctx.call_sub_orchestrator(child)

    engine = Engine(path, exception_properties_provider=Provider())
    for orchestrator in (child, main):
        engine.add_orchestrator(orchestrator)
    for activity in (in_a_thread, on_the_loop):
        engine.add_activity(activity)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        state = await ended(client, "i")
    assert state.get_custom_status() == [{"part": "one"}, {"part": "two"}]
    assert state.failure_details is not None
    assert state.failure_details.properties is None
    assert state.failure_details.inner_failure is not None
    assert state.failure_details.inner_failure.properties == {"part": "three"}
