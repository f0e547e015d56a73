"""Interleavings and accidents that once lost, doubled or misplaced something."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task
from durabletask.client import OrchestrationStatus

from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions, EngineStoppedError, StateInUseError
from provisioning.engine import timers as timers_module
from provisioning.engine.activities import ActivityRunner, _Waiting
from provisioning.engine.functions import Function, Functions
from provisioning.engine.records import ActivityCall, Kind, Message, to_datetime
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER
from provisioning.engine.threads import ThreadPool
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.operating import one_event, rows_of
from tests.unit.engine.stores import BreakingStore, GatedStore, ManualClock, abandon
from tests.unit.engine.waiting import LONG_S, ended, output_of, until


def two_events(ctx: Ctx, _: Any) -> Steps:
    first = yield ctx.wait_for_external_event("e")
    second = yield ctx.wait_for_external_event("e")
    return [first, second]


async def test_an_event_taken_in_the_transaction_that_kept_it_is_not_kept(path: Path) -> None:
    """S-EVT-7: an event for a pending instance is kept, and applied once, after a crash too."""
    engine = Engine(path)
    engine.add_orchestrator(two_events)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    creating = engine.lifecycle.create(instance_id="i", name="two_events", input=None)
    raising = engine.send("i", Message(Kind.EVENT_RAISED, name="e", data="1"))
    await asyncio.gather(creating, raising)
    await client.wait_for_orchestration_start("i", timeout=LONG_S)
    abandon(engine)
    assert rows_of(path, "messages") == 0

    again = Engine(path)
    again.add_orchestrator(two_events)
    async with again:
        client = AsyncTaskHubClient(again)
        await client.raise_orchestration_event("i", "e", data=2)
        assert await output_of(client, "i") == [1, 2]


async def test_a_pending_instance_with_messages_is_not_evicted(path: Path, clock: ManualClock) -> None:
    """S-EVT-7: an event for an instance that is pending is kept, whatever leaves memory."""
    engine = Engine(path, clock=clock, options=EngineOptions(max_live_instances=1))
    engine.add_orchestrator(one_event)
    async with engine:
        client = AsyncTaskHubClient(engine)
        start_at = to_datetime(clock.now) + timedelta(minutes=1)
        await client.schedule_new_orchestration(one_event, instance_id="late", start_at=start_at)
        await client.raise_orchestration_event("late", "e", data="kept")
        for n in range(5):
            await client.schedule_new_orchestration(one_event, instance_id=f"other-{n}")
            await client.wait_for_orchestration_start(f"other-{n}", timeout=LONG_S)
        clock.advance(61)
        assert await output_of(client, "late") == "kept"


async def test_a_termination_before_the_start_is_not_behind_what_waits_for_it(path: Path) -> None:
    """S-LIFE-5: of a pending instance with more events than a turn takes, one turn is all there is.

    A turn without a start would leave an instance that runs and never began, if the process died after it.
    """
    engine = Engine(path, options=EngineOptions(max_turn_messages=2))
    engine.add_orchestrator(one_event)
    async with engine:
        client = AsyncTaskHubClient(engine)
        start_at = datetime.now(UTC) + timedelta(days=1)
        await client.schedule_new_orchestration(one_event, instance_id="i", start_at=start_at)
        for n in range(5):
            await client.raise_orchestration_event("i", "e", data=n)
        await client.terminate_orchestration("i")
        assert (await ended(client, "i")).runtime_status == OrchestrationStatus.TERMINATED
        assert engine.statistics().turns == 1
    assert rows_of(path, "history") == 2  # the termination and the end
    assert rows_of(path, "messages") == 0


async def test_a_timer_of_the_earlier_execution_does_not_drop_that_of_the_next(
    path: Path, clock: ManualClock
) -> None:
    """S-CAN-5: what belongs to the earlier execution never reaches the new one."""

    def main(ctx: Ctx, n: int) -> Steps:
        timer = ctx.create_timer(timedelta(seconds=10))
        if n == 0:
            yield ctx.wait_for_external_event("go")
            ctx.continue_as_new(1)
        yield timer
        return "fired"

    engine = Engine(path, clock=clock, options=EngineOptions(max_turn_messages=1))
    engine.add_orchestrator(main)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i", input=0)
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        clock.advance(11)
        going = engine.send("i", Message(Kind.EVENT_RAISED, name="go"))
        engine._timers.fire_due()  # the timer's message stands behind the event, both before the next turn
        await going
        await until(lambda: engine.statistics().armed_timers == 1)
        clock.advance(11)
        assert await output_of(client, "i") == "fired"


async def test_the_next_window_brings_no_timer_that_is_about_to_be_replaced(
    path: Path, clock: ManualClock
) -> None:
    """S-TMR-1: fire no earlier than due; the same id in the next execution is another timer."""

    def main(ctx: Ctx, n: int) -> Steps:
        timer = ctx.create_timer(timedelta(seconds=1_000 if n else 100))
        if n == 0:
            yield ctx.wait_for_external_event("go")
            ctx.continue_as_new(1)
        yield timer
        return "fired"

    store = GatedStore(path)
    engine = Engine(store, clock=clock, options=EngineOptions(timer_window=timedelta(seconds=60)))
    engine.add_orchestrator(main)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i", input=0)
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        store.gate.clear()
        going = engine.send("i", Message(Kind.EVENT_RAISED, name="go"))
        engine._step()  # handed to the writer, and not on disk yet
        clock.advance(50)
        engine._timers.fire_due()
        assert engine.statistics().armed_timers == 0
        store.gate.set()
        await going
        clock.advance(51)
        engine._timers.fire_due()
        clock.advance(1_000)
        assert await output_of(client, "i") == "fired"
    state = await _reread(path, main, "i")
    assert state is not None
    assert (state - to_datetime(clock.now)) > timedelta(seconds=-60)


async def _reread(path: Path, main: Any, instance_id: str) -> datetime | None:
    engine = Engine(path)
    engine.add_orchestrator(main)
    async with engine:
        state = await AsyncTaskHubClient(engine).get_orchestration_state(instance_id)
        return state.last_updated_at if state else None


async def test_a_child_created_again_while_its_old_turn_is_queued_starts(path: Path) -> None:
    """S-ID-4: a sub-orchestration may replace an ended instance of the same id."""

    def child(ctx: Ctx, n: int) -> Steps:
        yield ctx.wait_for_external_event("end")
        ctx.send_event(ctx.instance_id, "to myself")
        return n

    def parent(ctx: Ctx, _: Any) -> Steps:
        first = yield ctx.call_sub_orchestrator(child, input=1, instance_id="child")
        second = yield ctx.call_sub_orchestrator(child, input=2, instance_id="child")
        return [first, second]

    engine = Engine(path)
    engine.add_orchestrator(child)
    engine.add_orchestrator(parent)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(parent, instance_id="parent")
        await client.wait_for_orchestration_start("child", timeout=LONG_S)
        going = [
            engine.send("child", Message(Kind.EVENT_RAISED, name="end")),
            engine.send("parent", Message(Kind.EVENT_RAISED, name="noise")),
        ]
        await asyncio.gather(*going)
        await client.raise_orchestration_event("child", "end")
        assert await output_of(client, "parent") == [1, 2]
        await until(lambda: engine.statistics().live_instances == 0)


async def test_waiting_for_the_end_does_not_return_one_that_was_replaced(path: Path) -> None:
    """S-LIFE-11: waiting for completion never returns an instance that has not ended."""

    def child(ctx: Ctx, n: int) -> Steps:
        if n == 2:
            yield ctx.wait_for_external_event("end")
        return n

    def parent(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_sub_orchestrator(child, input=1, instance_id="child")
        return (yield ctx.call_sub_orchestrator(child, input=2, instance_id="child"))

    engine = Engine(path)
    engine.add_orchestrator(child)
    engine.add_orchestrator(parent)
    async with engine:
        client = AsyncTaskHubClient(engine)
        waiting = asyncio.create_task(output_of(client, "child"))
        await asyncio.sleep(0)
        await client.schedule_new_orchestration(parent, instance_id="parent")
        await until(lambda: waiting.done() or engine.statistics().live_instances == 2)
        await client.wait_for_orchestration_start("child", timeout=LONG_S)
        await client.raise_orchestration_event("child", "end")
        assert await output_of(client, "parent") == 2
        assert await waiting in (1, 2)


async def test_results_that_come_with_the_end_do_not_run_again(path: Path) -> None:
    """DESIGN 2, Recovery: what runs again is what was scheduled and not completed."""
    ran: list[str] = []
    gate = asyncio.Event()

    async def work(ctx: task.ActivityContext, name: str) -> str:
        ran.append(name)
        await gate.wait()
        return name

    def main(ctx: Ctx, _: Any) -> Steps:
        group: list[task.Task[Any]] = [ctx.call_activity(work, input=n) for n in "abc"]
        winner = yield task.when_any(group)
        return winner.get_result()

    engine = Engine(path)
    engine.add_orchestrator(main)
    engine.add_activity(work)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await until(lambda: len(ran) == 3)
        gate.set()
        assert await output_of(client, "i") in ("a", "b", "c")
        await until(lambda: rows_of(path, "detached_activities") == 0)
    assert sorted(ran) == ["a", "b", "c"]


async def test_an_activity_left_behind_runs_after_a_crash_until_it_is_done(path: Path) -> None:
    """S-TASK-10: losers go on; at least once, also when their orchestration has ended."""
    ran: list[str] = []

    async def quick(ctx: task.ActivityContext, _: Any) -> str:
        return "quick"

    async def slow(ctx: task.ActivityContext, _: Any) -> str:
        ran.append("slow")
        if len(ran) == 1:
            await asyncio.Event().wait()
        return "slow"

    def main(ctx: Ctx, _: Any) -> Steps:
        winner = yield task.when_any([ctx.call_activity(slow), ctx.call_activity(quick)])
        return winner.get_result()

    def make() -> Engine:
        engine = Engine(path)
        engine.add_orchestrator(main)
        engine.add_activity(quick)
        engine.add_activity(slow)
        return engine

    engine = make()
    await engine.start()
    client = AsyncTaskHubClient(engine)
    await client.schedule_new_orchestration(main, instance_id="i")
    assert await output_of(client, "i") == "quick"
    abandon(engine)
    assert rows_of(path, "detached_activities") == 1
    async with make():
        await until(lambda: rows_of(path, "detached_activities") == 0)
    async with make():
        pass
    assert ran == ["slow", "slow"]


async def test_a_broken_engine_writes_nothing_more(path: Path) -> None:
    """DESIGN 2, Group commit: batches get to disk in order, so nothing may follow one that failed."""
    store = BreakingStore(path)
    engine = Engine(store, options=EngineOptions(max_commit_rows=1))
    engine.add_orchestrator(two_events)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    await client.schedule_new_orchestration(two_events, instance_id="i")
    await client.wait_for_orchestration_start("i", timeout=LONG_S)
    waiting = asyncio.create_task(ended(client, "i"))
    await asyncio.sleep(0)
    store.commit_error = sqlite3.DatabaseError("malformed")
    raising = [engine.send("i", Message(Kind.EVENT_RAISED, name="e")) for _ in range(2)]
    results = await asyncio.gather(*raising, waiting, return_exceptions=True)
    assert [type(r) for r in results] == [EngineStoppedError] * 3
    assert isinstance(await engine.wait_broken(), sqlite3.DatabaseError)
    with pytest.raises(EngineStoppedError):
        await client.schedule_new_orchestration(two_events)
    await engine.stop()
    assert store.written == 0
    with pytest.raises(EngineStoppedError, match="malformed"):
        await client.get_orchestration_state("i")

    again = Engine(path)
    again.add_orchestrator(two_events)
    async with again:
        client = AsyncTaskHubClient(again)
        for n in (1, 2):
            await client.raise_orchestration_event("i", "e", data=n)
        assert await output_of(client, "i") == [1, 2]


async def test_a_turn_that_breaks_half_way_is_not_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 2: a transaction is all of a turn or nothing of it, in the face of a defect of ours too."""
    engine = Engine(path)
    engine.add_orchestrator(one_event)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    await client.schedule_new_orchestration(one_event, instance_id="i")
    await client.wait_for_orchestration_start("i", timeout=LONG_S)

    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(engine._turns._outcomes, "complete", broken)
    with pytest.raises(EngineStoppedError):
        await client.raise_orchestration_event("i", "e", data="first")
    assert engine.statistics().storage_trouble is None
    await engine.stop()

    again = Engine(path)
    again.add_orchestrator(one_event)
    async with again:
        client = AsyncTaskHubClient(again)
        await client.raise_orchestration_event("i", "e", data="second")
        assert await output_of(client, "i") == "second"


