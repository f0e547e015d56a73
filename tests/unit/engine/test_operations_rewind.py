"""Rewind: a failed orchestration goes on from its last good state."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import history, task

from provisioning.engine import (
    AsyncTaskHubClient,
    OrchestrationNotFoundError,
    OrchestrationStatusError,
)
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.operating import (
    Bench,
    Status,
    chain,
    ends_as,
    fails,
    family,
    rows_of,
    status_of,
    together,
)
from tests.unit.engine.stores import GatedStore, ManualClock, abandon
from tests.unit.engine.waiting import LONG_S, output_of, until

MOMENT = timedelta(milliseconds=1)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.add(chain, together, family)
    return bench


async def test_only_what_failed_runs_again(path: Path, bench: Bench) -> None:
    """S-LIFE-7, S-LIFE-10: failed results leave the history, what succeeded stays; after rewind
    has returned, waiting for completion does not see the old end."""
    bench.broken = {"c"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(chain, instance_id="i", input=["a", "b", "c", "d"])
        assert "c is broken" in await fails(client, "i")
        bench.broken.clear()
        await client.rewind_orchestration("i", reason="repaired")
        assert await output_of(client, "i") == ["a done", "b done", "c done", "d done"]
    assert bench.ran == ["a", "b", "c", "c", "d"]


async def test_what_is_still_broken_fails_again_and_can_be_rewound_again(path: Path, bench: Bench) -> None:
    """S-LIFE-7: rewind, more than once and over restarts; the history tells of it."""
    bench.broken = {"b"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(chain, instance_id="i", input=["a", "b"])
        await fails(client, "i")
        for attempt in ("first", "second"):
            await client.rewind_orchestration("i", reason=attempt)
            assert "b is broken" in await fails(client, "i")
    bench.broken.clear()
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.rewind_orchestration("i")
        assert await output_of(client, "i") == ["a done", "b done"]
        events = await client.get_orchestration_history("i")
    assert bench.ran == ["a", "b", "b", "b", "b"]
    rewound = [e.reason for e in events if isinstance(e, history.ExecutionRewoundEvent)]
    assert rewound == ["first", "second", None]
    assert not [e for e in events if isinstance(e, history.TaskFailedEvent)]


async def test_rewind_is_for_failed_ones_only(path: Path, bench: Bench) -> None:
    """S-LIFE-7: rewind, only from FAILED."""
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        with pytest.raises(OrchestrationNotFoundError, match="'nobody'"):
            await client.rewind_orchestration("nobody")
        await client.schedule_new_orchestration("one_event", instance_id="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        with pytest.raises(OrchestrationStatusError, match="'i' is RUNNING: only one that has failed"):
            await client.rewind_orchestration("i")
        await client.raise_orchestration_event("i", "e", data=1)
        assert await output_of(client, "i") == 1
        with pytest.raises(OrchestrationStatusError, match="'i' is COMPLETED"):
            await client.rewind_orchestration("i")
        await client.schedule_new_orchestration("one_event", instance_id="t")
        await client.terminate_orchestration("t")
        await ends_as(client, "t", Status.TERMINATED)
        with pytest.raises(OrchestrationStatusError, match="'t' is TERMINATED"):
            await client.rewind_orchestration("t")


async def test_all_that_failed_together_runs_again(path: Path, bench: Bench) -> None:
    """S-LIFE-7: failed results are dropped, also those beside the one that was raised."""
    bench.broken = {"b", "d"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(together, instance_id="i", input=["a", "b", "c", "d"])
        await fails(client, "i")
        await until(lambda: len(bench.ran) == 4)
        bench.broken.clear()
        await client.rewind_orchestration("i")
        assert await output_of(client, "i") == ["a done", "b done", "c done", "d done"]
    assert sorted(bench.ran) == ["a", "b", "b", "c", "d", "d"]


async def test_an_activity_that_still_runs_is_not_begun_a_second_time(path: Path, bench: Bench) -> None:
    """S-LIFE-14: what the end of the execution left under way is waited for."""

    def main(ctx: Ctx, _: Any) -> Steps:
        slow: task.Task[Any] = ctx.call_activity("work", input="slow")
        quick = yield ctx.call_activity("work", input="quick")
        return [quick, (yield slow)]

    bench.add(main)
    bench.broken = {"quick"}
    gate = bench.stick("slow")
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await fails(client, "i")
        await bench.running("slow")
        for broken in ({"quick"}, set[str]()):  # the second rewind finds it adopted by the first
            bench.broken = broken
            await client.rewind_orchestration("i")
            if broken:
                await fails(client, "i")
        gate.set()
        assert await output_of(client, "i") == ["quick done", "slow done"]
        assert engine._agenda.adopted == {}
    assert sorted(bench.ran) == ["quick", "quick", "quick", "slow"]


async def test_an_activity_whose_late_result_is_not_on_disk_runs_again(path: Path, bench: Bench) -> None:
    """S-LIFE-14: a result that came while nobody waited is lost, the activity is not."""

    def main(ctx: Ctx, _: Any) -> Steps:
        slow: task.Task[Any] = ctx.call_activity("work", input="slow")
        quick = yield ctx.call_activity("work", input="quick")
        return [quick, (yield slow)]

    bench.add(main)
    bench.broken = {"quick"}
    gate = bench.stick("slow")
    store = GatedStore(path)
    async with bench.engine(store) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await fails(client, "i")
        await bench.running("slow")
        store.gate.clear()
        gate.set()
        await until(lambda: engine.statistics().activity_backlog == 0)
        bench.broken.clear()
        rewind = asyncio.create_task(client.rewind_orchestration("i"))
        await until(lambda: "i" in engine._commits.instances)
        store.gate.set()
        await rewind
        assert await output_of(client, "i") == ["quick done", "slow done"]
    assert bench.ran.count("slow") == 2


async def test_an_adopted_activity_runs_again_after_a_crash(path: Path, bench: Bench) -> None:
    """DESIGN 2, Recovery: activities that were scheduled and not completed run again, rewound or not."""

    def main(ctx: Ctx, _: Any) -> Steps:
        slow: task.Task[Any] = ctx.call_activity("work", input="slow")
        quick = yield ctx.call_activity("work", input="quick")
        return [quick, (yield slow)]

    bench.add(main)
    bench.broken = {"quick"}
    bench.stick("slow")
    engine = bench.engine(path)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    await client.schedule_new_orchestration(main, instance_id="i")
    await fails(client, "i")
    bench.broken.clear()
    await client.rewind_orchestration("i")
    abandon(engine)
    bench.stuck.clear()
    async with bench.engine(path) as engine:
        assert await output_of(AsyncTaskHubClient(engine), "i") == ["quick done", "slow done"]
    assert bench.ran.count("slow") == 2


async def test_a_late_result_of_the_turn_that_was_undone_reaches_nobody(path: Path, bench: Bench) -> None:
    """S-LIFE-7, as S-CAN-5: results of an earlier execution never reach the new one."""

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            yield ctx.call_activity("work", input="first")
        except task.TaskFailedError:
            ctx.call_activity("work", input="clean up")  # as task 2, which after the rewind is another
            raise
        return (yield ctx.call_activity("work", input="second"))

    bench.add(main)
    bench.broken = {"first"}
    cleaning, second = bench.stick("clean up"), bench.stick("second")
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await fails(client, "i")
        bench.broken.clear()
        await client.rewind_orchestration("i")
        await bench.running("clean up", "second")
        cleaning.set()
        await until(lambda: not rows_of(path, "detached_activities"))
        assert await status_of(client, "i") == Status.RUNNING
        second.set()
        assert await output_of(client, "i") == "second done"


async def test_a_failure_that_was_dealt_with_stays(path: Path, bench: Bench) -> None:
    """S-LIFE-14: what succeeded stays, the handling of an earlier failure too."""

    def main(ctx: Ctx, _: Any) -> Steps:
        try:
            got = yield ctx.call_activity("work", input="best")
        except task.TaskFailedError:
            got = yield ctx.call_activity("work", input="second best")
        return [got, (yield ctx.call_activity("work", input="rest"))]

    bench.add(main)
    bench.broken = {"best", "rest"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await fails(client, "i")
        bench.broken.clear()
        await client.rewind_orchestration("i")
        assert await output_of(client, "i") == ["second best done", "rest done"]
    assert bench.ran == ["best", "second best", "rest", "rest"]


async def test_a_failure_that_came_early_and_was_met_late_runs_again(path: Path, bench: Bench) -> None:
    """S-LIFE-7: failed results are dropped, also those that came while the code was elsewhere."""

    def main(ctx: Ctx, _: Any) -> Steps:
        early: task.Task[Any] = ctx.call_activity("work", input="early")
        steps = []
        for _n in range(2):
            yield ctx.wait_for_external_event("go")
            steps.append((yield ctx.call_activity("work", input="step")))
        return [*steps, (yield early)]

    bench.add(main)
    bench.broken = {"early"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await bench.running("early")
        for _ in range(2):
            await client.raise_orchestration_event("i", "go")
        await fails(client, "i")
        bench.broken.clear()
        await client.rewind_orchestration("i")
        assert await output_of(client, "i") == ["step done", "step done", "early done"]
    assert bench.ran == ["early", "step", "step", "early"]


async def test_retries_begin_anew(path: Path, bench: Bench) -> None:
    """S-LIFE-14: what is rewound has all of its attempts again; those that a retry saved
    are not run again."""
    policy = task.RetryPolicy(first_retry_interval=MOMENT, max_number_of_attempts=3)

    def main(ctx: Ctx, _: Any) -> Steps:
        a = yield ctx.call_activity("work", input="a", retry_policy=policy)
        b = yield ctx.call_activity("work", input="b", retry_policy=policy)
        return [a, b, (yield ctx.call_activity("work", input="c"))]

    bench.add(main)
    bench.broken = {"a", "b"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await until(lambda: len(bench.ran) == 2)
        bench.broken.discard("a")
        await fails(client, "i")
        assert bench.ran[-3:] == ["b", "b", "b"]
        del bench.ran[:]
        await client.rewind_orchestration("i")
        await until(lambda: len(bench.ran) == 2)
        bench.broken.clear()
        assert await output_of(client, "i") == ["a done", "b done", "c done"]
    assert bench.ran[-1] == "c"
    assert set(bench.ran[:-1]) == {"b"}
    assert len(bench.ran) <= 4


async def test_retries_begin_anew_after_a_replay_too(path: Path, bench: Bench) -> None:
    """S-LIFE-14: the same decisions in replay."""
    policy = task.RetryPolicy(first_retry_interval=MOMENT, max_number_of_attempts=2)

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_activity("work", input="a", retry_policy=policy))

    bench.add(main)
    bench.broken = {"a"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await fails(client, "i")
        gate = bench.stick("a")
        await client.rewind_orchestration("i")
        await until(lambda: len(bench.ran) == 3)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        gate.set()
        await fails(client, "i")
    assert len(bench.ran) == 5  # twice, then once cut off, then twice


async def test_code_that_was_repaired_goes_on(path: Path, bench: Bench) -> None:
    """S-LIFE-7: a failure of the code itself: its last turn is taken again, with what it took."""

    def main(ctx: Ctx, _: Any) -> Steps:
        first = yield ctx.wait_for_external_event("e")
        done = yield ctx.call_activity("work", input=first)
        raise KeyError(done)

    def repaired(ctx: Ctx, _: Any) -> Steps:
        first = yield ctx.wait_for_external_event("e")
        done = yield ctx.call_activity("work", input=first)
        return [done, (yield ctx.wait_for_external_event("e"))]

    bench.orchestrators["main"] = main
    gate = bench.stick("a")
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration("main", instance_id="i")
        await client.raise_orchestration_event("i", "e", data="a")
        await client.raise_orchestration_event("i", "e", data="b", idempotency_key="k")
        gate.set()
        assert "a done" in await fails(client, "i")
    bench.orchestrators["main"] = repaired
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.rewind_orchestration("i")
        assert await output_of(client, "i") == ["a done", "b"]
    assert bench.ran == ["a"]


@pytest.mark.parametrize("known", [False, True], ids=["unregistered", "raised at once"])
async def test_one_that_failed_in_its_first_turn_begins_again(path: Path, bench: Bench, known: bool) -> None:
    """S-LIFE-7, S-FAIL-6: an orchestrator that was not registered, or failed before it asked."""

    def refuse(ctx: Ctx, value: Any) -> Any:
        raise ValueError("not yet")

    if known:
        bench.orchestrators["late"] = refuse
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration("late", instance_id="i", input=[1], version="2")
        await fails(client, "i")
        await client.rewind_orchestration("i")
        await fails(client, "i")

    def late(ctx: Ctx, value: Any) -> Steps:
        return [*value, ctx.version, (yield ctx.call_activity("work", input="a"))]

    bench.add(late)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.rewind_orchestration("i", reason="it is there now")
        assert await output_of(client, "i") == [1, "2", "a done"]
        started, rewound, *_ = await client.get_orchestration_history("i")
        assert isinstance(started, history.ExecutionStartedEvent)
        assert isinstance(rewound, history.ExecutionRewoundEvent)


async def test_code_that_does_not_fit_its_history_is_left_as_it_is(path: Path, bench: Bench) -> None:
    """S-LIFE-14, S-FAIL-10: nothing is lost by a rewind with the wrong code."""

    def wrong(ctx: Ctx, _: Any) -> Steps:
        yield ctx.create_timer(MOMENT)
        return "wrong"

    bench.broken = {"b"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(chain, instance_id="i", input=["a", "b"])
        await fails(client, "i")
        before = await client.get_orchestration_history("i")
    bench.orchestrators["chain"] = wrong
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        with pytest.raises(
            OrchestrationStatusError, match=r"does not fit its history.*call_activity\('work'\)"
        ):
            await client.rewind_orchestration("i")
        assert await client.get_orchestration_history("i") == before
    bench.orchestrators["chain"] = chain
    bench.broken.clear()
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.rewind_orchestration("i")
        assert await output_of(client, "i") == ["a done", "b done"]


async def test_changed_code_is_put_back(path: Path, bench: Bench) -> None:
    """S-LIFE-7, S-FAIL-10: what failed as non-deterministic goes on once its code is what it was."""

    def wrong(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.wait_for_external_event("other"))

    def main(ctx: Ctx, _: Any) -> Steps:
        done = yield ctx.call_activity("work", input="a")
        return [done, (yield ctx.wait_for_external_event("e"))]

    for step, orchestrator in enumerate((main, wrong, main)):
        bench.orchestrators["main"] = orchestrator
        async with bench.engine(path) as engine:
            client = AsyncTaskHubClient(engine)
            if step == 0:
                await client.schedule_new_orchestration("main", instance_id="i")
                await until(lambda: rows_of(path, "history") == 3)  # started, scheduled, completed
            elif step == 1:
                await client.raise_orchestration_event("i", "e", data="b")
                assert "previous execution" in await fails(client, "i")
            else:
                await client.rewind_orchestration("i")
                assert await output_of(client, "i") == ["a done", "b"]
    assert bench.ran == ["a"]


async def test_what_was_asked_for_before_the_code_was_changed_is_not_asked_again(
    path: Path, bench: Bench
) -> None:
    """S-LIFE-14, S-FAIL-10: the turn that found the code changed has asked for nothing."""

    def wrong(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.wait_for_external_event("other"))

    gate = bench.stick("a")
    for step, orchestrator in enumerate((chain, wrong, chain)):
        bench.orchestrators["chain"] = orchestrator
        engine = bench.engine(path)
        await engine.start()
        client = AsyncTaskHubClient(engine)
        del bench.ran[:]
        if step == 0:
            await client.schedule_new_orchestration("chain", instance_id="i", input=["a", "b"])
        await bench.running("a")
        if step == 1:
            await client.raise_orchestration_event("i", "other")
            await fails(client, "i")
        elif step == 2:
            await client.rewind_orchestration("i")
            gate.set()
            assert await output_of(client, "i") == ["a done", "b done"]
        abandon(engine)
    assert bench.ran == ["a", "b"]


# Timers


async def test_timers_that_were_running_run_on(path: Path, bench: Bench, clock: ManualClock) -> None:
    """S-LIFE-14: due when they were due before, later lives included."""

    def main(ctx: Ctx, _: Any) -> Steps:
        timer = ctx.create_timer(timedelta(seconds=100))
        done = yield ctx.call_activity("work", input="a")
        yield timer
        return [done, ctx.current_utc_datetime.isoformat()]

    bench.add(main)
    bench.broken = {"a"}
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await fails(client, "i")
        assert rows_of(path, "timers") == 0
        clock.advance(40)
        bench.broken.clear()
        await client.rewind_orchestration("i")
        assert rows_of(path, "timers") == 1
        clock.advance(59)
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        await until(lambda: len(engine._timers) == 1)
        assert await status_of(client, "i") == Status.RUNNING
        clock.advance(1)
        assert await output_of(client, "i") == ["a done", "2023-11-14T22:15:00"]


def collects(ctx: Ctx, _: Any) -> Steps:
    ran = yield ctx.call_activity("work", input="a")
    return [ran, (yield ctx.wait_for_external_event("e"))]


def collects_otherwise(ctx: Ctx, _: Any) -> Steps:
    yield ctx.create_timer(MOMENT)
    return [(yield ctx.wait_for_external_event("e"))]


async def test_what_came_while_the_code_did_not_fit_is_there_after_the_rewind(
    path: Path, bench: Bench
) -> None:
    """S-LIFE-14, S-EVT-10: an event that was accepted is not lost to changed code, nor is a result."""
    bench.add(collects)
    bench.stick("a")
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        for instance_id in ("event", "result"):
            await client.schedule_new_orchestration("collects", instance_id=instance_id)
        await until(lambda: bench.ran == ["a", "a"])

    bench.orchestrators["collects"] = collects_otherwise
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.raise_orchestration_event("event", "e", data=1)
        assert "NonDeterminismError" in str(await client.get_orchestration_state("event"))
        assert "previous execution called" in await fails(client, "event")
        bench.stuck["a"].set()
        assert "previous execution called" in await fails(client, "result")
        await until(lambda: engine.statistics().activity_backlog == 0)
    ran = len(bench.ran)

    bench.orchestrators["collects"] = collects
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        for instance_id in ("event", "result"):
            await client.rewind_orchestration(instance_id)
        await client.raise_orchestration_event("result", "e", data=2)
        assert await output_of(client, "result") == ["a done", 2]
        assert await output_of(client, "event") == ["a done", 1]
        # That of "result" is in its history; that of "event" came when it had failed, and ran once more.
        assert len(bench.ran) == ran + 1
