"""The engine on a real state file: what a user of its client sees."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task
from durabletask.client import OrchestrationStatus

from provisioning.engine import (
    AsyncTaskHubClient,
    Engine,
    EngineOptions,
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
    PayloadTooLargeError,
)
from provisioning.engine.clock import SteadyClock
from provisioning.engine.records import to_datetime
from tests.unit.engine.driving import SECOND, START, Ctx, Steps
from tests.unit.engine.operating import echo, one_event
from tests.unit.engine.stores import GatedStore, ManualClock, abandon
from tests.unit.engine.waiting import LONG_S, ended, output_of, until


def engine_of(path: Path, *functions: Any, activities: Any = (), **kwargs: Any) -> Engine:
    engine = Engine(path, **kwargs)
    for function in functions:
        engine.add_orchestrator(function)
    for activity in activities:
        engine.add_activity(activity)
    return engine


# Clients


async def test_an_orchestration_from_start_to_end(path: Path) -> None:
    """S-LIFE-1: statuses, times, input, output and custom status of one instance."""

    def main(ctx: Ctx, value: Any) -> Steps:
        ctx.set_custom_status("working")
        return (yield ctx.wait_for_external_event("e"))

    async with engine_of(path, main) as engine:
        client = AsyncTaskHubClient(engine)
        assert await client.get_orchestration_state("i") is None
        start_at = datetime.now(UTC) + timedelta(hours=1)
        await client.schedule_new_orchestration(main, instance_id="later", start_at=start_at)
        state = await client.get_orchestration_state("later")
        assert state is not None
        assert state.runtime_status == OrchestrationStatus.PENDING
        assert await client.schedule_new_orchestration("main", instance_id="i", input=[1]) == "i"
        state = await client.wait_for_orchestration_start("i", fetch_payloads=True, timeout=LONG_S)
        assert state is not None
        assert (state.runtime_status, state.name) == (OrchestrationStatus.RUNNING, "main")
        assert (state.serialized_input, state.serialized_custom_status) == ("[1]", '"working"')
        assert state.created_at.tzinfo is None
        await client.raise_orchestration_event("i", "e", data={"a": 1})
        state = await ended(client, "i")
        assert (state.runtime_status, state.get_output()) == (OrchestrationStatus.COMPLETED, {"a": 1})
        assert state.last_updated_at >= state.created_at


async def test_ids_are_made_up_or_taken_once(path: Path) -> None:
    """S-ID-1: default id uuid4().hex; an existing id is an error, ended or not."""
    async with engine_of(path, echo) as engine:
        client = AsyncTaskHubClient(engine)
        for none in (None, ""):
            made_up = await client.schedule_new_orchestration(echo, instance_id=none)
            assert len(made_up) == 32
        both = await asyncio.gather(
            client.schedule_new_orchestration(echo, instance_id="i"),
            client.schedule_new_orchestration(echo, instance_id="i"),
            return_exceptions=True,
        )
        assert sorted(type(r).__name__ for r in both) == ["OrchestrationAlreadyExistsError", "str"]
        await ended(client, "i")
        with pytest.raises(OrchestrationAlreadyExistsError, match="'i'"):
            await client.schedule_new_orchestration(echo, instance_id="i")
        for wrong in (" ", "@entity"):
            with pytest.raises(ValueError, match="instance id"):
                await client.schedule_new_orchestration(echo, instance_id=wrong)


async def test_events_for_the_unknown_and_the_ended(path: Path) -> None:
    """S-EVT-6: raising to an unknown instance is an error; to an ended one it is dropped."""
    async with engine_of(path, echo) as engine:
        client = AsyncTaskHubClient(engine)
        with pytest.raises(OrchestrationNotFoundError, match="'nobody'"):
            await client.raise_orchestration_event("nobody", "e")
        await client.schedule_new_orchestration(echo, instance_id="i")
        await ended(client, "i")
        await client.raise_orchestration_event("i", "e", data="dropped")
        with pytest.raises(ValueError, match="empty"):
            await client.raise_orchestration_event("i", " ")


async def test_an_event_whose_raise_returned_survives_a_crash(path: Path) -> None:
    """DESIGN 2, Effects after commit: returns when the event is on disk; pending and running instances."""
    engine = engine_of(path, one_event)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    start_at = datetime.now(UTC) + timedelta(milliseconds=300)
    await client.schedule_new_orchestration(one_event, instance_id="pending", start_at=start_at)
    await client.raise_orchestration_event("pending", "e", data="early")
    abandon(engine)
    async with engine_of(path, one_event) as engine:
        assert await output_of(AsyncTaskHubClient(engine), "pending") == "early"


async def test_waiting_for_an_unknown_instance_waits_for_its_creation(path: Path) -> None:
    """S-LIFE-11: waits until the time-out, which is the builtin TimeoutError."""
    async with engine_of(path, echo) as engine:
        client = AsyncTaskHubClient(engine)
        with pytest.raises(TimeoutError):
            await client.wait_for_orchestration_completion("i", timeout=0.01)
        with pytest.raises(TimeoutError):
            await client.wait_for_orchestration_start("i", timeout=0.01)
        waiting = [
            asyncio.create_task(ended(client, "i")),
            asyncio.create_task(client.wait_for_orchestration_start("i", timeout=LONG_S)),
        ]
        await asyncio.sleep(0)
        await client.schedule_new_orchestration(echo, instance_id="i", input=3)
        states = await asyncio.gather(*waiting)
        assert [s and s.instance_id for s in states] == ["i", "i"]
        assert len(engine._commits.ends) == len(engine._commits.starts) == 0


async def test_payloads_over_their_limit_are_refused_at_the_edge(path: Path) -> None:
    """S-DATA-6: limits are ours to name."""
    async with engine_of(path, echo, options=EngineOptions(max_payload_bytes=100)) as engine:
        client = AsyncTaskHubClient(engine)
        with pytest.raises(PayloadTooLargeError, match="input"):
            await client.schedule_new_orchestration(echo, input="x" * 100)
        await client.schedule_new_orchestration(echo, instance_id="i", input="x" * 98)
        with pytest.raises(PayloadTooLargeError, match="event 'e'"):
            await client.raise_orchestration_event("i", "e", data="x" * 100)


@pytest.mark.parametrize("name", ["instance", "orchestrator", "version", "event", "key", "reason"])
async def test_text_that_can_not_be_stored_is_refused_at_the_edge(path: Path, name: str) -> None:
    """S-ID-10: a client's bad text is its own error, not the end of the engine."""
    bad = "\ud800"
    async with engine_of(path, one_event) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(one_event, instance_id="i")
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "instance": lambda: client.schedule_new_orchestration(one_event, instance_id=bad),
            "orchestrator": lambda: client.schedule_new_orchestration(bad),
            "version": lambda: client.schedule_new_orchestration(one_event, version=bad),
            "event": lambda: client.raise_orchestration_event("i", bad),
            "key": lambda: client.raise_orchestration_event("i", "e", idempotency_key=bad),
            "reason": lambda: client.suspend_orchestration("i", reason=bad),
        }
        with pytest.raises(ValueError, match="Unicode"):
            await calls[name]()
        await client.raise_orchestration_event("i", "e", data="fine")
        assert await output_of(client, "i") == "fine"