async def test_callers_of_a_turn_that_can_not_be_taken_hear_of_the_end(path: Path) -> None:
    """DESIGN 2: nobody waits for an engine that has stopped: not in the turn in which it stopped either."""
    store = BreakingStore(path)
    engine = Engine(store, options=EngineOptions(max_live_instances=1))
    engine.add_orchestrator(one_event)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    for name in ("i", "j", "k"):
        await client.schedule_new_orchestration(one_event, instance_id=name)
        await client.wait_for_orchestration_start(name, timeout=LONG_S)
    store.history_error = sqlite3.DatabaseError("malformed")
    async with asyncio.timeout(LONG_S):
        with pytest.raises(EngineStoppedError, match="malformed"):
            await client.raise_orchestration_event("i", "e")
    await engine.stop()


async def test_callers_that_wait_for_room_hear_of_the_end(path: Path) -> None:
    """DESIGN 2: every queue pushes back; nobody waits for an engine that has stopped."""
    store = GatedStore(path)
    engine = Engine(store, options=EngineOptions(max_commit_rows=1))
    engine.add_orchestrator(one_event)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    for name in ("i", "j"):
        await client.schedule_new_orchestration(one_event, instance_id=name)
        await client.wait_for_orchestration_start(name, timeout=LONG_S)
    store.gate.clear()
    sent = [engine.send(name, Message(Kind.EVENT_RAISED, name="e")) for name in ("i", "j")]
    engine._step()
    engine._step()
    waiting = asyncio.create_task(client.raise_orchestration_event("i", "e"))
    await asyncio.sleep(0)
    assert not waiting.done()
    engine._health.fail(RuntimeError("a defect"))
    with pytest.raises(EngineStoppedError):
        await asyncio.wait_for(waiting, LONG_S)
    store.gate.set()
    await asyncio.gather(*sent, return_exceptions=True)
    await engine.stop()


