"""What is on disk becomes events, and nothing else does."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from provisioning.events.feed import MAX_DEVICES, Feed
from provisioning.events.hub import TOPICS, Reader, Topic
from provisioning.registry import Outcome, Registry
from provisioning.states import DeviceState
from tests.unit.events.watching import Event, World, feed, fleet, hub, take, until


class Watched:
    """A registry, what is made of its changes, and what else there is."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.hub = hub()
        self.world = World()
        self.feed: Feed

    def start(self, **changes: Any) -> None:
        self.feed = feed(self.hub, self.registry, self.world, **changes)
        self.feed.start()

    async def reader(self, *topics: Topic) -> Reader:
        async with self.feed.recording(topics or TOPICS):
            reader = self.hub.open(topics or TOPICS)
        await take(reader)
        return reader

    async def register(self, *device_ids: str) -> None:
        for device_id in device_ids:
            self.registry.register(device_id, model="m", firmware_version="1", tags={})
        await self.registry.flush()

    async def end(self, run_id: str, device_id: str, error: str | None = None) -> None:
        await self.registry.record_outcome(
            Outcome(
                run_id=run_id,
                device_id=device_id,
                state=DeviceState.FAILED if error else DeviceState.PROVISIONED,
                attempts=1,
                error=error,
                ended_at=5.0,
                device_s=1.0,
                steps_s={},
            )
        )


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    async with Registry(tmp_path / "registry.db", linger_s=0) as registry:
        found = Watched(registry)
        yield found
        found.hub.close()
        await found.feed.close()


def rows(events: list[Event]) -> dict[str, list[Any]]:
    """The latest that was said of each device."""
    return {row[0]: row for event in events if event.name == "devices" for row in event.data["devices"]}


async def test_a_device_is_followed_from_its_registration_to_its_end(watched: Watched) -> None:
    watched.start()
    reader = await watched.reader("devices")
    await watched.register("d1")
    assert rows(await take(reader)) == {"d1": ["d1", "new", None, 0, None, 1, None]}
    await watched.registry.claim("r1", None, options={}, limit=10)
    assert rows(await take(reader)) == {"d1": ["d1", "queued", "r1", 0, None, 1, None]}
    watched.registry.progress("r1", "d1", DeviceState.DOWNLOADING, attempt=1, progress=0.25)
    await watched.registry.flush()
    assert rows(await take(reader)) == {"d1": ["d1", "downloading", "r1", 1, 0.25, 1, None]}
    watched.registry.presence("d1", online=False)
    await watched.registry.flush()
    assert rows(await take(reader))["d1"][5] == 0
    await watched.end("r1", "d1", "it can't")
    assert rows(await take(reader)) == {"d1": ["d1", "failed", "r1", 1, 0.25, 0, "it can't"]}


async def test_many_changes_at_once_are_one_event_with_the_latest_of_each_device(watched: Watched) -> None:
    watched.start(devices_interval_s=3_600)
    reader = await watched.reader("devices")
    await watched.register("first")  # it goes at once; what follows waits for the next turn
    assert set(rows(await take(reader))) == {"first"}
    await watched.register(*(f"d{number}" for number in range(10)))
    await watched.registry.claim("r1", None, options={}, limit=20)
    for state in (DeviceState.PACKAGING, DeviceState.NOTIFIED):
        watched.registry.progress("r1", "d1", state, attempt=1)
        await watched.registry.flush()
    await watched.feed._publish_devices()
    (event,) = await take(reader)
    assert len(event.data["devices"]) == 11
    assert rows([event])["d1"][1] == "notified"


async def test_more_devices_than_an_event_may_have_are_more_events(watched: Watched) -> None:
    watched.start()
    reader = await watched.reader("devices")
    ids = [f"d{number:05d}" for number in range(MAX_DEVICES + 2)]
    await watched.register(*ids)
    events = await until(reader, lambda events: len(rows(events)) == len(ids))
    assert max(len(event.data["devices"]) for event in events) <= MAX_DEVICES


