"""Rewind: a failed orchestration goes on from its last good state."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import history, task

from provisioning.engine import (
    AsyncTaskHubClient,
    EngineOptions,
    EngineStoppedError,
    OrchestrationIdReusePolicy,
    OrchestrationNotFoundError,
    OrchestrationStatusError,
)
from provisioning.engine import rewinds as rewinds_module
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.operating import Bench, Status, ends_as, fails, status_of
from tests.unit.engine.stores import DyingStore, GatedStore, ManualClock, abandon
from tests.unit.engine.waiting import LONG_S, output_of, until

MOMENT = timedelta(milliseconds=1)


def chain(ctx: Ctx, labels: list[str]) -> Steps:
    """One activity after another."""
    done = []
    for label in labels:
        done.append((yield ctx.call_activity("work", input=label)))  # noqa: PERF401 -- yields
    return done


def together(ctx: Ctx, labels: list[str]) -> Steps:
    """All activities at once."""
    return (yield task.when_all([ctx.call_activity("work", input=label) for label in labels]))


def family(ctx: Ctx, depth: int) -> Steps:
    """Two children each down to ``depth`` 0, where work is done under the instance's id."""
    if depth == 0:
        return (yield ctx.call_activity("work", input=ctx.instance_id))
    ids = [f"{ctx.instance_id}.{n}" for n in range(2)]
    return (
        yield task.when_all(
            [ctx.call_sub_orchestrator(family, input=depth - 1, instance_id=child) for child in ids]
        )
    )


def leaves(prefix: str, depth: int) -> list[str]:
    """Ids of the leaves of a family."""
    if depth == 0:
        return [prefix]
    return [leaf for n in range(2) for leaf in leaves(f"{prefix}.{n}", depth - 1)]


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
        await until(lambda: not _rows(path, "detached_activities"))
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
                await until(lambda: _rows(path, "history") == 3)  # started, scheduled, completed
            elif step == 1:
                await client.raise_orchestration_event("i", "e", data="lost with its turn")
                assert "previous execution" in await fails(client, "i")
            else:
                await client.rewind_orchestration("i")
                await client.raise_orchestration_event("i", "e", data="b")
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
        assert _rows(path, "timers") == 0
        clock.advance(40)
        bench.broken.clear()
        await client.rewind_orchestration("i")
        assert _rows(path, "timers") == 1
        clock.advance(59)
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        await until(lambda: len(engine._timers) == 1)
        assert await status_of(client, "i") == Status.RUNNING
        clock.advance(1)
        assert await output_of(client, "i") == ["a done", "2023-11-14T22:15:00"]


# Sub-orchestrations


