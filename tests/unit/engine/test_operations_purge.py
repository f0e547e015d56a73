"""Purge: ended instances are removed, one by one, with their descendants, or by filter."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task
from durabletask.client import PurgeInstancesResult

from provisioning.engine import (
    AsyncTaskHubClient,
    EngineOptions,
    EngineStoppedError,
    OrchestrationNotFoundError,
)
from provisioning.engine import lifecycle as lifecycle_module
from provisioning.engine import queries as queries_module
from provisioning.engine.records import to_datetime
from tests.unit.engine.driving import SECOND, START, Ctx, Steps
from tests.unit.engine.operating import Bench, Status, ends_as, status_of
from tests.unit.engine.stores import DyingStore, GatedStore, ManualClock, abandon
from tests.unit.engine.waiting import LONG_S, ended, output_of, until


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.add(family)
    return bench


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is done in portions of two."""
    for name in ("OUTLINES_AT_ONCE", "_PURGED_AT_ONCE", "_CHILDREN_AT_ONCE"):
        monkeypatch.setattr(lifecycle_module, name, 2)
    monkeypatch.setattr(queries_module, "OUTLINES_AT_ONCE", 2)


def family(ctx: Ctx, depth: int) -> Steps:
    """Three children each, down to ``depth`` 0; the middle one of the last waits for an event."""
    if depth == 0:
        if ctx.instance_id.endswith(".1"):
            yield ctx.wait_for_external_event("e")
        return "leaf"
    ids = [f"{ctx.instance_id}.{n}" for n in range(3)]
    children: list[task.Task[Any]] = [
        ctx.call_sub_orchestrator(family, input=depth - 1, instance_id=i) for i in ids
    ]
    if depth == 1:
        yield task.when_all([children[0], children[2]])
        return "did not wait"
    return (yield task.when_all(children))


def rows(path: Path) -> dict[str, int]:
    """Number of rows by table."""
    tables = ("instances", "history", "messages", "timers", "detached_activities")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {t: connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}


async def test_only_ended_ones_are_purged(path: Path, bench: Bench) -> None:
    """S-LIFE-9: purge: ended instances only; returns counts."""
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        assert await client.purge_orchestration("nobody") == PurgeInstancesResult(0, True)
        await client.schedule_new_orchestration("one_event", instance_id="i")
        assert await client.purge_orchestration("i") == PurgeInstancesResult(0, True)
        await client.raise_orchestration_event("i", "e", data=1)
        assert await output_of(client, "i") == 1
        assert await client.purge_orchestration("i") == PurgeInstancesResult(1, True)
        assert await client.get_orchestration_state("i") is None
        for gone in (
            client.get_orchestration_history("i"),
            client.raise_orchestration_event("i", "e"),
            client.restart_orchestration("i"),
            client.rewind_orchestration("i"),
        ):
            with pytest.raises(OrchestrationNotFoundError):
                await gone
        assert await client.purge_orchestration("i") == PurgeInstancesResult(0, True)
        assert set(rows(path).values()) == {0}
        await client.schedule_new_orchestration("echo", instance_id="i", input="anew")
        assert await output_of(client, "i") == "anew"


@pytest.mark.parametrize("portions", [False, True], ids=["at once", "in portions"])
@pytest.mark.parametrize("recursive", [False, True])
async def test_recursive_reaches_ended_descendants(
    path: Path, bench: Bench, request: pytest.FixtureRequest, recursive: bool, portions: bool
) -> None:
    """S-LIFE-9: purge: recursive on request; what runs is left, with all below it."""
    if portions:
        request.getfixturevalue("small_portions")
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(family, instance_id="r", input=2)
        await ended(client, "r")
        purged = await client.purge_orchestration("r", recursive)
        left = {s.instance_id for s in await client.get_all_orchestration_states()}
        assert purged.deleted_instance_count == (1 + 3 + 6 if recursive else 1)
        assert len(left) == 13 - purged.deleted_instance_count
        if recursive:
            assert left == {"r.0.1", "r.1.1", "r.2.1"}
            await client.raise_orchestration_event("r.0.1", "e")
            assert await output_of(client, "r.0.1") == "leaf"


async def test_an_id_that_is_anothers_by_now_is_left(path: Path, bench: Bench) -> None:
    """S-LIFE-9, S-ID-4: recursive reaches an instance's own children only."""

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_sub_orchestrator("echo", instance_id="c"))

    bench.add(main)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="p")
        await ended(client, "p")
        await client.purge_orchestration("c")
        await client.schedule_new_orchestration("echo", instance_id="c", input="another")
        await ended(client, "c")
        assert (await client.purge_orchestration("p")).deleted_instance_count == 1
        assert await output_of(client, "c") == "another"