async def test_a_start_that_fails_lets_go_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 2, One owner: an engine that did not start owns nothing."""
    store = BreakingStore(path)
    engine = Engine(store)
    monkeypatch.setattr(store, "messages", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await engine.start()
    async with Engine(path):
        pass
    monkeypatch.undo()
    async with engine:
        with pytest.raises(StateInUseError):
            await Engine(path).start()


async def test_an_activity_whose_end_can_not_be_taken_breaks_the_engine_aloud(path: Path) -> None:
    """DESIGN 2: a state file that can't be read ends the engine; it does not just lose a result."""
    gate = asyncio.Event()

    async def work(ctx: task.ActivityContext, _: Any) -> None:
        await gate.wait()

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity(work)

    store = BreakingStore(path)
    engine = Engine(store, options=EngineOptions(max_live_instances=1))
    engine.add_orchestrator(main)
    engine.add_activity(work)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    for n in range(3):
        await client.schedule_new_orchestration(main, instance_id=str(n))
        await client.wait_for_orchestration_start(str(n), timeout=LONG_S)
    store.find_error = sqlite3.DatabaseError("malformed")
    gate.set()
    async with asyncio.timeout(LONG_S):
        assert isinstance(await engine.wait_broken(), sqlite3.DatabaseError)
    await engine.stop()


