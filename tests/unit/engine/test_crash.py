"""Crashes at every commit, and a real kill -9: nothing is lost, nothing is applied twice."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from durabletask import task

from provisioning.engine import AsyncTaskHubClient, Engine, EngineOptions, EngineStoppedError
from provisioning.engine.records import Status
from tests.unit.engine.crash_workflow import build, end_state, work_through
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.stores import DyingStore, abandon
from tests.unit.engine.waiting import LONG_S, output_of

OPTIONS = {
    "fine": EngineOptions(max_commit_rows=1, max_turn_messages=2, max_live_instances=3),
    "coarse": EngineOptions(),
}


async def run_with_a_crash(path: Path, options: EngineOptions, *, dies_at: int, after: bool) -> int:
    """Run the workflow, with a crash at that commit; returns the number of commits before it ended."""
    ran: list[str] = []
    raised: set[str] = set()
    first = DyingStore(path, dies_at=dies_at, after=after)
    engine = build(first, ran.append, options)
    await engine.start()
    ended = await work_through(engine, raised, ran.append)
    abandon(engine)
    assert ended == (not first.dead)
    if not ended:
        completed = set(first.completed)
        ran.clear()
        second = DyingStore(path)
        engine = build(second, ran.append, options)
        async with engine:
            assert await work_through(engine, raised, ran.append)
        again = {line[4:] for line in ran if line.startswith("run ")} & completed
        assert not again, "completed and committed, and run again"
    return first.commits


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("grain", OPTIONS)
async def test_a_crash_at_any_commit_changes_nothing(tmp_path: Path, grain: str, after: bool) -> None:
    """S-ACT-5, S-EVT-8, S-EVT-10: effects after commit, recovery; idempotency keys; no event is lost.

    The workflow has children, activities of both kinds, events from outside and inside, timers, retries
    and continue_as_new. The run dies at commit 1, 2, 3, … until one ends before its time to die.
    """
    options = OPTIONS[grain]
    sound = tmp_path / "sound.db"
    await run_with_a_crash(sound, options, dies_at=0, after=False)
    expected = end_state(sound)
    assert expected[-3:] == [(0,), (0,), (0,)]
    dies_at = 0
    commits = 0
    while commits >= dies_at:
        dies_at += 1
        path = tmp_path / f"{dies_at}.db"
        commits = await run_with_a_crash(path, options, dies_at=dies_at, after=after)
        assert end_state(path) == expected, f"died at commit {dies_at}"
    assert dies_at > (20 if grain == "fine" else 3)


@pytest.mark.parametrize(("dies_at", "after"), [(2, False), (3, True)])
async def test_crashes_in_a_row_make_progress(tmp_path: Path, dies_at: int, after: bool) -> None:
    """DESIGN 2, Recovery: each life gets one commit further, and that is enough."""
    path = tmp_path / "engine.db"
    ran: list[str] = []
    raised: set[str] = set()
    failed: set[str] = set()
    for _life in range(500):
        store = DyingStore(path, dies_at=dies_at, after=after)
        engine = build(store, ran.append, OPTIONS["fine"], failed)
        await engine.start()
        ended = await work_through(engine, raised, ran.append)
        abandon(engine)
        if ended:
            break
    assert ended
    assert end_state(path)[-3:] == [(0,), (0,), (0,)]


async def test_what_continues_as_new_is_running_on_disk_too(tmp_path: Path) -> None:
    """S-CAN-7: status stays RUNNING to the outside, and a crash between two executions
    does not end it. The run dies after commit 1, 2, 3, … until one ends before its time to die."""

    async def work(ctx: task.ActivityContext, n: int) -> int:
        return n + 1

    def main(ctx: Ctx, n: int) -> Steps:
        n = yield ctx.call_activity(work, input=n)
        if n < 3:
            ctx.continue_as_new(n)
        return n

    def build_main(store: DyingStore) -> Engine:
        engine = Engine(store, options=OPTIONS["fine"])
        engine.add_orchestrator(main)
        engine.add_activity(work)
        return engine

    seen: list[tuple[int, bool]] = []
    died = True
    while died:
        path = tmp_path / f"{len(seen) + 1}.db"
        store = DyingStore(path, dies_at=len(seen) + 1, after=True)
        engine = build_main(store)
        await engine.start()
        client = AsyncTaskHubClient(engine)
        with contextlib.suppress(EngineStoppedError):
            await client.schedule_new_orchestration(main, instance_id="i", input=0)
            await client.wait_for_orchestration_completion("i", timeout=LONG_S)
        abandon(engine)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (status,) = connection.execute("SELECT status FROM instances").fetchone()
            (events,) = connection.execute("SELECT count(*) FROM history").fetchone()
        seen.append((status, events > 0))
        async with build_main(DyingStore(path)) as engine:
            assert await output_of(AsyncTaskHubClient(engine), "i") == 3
        died = store.dead
    assert (Status.RUNNING, False) in seen, "no crash between two executions"
    statuses = [Status(status) for status, _ in seen]
    assert statuses == sorted(statuses, key=[Status.PENDING, Status.RUNNING, Status.COMPLETED].index)


def test_kill_9_at_several_moments(tmp_path: Path) -> None:
    """DESIGN 2: a real process, killed while it works; the next one takes over the file and its lock."""
    argv = [sys.executable, "-m", "tests.unit.engine.crash_workflow"]
    root = Path(__file__).parents[3]
    sound = tmp_path / "sound.db"
    log = tmp_path / "sound.log"
    log.touch()
    subprocess.run([*argv, str(sound), str(log)], cwd=root, check=True, timeout=60)
    lines = len(log.read_text().splitlines())

    path, log = tmp_path / "killed.db", tmp_path / "killed.log"
    log.touch()
    for kill_at in (3, 5, 8):
        assert kill_at < lines
        before = len(log.read_text().splitlines())
        process = subprocess.Popen([*argv, str(path), str(log)], cwd=root)
        deadline = time.monotonic() + 60
        while len(log.read_text().splitlines()) < min(before + kill_at, lines):
            assert time.monotonic() < deadline
            if process.poll() is not None:
                break
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*argv, str(path), str(log)], cwd=root, check=True, timeout=60)
    assert log.read_text().splitlines()[-1] == "ended"
    assert end_state(path) == end_state(sound)


async def test_the_workflow_is_quick_enough_to_be_run_often(tmp_path: Path) -> None:
    """A guard for this file's own pace: a run is milliseconds, so a hang is found fast."""
    async with asyncio.timeout(5):
        await run_with_a_crash(tmp_path / "engine.db", OPTIONS["fine"], dies_at=0, after=False)