@pytest.mark.parametrize("rows_at_once", [1, 5_000], ids=["many transactions", "one"])
async def test_a_tree_is_rewound_with_its_root(
    path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    """S-LIFE-7: failed children are rewound, recursively; what succeeded stays."""
    monkeypatch.setattr(rewinds_module, "_ROWS_AT_ONCE", rows_at_once)
    bench.broken = {"r.0.1.1", "r.1.0.0", "r.1.0.1"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(family, instance_id="r", input=3)
        await fails(client, "r")
        await until(lambda: len(bench.ran) == 8)
        bench.broken.discard("r.0.1.1")
        await client.rewind_orchestration("r")
        assert "r.1.0" in await fails(client, "r")
        bench.broken.clear()
        await client.rewind_orchestration("r")
        output = await output_of(client, "r")
        assert [await status_of(client, leaf) for leaf in leaves("r", 3)] == [Status.COMPLETED] * 8
    assert output == [[[f"r.{a}.{b}.{c} done" for c in range(2)] for b in range(2)] for a in range(2)]
    assert bench.ran.count("r.0.1.1") == 2
    assert all(bench.ran.count(leaf) == 1 for leaf in ("r.0.0.0", "r.0.0.1", "r.0.1.0", "r.1.1.0", "r.1.1.1"))


async def test_children_are_rewound_recreated_waited_for_or_heard(path: Path, bench: Bench) -> None:
    """S-LIFE-7: failed children are rewound or recreated; one that runs on is waited for, and one
    that has ended meanwhile is heard."""

    def child(ctx: Ctx, value: Any) -> Steps:
        done = yield ctx.call_activity("work", input=value)
        return [done, ctx.parent_instance_id]

    def main(ctx: Ctx, _: Any) -> Steps:
        ids = ["failed", "purged", "terminated", "running", "ended", "rewound"]
        children: list[task.Task[Any]] = [
            ctx.call_sub_orchestrator(child, input=i, instance_id=i) for i in ids
        ]
        yield ctx.wait_for_external_event("go")
        yield children[0]
        return (yield task.when_all(children[1:]))

    bench.add(child, main)
    bench.broken = {"failed", "purged", "rewound"}
    gates = {label: bench.stick(label) for label in ("terminated", "running", "ended")}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="p")
        await bench.running(*gates)
        await client.terminate_orchestration("terminated")
        for ended_id in ("failed", "purged", "rewound", "terminated"):
            await client.wait_for_orchestration_completion(ended_id, timeout=LONG_S)
        await client.raise_orchestration_event("p", "go")
        await fails(client, "p")
        gates["ended"].set()
        await ends_as(client, "ended", Status.COMPLETED)
        assert (await client.purge_orchestration("purged")).deleted_instance_count == 1
        bench.broken.clear()
        await client.rewind_orchestration("rewound")
        await ends_as(client, "rewound", Status.COMPLETED)
        await client.rewind_orchestration("p")
        gates["terminated"].set()
        gates["running"].set()
        expected = [[f"{i} done", "p"] for i in ("purged", "terminated", "running", "ended", "rewound")]
        assert await output_of(client, "p") == expected
    assert {i: bench.ran.count(i) for i in bench.ran} == {
        "failed": 2,
        "purged": 2,
        "terminated": 2,
        "running": 1,
        "ended": 1,
        "rewound": 2,
    }


async def test_a_child_id_that_is_anothers_by_now_is_not_touched(path: Path, bench: Bench) -> None:
    """S-ID-4, S-LIFE-7: one of that id that still runs fails the child task; an ended one gives way."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_sub_orchestrator("chain", input=["a"], instance_id="c"))

    bench.add(main)
    bench.broken = {"a"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="p")
        await fails(client, "p")
        await client.purge_orchestration("c")
        await client.schedule_new_orchestration("one_event", instance_id="c")
        bench.broken.clear()
        await client.rewind_orchestration("p")
        assert "'c' already exists" in await fails(client, "p")
        assert await status_of(client, "c") in (Status.PENDING, Status.RUNNING)
        await client.raise_orchestration_event("c", "e")
        await ends_as(client, "c", Status.COMPLETED)
        bench.broken = {"a"}
        await client.rewind_orchestration("p")
        assert "a is broken" in await fails(client, "p")
        await client.purge_orchestration("c")
        await client.schedule_new_orchestration("chain", instance_id="c", input=["a", "b"])
        await fails(client, "c")
        bench.broken.clear()
        await client.rewind_orchestration("p")
        assert await output_of(client, "p") == ["a done"]


async def test_a_child_rewound_by_itself_tells_nobody(path: Path, bench: Bench) -> None:
    """S-LIFE-7: the parent has ended and stays so."""
    bench.broken = {"r.0"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(family, instance_id="r", input=1)
        await fails(client, "r")
        bench.broken.clear()
        await client.rewind_orchestration("r.0")
        assert await output_of(client, "r.0") == "r.0 done"
        assert await status_of(client, "r") == Status.FAILED


async def test_rewound_at_once_by_two_is_rewound_once(path: Path, bench: Bench) -> None:
    """S-LIFE-7: rewind, only from FAILED: the second finds it running."""
    bench.broken = {"b"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(chain, instance_id="i", input=["a", "b"])
        await fails(client, "i")
        bench.broken.clear()
        bench.stick("b")
        both = await asyncio.gather(
            *(client.rewind_orchestration("i") for _ in range(2)), return_exceptions=True
        )
        assert sorted(str(type(one).__name__) for one in both) == ["NoneType", "OrchestrationStatusError"]
        bench.stuck["b"].set()
        assert await output_of(client, "i") == ["a done", "b done"]
    assert bench.ran == ["a", "b", "b"]


async def test_the_end_of_an_execution_is_waited_for_where_it_is_not_on_disk(
    path: Path, bench: Bench
) -> None:
    """DESIGN 2, Effects after commit: a rewind reads a history that is whole."""
    bench.broken = {"a"}
    gate = bench.stick("a")
    store = GatedStore(path)
    async with bench.engine(store) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(chain, instance_id="i", input=["a"])
        await bench.running("a")
        store.gate.clear()
        gate.set()
        await until(lambda: engine._commits.instances["i"].status.name == "FAILED")
        bench.broken.clear()
        rewind = asyncio.create_task(client.rewind_orchestration("i"))
        await asyncio.sleep(0)
        store.gate.set()
        await rewind
        assert await output_of(client, "i") == ["a done"]


async def test_a_root_that_was_replaced_meanwhile_is_not_rewound(
    path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-LIFE-7: rewind, only from FAILED, also where it takes several transactions."""
    monkeypatch.setattr(rewinds_module, "_ROWS_AT_ONCE", 1)
    bench.broken = {"r.0", "r.1"}
    store = GatedStore(path)
    async with bench.engine(store) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(family, instance_id="r", input=1)
        await fails(client, "r")
        await fails(client, "r.0")
        await fails(client, "r.1")
        bench.broken.clear()
        store.gate.clear()
        rewind = asyncio.create_task(client.rewind_orchestration("r"))
        await until(lambda: {"r.0", "r.1"} & set(engine._commits.instances))
        assert "r" not in engine._commits.instances
        policy = OrchestrationIdReusePolicy(replaceableStatus=[Status.FAILED])
        creation = asyncio.create_task(
            client.schedule_new_orchestration("one_event", instance_id="r", reuse_id_policy=policy)
        )
        await until(lambda: "r" in engine._commits.instances)
        store.gate.set()
        await creation
        with pytest.raises(OrchestrationStatusError, match=r"'r' is (PENDING|RUNNING)"):
            await rewind
        await client.raise_orchestration_event("r", "e", data="of the new one")
        assert await output_of(client, "r") == "of the new one"


# Crashes


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("rows_at_once", [1, 5_000], ids=["many transactions", "one"])
async def test_a_crash_at_any_commit_of_a_rewind_leaves_what_goes_on_or_can_be_rewound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int, after: bool
) -> None:
    """DESIGN 2, Recovery; S-LIFE-7: what succeeded stays, whatever happens on the way.

    The run dies after rewinding commit 1, 2, 3, … until one ends before its time to die; the next life
    rewinds again where the root has failed still.
    """
    monkeypatch.setattr(rewinds_module, "_ROWS_AT_ONCE", rows_at_once)
    options = EngineOptions(max_commit_rows=1, max_turn_messages=1, max_live_instances=2)
    dies_at = 0
    died = True
    while died:
        dies_at += 1
        bench = Bench()
        bench.add(family)
        bench.broken = {"r.0.0", "r.1.1"}
        path = tmp_path / f"{dies_at}.db"
        async with bench.engine(path) as engine:
            client = AsyncTaskHubClient(engine)
            await client.schedule_new_orchestration(family, instance_id="r", input=2)
            await fails(client, "r")
            for child_id in ("r.0", "r.1"):
                await fails(client, child_id)
        bench.broken.clear()
        store = DyingStore(path, dies_at=dies_at, after=after)
        engine = bench.engine(store, options)
        await engine.start()
        client = AsyncTaskHubClient(engine)
        with contextlib.suppress(EngineStoppedError):
            await client.rewind_orchestration("r")
            await client.wait_for_orchestration_completion("r", timeout=LONG_S)
        died = store.dead
        abandon(engine)
        done = {result.removesuffix(" done") for result in store.completed}
        del bench.ran[:]
        async with bench.engine(path, options) as engine:
            client = AsyncTaskHubClient(engine)
            if await status_of(client, "r") == Status.FAILED:
                await client.rewind_orchestration("r")
            assert await output_of(client, "r") == [
                ["r.0.0 done", "r.0.1 done"],
                ["r.1.0 done", "r.1.1 done"],
            ], f"died at commit {dies_at}"
        assert set(bench.ran) <= {"r.0.0", "r.1.1"} - done, f"died at commit {dies_at}"
        assert [_rows(path, table) for table in ("messages", "timers", "detached_activities")] == [0, 0, 0]
    assert dies_at > 3


def _rows(path: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