async def test_inputs_and_results_are_rebuilt_to_annotations(path: Path) -> None:
    """S-DATA-3: inputs rebuilt to the function's annotation, results where a function is passed."""
    async with engine_of(path, rebuilt, activities=[grow]) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(rebuilt, instance_id="i", input=Size(1))
        assert await output_of(client, "i") == ["Size", 1, "Size", 2, "dict"]


@dataclass
class Size:
    n: int


async def grow(ctx: task.ActivityContext, size: Size) -> Size:
    return Size(size.n + 1)


def rebuilt(ctx: Ctx, size: Size) -> Steps:
    typed = yield ctx.call_activity(grow, input=size)
    raw = yield ctx.call_activity("grow", input=size)
    return [type(size).__name__, size.n, type(typed).__name__, typed.n, type(raw).__name__]


# Activities


async def test_both_kinds_of_activities(path: Path) -> None:
    """S-ACT-1, S-ACT-2, S-ACT-3: plain functions in threads, `async def` on the loop; their ids."""
    seen: dict[str, Any] = {}

    def plain(ctx: task.ActivityContext, value: Any) -> Any:
        seen["plain"] = (ctx.orchestration_id, ctx.task_id, threading.current_thread() is main_thread)
        return value

    async def on_loop(ctx: task.ActivityContext, value: Any) -> Any:
        seen["async"] = (ctx.orchestration_id, ctx.task_id, threading.current_thread() is main_thread)
        return value

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield task.when_all([ctx.call_activity(plain, input=1), ctx.call_activity(on_loop, input=2)]))

    main_thread = threading.current_thread()
    async with engine_of(path, main, activities=[plain, on_loop]) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        assert await output_of(client, "i") == [1, 2]
    assert seen == {"plain": ("i", 1, False), "async": ("i", 2, True)}


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_what_ends_an_activity_fails_it_alone(
    path: Path, kind: str, error: type[BaseException]
) -> None:
    """S-ACT-4: SystemExit, KeyboardInterrupt, cancellation end the activity as failed."""

    def plain(ctx: task.ActivityContext, _: Any) -> None:
        raise error("x")

    async def on_loop(ctx: task.ActivityContext, _: Any) -> None:
        raise error("x")

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.call_activity("plain" if kind == "plain" else "on_loop")
        except task.TaskFailedError as failed:
            return failed.details.error_type

    async with engine_of(path, main, echo, activities=[plain, on_loop]) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        assert (await output_of(client, "i")).endswith(error.__name__)
        await client.schedule_new_orchestration(echo, instance_id="j", input="alive")
        assert await output_of(client, "j") == "alive"


