"""Files that are damaged, cut off, full, read-only or gone: clear errors, and nothing acknowledged is lost.

What is defined: damage that SQLite or the engine sees is a StateFormatError at the start, or ends the engine
with one later, and callers are refused with it. A write-ahead log that is damaged or cut off ends where that
begins, as after a crash at that moment. Letters changed within a payload are not seen: it has no checksum.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from durabletask.client import OrchestrationStatus

from provisioning.engine import (
    AsyncTaskHubClient,
    Engine,
    EngineOptions,
    EngineStoppedError,
    StateError,
    StateFormatError,
)
from provisioning.engine import writer as writer_module
from provisioning.engine.sqlite_store import SqliteStore
from provisioning.engine.store import Store
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.operating import echo
from tests.unit.engine.stores import abandon
from tests.unit.engine.waiting import LONG_S, output_of, until

INSTANCES, ENDED = 40, 20
EVENTS = 10
NOBODY = 65534


def one_event(ctx: Ctx, value: str) -> Steps:
    yield ctx.create_timer(ctx.current_utc_datetime)
    yield ctx.wait_for_external_event("e")
    return value


def all_events(ctx: Ctx, _: Any) -> Steps:
    got = []
    for _n in range(EVENTS):
        got.append((yield ctx.wait_for_external_event("e")))  # noqa: PERF401 -- yields
    return got


def engine_on(path: Path | SqliteStore) -> Engine:
    engine = Engine(path, options=EngineOptions(max_live_instances=1))
    for orchestrator in (echo, one_event, all_events):
        engine.add_orchestrator(orchestrator)
    return engine


def value_of(n: int) -> str:
    return f"<{n}>" + "x" * 200


def contents(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def move(path: Path, to: Path) -> None:
    path.rename(to)


def allow(path: Path, mode: int) -> None:
    path.chmod(mode)


async def fill(path: Path) -> bytes:
    """A file with some that have ended and some that wait for an event; returns all that is in it."""
    async with engine_on(path) as engine:
        client = AsyncTaskHubClient(engine)
        for n in range(INSTANCES):
            orchestrator = echo if n < ENDED else one_event
            await client.schedule_new_orchestration(orchestrator, instance_id=f"i{n}", input=value_of(n))
        for n in range(ENDED):
            await output_of(client, f"i{n}")
        await until(lambda: engine.statistics().armed_timers == 0)
    return contents(path)


async def use(path: Path) -> str:
    """Use all that is in a file; returns how that went. What is not defined is raised."""
    engine = engine_on(path)
    try:
        await engine.start()
    except StateError as error:
        return f"refused: {error}"
    client = AsyncTaskHubClient(engine)
    try:
        async with asyncio.timeout(LONG_S):
            for n in range(INSTANCES):
                state = await client.get_orchestration_state(f"i{n}")
                if state is not None and state.runtime_status == OrchestrationStatus.RUNNING:
                    await client.raise_orchestration_event(f"i{n}", "e")
            await client.schedule_new_orchestration(echo, input="")
    except EngineStoppedError as error:
        return f"ended: {error}"
    finally:
        await engine.stop()
    return "worked"


# Damage


async def test_flipped_bits_anywhere_have_a_defined_end(tmp_path: Path) -> None:
    """Errors: refused at the start, or ended later with a reason, or unnoticed; never anything else, and
    never a caller that waits for ever."""
    whole = await fill(tmp_path / "whole.db")
    dice, ends = random.Random(1), Counter[str]()
    for n in range(120):
        damaged = bytearray(whole)
        at, many = dice.randrange(len(whole)), dice.choice((1, 1, 64))
        for place in range(at, min(at + many, len(whole))):
            damaged[place] ^= 1 << dice.randrange(8)
        path = tmp_path / f"{n}.db"
        path.write_bytes(damaged)
        end = await use(path)
        kind = end.partition(":")[0]
        assert kind == "worked" or (str(path) in end or "engine has stopped" in end), end
        ends[kind] += 1
    assert ends.keys() <= {"refused", "ended", "worked"}, ends
    assert len(ends) > 1, "no damage was found"


async def test_damage_that_is_found_late_ends_the_engine_and_names_the_file(path: Path) -> None:
    """Engine: a state file that can't be read any more ends it; callers are refused with the reason."""
    whole = await fill(path)
    # A page of rows of what has ended: nothing looks at it at the start.
    page = whole.index(f'"{value_of(0)}"'.encode()) // 4096 * 4096
    put(path, whole[:page] + b"\xff" * 64 + whole[page + 64 :])
    engine = engine_on(path)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    waiting = asyncio.create_task(client.wait_for_orchestration_completion("not yet there", timeout=LONG_S))
    await asyncio.sleep(0)
    with pytest.raises(EngineStoppedError, match=r"engine\.db can't be read as a state file") as caught:
        await client.get_orchestration_state("i0")
    assert isinstance(caught.value.__cause__, StateFormatError)
    assert isinstance(await engine.wait_broken(), StateFormatError)
    with pytest.raises(EngineStoppedError):
        await client.raise_orchestration_event(f"i{ENDED}", "e")
    with pytest.raises(EngineStoppedError):
        await waiting
    await engine.stop()