async def test_a_timer_that_can_not_be_taken_breaks_the_engine_aloud(path: Path, clock: ManualClock) -> None:
    """As above, for a timer."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta(seconds=10))

    store = BreakingStore(path)
    engine = Engine(store, clock=clock, options=EngineOptions(max_live_instances=1))
    engine.add_orchestrator(main)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    for n in range(3):
        await client.schedule_new_orchestration(main, instance_id=str(n))
        await client.wait_for_orchestration_start(str(n), timeout=LONG_S)
    store.find_error = sqlite3.DatabaseError("malformed")
    clock.advance(20)
    async with asyncio.timeout(LONG_S):
        assert isinstance(await engine.wait_broken(), sqlite3.DatabaseError)
    await engine.stop()


async def test_windows_shorter_than_the_longest_sleep_bring_their_timers_in_time(path: Path) -> None:
    """S-TMR-1: durable; the window is where they are kept, not when they fire."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta(milliseconds=150))

    engine = Engine(path, options=EngineOptions(timer_window=timedelta(milliseconds=100)))
    engine.add_orchestrator(main)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        state = await client.wait_for_orchestration_completion("i", timeout=2)
        assert state is not None


async def test_a_stop_that_is_cancelled_goes_on_and_a_second_one_waits_for_it(path: Path) -> None:
    """S-HUB-1: second stop works: when it returns, the file is free."""
    gate, running = threading.Event(), threading.Event()

    def work(ctx: task.ActivityContext, _: Any) -> None:
        running.set()
        gate.wait(LONG_S)

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity(work)

    engine = Engine(path)
    engine.add_orchestrator(main)
    engine.add_activity(work)
    await engine.start()
    await AsyncTaskHubClient(engine).schedule_new_orchestration(main)
    await until(running.is_set)
    first = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    assert not second.done()
    gate.set()
    await second
    async with Engine(path):
        pass