async def test_an_activity_that_is_not_registered_or_returns_no_data_fails(path: Path) -> None:
    """S-FAIL-7, S-FAIL-8, S-RTY-4: ActivityNotRegisteredError; like any activity; unserialisable results."""

    async def odd(ctx: task.ActivityContext, _: Any) -> Any:
        return object()

    def main(ctx: Ctx, name: str) -> Steps:
        try:
            yield ctx.call_activity(name)
        except task.TaskFailedError as failed:
            return failed.details.error_type

    async with engine_of(path, main, activities=[odd]) as engine:
        client = AsyncTaskHubClient(engine)
        for name, error in (
            ("missing", "durabletask.worker.ActivityNotRegisteredError"),
            ("odd", "builtins.TypeError"),
        ):
            await client.schedule_new_orchestration(main, instance_id=name, input=name)
            assert await output_of(client, name) == error


async def test_a_slow_plain_activity_delays_no_orchestrator_and_threads_are_bounded(path: Path) -> None:
    """S-ACT-1: a bounded thread pool of their own; a slow one does not delay orchestrators."""
    gate = threading.Event()
    running: list[int] = []
    peak = 0
    lock = threading.Lock()

    def slow(ctx: task.ActivityContext, n: int) -> int:
        nonlocal peak
        with lock:
            running.append(n)
            peak = max(peak, len(running))
        gate.wait(LONG_S)
        with lock:
            running.remove(n)
        return n

    def main(ctx: Ctx, count: int) -> Steps:
        tasks: list[task.Task[Any]] = [ctx.call_activity(slow, input=n) for n in range(count)]
        return (yield task.when_all(tasks))

    options = EngineOptions(max_sync_activities=3)
    async with engine_of(path, main, echo, activities=[slow], options=options) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i", input=10)
        await until(lambda: len(running) == 3)
        await client.schedule_new_orchestration(echo, instance_id="j", input=1)
        assert await output_of(client, "j") == 1
        gate.set()
        assert await output_of(client, "i") == list(range(10))
    assert peak == 3


async def test_async_activities_are_bounded_and_starts_wait_for_room(path: Path) -> None:
    """DESIGN 2: every queue has a named bound: activities at once, and instances begun while they wait."""
    gate = asyncio.Event()
    running = 0
    peak = 0

    async def slow(ctx: task.ActivityContext, _: Any) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await gate.wait()
        running -= 1

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity(slow)

    options = EngineOptions(max_async_activities=4, max_activity_backlog=10)
    async with engine_of(path, main, activities=[slow], options=options) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(40):
            await client.schedule_new_orchestration(main, instance_id=str(n))
        await until(lambda: running == 4)
        statistics = engine.statistics()
        assert statistics.waiting_starts >= 10
        assert statistics.activity_backlog <= 20
        gate.set()
        for n in range(40):
            await output_of(client, str(n))
    assert peak == 4