async def test_what_is_rolled_back_is_no_event(watched: Watched) -> None:
    watched.start()
    reader = await watched.reader("devices")
    await watched.register("d1")
    await take(reader)

    def fail(database: sqlite3.Connection) -> None:
        database.execute("UPDATE devices SET state = 'failed' WHERE device_id = 'd1'")
        raise ValueError

    with pytest.raises(ValueError):
        await watched.registry.transact(fail)
    await watched.register("d2")
    assert set(rows(await take(reader))) == {"d2"}


async def test_an_event_is_made_of_what_is_on_disk(watched: Watched) -> None:
    watched.start()
    reader = await watched.reader("devices")
    await watched.register("d1")
    (event,) = await take(reader)
    device = watched.registry.look_up("d1")
    assert device is not None
    assert rows([event])["d1"][1] == device.state


async def test_a_device_that_a_trigger_hands_on_is_seen(watched: Watched) -> None:
    """The second rollout waits for it: the outcome in the first gives it to that."""
    watched.start()
    await watched.register("d1")
    await watched.registry.claim("r1", None, options={}, limit=10)

    def wait(database: sqlite3.Connection) -> None:
        database.execute(
            "INSERT INTO rollouts (rollout_id, created_at, state, wave, generation, approved, skipped_to,"
            " forgiven, taken, next_at) VALUES ('r2', 1.0, 'waiting', 1, 1, '[]', 0, '{}', 0, 0.0)"
        )
        database.execute(
            "INSERT INTO rollout_devices (rollout_id, device_id, wave, place, held, held_by)"
            " VALUES ('r2', 'd1', 1, 1, 'wait', 'r1')"
        )

    await watched.registry.transact(wait)
    watched.world.rollouts = {"r2": {"n": 1}}
    watched.world.runs = {"r1": {"n": 2}}
    reader = await watched.reader()
    await watched.end("r1", "d1")
    events = await until(reader, lambda events: {event.name for event in events} >= {"devices", "rollout"})
    assert rows(events)["d1"][1:3] == ["queued", "r2"]
    assert [event.data for event in events if event.name == "rollout"] == [{"n": 1}]


async def test_a_run_or_a_rollout_is_told_when_it_looks_otherwise(watched: Watched) -> None:
    watched.start()
    watched.world.runs, watched.world.rollouts = {"r1": {"n": 1}}, {"r2": {"n": 7}}
    reader = await watched.reader("runs", "rollouts")
    await watched.register("d1", "d2", "d3")
    await watched.registry.claim("r1", ["d1"], options={}, limit=10)
    assert [(event.name, event.data) for event in await take(reader)] == [("run", {"n": 1})]
    await watched.registry.claim("r2", ["d2"], options={}, limit=10)
    assert [(event.name, event.data) for event in await take(reader)] == [("rollout", {"n": 7})]
    await watched.end("r1", "d1")  # it is looked at, and nothing has changed
    while len(watched.world.looks) < 4:  # noqa: ASYNC110 (the world tells nobody)
        await asyncio.sleep(0.001)
    watched.world.runs = {"r1": {"n": 2}}
    await watched.registry.end_run("r1", status="completed", left_over=DeviceState.FAILED, reason="x")
    assert [event.data for event in await take(reader)] == [{"n": 2}]


async def test_many_changes_of_a_run_are_few_looks_at_it(watched: Watched) -> None:
    watched.start(runs_interval_s=3_600)
    watched.world.runs = {"r1": {"n": 1}}
    reader = await watched.reader("runs")
    await watched.register(*(f"d{number}" for number in range(20)))
    await watched.registry.claim("r1", None, options={}, limit=20)
    await take(reader)
    for number in range(20):
        await watched.end("r1", f"d{number}")
    assert watched.world.looks.count("runs") == 1