async def test_children_that_were_tried_again_count_once(path: Path, bench: Bench) -> None:
    """S-LIFE-9, S-RTY-2: the same child id is used again."""
    policy = task.RetryPolicy(first_retry_interval=timedelta(milliseconds=1), max_number_of_attempts=3)

    def child(ctx: Ctx, _: Any) -> Any:
        raise ValueError("as always")

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_sub_orchestrator(child, instance_id="c", retry_policy=policy))

    bench.add(child, main)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="p")
        await ends_as(client, "p", Status.FAILED)
        assert (await client.purge_orchestration("p")).deleted_instance_count == 2
        assert set(rows(path).values()) == {0}


@pytest.mark.usefixtures("small_portions")
async def test_purge_by_filter(path: Path, bench: Bench, clock: ManualClock) -> None:
    """S-LIFE-9: purge by filter: created from (included), to (excluded), statuses."""
    async with bench.engine(path, clock=clock) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(6):
            await client.schedule_new_orchestration("echo", instance_id=f"e{n}")
            await client.schedule_new_orchestration("one_event", instance_id=f"w{n}")
            await client.terminate_orchestration(f"w{n}")
            await ended(client, f"e{n}")
            await ended(client, f"w{n}")
            clock.advance(1)
        await client.schedule_new_orchestration("one_event", instance_id="running")
        at = [to_datetime(START + n * SECOND) for n in range(7)]

        async def purge(*args: Any, **kwargs: Any) -> int:
            result = await client.purge_orchestrations_by(*args, **kwargs)
            assert result.is_complete
            return result.deleted_instance_count

        async def ids() -> str:
            return " ".join(s.instance_id for s in await client.get_all_orchestration_states())

        assert await purge(at[4], at[5]) == 2
        assert await ids() == "e0 w0 e1 w1 e2 w2 e3 w3 e5 w5 running"
        assert await purge(created_time_to=at[2], runtime_status=[Status.TERMINATED, Status.RUNNING]) == 2
        assert await ids() == "e0 e1 e2 w2 e3 w3 e5 w5 running"
        assert await purge(runtime_status=[Status.RUNNING, Status.PENDING]) == 0
        assert await purge(created_time_from=at[3], timeout=timedelta(hours=1)) == 4
        assert await ids() == "e0 e1 e2 w2 running"
        assert await purge() == 4
        assert await ids() == "running"
        with pytest.raises(ValueError, match="timeout"):
            await purge(timeout=timedelta(0))


@pytest.mark.usefixtures("small_portions")
async def test_purge_by_filter_stops_at_its_time_out(path: Path, bench: Bench) -> None:
    """S-LIFE-9: a purge that did not come to its end says so, and the next one goes on."""
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(5):
            await client.schedule_new_orchestration("echo", instance_id=f"e{n}")
            await ended(client, f"e{n}")
        first = await client.purge_orchestrations_by(timeout=timedelta(microseconds=1))
        assert first == PurgeInstancesResult(2, False)
        assert await client.purge_orchestrations_by() == PurgeInstancesResult(3, True)


@pytest.mark.usefixtures("small_portions")
async def test_purge_by_filter_reaches_descendants_if_asked(path: Path, bench: Bench) -> None:
    """S-LIFE-9: purge by filter, recursive: each counts once."""
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        for root in ("r", "s"):
            await client.schedule_new_orchestration(family, instance_id=root, input=2)
            await ended(client, root)
        counts = await client.purge_orchestrations_by(recursive=True)
        assert counts.deleted_instance_count == 20
        assert rows(path)["instances"] == 6


async def test_what_a_purged_one_left_under_way_reaches_nobody(path: Path, bench: Bench) -> None:
    """S-LIFE-9: a late result of an activity; another instance has the id by now."""

    def main(ctx: Ctx, _: Any) -> Steps:
        left: task.Task[Any] = ctx.call_activity("work", input="left behind")
        yield ctx.wait_for_external_event("go")
        return left.is_complete

    bench.add(main)
    gate = bench.stick("left behind")
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        for n in (1, 2):
            await client.schedule_new_orchestration(main, instance_id="i")
            await until(lambda n=n: len(bench.ran) == n)  # type: ignore[misc]
            if n == 1:
                await client.raise_orchestration_event("i", "go")
                await ended(client, "i")
                assert (await client.purge_orchestration("i")).deleted_instance_count == 1
        bench.stuck.clear()
        gate.set()
        await until(lambda: engine.statistics().activity_backlog == 0)
        await client.raise_orchestration_event("i", "go")
        await ended(client, "i")
        await client.purge_orchestration("i")
        assert set(rows(path).values()) == {0}


async def test_an_activity_of_a_purged_one_gives_no_result_to_another_of_its_id(
    path: Path, bench: Bench
) -> None:
    """S-LIFE-9: what a purged one left under way reaches nobody, whatever else waits under its task id."""

    def main(ctx: Ctx, label: str) -> Steps:
        return (yield ctx.call_activity("work", input=label))

    bench.add(main)
    gates = [bench.stick(label) for label in ("old", "new")]
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(main, instance_id="i", input="old")
        await bench.running("old")
        await client.terminate_orchestration("i")
        assert (await client.purge_orchestration("i")).deleted_instance_count == 1
        await client.schedule_new_orchestration(main, instance_id="i", input="new")
        await bench.running("new")
        gates[0].set()
        await until(lambda: engine.statistics().activity_backlog == 1)
        gates[1].set()
        assert await output_of(client, "i") == "new done"


