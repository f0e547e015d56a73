"""Rewind: failed sub-orchestrations with their parents, those who come in between, and crashes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from durabletask import task

from provisioning.engine import (
    AsyncTaskHubClient,
    EngineOptions,
    EngineStoppedError,
    OrchestrationIdReusePolicy,
    OrchestrationStatusError,
)
from provisioning.engine import rewinds as rewinds_module
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.operating import (
    Bench,
    Status,
    chain,
    ends_as,
    fails,
    family,
    leaves,
    rows_of,
    status_of,
    together,
)
from tests.unit.engine.stores import DyingStore, GatedStore, abandon
from tests.unit.engine.waiting import LONG_S, output_of, until


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.add(chain, together, family)
    return bench


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


async def test_children_of_one_that_does_not_fit_its_code_are_left(path: Path, bench: Bench) -> None:
    """S-LIFE-14: code that does not fit the history is refused, and nothing is changed."""

    def wrong(ctx: Ctx, depth: int) -> Steps:
        if depth == 0:
            return (yield ctx.call_activity("work", input=ctx.instance_id))
        return (yield ctx.wait_for_external_event("e"))

    bench.broken = {"r.0"}
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(family, instance_id="r", input=1)
        await fails(client, "r")
    bench.broken.clear()
    bench.orchestrators["family"] = wrong
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        with pytest.raises(OrchestrationStatusError, match="does not fit"):
            await client.rewind_orchestration("r")
        assert [await status_of(client, i) for i in ("r", "r.0")] == [Status.FAILED] * 2


async def test_a_child_that_does_not_fit_its_code_fails_its_parent_again(path: Path, bench: Bench) -> None:
    """S-LIFE-14: one that can't be rewound stays as it is, and its parent hears its failure again."""

    def wrong(ctx: Ctx, labels: list[str]) -> Steps:
        return (yield ctx.wait_for_external_event("e"))

    def main(ctx: Ctx, _: Any) -> Steps:
        return (yield ctx.call_sub_orchestrator("chain", input=["a", "b"], instance_id="c"))

    bench.add(main)
    bench.broken = {"b"}
    for orchestrator in (chain, wrong, chain):
        bench.orchestrators["chain"] = orchestrator
        async with bench.engine(path) as engine:
            client = AsyncTaskHubClient(engine)
            if await client.get_orchestration_state("p") is None:
                await client.schedule_new_orchestration(main, instance_id="p")
            else:
                await client.rewind_orchestration("p")
            if bench.broken:
                assert "b is broken" in await fails(client, "p")
            else:
                assert await output_of(client, "p") == ["a done", "b done"]
            if orchestrator is wrong:
                bench.broken.clear()
                assert await status_of(client, "c") == Status.FAILED
    assert bench.ran == ["a", "b", "b"]


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


async def test_half_a_rewind_is_never_committed(path: Path, bench: Bench) -> None:
    """DESIGN 2, Group commit: what goes wrong half-way stops the engine, with the reason."""

    def trap(ctx: Ctx, _: Any) -> Steps:
        if bench.ran:
            raise KeyboardInterrupt
        yield ctx.call_activity("work", input="a")

    bench.orchestrators["main"] = lambda ctx, _: None.nothing  # type: ignore[attr-defined]
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration("main", instance_id="i")
        await fails(client, "i")
    bench.orchestrators["main"] = trap
    bench.ran.append("the trap is set")
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        with pytest.raises(KeyboardInterrupt):
            await client.rewind_orchestration("i")
        assert isinstance(await engine.wait_broken(), KeyboardInterrupt)
    del bench.ran[:]
    async with bench.engine(path) as engine:
        client = AsyncTaskHubClient(engine)
        assert await status_of(client, "i") == Status.FAILED
        await client.rewind_orchestration("i")
        await ends_as(client, "i", Status.COMPLETED)


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
        assert [rows_of(path, table) for table in ("messages", "timers", "detached_activities")] == [0, 0, 0]
    assert dies_at > 3
