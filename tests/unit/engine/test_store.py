"""The state file: ownership, formats, modes, atomic batches, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioning.engine import (
    AsyncTaskHubClient,
    Engine,
    EngineOptions,
    EngineStoppedError,
    StateError,
    StateFormatError,
    StateInUseError,
)
from provisioning.engine import writer as writer_module
from provisioning.engine.records import HistoryEvent, InstanceRow, Kind, Message, Status
from provisioning.engine.sqlite_store import APPLICATION_ID, FORMAT, SqliteStore
from provisioning.engine.store import Batch, Store, StoredTimer
from tests.simulation.store import Disk, MemoryStore, TwinStore
from tests.unit.engine.driving import START
from tests.unit.engine.operating import one_event
from tests.unit.engine.stores import FullDiskStore
from tests.unit.engine.waiting import LONG_S, output_of, until


def row(key: int, id: str, **changes: Any) -> InstanceRow:
    plain = InstanceRow(
        key, id, "main", None, Status.RUNNING, 1, 0, None, 0, 0, START, START, None, None, None, None, None
    )
    return plain._replace(**changes)


def event(key: int, seq: int, kind: Kind, task_id: int = 0, **fields: Any) -> Any:
    return (key, seq, *HistoryEvent(kind, START + seq, task_id, **fields))


# Ownership


def test_a_second_engine_in_this_process_is_refused_with_the_pid(path: Path) -> None:
    """DESIGN 2, One owner: a second one on the same file fails at once with a clear error."""
    first, second = SqliteStore(path), SqliteStore(path)
    first.open()
    with pytest.raises(StateInUseError) as caught:
        second.open()
    assert caught.value.owner_pid == os.getpid()
    assert str(os.getpid()) in str(caught.value)
    assert str(path) in str(caught.value)
    first.close()
    second.open()
    second.close()


def test_a_second_engine_in_another_process_is_refused_with_the_pid(path: Path) -> None:
    """DESIGN 2, One owner: as above; and the lock goes with a process that is killed."""
    code = (
        "import sys, time; from pathlib import Path; "
        "from provisioning.engine.sqlite_store import SqliteStore; "
        "SqliteStore(Path(sys.argv[1])).open(); print('open', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "open\n"
            with pytest.raises(StateInUseError) as caught:
                SqliteStore(path).open()
            assert caught.value.owner_pid == owner.pid
        finally:
            owner.send_signal(signal.SIGKILL)
    store = SqliteStore(path)
    store.open()
    store.close()


def test_a_link_to_the_file_is_the_same_file(path: Path) -> None:
    """DESIGN 2, One owner: by whatever name."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    first, second = SqliteStore(path), SqliteStore(link)
    first.open()
    with pytest.raises(StateInUseError):
        second.open()
    first.close()


# Formats


def test_a_newer_format_is_refused_by_its_number(path: Path) -> None:
    """Issue 2, Must hold: a state file of a newer version gets one clear line that says what to do."""
    store = SqliteStore(path)
    store.open()
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={FORMAT + 1}")
    connection.close()
    with pytest.raises(StateFormatError, match=f"newer version.*format {FORMAT + 1}.*update"):
        store.open()


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    """Issue 2, Must hold: not a database: one clear line; and the file is left as it is."""
    text = b"Dear diary, today I was no database at all.\n" * 100
    path.write_bytes(text)
    with pytest.raises(StateFormatError, match="can't be read as a state file"):
        SqliteStore(path).open()
    assert path.read_bytes() == text