async def test_fleets_are_looked_at_while_somebody_reads_them(watched: Watched) -> None:
    watched.start()
    watched.world.fleets = [fleet("f1")]
    other = await watched.reader("devices")
    await watched.register("d1")
    await take(other)
    assert "fleets" not in watched.world.looks
    reader = await watched.reader("fleets")
    assert [event.data["fleet_id"] for event in await take(reader)] == ["f1"]
    watched.world.fleets = [fleet("f1", connected=1), fleet("f2")]
    assert [(e.data["fleet_id"], e.data["connected"]) for e in await take(reader, 2)] == [
        ("f1", 1),
        ("f2", 0),
    ]
    watched.world.fleets = [fleet("f2")]
    (gone,) = await take(reader)
    assert (gone.data["fleet_id"], gone.data["running"], gone.data["removed"]) == ("f1", False, True)


async def test_nothing_is_noted_while_nobody_reads(watched: Watched) -> None:
    watched.hub = hub(linger_s=0)
    watched.start()

    def noting(database: sqlite3.Connection) -> int:
        return int(
            database.execute("SELECT count(*) FROM temp.sqlite_schema WHERE type = 'trigger'").fetchone()[0]
        )

    assert await watched.registry.transact(noting) == 0
    reader = await watched.reader("devices", "runs", "rollouts")
    assert await watched.registry.transact(noting) > 0
    watched.hub.leave(reader)
    while await watched.registry.transact(noting):  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0)
    await watched.register("d1")
    assert watched.hub.statistics().published == 0
    assert watched.world.looks == []


async def test_a_snapshot_and_what_follows_have_everything(watched: Watched) -> None:
    """While devices change all the time: the stream is opened, all is fetched, and the stream applied."""
    watched.start()
    ids = [f"d{number:03d}" for number in range(100)]
    await watched.register(*ids)

    async def work() -> None:
        for number, device_id in enumerate(ids):
            await watched.registry.claim(f"r{number}", [device_id], options={}, limit=1)

    async def look() -> dict[str, str | None]:
        reader = await watched.reader("devices")
        seen = {device.device_id: device.run_id for device in await watched.registry.devices(limit=200)}
        events = await until(reader, lambda events: "d099" in rows(events) or seen["d099"] is not None)
        watched.hub.leave(reader)
        return seen | {device_id: row[2] for device_id, row in rows(events).items()}

    working = asyncio.create_task(work())
    for _ in range(20):
        found = await look()
        if working.done():
            break
        begun = [device_id for device_id, run_id in found.items() if run_id is not None]
        assert begun == ids[: len(begun)], "none is missing among those that came before"
    await working
    assert await look() == {device_id: f"r{number}" for number, device_id in enumerate(ids)}


async def test_a_disk_that_is_away_ends_no_stream(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.start()
    watched.world.runs = {"r1": {"n": 1}}
    look, left = watched.feed._runs, 1

    async def failing(ids: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise sqlite3.OperationalError("disk I/O error")
        return await look(ids)

    monkeypatch.setattr(watched.feed, "_runs", failing)
    reader = await watched.reader("runs")
    await watched.register("d1", "d2")
    await watched.registry.claim("r1", ["d1"], options={}, limit=1)
    while left > 0:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.001)
    await watched.registry.end_run("r1", status="completed", left_over=DeviceState.FAILED, reason="x")
    assert [event.data for event in await take(reader)] == [{"n": 1}]


async def test_what_could_not_be_looked_at_is_looked_at_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.start()
    watched.world.runs = {"r1": {"n": 1}}
    look, left = watched.feed._runs, 1

    async def failing(ids: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise sqlite3.OperationalError("disk I/O error")
        return await look(ids)

    monkeypatch.setattr(watched.feed, "_runs", failing)
    reader = await watched.reader("runs")
    await watched.register("d1")
    await watched.registry.claim("r1", ["d1"], options={}, limit=1)
    async with asyncio.timeout(10):
        assert [event.data for event in await take(reader)] == [{"n": 1}]


async def test_fleets_are_looked_at_again_after_a_look_that_failed(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.start()
    look, left = watched.feed._fleets, 2

    async def failing() -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError("too many open files")
        return await look()

    monkeypatch.setattr(watched.feed, "_fleets", failing)
    await watched.reader("fleets")
    async with asyncio.timeout(10):
        while left > -3:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