async def test_a_child_of_a_purged_one_gives_no_result_to_another_of_its_id(path: Path, bench: Bench) -> None:
    """S-LIFE-9: the child was left running, and ends when another instance has its parent's id."""

    def parent(ctx: Ctx, child: str) -> Steps:
        return (yield ctx.call_sub_orchestrator("one_event", instance_id=child))

    bench.add(parent)
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(parent, instance_id="i", input="old")
        await client.wait_for_orchestration_start("old", timeout=LONG_S)
        await client.terminate_orchestration("i", recursive=False)
        assert (await client.purge_orchestration("i")).deleted_instance_count == 1
        await client.schedule_new_orchestration(parent, instance_id="i", input="new")
        await client.wait_for_orchestration_start("new", timeout=LONG_S)
        await client.raise_orchestration_event("old", "e", data="of the old one")
        assert await output_of(client, "old") == "of the old one"
        await client.raise_orchestration_event("new", "e", data="of the new one")
        assert await output_of(client, "i") == "of the new one"


async def test_a_purge_and_whoever_comes_at_the_same_time(path: Path, bench: Bench) -> None:
    """DESIGN 2: what a purge has gathered is gone for all who come after it, before it is on disk."""
    store = GatedStore(path)
    async with bench.engine(store) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration("echo", instance_id="i", input=1)
        await ended(client, "i")
        store.gate.clear()
        purge = asyncio.create_task(client.purge_orchestration("i"))
        await until(lambda: engine._commits.leaving)
        assert (await client.purge_orchestration("i")).deleted_instance_count == 0
        for late in (
            client.raise_orchestration_event("i", "e"),
            client.restart_orchestration("i"),
            client.rewind_orchestration("i"),
        ):
            with pytest.raises(OrchestrationNotFoundError):
                await late
        creation = asyncio.create_task(client.schedule_new_orchestration("one_event", instance_id="i"))
        await until(lambda: "i" in engine._commits.instances)
        assert not purge.done()
        store.gate.set()
        assert (await purge).deleted_instance_count == 1
        await creation
        await client.raise_orchestration_event("i", "e", data="the new one")
        assert await output_of(client, "i") == "the new one"
    assert rows(path)["instances"] == 1


async def test_a_purge_that_is_not_through_hides_nobody_who_has_the_id_by_now(
    path: Path, bench: Bench
) -> None:
    """DESIGN 2: the purged one is gone from the disk, the portion that it is in has room for more."""
    async with bench.engine(path, EngineOptions(max_live_instances=1)) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration("echo", instance_id="i")
        await ended(client, "i")
        lifecycle = engine.lifecycle
        purge = lifecycle_module._Purge(
            lifecycle._store, lifecycle._commits, lifecycle._agenda, lifecycle._health
        )
        await purge.add("i", recursive=False)
        for instance_id in ("i", "j", "k"):
            await client.schedule_new_orchestration("one_event", instance_id=instance_id)
            await client.wait_for_orchestration_start(instance_id, timeout=LONG_S)
        await until(lambda: "i" not in engine._commits.instances)
        await client.raise_orchestration_event("i", "e", data="the new one")
        assert await output_of(client, "i") == "the new one"
        await purge.finish()
        assert purge.count == 1


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_commit_of_a_purge_leaves_what_can_be_purged(
    tmp_path: Path, after: bool
) -> None:
    """DESIGN 2, Recovery; S-LIFE-9: children go before their parents, so none is left alone."""
    dies_at = 0
    died = True
    while died:
        dies_at += 1
        bench = Bench()
        bench.add(family)
        path = tmp_path / f"{dies_at}.db"
        async with bench.engine(path) as engine:
            client = AsyncTaskHubClient(engine)
            await client.schedule_new_orchestration(family, instance_id="r", input=2)
            await ended(client, "r")
        store = DyingStore(path, dies_at=dies_at, after=after)
        engine = bench.engine(store)
        await engine.start()
        with contextlib.suppress(EngineStoppedError):
            await AsyncTaskHubClient(engine).purge_orchestration("r")
        died = store.dead
        abandon(engine)
        async with bench.engine(path) as engine:
            client = AsyncTaskHubClient(engine)
            await client.purge_orchestration("r")
            left = {s.instance_id for s in await client.get_all_orchestration_states()}
            assert left == {"r.0.1", "r.1.1", "r.2.1"}, f"died at commit {dies_at}"
            assert await status_of(client, "r.0.1") == Status.RUNNING
    assert dies_at > 4