def test_a_database_of_someone_else_is_refused_and_left_alone(path: Path) -> None:
    """Issue 2, Must hold: as above for a database that is not ours."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StateFormatError, match="not a state file"):
        SqliteStore(path).open()
    assert path.read_bytes() == before


def test_a_truncated_file_is_refused(path: Path) -> None:
    """Errors: StateFormatError: damaged."""
    store = SqliteStore(path)
    store.open()
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StateFormatError):
        store.open()


@pytest.mark.parametrize("name", ["ready_starts", "unfinished_activities"])
def test_starting_up_does_not_read_what_has_ended(path: Path, name: str) -> None:
    """DESIGN 2, Recovery: what is left to do is found by an index that ended instances are not in."""
    store = SqliteStore(path)
    store.open()
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {store._sql[name]}")]
    assert any("USING INDEX unfinished" in step for step in plan), plan
    assert not any(step.startswith("SCAN") for step in plan), plan


@pytest.mark.parametrize("name", ["outlines", "find_instance", "read_history"])
def test_a_page_of_instances_does_not_read_those_before_it(path: Path, name: str) -> None:
    """S-LIFE-12: nor does what it has of each: all of it is found by keys."""
    store = SqliteStore(path)
    store.open()
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        text = store._sql[name]
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", [1] * text.count("?"))]
    assert all(step.startswith("SEARCH") for step in plan), plan
    assert len(plan) == 1, "and nothing is sorted"


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 256])
def test_a_commit_does_not_read_whole_tables(path: Path, rows: int, columns: int) -> None:
    """DESIGN 2, Group commit: what it costs depends on what changes, not on all that is there."""
    store = SqliteStore(path)
    store.open()
    store.close()
    changes = {"set_custom_statuses": 3, "drop_timers": 2, "drop_detached": 3, "trim_history": 2}
    changes |= {name: 1 for name in store._sql if name.startswith(("purge_", "drop_messages"))}
    row = f"({','.join('?' * columns)})"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for name in (name for name, wanted in changes.items() if wanted == columns):
            text = store._sql[name].replace("{rows}", ",".join([row] * rows))
            parameters = [1] * text.count("?")
            plan = [step[3] for step in connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters)]
            tables = ("instances", "history", "messages", "timers", "detached_activities")
            assert not [s for s in plan if s.startswith("SCAN") and s.split()[1] in tables], (name, plan)
            assert any(step.startswith("SEARCH") for step in plan), (name, plan)


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    """A file made by ``touch`` or ``mktemp`` is no one's yet."""
    path.touch()
    store = SqliteStore(path)
    store.open()
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    connection.close()


def test_a_directory_in_its_place_is_an_error_that_names_it(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateError, match=r"engine\.db.*directory"):
        SqliteStore(path).open()
    path.rmdir()
    store = SqliteStore(path)
    store.open()  # what failed let go of the lock
    store.close()