# Children


async def test_a_childs_own_error_reaches_the_parent(path: Path) -> None:
    """S-FAIL-4: a child's real error type reaches the parent."""

    def child(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta(0))
        raise LookupError("gone")

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_sub_orchestrator(child)

    async with engine_of(path, child, main) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        state = await ended(client, "i")
        assert state.failure_details is not None
        assert state.failure_details.error_type == "durabletask.task.TaskFailedError"
        assert state.failure_details.inner_failure is not None
        assert state.failure_details.inner_failure.error_type == "builtins.LookupError"
        inner = await ended(client, "i:0001")
        assert inner.failure_details is not None
        assert inner.failure_details.message == "gone"


async def test_a_child_id_that_still_runs_fails_that_task_and_an_ended_one_is_replaced(path: Path) -> None:
    """S-ID-4: a sub-orchestration may replace an ended instance; if it runs, the task fails."""

    def main(ctx: Ctx, _: Any) -> Steps:
        first = yield ctx.call_sub_orchestrator(echo, input=1, instance_id="shared")
        second = yield ctx.call_sub_orchestrator(echo, input=2, instance_id="shared")
        ctx.call_sub_orchestrator(one_event, instance_id="busy")
        try:
            yield ctx.call_sub_orchestrator(echo, instance_id="busy")
        except task.TaskFailedError as error:
            return [first, second, error.details.error_type]

    async with engine_of(path, main, echo, one_event) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        first, second, error = await output_of(client, "i")
        assert (first, second) == (1, 2)
        assert error.endswith("OrchestrationAlreadyExistsError")


async def test_a_wide_fan_out_is_not_quadratic(path: Path) -> None:
    """DESIGN 2: cost per child stays: ten times the children, far less than thirty times the turns."""

    def main(ctx: Ctx, count: int) -> Steps:
        tasks: list[task.Task[Any]] = [ctx.call_sub_orchestrator(echo, input=n) for n in range(count)]
        return sum((yield task.when_all(tasks)))

    async with engine_of(path, main, echo) as engine:
        client = AsyncTaskHubClient(engine)
        turns = []
        for count in (200, 2_000):
            before = engine.statistics().turns
            await client.schedule_new_orchestration(main, instance_id=str(count), input=count)
            assert await output_of(client, str(count)) == sum(range(count))
            turns.append(engine.statistics().turns - before)
    assert turns[1] < 30 * turns[0]


# Timers


