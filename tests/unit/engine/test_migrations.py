"""State files of earlier formats: opened by this version, they go on where they stood."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from provisioning.engine import AsyncTaskHubClient, Engine, StateError
from provisioning.engine.sqlite_store import APPLICATION_ID, FORMAT, SqliteStore
from tests.unit.engine.driving import Ctx, Steps
from tests.unit.engine.waiting import output_of, until

FORMATS = Path(__file__).parent / "formats"
"""The schema of each earlier format, as it was."""


def collects(ctx: Ctx, first: int) -> Steps:
    doubled = yield ctx.call_activity("double", input=first)
    ctx.set_custom_status("waiting")
    event = yield ctx.wait_for_external_event("go")
    return [doubled, event]


async def double(_: Any, value: int) -> int:
    return value * 2


def engine_on(path: Path) -> Engine:
    engine = Engine(path)
    engine.add_orchestrator(collects)
    engine.add_named_activity("double", double)
    return engine


def as_format(number: int, path: Path) -> None:
    """Write the file's content anew under the schema of an earlier format of the same columns."""
    kept = path.with_name("kept.db")
    path.rename(kept)
    with sqlite3.connect(path) as old:
        old.executescript((FORMATS / f"{number}.sql").read_text())
        old.execute("ATTACH ? AS kept", (str(kept),))
        tables = old.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'").fetchall()
        for (table,) in tables:
            old.execute(f"INSERT INTO main.{table} SELECT * FROM kept.{table}")
        old.execute(f"PRAGMA application_id={APPLICATION_ID}")
        old.execute(f"PRAGMA user_version={number}")
    old.close()
    kept.unlink()


async def test_instances_of_an_earlier_format_go_on(path: Path) -> None:
    async with engine_on(path) as engine:
        client = AsyncTaskHubClient(engine)
        for number in range(20):
            await client.schedule_new_orchestration(collects, input=number, instance_id=f"i{number}")
        await client.schedule_new_orchestration(collects, input=99, instance_id="ended")
        await client.raise_orchestration_event("ended", "go", data="early")
        await output_of(client, "ended")
        await until(lambda: all(_status(engine, f"i{n}") == '"waiting"' for n in range(20)))
    as_format(1, path)

    async with engine_on(path) as engine:
        client = AsyncTaskHubClient(engine)
        assert await output_of(client, "ended") == [198, "early"]
        for number in range(20):
            await client.raise_orchestration_event(f"i{number}", "go", data=number)
            assert await output_of(client, f"i{number}") == [number * 2, number]
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (FORMAT,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    database.close()
    fresh = path.with_name("fresh.db")
    store = SqliteStore(fresh)
    store.open()
    store.close()
    with sqlite3.connect(fresh) as database:
        assert tables == {
            name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        }
    database.close()


async def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    async with engine_on(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.schedule_new_orchestration(collects, input=1, instance_id="i")
        await until(lambda: _status(engine, "i") == '"waiting"')
    as_format(1, path)
    with sqlite3.connect(path) as database:  # what the migration wants to make is there already
        database.execute("CREATE TABLE history_by_instance (x)")
    database.close()

    with pytest.raises(StateError, match=r"engine\.db"):
        await engine_on(path).start()

    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM history").fetchone()[0] > 0
        database.execute("DROP TABLE history_by_instance")
    database.close()
    async with engine_on(path) as engine:
        client = AsyncTaskHubClient(engine)
        await client.raise_orchestration_event("i", "go", data=1)
        assert await output_of(client, "i") == [2, 1]


def _status(engine: Engine, instance_id: str) -> str | None:
    row = engine.read(instance_id)
    return None if row is None else row.custom_status