def test_the_file_and_its_wal_are_the_owners_alone(tmp_path: Path) -> None:
    """DESIGN 2, Storage: the file and its WAL are created with mode 0600; a new directory 0700."""
    path = tmp_path / "state" / "engine.db"
    mask = os.umask(0)
    try:
        store = SqliteStore(path)
        store.open()
        batch = Batch()
        batch.instances.append(row(1, "i"))
        store.commit(batch)
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(["engine.db", "engine.db-wal", "engine.db-shm", "engine.db.lock"], 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_commits_are_synchronous_and_in_the_wal(path: Path) -> None:
    """DESIGN 2, Group commit: WAL, synchronous=FULL."""
    store = SqliteStore(path)
    store.open()
    writer = store._writer
    assert writer is not None
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()


# Batches: the contract of Store, which the simulation's store in memory keeps as well


@pytest.fixture(params=["file", "memory", "both"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[Store]:
    """An open store: the real one, the simulation's, and the one that compares the two at each read."""
    made: Store
    match request.param:
        case "file":
            made = SqliteStore(path)
        case "memory":
            made = MemoryStore(Disk())
        case _:
            made = TwinStore(path, Disk())
    made.open()
    yield made
    made.close()


def test_a_batch_is_written_whole_or_not_at_all(store: Store) -> None:
    """Store.commit: all of it or nothing."""
    good = Batch()
    good.instances.append(row(1, "i"))
    good.history += [event(1, 0, Kind.EXECUTION_STARTED, name="main")]
    store.commit(good)
    bad = Batch()
    bad.instances.append(row(1, "i", status=Status.COMPLETED))
    bad.add_timer(1, 1, START)
    bad.history += [event(1, 1, Kind.EVENT_RAISED, name="e"), event(1, 0, Kind.EVENT_RAISED, name="taken")]
    with pytest.raises(sqlite3.IntegrityError):
        store.commit(bad)
    found = store.find("i")
    assert found is not None
    assert found.status == Status.RUNNING
    assert [e.kind for e in store.history(1, 0)] == [Kind.EXECUTION_STARTED]
    assert list(store.timers(-1, 2 * START)) == []


def test_rows_come_back_as_they_went_in(store: Store) -> None:
    """Store: what is committed is what is read, in numbers that need several statements too."""
    batch = Batch()
    full = InstanceRow(
        1, "ï\0d", "main", "2", Status.SUSPENDED, 3, 7, "p", 2, 9, 1, 2, "in", "out", "f", '"s"', '{"a":"b"}'
    )
    batch.instances += [full, *(row(n, f"i{n}") for n in range(2, 700))]
    events = [event(1, n, Kind.EVENT_RAISED, n, name="é", ref="k", data="{}") for n in range(7, 500)]
    batch.history += events
    batch.messages += [(n, 1, Kind.EVENT_RAISED, n, "e", None, "1", 0) for n in range(1, 301)]
    for n in range(300):
        batch.add_timer(1, n, START + 300 - n)
    store.commit(batch)
    assert store.find("ï\0d") == full
    assert store.find("nobody") is None
    assert store.next_key() == 700
    assert store.next_message_id() == 301
    assert store.history(1, 7) == [HistoryEvent(*e[2:]) for e in events]
    assert store.last_event(1) == (499, START + 499)
    assert store.last_event(2) is None
    assert [m.task_id for _, m in store.messages()] == list(range(1, 301))
    assert [t.task_id for t in store.timers(START, START + 10)] == list(range(299, 289, -1))
    assert store.count_by_status() == {Status.SUSPENDED: 1, Status.RUNNING: 698}


def test_drops_and_trims(store: Store) -> None:
    """Store: a message kept and taken, a timer dropped and set again, a history begun anew: in one batch."""
    first = Batch()
    first.instances.append(row(1, "i"))
    first.history += [event(1, n, Kind.EVENT_RAISED) for n in range(5)]
    first.add_timer(1, 1, 100)
    first.add_timer(1, 2, 200)
    store.commit(first)
    second = Batch()
    second.messages.append((1, 1, Kind.EVENT_RAISED, 0, "e", None, None, 0))
    second.messages_gone.append((1,))
    second.history.append(event(1, 5, Kind.EXECUTION_COMPLETED))
    second.trims.append((1, 6))
    second.drop_timer(1, 1)
    second.add_timer(1, 1, 300)
    second.add_timer(1, 2, 400)
    second.drop_timer(1, 2)
    second.detached.append((1, 1, 9, "work", None))
    second.detached_gone.append((1, 1, 9))
    store.commit(second)
    assert store.messages() == []
    assert store.history(1, 0) == []
    assert list(store.timers(-1, 1_000)) == [StoredTimer("i", 1, 1, 300)]
    assert list(store.unfinished_activities()) == []


def test_unfinished_activities_are_those_asked_for_since_their_last_answer(store: Store) -> None:
    """DESIGN 2, Recovery: scheduled and not completed; a retry asks again under the same id."""
    batch = Batch()
    for key, status in ((1, Status.RUNNING), (2, Status.SUSPENDED), (3, Status.COMPLETED)):
        batch.instances.append(row(key, f"i{key}", status=status, first_seq=1, execution=2))
        batch.history += [
            event(key, 0, Kind.TASK_SCHEDULED, 7, name="of the execution before"),
            event(key, 1, Kind.TASK_SCHEDULED, 1, name="done"),
            event(key, 2, Kind.TASK_SCHEDULED, 2, name="open", data="2"),
            event(key, 3, Kind.TASK_SCHEDULED, 3, name="tried", data="old"),
            event(key, 4, Kind.TASK_COMPLETED, 1),
            event(key, 5, Kind.TASK_FAILED, 3),
            event(key, 6, Kind.TASK_SCHEDULED, 3, name="tried", data="new"),
            event(key, 7, Kind.TASK_SCHEDULED, 4, name="failed"),
            event(key, 8, Kind.TASK_FAILED, 4),
        ]
    batch.detached.append((3, 2, 5, "left behind", "5"))
    store.commit(batch)
    calls = [(c.instance_id, c.execution, c.task_id, c.name, c.input) for c in store.unfinished_activities()]
    assert calls == [
        ("i1", 2, 2, "open", "2"),
        ("i1", 2, 3, "tried", "new"),
        ("i2", 2, 2, "open", "2"),
        ("i2", 2, 3, "tried", "new"),
        ("i3", 2, 5, "left behind", "5"),
    ]


# A full disk


async def test_a_full_disk_is_waited_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Writer: a full disk is waited out; nothing is lost, and the trouble is told while it lasts."""
    monkeypatch.setattr(writer_module, "_FIRST_RETRY_S", 0.001)
    store = FullDiskStore(path)
    engine = Engine(store)
    engine.add_orchestrator(one_event)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(one_event, instance_id="i")
        store.full_for = 5
        raising = asyncio.create_task(client.raise_orchestration_event("i", "e", data="x"))
        await until(lambda: store.refused > 1)
        await until(lambda: engine.statistics().storage_trouble is not None or raising.done())
        assert await output_of(client, "i") == "x"
        await raising
        assert engine.statistics().storage_trouble is None
    assert store.refused == 5
    said = [record.getMessage() for record in caplog.records if record.name.endswith("writer")]
    assert len(said) == 2
    assert "No space left" in said[0]


async def test_a_disk_that_stays_full_does_not_keep_the_engine_from_stopping(path: Path) -> None:
    """Engine.stop with a batch that can't be written: who waits is told, and the file is whole."""
    store = FullDiskStore(path)
    engine = Engine(store)
    engine.add_orchestrator(one_event)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    await client.schedule_new_orchestration(one_event, instance_id="i")
    await client.wait_for_orchestration_start("i", timeout=LONG_S)
    store.full_for = 1_000_000
    raising = asyncio.create_task(client.raise_orchestration_event("i", "e", data="lost, and said so"))
    await until(lambda: engine.statistics().storage_trouble is not None)
    async with asyncio.timeout(LONG_S):
        await engine.stop()
    with pytest.raises(EngineStoppedError):
        await raising
    again = Engine(path)
    again.add_orchestrator(one_event)
    async with again:
        client = AsyncTaskHubClient(again)
        await client.raise_orchestration_event("i", "e", data="kept")
        assert await output_of(client, "i") == "kept"


async def test_a_really_full_database_is_waited_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store.commit: SQLITE_FULL is an OSError, the batch stays whole, and the same batch succeeds later."""
    monkeypatch.setattr(writer_module, "_FIRST_RETRY_S", 0.005)
    store = SqliteStore(path)
    engine = Engine(store)
    engine.add_orchestrator(one_event)
    async with engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(one_event, instance_id="i")
        await client.wait_for_orchestration_start("i", timeout=LONG_S)
        writer = store._writer
        assert writer is not None
        (pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count={pages}")
        large = "x" * 1_000_000
        raising = asyncio.create_task(client.raise_orchestration_event("i", "e", data=large))
        await until(lambda: engine.statistics().storage_trouble is not None)
        assert "full" in (engine.statistics().storage_trouble or "")
        assert not raising.done()
        writer.execute("PRAGMA max_page_count=1000000")
        await raising
        assert await output_of(client, "i") == large


async def test_pushing_back_while_the_disk_is_slow(path: Path) -> None:
    """DESIGN 2, Group commit: a full queue pushes back."""
    store = FullDiskStore(path)
    engine = Engine(store, options=EngineOptions(max_commit_rows=10))
    engine.add_orchestrator(one_event)
    await engine.start()
    client = AsyncTaskHubClient(engine)
    for n in range(50):
        await client.schedule_new_orchestration(one_event, instance_id=str(n))
        await client.wait_for_orchestration_start(str(n), timeout=LONG_S)
    store.full_for = 1_000_000
    sent = [engine.send(str(n), Message(Kind.EVENT_RAISED, name="e")) for n in range(50)]
    await until(lambda: store.refused > 0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert engine._commits.open.rows < 20
    store.full_for = 0
    await asyncio.gather(*sent)
    await engine.stop()
