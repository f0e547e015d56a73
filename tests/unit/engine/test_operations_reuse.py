"""Ids used again: reuse policies of new instances, and restart."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task

from provisioning.engine import (
    AsyncTaskHubClient,
    EngineOptions,
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationIdReusePolicy,
    OrchestrationNotFoundError,
    OrchestrationStatusError,
)
from provisioning.engine.records import RECURSIVE, Kind, Message, to_datetime
from tests.unit.engine.driving import SECOND, START, Ctx, Steps
from tests.unit.engine.operating import Bench, Status, ends_as, fails, status_of
from tests.unit.engine.stores import DyingStore, ManualClock, abandon
from tests.unit.engine.waiting import LONG_S, ended, output_of, until

ANY = OrchestrationIdReusePolicy(replaceableStatus=list(Status))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def works(ctx: Ctx, label: str) -> Steps:
    """One activity."""
    return (yield ctx.call_activity("work", input=label))


def parent_of_c(ctx: Ctx, _: Any) -> Steps:
    """Waits for its child."""
    return (yield ctx.call_sub_orchestrator("one_event", instance_id="c"))


async def test_a_policy_names_the_statuses_that_may_be_replaced(path: Path, bench: Bench) -> None:
    """S-ID-3: an existing id is an error, also when the old one has ended; a reuse policy lists
    the statuses that may be replaced."""
    ended_ones = OrchestrationIdReusePolicy(replaceableStatus=[Status.COMPLETED, Status.FAILED])
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(
            "one_event", instance_id="i", input=1, tags={"a": "b"}, reuse_id_policy=ended_ones
        )
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        with pytest.raises(OrchestrationAlreadyExistsError, match="'i'"):
            await client.schedule_new_orchestration("echo", instance_id="i", reuse_id_policy=ended_ones)
        await client.raise_orchestration_event("i", "e", data="first")
        first = await ended(client, "i")
        for refusing in (None, OrchestrationIdReusePolicy(replaceableStatus=[])):
            with pytest.raises(OrchestrationAlreadyExistsError, match="'i'"):
                await client.schedule_new_orchestration("echo", instance_id="i", reuse_id_policy=refusing)
        assert await ended(client, "i") == first
        await client.schedule_new_orchestration(
            "echo", instance_id="i", input="second", reuse_id_policy=ended_ones
        )
        second = await ended(client, "i")
        assert (second.name, second.get_input(), second.get_output()) == ("echo", "second", "second")
        assert second.created_at > first.created_at
        assert len(await client.get_all_orchestration_states()) == 1


async def test_the_sdks_own_policy_is_understood(path: Path, bench: Bench) -> None:
    """S-ID-3: its statuses are numbers; what is no status is refused."""

    class Theirs:
        def __init__(self, *statuses: int) -> None:
            self.replaceableStatus = statuses

    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        for value in (1, 2):
            await client.schedule_new_orchestration(
                "echo", instance_id="i", input=value, reuse_id_policy=Theirs(1, 3)
            )
            assert await output_of(client, "i") == value
        with pytest.raises(ValueError, match="99"):
            await client.schedule_new_orchestration("echo", instance_id="i", reuse_id_policy=Theirs(99))


async def test_one_that_runs_is_terminated_and_replaced(path: Path, bench: Bench, clock: ManualClock) -> None:
    """S-ID-3: with all that it has under way: events, timers, activities, children."""

    def main(ctx: Ctx, _: Any) -> Steps:
        yield task.when_any(
            [
                ctx.wait_for_external_event("e"),
                ctx.create_timer(timedelta(hours=1)),
                ctx.call_activity("work", input="old"),
                ctx.call_sub_orchestrator("one_event", instance_id="child"),
            ]
        )
        return "old"

    def heir(ctx: Ctx, _: Any) -> Steps:
        child: task.Task[Any] = ctx.call_sub_orchestrator("echo", input="fresh", instance_id="child")
        new: task.Task[Any] = ctx.call_activity("work", input="new")
        timer = ctx.create_timer(timedelta(seconds=1))
        return (yield task.when_all([new, child, timer, ctx.wait_for_external_event("e")]))

    bench.add(main, heir)
    old = bench.stick("old")
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i")
        await client.wait_for_orchestration_start("child", timeout=LONG_S)
        await bench.running("old")
        await client.suspend_orchestration("i")
        await client.raise_orchestration_event("i", "e", data="for the old one")
        waiting = asyncio.create_task(ended(client, "i"))
        await client.schedule_new_orchestration(heir, instance_id="i", reuse_id_policy=ANY)
        await bench.running("new")
        old.set()  # its result has the task id of "new", and an earlier execution
        await client.raise_orchestration_event("i", "e", data="for the new one")
        clock.advance(1)
        assert (await waiting).get_output() == ["new done", "fresh", None, "for the new one"]
        assert engine.statistics().armed_timers == 0


async def test_one_that_is_not_begun_is_replaced_too(path: Path, bench: Bench, clock: ManualClock) -> None:
    """S-LIFE-2, S-ID-3: start_at delays the start durably: that of the new one, whatever the old one's."""
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        soon, late = (to_datetime(START + s * SECOND) for s in (10, 20))
        await client.schedule_new_orchestration("echo", instance_id="i", input="old", start_at=soon)
        await client.raise_orchestration_event("i", "e", data="for the old one")
        await client.schedule_new_orchestration(
            "echo", instance_id="i", input="new", start_at=late, reuse_id_policy=ANY
        )
        clock.advance(15)
        await client.schedule_new_orchestration("echo", instance_id="other")
        await ended(client, "other")
        assert await status_of(client, "i") == Status.PENDING
        clock.advance(5)
        assert await output_of(client, "i") == "new"