async def test_timers_fire_in_order_and_no_earlier_than_due(path: Path, clock: ManualClock) -> None:
    """S-TMR-1: durable; fire no earlier than due, in order."""
    fired: list[tuple[int, int]] = []

    def main(ctx: Ctx, n: int) -> Steps:
        yield ctx.create_timer(timedelta(seconds=n))
        if not ctx.is_replaying:
            fired.append((n, clock.now))

    async with engine_of(path, main, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        for n in (3, 1, 2):
            await client.schedule_new_orchestration(main, instance_id=str(n), input=n)
        await until(lambda: engine.statistics().armed_timers == 3)
        clock.advance(0.999)
        engine._timers.fire_due()
        assert engine.statistics().armed_timers == 3
        clock.advance(0.001)
        await output_of(client, "1")
        assert engine.statistics().armed_timers == 2
        clock.advance(10)
        await output_of(client, "2")
        await output_of(client, "3")
    assert [n for n, _ in fired] == [1, 2, 3]
    assert fired[0][1] == START + SECOND


async def test_timers_and_delayed_starts_survive_a_crash(path: Path, clock: ManualClock) -> None:
    """S-LIFE-2, S-TMR-1: `start_at` delays the start durably; durable, beyond the window too."""

    def sleeps(ctx: Ctx, days: float) -> Steps:
        yield ctx.create_timer(timedelta(days=days))
        return ctx.current_utc_datetime.isoformat()

    engine = engine_of(path, sleeps, echo, clock=clock)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    begin = clock.now
    for name, days in (("soon", 0.0001), ("tomorrow", 1), ("next week", 7)):
        await client.schedule_new_orchestration(sleeps, instance_id=name, input=days)
        await client.wait_for_orchestration_start(name, timeout=LONG_S)
    for name, delay in (("delayed", timedelta(minutes=1)), ("far delayed", timedelta(days=2))):
        at = to_datetime(begin) + delay
        await client.schedule_new_orchestration(echo, instance_id=name, start_at=at, input=1)
    assert engine.statistics().armed_timers == 2
    abandon(engine)

    day = 86_400
    async with engine_of(path, sleeps, echo, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        assert engine.statistics().waiting_starts == 0
        clock.advance(59)
        await output_of(client, "soon")
        state = await client.get_orchestration_state("delayed")
        assert state is not None
        assert state.runtime_status == OrchestrationStatus.PENDING
        clock.advance(2)
        await output_of(client, "delayed")
        clock.now = begin + day * SECOND
        await output_of(client, "tomorrow")
    async with engine_of(path, sleeps, echo, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        clock.now = begin + 2 * day * SECOND
        await output_of(client, "far delayed")
        for _ in range(5):
            clock.advance(day)
            await asyncio.sleep(0.02)
        assert await output_of(client, "next week") >= to_datetime(begin + 7 * day * SECOND).isoformat()


async def test_a_cancelled_timer_leaves_nothing_on_disk(path: Path, clock: ManualClock) -> None:
    """S-EVT-5, S-TMR-2: a timer left behind keeps nothing running; cancellable."""

    def main(ctx: Ctx, cancel: bool) -> Steps:
        timer = ctx.create_timer(timedelta(minutes=1))
        yield task.when_any([timer, ctx.wait_for_external_event("e")])
        if cancel:
            timer.cancel()
            yield ctx.wait_for_external_event("end")
        return "ended"

    async with engine_of(path, main, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        for name, cancel in (("cancels", True), ("leaves", False)):
            await client.schedule_new_orchestration(main, instance_id=name, input=cancel)
            await client.raise_orchestration_event(name, "e")
        await output_of(client, "leaves")
        assert engine.statistics().armed_timers == 0
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM timers").fetchone() == (0,)
    connection.close()


async def test_the_clock_never_goes_back_for_an_orchestration(path: Path, clock: ManualClock) -> None:
    """S-ID-6: orchestration time does not follow a clock that is set back."""

    def main(ctx: Ctx, _: Any) -> Steps:
        times = [ctx.current_utc_datetime]
        for _n in range(2):
            yield ctx.wait_for_external_event("e")
            times.append(ctx.current_utc_datetime)
        return times == sorted(times)

    async with engine_of(path, main, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        clock.advance(-3600)
        await client.raise_orchestration_event("i", "e")
    clock.advance(-3600)
    async with engine_of(path, main, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        await client.raise_orchestration_event("i", "e")
        assert await output_of(client, "i") is True


async def test_a_wall_clock_set_back_makes_no_timer_late(path: Path, clock: ManualClock) -> None:
    """S-TMR-6: "in 5 s" is 5 s by the monotonic clock, for timers of before the change too."""
    monotonic = ManualClock()

    def sleeps(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(timedelta(seconds=5))

    steady = SteadyClock(wall=clock, monotonic=monotonic)
    async with engine_of(path, sleeps, clock=steady) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(sleeps, instance_id="before")
        await until(lambda: engine.statistics().armed_timers == 1)
        clock.advance(-3600)
        await client.schedule_new_orchestration(sleeps, instance_id="after")
        await until(lambda: engine.statistics().armed_timers == 2)
        for moved in (clock, monotonic):
            moved.advance(4.999)
        engine._timers.fire_due()
        assert engine.statistics().armed_timers == 2
        for moved in (clock, monotonic):
            moved.advance(0.001)
        for name in ("before", "after"):
            state = await ended(client, name)
            assert state.last_updated_at == to_datetime(START + 5 * SECOND)


def test_a_steady_clock_follows_the_wall_clock_forward_and_never_back() -> None:
    """Engine clock: the wall clock's time, except while that is behind itself."""
    wall, monotonic = ManualClock(), ManualClock()
    steady = SteadyClock(wall=wall, monotonic=monotonic)
    read = []
    for wall_s, monotonic_s in ((0, 0), (1, 1), (600, 1), (-600, 1), (1, 1), (700, 1), (1, 1)):
        wall.advance(wall_s)
        monotonic.advance(monotonic_s)
        read.append((steady() - START) / SECOND)
    assert read == [0, 1, 601, 602, 603, 702, 703]


# Suspension, termination, continue_as_new


async def test_suspend_and_resume_survive_a_restart(path: Path) -> None:
    """S-LIFE-3, S-LIFE-13: suspend buffers everything but resume and terminate; in order, durably."""

    def main(ctx: Ctx, _: Any) -> Steps:
        first = yield ctx.wait_for_external_event("e")
        second = yield ctx.wait_for_external_event("e")
        return [first, second]

    async with engine_of(path, main) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        await client.resume_orchestration("i")
        await client.suspend_orchestration("i", reason="lunch")
        await client.raise_orchestration_event("i", "e", data=1)
        state = await client.get_orchestration_state("i")
        assert state is not None
        assert state.runtime_status == OrchestrationStatus.SUSPENDED
        for unknown in (client.suspend_orchestration("nobody"), client.resume_orchestration("nobody")):
            with pytest.raises(OrchestrationNotFoundError, match="'nobody'"):
                await unknown
    async with engine_of(path, main) as engine:
        client = AsyncTaskHubClient(engine)
        await client.raise_orchestration_event("i", "e", data=2)
        state = await client.get_orchestration_state("i")
        assert state is not None
        assert state.runtime_status == OrchestrationStatus.SUSPENDED
        await client.resume_orchestration("i")
        assert await output_of(client, "i") == [1, 2]


@pytest.mark.parametrize("recursive", [True, False])
async def test_terminate_reaches_children_if_asked(path: Path, recursive: bool) -> None:
    """S-LIFE-5: output is kept as JSON; recursive reaches running children; unknown: no-op."""

    def middle(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_sub_orchestrator(one_event, instance_id="leaf"))

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_sub_orchestrator(middle, instance_id="middle"))

    async with engine_of(path, main, middle, one_event) as engine:
        client = AsyncTaskHubClient(engine)
        await client.terminate_orchestration("nobody")
        await client.schedule_new_orchestration(main, instance_id="top")
        await client.wait_for_orchestration_start("leaf", timeout=LONG_S)
        await client.terminate_orchestration("top", output={"by": "me"}, recursive=recursive)
        state = await ended(client, "top")
        assert (state.runtime_status, state.get_output()) == (OrchestrationStatus.TERMINATED, {"by": "me"})
        if recursive:
            assert (await ended(client, "leaf")).runtime_status == OrchestrationStatus.TERMINATED
            assert (await ended(client, "middle")).runtime_status == OrchestrationStatus.TERMINATED
        else:
            await client.raise_orchestration_event("leaf", "e", data="alive")
            assert await output_of(client, "middle") == "alive"
        await client.terminate_orchestration("top")


async def test_a_pending_instance_can_be_terminated(path: Path) -> None:
    """S-LIFE-5: terminate before the start: it never begins, its messages and timer are gone."""
    ran = []

    def main(ctx: Ctx, _: Any) -> None:
        ran.append(True)

    async with engine_of(path, main) as engine:
        client = AsyncTaskHubClient(engine)
        start_at = datetime.now(UTC) + timedelta(hours=1)
        await client.schedule_new_orchestration(main, instance_id="i", start_at=start_at)
        await client.raise_orchestration_event("i", "e")
        waiting = asyncio.create_task(client.wait_for_orchestration_start("i", timeout=LONG_S))
        await asyncio.sleep(0)
        await client.terminate_orchestration("i", output="no")
        assert (await ended(client, "i")).runtime_status == OrchestrationStatus.TERMINATED
        await waiting
        assert engine.statistics().armed_timers == 0
    connection = sqlite3.connect(path)
    for table in ("timers", "messages"):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    connection.close()
    assert ran == []


async def test_a_terminated_child_fails_its_parents_task(path: Path) -> None:
    """S-FAIL-13, S-TMR-5: a child is reported to its parent whenever it ends, terminated too."""

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.call_sub_orchestrator(one_event, instance_id="child")
        except task.TaskFailedError as error:
            return error.details.error_type

    async with engine_of(path, main, one_event) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await client.wait_for_orchestration_start("child", timeout=LONG_S)
        await client.terminate_orchestration("child")
        assert await output_of(client, "i") == "provisioning.engine.errors.ChildTerminatedError"


async def test_an_eternal_orchestration_keeps_its_history_short(path: Path) -> None:
    """S-CAN-3, S-CAN-7: history and task ids start over; status stays RUNNING to the outside."""
    seen = set()

    async def work(ctx: task.ActivityContext, n: int) -> int:
        seen.add(ctx.task_id)
        return n

    def main(ctx: Ctx, n: int) -> Steps:
        yield ctx.call_activity(work, input=n)
        if n < 50:
            ctx.continue_as_new(n + 1)
        return n

    async with engine_of(path, main, activities=[work]) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i", input=0)
        assert await output_of(client, "i") == 50
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM history").fetchone()[0] == 4
    connection.close()
    assert seen == {1}


async def test_an_event_is_sent_between_orchestrations(path: Path) -> None:
    """S-EVT-9: `send_event`: fire and forget; to one that does not exist it is nothing."""

    def main(ctx: Ctx, _: Any) -> None:
        ctx.send_event("nobody", "e")
        ctx.send_event("waiting", "E", data=[1])

    async with engine_of(path, main, one_event) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(one_event, instance_id="waiting")
        await client.schedule_new_orchestration(main, instance_id="i")
        assert await output_of(client, "waiting") == [1]


# Changed code


async def test_changed_code_fails_its_instances_and_no_others(path: Path) -> None:
    """S-FAIL-10: NonDeterminismError on replay; the instance's timers are gone with it."""

    def version_1(ctx: Ctx, _: Any) -> Steps:
        yield task.when_any([ctx.create_timer(timedelta(hours=1)), ctx.wait_for_external_event("e")])

    def version_2(ctx: Ctx, _: Any) -> Steps:
        yield ctx.call_activity("A")

    first = Engine(path)
    first.add_named_orchestrator("main", version_1)
    async with first:
        client = AsyncTaskHubClient(first)
        await client.schedule_new_orchestration("main", instance_id="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
    second = Engine(path)
    second.add_named_orchestrator("main", version_2)
    async with second:
        client = AsyncTaskHubClient(second)
        await client.raise_orchestration_event("i", "e")
        state = await ended(client, "i")
        assert state.runtime_status == OrchestrationStatus.FAILED
        assert state.failure_details is not None
        assert state.failure_details.error_type == "durabletask.task.NonDeterminismError"
        assert second.statistics().armed_timers == 0


# Life


async def test_registering_is_for_before_the_start(path: Path) -> None:
    """S-HUB-2: registering after start is RuntimeError, a duplicate name ValueError."""
    engine = engine_of(path, echo)
    with pytest.raises(ValueError, match="'echo'"):
        engine.add_orchestrator(echo)
    with pytest.raises(ValueError, match="non-empty"):
        engine.add_named_activity("", echo)
    async with engine:
        with pytest.raises(RuntimeError):
            engine.add_orchestrator(one_event)
        with pytest.raises(RuntimeError):
            engine.add_named_activity("x", echo)
        with pytest.raises(RuntimeError):
            await engine.start()


async def test_stop_and_start_again(path: Path) -> None:
    """S-HUB-1: context manager, second stop, restart work."""
    engine = engine_of(path, one_event)
    await engine.stop()
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(one_event, instance_id="i")
    await engine.stop()
    with pytest.raises(EngineStoppedError):
        await client.raise_orchestration_event("i", "e")
    async with engine:
        await client.raise_orchestration_event("i", "e", data=1)
        assert await output_of(client, "i") == 1


async def test_stop_with_calls_in_flight_answers_them_all(path: Path) -> None:
    """S-HUB-1: stop() while clients wait: each hears that it is on disk, or that it is not."""
    engine = engine_of(path, one_event)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    ids = [f"i{n}" for n in range(20)]
    for i in ids:
        await client.schedule_new_orchestration(one_event, instance_id=i)
    waiting = [asyncio.create_task(ended(client, i)) for i in ids]
    raising = [asyncio.create_task(client.raise_orchestration_event(i, "e", data=i)) for i in ids]
    creating = [
        asyncio.create_task(client.schedule_new_orchestration(one_event, instance_id=f"new-{i}")) for i in ids
    ]
    await asyncio.sleep(0)
    await engine.stop()
    async with asyncio.timeout(LONG_S):
        raised = await asyncio.gather(*raising, return_exceptions=True)
        created = await asyncio.gather(*creating, return_exceptions=True)
        await asyncio.gather(*waiting, return_exceptions=True)
    async with engine_of(path, one_event) as engine:
        client = AsyncTaskHubClient(engine)
        for i, result in zip(ids, raised, strict=True):
            assert result is None or isinstance(result, EngineStoppedError)
            if result is None:
                assert await output_of(client, i) == i
        for i, answer in zip(ids, created, strict=True):
            assert answer == f"new-{i}" or isinstance(answer, EngineStoppedError)
            if answer == f"new-{i}":
                assert await client.get_orchestration_state(f"new-{i}") is not None


async def test_stop_ends_running_activities_which_run_again_later(path: Path) -> None:
    """S-HUB-1, S-ACT-5: stop() returns when no user code runs; at least once."""
    ran: list[str] = []
    stopped: list[str] = []

    async def waits(ctx: task.ActivityContext, _: Any) -> str:
        ran.append("async")
        if ran.count("async") == 1:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.append("async")
        return "a"

    def works(ctx: task.ActivityContext, _: Any) -> str:
        ran.append("plain")
        if ran.count("plain") == 1:
            gate.wait(LONG_S)
            stopped.append("plain")
        return "b"

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield task.when_all([ctx.call_activity(waits), ctx.call_activity(works)]))

    gate = threading.Event()
    engine = engine_of(path, main, activities=[waits, works])
    await engine.start()
    await AsyncTaskHubClient(engine).schedule_new_orchestration(main, instance_id="i")
    await until(lambda: sorted(ran) == ["async", "plain"])
    stopping = asyncio.create_task(engine.stop())
    await until(lambda: stopped == ["async"])
    assert not stopping.done()
    gate.set()
    await stopping
    assert stopped == ["async", "plain"]
    async with engine_of(path, main, activities=[waits, works]) as engine:
        assert await output_of(AsyncTaskHubClient(engine), "i") == ["a", "b"]


async def test_effects_come_after_their_commit(path: Path) -> None:
    """DESIGN 2, Effects after commit: activities start and callers return only when the cause is on disk."""
    ran: list[str] = []

    async def work(ctx: task.ActivityContext, _: Any) -> None:
        ran.append("work")

    def main(ctx: Ctx, _: Any) -> Steps:
        yield ctx.wait_for_external_event("e")
        yield ctx.call_activity(work)

    store = GatedStore(path)
    engine = Engine(store)
    engine.add_orchestrator(main)
    engine.add_activity(work)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        store.gate.clear()
        raising = asyncio.create_task(client.raise_orchestration_event("i", "e"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not raising.done()
        assert ran == []
        store.gate.set()
        await raising
        await output_of(client, "i")
    assert ran == ["work"]


async def test_recovery_touches_only_what_has_something_to_do(path: Path) -> None:
    """DESIGN 2, Recovery: instances that only wait for an event are not loaded until one comes."""
    async with engine_of(path, one_event) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(20):
            await client.schedule_new_orchestration(one_event, instance_id=str(n))
            await client.wait_for_orchestration_start(str(n), timeout=LONG_S)
    async with engine_of(path, one_event) as engine:
        client = AsyncTaskHubClient(engine)
        await client.raise_orchestration_event("7", "e", data=7)
        assert await output_of(client, "7") == 7
        assert engine.statistics().replays == 1
        assert engine.statistics().live_instances == 0