async def test_a_burst_of_creations_is_pushed_back(path: Path) -> None:
    """DESIGN 2, Group commit: a full queue pushes back, whatever fills it."""
    store = GatedStore(path)
    engine = Engine(store, options=EngineOptions(max_commit_rows=10))
    engine.add_orchestrator(one_event)
    async with engine:
        client = AsyncTaskHubClient(engine)
        start_at = datetime.now(UTC) + timedelta(hours=1)
        await client.schedule_new_orchestration(one_event, instance_id="i", start_at=start_at)
        store.gate.clear()
        calls: list[asyncio.Task[Any]] = []
        for n in range(100):
            calls.append(asyncio.create_task(client.schedule_new_orchestration(one_event, start_at=start_at)))
            calls.append(asyncio.create_task(client.raise_orchestration_event("i", "e", data=n)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert engine._commits.under_way is not None
        taken = engine._commits.under_way.batch
        assert len(taken.messages) + len(taken.instances) + engine._commits.open.rows <= 25
        store.gate.set()
        await asyncio.gather(*calls)


async def test_a_broken_engine_begins_no_more_activities(path: Path) -> None:
    """DESIGN 2: what can't be recorded any more is not done any more."""
    ran: list[int] = []
    gate = asyncio.Event()

    async def work(ctx: task.ActivityContext, n: int) -> None:
        ran.append(n)
        await gate.wait()

    def main(ctx: Ctx, _: Any) -> Steps:
        tasks: list[task.Task[Any]] = [ctx.call_activity(work, input=n) for n in range(10)]
        yield task.when_all(tasks)

    engine = Engine(path, options=EngineOptions(max_async_activities=2))
    engine.add_orchestrator(main)
    engine.add_activity(work)
    await engine.start()
    await AsyncTaskHubClient(engine).schedule_new_orchestration(main)
    await until(lambda: len(ran) == 2)
    engine._health.fail(RuntimeError("a defect"))
    gate.set()
    for _ in range(10):
        await asyncio.sleep(0)
    await engine.stop()
    assert ran == [0, 1]


# Activities


def runner_of(
    activity: Callable[..., Any], done: Callable[[ActivityCall, Kind, str | None], None], **options: int
) -> ActivityRunner:
    functions = Functions(DEFAULT_DATA_CONVERTER)
    functions.add_activity("work", activity)
    pool = ThreadPool("activity", 1)
    return ActivityRunner(functions, DEFAULT_DATA_CONVERTER, EngineOptions(**options), pool, done)  # type: ignore[arg-type]  # only counts


def call_of(n: int) -> ActivityCall:
    return ActivityCall("i", 1, 1, n, "work", str(n))


async def test_an_activity_submitted_just_as_the_last_worker_ends_runs() -> None:
    """DESIGN 2: no wake-up is lost between the end of one activity and the submission of the next."""
    done: list[int] = []
    loop = asyncio.get_running_loop()

    async def work(ctx: task.ActivityContext, n: int) -> int:
        if n == 1:
            # Runs right after the worker's last step, before anything that its end has scheduled.
            loop.call_soon(runner.submit, call_of(2))
        return n

    runner = runner_of(work, lambda call, kind, text: done.append(call.task_id), max_async_activities=1)
    runner.submit(call_of(1))
    await until(lambda: len(done) == 2)
    await runner.stop()


async def test_an_activity_that_cancels_itself_hurts_no_other() -> None:
    """S-ACT-4: cancellation in an activity ends the activity as failed, not the engine."""
    done: dict[int, Kind] = {}

    async def work(ctx: task.ActivityContext, n: int) -> int:
        current = asyncio.current_task()
        assert current is not None
        if n == 1:
            current.cancel()
        elif n == 3:
            current.cancel()
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(0)
        return n

    runner = runner_of(
        work, lambda call, kind, text: done.update({call.task_id: kind}), max_async_activities=1
    )
    for n in range(1, 5):
        runner.submit(call_of(n))
    await until(lambda: len(done) == 4)
    await runner.stop()
    good, bad = Kind.TASK_COMPLETED, Kind.TASK_FAILED
    assert [done[n] for n in range(1, 5)] == [good, good, bad, good]


async def test_cancelled_callers_trouble_nobody(path: Path) -> None:
    """STYLE 19: a client that gives up waiting changes nothing for the engine."""
    store = GatedStore(path)
    engine = Engine(store)
    engine.add_orchestrator(two_events)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(two_events, instance_id="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        store.gate.clear()
        callers = [
            asyncio.create_task(client.raise_orchestration_event("i", "e", data=1)),
            asyncio.create_task(client.schedule_new_orchestration(two_events, instance_id="j")),
            asyncio.create_task(ended(client, "i")),
            asyncio.create_task(ended(client, "unknown")),
        ]
        for _ in range(5):
            await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        store.gate.set()
        await client.raise_orchestration_event("i", "e", data=2)
        assert await output_of(client, "i") == [1, 2]
        state = await client.wait_for_orchestration_start("j", timeout=LONG_S)
        assert state is not None
        assert state.runtime_status == OrchestrationStatus.RUNNING
        assert len(engine._commits.ends) == 0


def test_what_was_begun_goes_before_what_is_new_and_neither_starves() -> None:
    """A fan-out does not go through its steps in lockstep: instances end while others have not begun."""
    function = Function(name="work", call=print, input_type=None, is_async=True)
    waiting = _Waiting()
    for n in range(20):
        waiting.put(call_of(n)._replace(new=True), function)
    for n in range(100, 120):
        waiting.put(call_of(n), function)
    assert len(waiting) == 40
    taken = [waiting.take()[0].task_id for _ in range(40)]
    begun, new = [n for n in taken if n >= 100], [n for n in taken if n < 100]
    assert begun == list(range(100, 120)), "in order of arrival"
    assert new == list(range(20)), "in order of arrival"
    assert taken[:9] == [100, 101, 102, 103, 104, 105, 106, 0, 107], "one place in eight is for what is new"
    assert taken.index(119) < taken.index(3)


async def test_a_failure_while_the_pool_stops_does_not_keep_it_from_stopping() -> None:
    """Pool.clear in mid-stop: what waits is left, and the threads hear of the end all the same."""
    gate, running, told = threading.Event(), threading.Event(), list[str]()
    pool = ThreadPool("activity", 1)

    def first() -> bool:
        running.set()
        return gate.wait(LONG_S)

    pool.run(first, lambda opened: told.append(f"first {opened}"))
    await until(running.is_set)
    pool.run(lambda: None, lambda _: told.append("second"))
    stopping = asyncio.create_task(pool.stop())
    await asyncio.sleep(0)
    assert pool.clear() == 1
    gate.set()
    async with asyncio.timeout(LONG_S):
        await stopping
    assert told == ["first True"]


async def test_what_is_handed_over_while_the_pool_stops_is_done_too() -> None:
    """Pool.stop: a full disk takes a batch again at the very moment when the engine gives up, and the next
    batch is handed over; whoever waits for that one hears of it."""
    gate, running, told = threading.Event(), threading.Event(), list[str]()
    pool = ThreadPool("engine-writer", 1)

    def first() -> bool:
        running.set()
        return gate.wait(LONG_S)

    def next_one(_: bool) -> None:
        told.append("first")
        pool.run(lambda: None, lambda _: told.append("second"))

    pool.run(first, next_one)
    await until(running.is_set)
    stopping = asyncio.create_task(pool.stop())
    await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(LONG_S):
        await stopping
    assert told == ["first", "second"]


async def test_a_timer_for_the_beginning_of_time_fires_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-TMR-1: due at 0, which is a time like any other."""
    monkeypatch.setattr(timers_module, "_LONGEST_SLEEP_S", 10 * LONG_S)

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(datetime(1970, 1, 1, tzinfo=UTC))
        return "fired"

    engine = Engine(path)
    engine.add_orchestrator(main)
    async with engine:
        client = AsyncTaskHubClient(engine)
        assert await output_of(client, await client.schedule_new_orchestration(main)) == "fired"


async def test_a_plain_activity_that_waits_for_an_orchestration_does_not_keep_the_engine_from_stopping(
    path: Path,
) -> None:
    """DESIGN 2: it waits in its thread for what no turn is taken for any more, and is told so."""
    loop, heard = asyncio.get_running_loop(), list[str]()

    def asks(_: task.ActivityContext, __: Any) -> None:
        waiting = client.wait_for_orchestration_completion("other", timeout=10 * LONG_S)
        try:
            asyncio.run_coroutine_threadsafe(waiting, loop).result()
        except EngineStoppedError as error:
            heard.append(str(error))

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity(asks)

    engine = Engine(path)
    for orchestrator in (main, one_event):
        engine.add_orchestrator(orchestrator)
    engine.add_activity(asks)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(one_event, instance_id="other")
        await client.schedule_new_orchestration(main)
        await until(lambda: len(engine._commits.ends) == 1)
        async with asyncio.timeout(LONG_S):
            await engine.stop()
    assert heard == ["the engine was stopped"]