async def test_a_file_that_is_cut_off_is_refused_or_ends_the_engine(tmp_path: Path) -> None:
    """Errors: StateFormatError: damaged, wherever the end is missing from."""
    whole = await fill(tmp_path / "whole.db")
    for tenths in range(1, 10):
        path = tmp_path / f"{tenths}.db"
        path.write_bytes(whole[: len(whole) * tenths // 10])
        assert not (await use(path)).startswith("worked"), f"{tenths}/10 of the file"


async def test_a_write_ahead_log_ends_where_it_is_damaged(tmp_path: Path) -> None:
    """DESIGN 2: after a crash the file has a moment's state: the first so many events, each once, in order.

    And with an undamaged log it has all that was acknowledged.
    """
    live = tmp_path / "live.db"
    engine = engine_on(live)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    await client.schedule_new_orchestration(all_events, instance_id="i")
    for n in range(EVENTS - 1):
        await client.raise_orchestration_event("i", "e", data=n, idempotency_key=str(n))
    whole, log = live.read_bytes(), live.with_name("live.db-wal").read_bytes()
    abandon(engine)
    dice, seen = random.Random(1), set[int]()
    for n in range(25):
        path = tmp_path / f"{n}.db"
        cut = dice.randrange(len(log)) if n else len(log)
        left = bytearray(log if n % 2 else log[:cut])
        if n % 2:
            left[cut] ^= 1
        path.write_bytes(whole)
        path.with_name(f"{n}.db-wal").write_bytes(left)
        again = engine_on(path)
        async with again:
            client = AsyncTaskHubClient(again)
            if await client.get_orchestration_state("i") is None:
                await client.schedule_new_orchestration(all_events, instance_id="i")
            row = again._store.find("i")
            assert row is not None
            events = [e.ref for e in again._store.history(row.key, 0) if e.ref is not None]
            assert events == [str(m) for m in range(len(events))]
            seen.add(len(events))
            assert n or len(events) == EVENTS - 1, "acknowledged, and lost"
            for m in range(EVENTS):
                await client.raise_orchestration_event("i", "e", data=m, idempotency_key=str(m))
            assert await output_of(client, "i") == list(range(EVENTS))
    assert len(seen) > 3


async def test_a_file_that_is_moved_away_ends_the_engine(path: Path) -> None:
    """DESIGN 2: nothing is acknowledged that nobody would find again; put back, the file has all the rest."""
    engine = engine_on(path)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    await client.schedule_new_orchestration(one_event, instance_id="i", input="kept")
    moved = path.with_name("moved.db")
    move(path, moved)
    with pytest.raises(EngineStoppedError, match=r"engine\.db was moved, deleted or replaced"):
        await client.raise_orchestration_event("i", "e")
    await engine.stop()
    move(moved, path)
    async with engine_on(path) as again:
        client = AsyncTaskHubClient(again)
        await client.raise_orchestration_event("i", "e")
        assert await output_of(client, "i") == "kept"


# No room


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The operating system refuses to let a file grow beyond it, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_write_that_the_system_refuses_is_waited_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writer: no room is waited for, whoever says so; what was in the way is told, and nothing is lost."""
    monkeypatch.setattr(writer_module, "_FIRST_RETRY_S", 0.005)
    large = "x" * 1_000_000
    async with engine_on(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(one_event, instance_id="i", input="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        with files_no_larger_than(500_000):
            raising = asyncio.create_task(client.raise_orchestration_event("i", "e", data=large))
            await until(lambda: engine.statistics().storage_trouble is not None)
            assert str(path) in (engine.statistics().storage_trouble or "")
            assert not raising.done()
        await raising
        assert await output_of(client, "i") == "i"


def test_no_room_for_a_new_file_is_an_error_that_names_it(path: Path) -> None:
    """Errors: StateError: the file can't be used; and later it can."""
    with files_no_larger_than(1), pytest.raises(StateError, match=r"engine\.db can't be opened or written"):
        SqliteStore(path).open()
    store = SqliteStore(path)
    store.open()
    store.close()


# No right to write


@pytest.fixture
def ours() -> Iterator[Path]:
    """A directory of whoever is not root: to root nothing is read-only."""
    directory = Path(tempfile.mkdtemp(prefix="muster-"))
    root = os.geteuid() == 0
    if root:
        # Whatever is imported late is imported now: a Python of root's own is out of reach afterwards.
        warm = SqliteStore(directory / "warm.db")
        warm.open()
        warm.close()
        for file in directory.iterdir():
            file.unlink()
        os.chown(directory, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield directory
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o700)
        shutil.rmtree(directory)


@pytest.mark.parametrize("what", ["file", "directory", "directory without a file"])
async def test_what_may_not_be_written_is_refused_by_name_and_left_as_it_is(ours: Path, what: str) -> None:
    """Errors: StateError: read-only; as soon as it may be written again it can be used."""
    path = ours / "engine.db"
    if what != "directory without a file":
        await fill(path)
        path.with_name("engine.db.lock").unlink()
    changed, mode = (path, 0o400) if what == "file" else (ours, 0o500)
    changed.chmod(mode)
    with pytest.raises(StateError, match=r"engine\.db can't be opened or written \(Permission denied"):
        await engine_on(path).start()
    changed.chmod(0o700)
    end = await use(path)
    assert end == "worked"


async def test_a_directory_that_becomes_read_only_changes_nothing_for_an_open_file(ours: Path) -> None:
    """DESIGN 2, One owner: what is open stays open; what it acknowledges is there afterwards."""
    path = ours / "engine.db"
    async with engine_on(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(one_event, instance_id="i", input="kept")
        allow(ours, 0o500)
        await client.raise_orchestration_event("i", "e")
        assert await output_of(client, "i") == "kept"
    allow(ours, 0o700)
    async with engine_on(path) as again:
        assert await output_of(AsyncTaskHubClient(again), "i") == "kept"


READS: dict[str, tuple[Any, ...]] = {
    "find": ("i",),
    "existing": (["i"],),
    "last_event": (1,),
    "history": (1, 0),
    "next_key": (),
    "next_message_id": (),
    "ready_starts": (),
    "unfinished_activities": (),
    "timers": (0, 1),
    "messages": (),
    "count_by_status": (),
    "outlines": (0, 1),
    "children": (1, 0, 1),
    "detached": (1,),
}


@pytest.mark.parametrize("read", sorted(READS))
def test_no_read_shows_an_error_of_sqlites(path: Path, read: str) -> None:
    """DESIGN 2: whoever reads is told of the file, by its name; here its tables are gone."""
    store = SqliteStore(path)
    store.open()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            connection.execute(f"DROP TABLE {table}")
    with pytest.raises(StateError, match=r"engine\.db can't be read"):
        list(getattr(store, read)(*READS[read]))
    store.close()


def test_every_read_is_among_them() -> None:
    """The list above: nothing was added to the store and left out here."""
    reads = {name for name in vars(Store) if not name.startswith("_")} - {"open", "close", "commit"}
    assert reads == set(READS)