async def test_a_start_that_was_due_does_not_begin_a_later_one(path: Path, bench: Bench) -> None:
    """S-LIFE-2, S-ID-3: start_at, where the old one stood in the queue of those that may begin."""
    bench.add(works)
    gate = bench.stick("busy")
    options = EngineOptions(max_activity_backlog=1)
    async with bench.engine(path, options) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(works, instance_id="busy", input="busy")
        await bench.running("busy")
        in_a_year = to_datetime(engine._clock.now) + timedelta(days=365)
        for instance_id in ("replaced", "terminated", "purged"):
            await client.schedule_new_orchestration("echo", instance_id=instance_id)
        for instance_id in ("terminated", "purged"):
            await client.terminate_orchestration(instance_id)
            await ended(client, instance_id)
        assert (await client.purge_orchestration("purged")).deleted_instance_count == 1
        for instance_id in ("replaced", "terminated", "purged"):
            await client.schedule_new_orchestration(
                "echo", instance_id=instance_id, start_at=in_a_year, reuse_id_policy=ANY
            )
        await client.schedule_new_orchestration("echo", instance_id="last")
        gate.set()
        await ended(client, "last")
        for instance_id in ("replaced", "terminated", "purged"):
            assert await status_of(client, instance_id) == Status.PENDING


async def test_a_child_that_is_replaced_fails_its_parents_task(path: Path, bench: Bench) -> None:
    """S-FAIL-13, S-ID-3: whoever waits for the one that gave way hears of its end."""

    bench.add(parent_of_c)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(parent_of_c, instance_id="p")
        await client.wait_for_orchestration_start("c", timeout=LONG_S)
        await client.schedule_new_orchestration("echo", instance_id="c", input=1, reuse_id_policy=ANY)
        assert "'c' was terminated" in await fails(client, "p")
        assert await output_of(client, "c") == 1


async def test_the_end_of_a_parent_does_not_reach_what_has_its_childs_id(path: Path, bench: Bench) -> None:
    """S-LIFE-5, S-ID-3: the child gives way while the recursive termination waits for its turn."""

    bench.add(parent_of_c)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(parent_of_c, instance_id="p")
        await client.wait_for_orchestration_start("c", timeout=LONG_S)
        ending = engine.send("p", Message(Kind.TERMINATED, ref=RECURSIVE))
        await engine.lifecycle.create(
            instance_id="c", name="echo", input="1", replaceable=[Status.RUNNING.value]
        )
        await ending
        await ends_as(client, "p", Status.TERMINATED)
        assert await output_of(client, "c") == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_replacement_is_whole_or_not_at_all(tmp_path: Path, after: bool) -> None:
    """DESIGN 2, Group commit: the end of the one and the creation of the other are one transaction."""
    dies_at = 0
    died = True
    while died:
        dies_at += 1
        bench = Bench()
        bench.add(works)
        path = tmp_path / f"{dies_at}.db"
        bench.stick("old")
        engine = bench.engine(path)
        await engine.start()
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(works, instance_id="i", input="old")
        await bench.running("old")
        abandon(engine)
        store = DyingStore(path, dies_at=dies_at, after=after)
        engine = bench.engine(store)
        await engine.start()
        client = AsyncTaskHubClient(engine)
        replaced = False
        with contextlib.suppress(EngineStoppedError):
            await client.schedule_new_orchestration(works, instance_id="i", input="new", reuse_id_policy=ANY)
            replaced = True
            await client.wait_for_orchestration_completion("i", timeout=LONG_S)
        died = store.dead
        abandon(engine)
        bench.stuck.clear()
        async with bench.engine(path) as engine:
            client = AsyncTaskHubClient(engine)
            output = await output_of(client, "i")
            await until(lambda e=engine: e.statistics().activity_backlog == 0)  # type: ignore[misc]
        assert output == "new done" if replaced or after else output in ("old done", "new done")
    assert dies_at > 2


# Restart


async def test_restart_has_the_same_input_version_and_tags(path: Path, bench: Bench) -> None:
    """S-LIFE-8, S-LIFE-10: restart: same input and version, optionally a new id; after restart has returned,
    waiting for completion does not see the old end."""

    def main(ctx: Ctx, value: Any) -> Steps:
        ctx.set_custom_status(value)
        done = yield ctx.call_activity("work", input="a")
        if ctx.version == "1.2" and "a" in bench.broken:
            raise ValueError("broken after all")
        return [value, done, ctx.version, ctx.parent_instance_id]

    bench.add(main)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine, default_version="1.2")
        await client.schedule_new_orchestration(main, instance_id="i", input={"n": 1}, tags={"t": "u"})
        expected = [{"n": 1}, "a done", "1.2", None]
        assert await output_of(client, "i") == expected
        first = await client.get_orchestration_state("i")
        gate = bench.stick("a")
        assert await client.restart_orchestration("i") == "i"
        again = await client.get_orchestration_state("i")
        assert again is not None
        assert again.runtime_status in (Status.PENDING, Status.RUNNING)
        assert again.serialized_output is None
        gate.set()
        assert await output_of(client, "i") == expected
        other = await client.restart_orchestration("i", restart_with_new_instance_id=True)
        assert len(other) == 32
        assert await output_of(client, other) == expected
        assert first is not None
        for instance_id in ("i", other):
            state = await client.get_orchestration_state(instance_id)
            assert state is not None
            assert state.created_at > first.created_at
            started = (await client.get_orchestration_history(instance_id))[0]
            assert started.to_dict()["tags"] == {"t": "u"}
    assert bench.ran == ["a", "a", "a"]


async def test_restart_is_for_ended_ones_only(path: Path, bench: Bench) -> None:
    """S-LIFE-8: restart of a running one: an error."""
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        with pytest.raises(OrchestrationNotFoundError, match="'nobody'"):
            await client.restart_orchestration("nobody")
        await client.schedule_new_orchestration("one_event", instance_id="i")
        for new_id in (False, True):
            with pytest.raises(
                OrchestrationStatusError, match=r"'i' is (PENDING|RUNNING): only one that has"
            ):
                await client.restart_orchestration("i", restart_with_new_instance_id=new_id)
        await client.terminate_orchestration("i")
        await ends_as(client, "i", Status.TERMINATED)
        await client.restart_orchestration("i")
        await client.raise_orchestration_event("i", "e", data=1)
        assert await output_of(client, "i") == 1


async def test_what_the_earlier_life_left_does_not_reach_the_restarted_one(path: Path, bench: Bench) -> None:
    """S-LIFE-8, as S-CAN-5: work is tagged by execution; parents hear of their own child."""

    def child(ctx: Ctx, _: Any) -> Steps:
        left: task.Task[Any] = ctx.call_activity("work", input="left behind")
        timer = ctx.create_timer(timedelta(hours=1))
        yield ctx.wait_for_external_event("go")
        return [left.is_complete, timer.is_complete, ctx.parent_instance_id]

    def main(ctx: Ctx, _: Any) -> Steps:
        first = yield ctx.call_sub_orchestrator(child, instance_id="c")
        return [first, (yield ctx.wait_for_external_event("e"))]

    bench.add(child, main)
    first, second = bench.stick("left behind"), asyncio.Event()
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="p")
        await bench.running("left behind")
        await client.raise_orchestration_event("c", "go")
        assert await output_of(client, "c") == [False, False, "p"]
        bench.stuck["left behind"] = second
        await client.restart_orchestration("c")
        await until(lambda: len(bench.ran) == 2)
        first.set()
        await until(lambda: engine.statistics().activity_backlog == 1)
        await client.raise_orchestration_event("c", "go")
        assert await output_of(client, "c") == [False, False, None]
        second.set()
        await client.raise_orchestration_event("p", "e", data="second")
        assert await output_of(client, "p") == [[False, False, "p"], "second"]


async def test_a_restart_that_returned_survives_a_crash(path: Path, bench: Bench) -> None:
    """DESIGN 2, Effects after commit: it returns when it is on disk."""
    bench.add(works)
    engine = bench.engine(path)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    await client.schedule_new_orchestration(works, instance_id="i", input="a")
    assert await output_of(client, "i") == "a done"
    bench.stick("a")
    await client.restart_orchestration("i")
    abandon(engine)
    bench.stuck.clear()
    async with bench.engine(path) as engine:
        assert await output_of(AsyncTaskHubClient(engine), "i") == "a done"
    assert bench.ran.count("a") >= 2
