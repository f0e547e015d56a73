"""The registry keeps what it said it kept, and ignores news that comes late, twice or from elsewhere."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import stat
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from provisioning import registry as registry_module
from provisioning.registry import (
    _SCHEMAS,
    SCHEMA_VERSION,
    Outcome,
    Registry,
    RegistryClosedError,
    RegistryFormatError,
)
from provisioning.releases.tables import ReleaseTables
from provisioning.rollouts.store import RolloutStore
from provisioning.rollouts.views import RolloutViews
from provisioning.states import FINAL, WORKING, DeviceState, may_follow

S = DeviceState


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with Registry(tmp_path / "registry.db", linger_s=0.001) as opened:
        yield opened


async def _register(registry: Registry, *device_ids: str) -> None:
    for device_id in device_ids:
        registry.register(device_id, model="m", firmware_version="0.9", tags={"site": "a"})
    await registry.flush()


def _outcome(device_id: str, state: S = S.PROVISIONED, run_id: str = "r1", **changes: Any) -> Outcome:
    given: dict[str, Any] = {
        "run_id": run_id,
        "device_id": device_id,
        "state": state,
        "attempts": 1,
        "error": None if state is S.PROVISIONED else "because",
        "ended_at": 1000.0,
        "device_s": 2.0,
        "steps_s": {"packaging": 0.5},
        **changes,
    }
    return Outcome(**given)


async def _state(registry: Registry, device_id: str) -> tuple[S, int]:
    await registry.flush()
    device = await registry.device(device_id)
    assert device is not None
    return device.state, device.attempt


async def test_a_registered_device_is_new_and_registering_again_changes_no_state(registry: Registry) -> None:
    await _register(registry, "d1")
    device = await registry.device("d1")
    assert device is not None
    assert (device.state, device.online, device.tags) == (S.NEW, True, {"site": "a"})
    await registry.claim("r1", ["d1"], options={}, limit=10)
    registry.register("d1", model="m2", firmware_version="1.0", tags={})
    assert await _state(registry, "d1") == (S.QUEUED, 0)
    device = await registry.device("d1")
    assert device is not None
    assert (device.model, device.firmware_version, device.tags) == ("m2", "1.0", {})


async def test_presence_is_kept_for_registered_devices_only(registry: Registry) -> None:
    registry.presence("ghost", online=True)
    await _register(registry, "d1")
    registry.presence("d1", online=False)
    await registry.flush()
    assert await registry.device("ghost") is None
    device = await registry.device("d1")
    assert device is not None
    assert not device.online


async def test_a_claim_takes_the_new_devices_once_and_says_the_same_again(registry: Registry) -> None:
    await _register(registry, "d2", "d1")
    assert await registry.claim("r1", None, options={"max_attempts": 2}, limit=10) == ["d1", "d2"]
    await _register(registry, "d3")
    assert await registry.claim("r1", None, options={}, limit=10) == ["d1", "d2"]
    assert await registry.claim("r2", None, options={}, limit=10) == ["d3"]
    run = await registry.run("r1")
    assert run is not None
    assert (run.devices, run.status, run.options) == (2, "running", {"max_attempts": 2})


async def test_a_claim_by_name_leaves_out_the_unknown_and_the_busy(registry: Registry) -> None:
    await _register(registry, "d1", "d2", "d3")
    await registry.claim("r1", ["d1", "d2"], options={}, limit=10)
    await registry.record_outcome(_outcome("d1", S.FAILED))
    assert await registry.claim("r2", ["d1", "d2", "ghost"], options={}, limit=10) == ["d1"]


async def test_two_claims_at_once_share_no_device(registry: Registry) -> None:
    await _register(registry, *(f"d{n}" for n in range(50)))
    one, other = await asyncio.gather(
        registry.claim("r1", None, options={}, limit=30), registry.claim("r2", None, options={}, limit=30)
    )
    assert (len(one), len(other)) == (30, 20)
    assert not set(one) & set(other)


async def test_late_news_has_no_effect(registry: Registry) -> None:
    await _register(registry, "d1")
    await registry.claim("r1", None, options={}, limit=10)
    registry.progress("r1", "d1", S.DOWNLOADED, attempt=1)
    await registry.flush()
    registry.progress("r1", "d1", S.NOTIFIED, attempt=1)
    assert await _state(registry, "d1") == (S.DOWNLOADED, 1)
    registry.progress("r1", "d1", S.PACKAGING, attempt=2)
    assert await _state(registry, "d1") == (S.PACKAGING, 2)
    registry.progress("r1", "d1", S.ACTIVATING, attempt=1)
    registry.progress("r0", "d1", S.ACTIVATING, attempt=3)
    assert await _state(registry, "d1") == (S.PACKAGING, 2)
    await registry.record_outcome(_outcome("d1", attempts=2))
    registry.progress("r1", "d1", S.ACTIVATING, attempt=9)
    assert await _state(registry, "d1") == (S.PROVISIONED, 2)


@pytest.mark.parametrize("seed", range(5))
async def test_batches_of_any_size_come_to_what_the_table_allows(tmp_path: Path, seed: int) -> None:
    """Random news, flushed at random moments, against the table applied one by one."""
    print(f"seed {seed}")
    choose = random.Random(seed)
    async with Registry(tmp_path / "registry.db", linger_s=0) as registry:
        await _register(registry, "d1")
        await registry.claim("r1", None, options={}, limit=1)
        state, attempt = S.QUEUED, 0
        for _ in range(200):
            # In the order in which the service makes them: attempts never go back by more than lateness.
            after, number = choose.choice(WORKING[1:]), max(1, attempt + choose.choice((-1, 0, 0, 0, 1)))
            registry.progress("r1", "d1", after, attempt=number)
            if number >= attempt and may_follow(state, after, later_attempt=number > attempt):
                state, attempt = after, number
            if choose.random() < 0.3:
                assert await _state(registry, "d1") == (state, attempt)
        assert await _state(registry, "d1") == (state, attempt)


async def test_the_first_outcome_stays_and_belongs_to_its_run(registry: Registry) -> None:
    await _register(registry, "d1")
    await registry.claim("r1", None, options={}, limit=10)
    await registry.record_outcome(_outcome("d1", S.TIMED_OUT))
    await registry.claim("r2", ["d1"], options={}, limit=10)
    # The activity of the first run once more, after a crash, while the second run is under way.
    await registry.record_outcome(_outcome("d1", S.PROVISIONED))
    assert (await _state(registry, "d1"))[0] is S.QUEUED
    await registry.record_outcome(_outcome("d1", S.PROVISIONED, run_id="r2", firmware_version="2.0"))
    first, second = await registry.run_statistics("r1"), await registry.run_statistics("r2")
    assert first.counts[S.TIMED_OUT] == second.counts[S.PROVISIONED] == 1
    assert sum(first.counts.values()) == sum(second.counts.values()) == 1
    device = await registry.device("d1")
    assert device is not None
    assert device.firmware_version == "2.0"


async def test_counts_failures_and_percentiles_of_a_run(registry: Registry) -> None:
    device_ids = [f"d{n:03d}" for n in range(1, 101)]
    await _register(registry, *device_ids, "spare")
    await registry.claim("r1", [*device_ids], options={}, limit=1000)
    await asyncio.gather(
        *(
            registry.record_outcome(
                _outcome(device_id, device_s=float(n), steps_s={"packaging": n / 10}, ended_at=float(n))
            )
            for n, device_id in enumerate(device_ids[:-3], start=1)
        ),
        registry.record_outcome(_outcome(device_ids[-1], S.FAILED, ended_at=500.0)),
        registry.record_outcome(_outcome(device_ids[-2], S.REJECTED, ended_at=600.0)),
    )
    registry.progress("r1", device_ids[-3], S.DOWNLOADING, attempt=1, progress=0.25)
    await registry.flush()
    statistics = await registry.run_statistics("r1", max_failures=1)
    assert {state: n for state, n in statistics.counts.items() if n} == {
        S.PROVISIONED: 97,
        S.FAILED: 1,
        S.REJECTED: 1,
        S.DOWNLOADING: 1,
    }
    assert [failure.device_id for failure in statistics.failures] == [device_ids[-2]]
    assert statistics.percentiles["device"] == {50: 49.0, 95: 93.0, 99: 97.0}
    assert statistics.percentiles["packaging"][50] == 4.9


async def test_the_percentiles_of_a_run_that_has_ended_are_of_all_its_devices(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long those from while it was under way may serve: a slow disk makes that long."""
    monkeypatch.setattr(registry_module, "_PERCENTILE_DUTY", 1e-12)
    await _register(registry, "d1")
    await registry.claim("r1", ["d1"], options={}, limit=10)
    assert (await registry.run_statistics("r1")).percentiles == {}
    await registry.record_outcome(_outcome("d1", device_s=2.0))
    statistics = await registry.run_statistics("r1")
    assert statistics.percentiles["device"] == {50: 2.0, 95: 2.0, 99: 2.0}


async def test_a_run_that_ends_leaves_no_device_busy(registry: Registry) -> None:
    await _register(registry, "d1", "d2")
    await registry.claim("r1", None, options={}, limit=10)
    await registry.record_outcome(_outcome("d1"))
    for status in ("terminated", "completed"):  # the second call is one too many, and changes nothing
        await registry.end_run("r1", status=status, left_over=S.CANCELLED, reason="the run was terminated")
    assert (await _state(registry, "d2"))[0] is S.CANCELLED
    statistics = await registry.run_statistics("r1")
    assert (statistics.counts[S.PROVISIONED], statistics.counts[S.CANCELLED]) == (1, 1)
    assert statistics.failures[0].error == "the run was terminated"
    run = await registry.run("r1")
    assert run is not None
    assert run.status == "terminated"
    assert await registry.open_runs() == []


async def test_a_look_up_sees_what_is_written_and_nothing_when_closed(tmp_path: Path) -> None:
    async with Registry(tmp_path / "registry.db", linger_s=0.001) as registry:
        await _register(registry, "d1")
        device = registry.look_up("d1")
        assert device is not None
        assert device.device_id == "d1"
        assert registry.look_up("ghost") is None
    with pytest.raises(RegistryClosedError):
        registry.look_up("d1")


async def test_pages_and_filters(registry: Registry) -> None:
    await _register(registry, *(f"d{n}" for n in range(5)))
    await registry.claim("r1", ["d1", "d3"], options={}, limit=10)
    page = await registry.devices(limit=2)
    rest = await registry.devices(limit=10, after=page[-1].device_id)
    assert [device.device_id for device in (*page, *rest)] == ["d0", "d1", "d2", "d3", "d4"]
    assert [device.device_id for device in await registry.devices(limit=9, run_id="r1")] == ["d1", "d3"]
    assert await registry.count_devices(state=S.NEW) == 3
    assert (await registry.states())[S.QUEUED] == 2


async def test_a_run_keeps_its_devices_and_what_became_of_them(registry: Registry) -> None:
    await _register(registry, "d1", "d2", "d3", "other")
    await registry.claim("r1", ["d1", "d2", "d3"], options={}, limit=10)
    await registry.record_outcome(_outcome("d1", S.TIMED_OUT))
    await registry.record_outcome(_outcome("d2"))
    await registry.claim("r2", ["d1"], options={}, limit=10)
    registry.progress("r1", "d3", S.DOWNLOADING, attempt=1, progress=0.25)
    await registry.flush()
    rows = [
        *await registry.run_devices("r1", limit=2),
        *await registry.run_devices("r1", after="d2", limit=2),
    ]
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("d1", "timed_out", "because"),
        ("d2", "provisioned", None),
        ("d3", "downloading", None),
    ], "d1 ended so in this run, wherever it is now"
    assert [row[3] for row in rows] == [None, 1.0, 0.25]
    assert rows[1][8:] == (1000.0, 2.0, 0.5, None, None, None)
    assert [row[:2] for row in await registry.run_devices("r2", limit=9)] == [("d1", "queued")]


async def test_what_was_confirmed_is_there_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    confirmed: list[str] = []
    async with Registry(path) as registry:
        for n in range(20):
            registry.register(
                f"d{n}",
                model="m",
                firmware_version="1",
                tags={},
                then=lambda error, n=n: confirmed.append(f"d{n}") if error is None else None,  # type: ignore[misc]
            )
        await registry.flush()
        # A copy of the files as a crash would leave them: what is only in memory is not in it.
        copy = tmp_path / "crashed.db"
        for suffix in ("", "-wal"):
            copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    async with Registry(copy) as after:
        assert len(confirmed) == 20
        assert await after.count_devices() == 20


async def test_closing_writes_what_waits_and_refuses_what_comes(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    errors: list[BaseException | None] = []
    registry = Registry(path, linger_s=60)
    async with registry:
        registry.register("d1", model="m", firmware_version="1", tags={}, then=errors.append)
    registry.register("d2", model="m", firmware_version="1", tags={}, then=errors.append)
    assert errors[0] is None
    assert isinstance(errors[1], RegistryClosedError)
    async with Registry(path) as again:
        assert [device.device_id for device in await again.devices(limit=9)] == ["d1"]


def _modes(directory: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


async def test_the_file_is_private_and_an_identity_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with Registry(path) as registry:
        assert await registry.identity("client", lambda: "one") == "one"
        assert _modes(tmp_path) == {0o600}
    async with Registry(path) as registry:
        assert await registry.identity("client", lambda: "two") == "one"


@pytest.mark.parametrize("what", ["newer", "text", "foreign"])
async def test_a_file_that_is_no_registry_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "registry.db"
    if what == "text":
        path.write_text("this is no database, whatever its name says" * 100)
    elif what == "foreign":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE recipes (name TEXT)")
    else:
        async with Registry(path):
            pass
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
    with pytest.raises(RegistryFormatError, match=r"registry\.db.*state directory"):
        async with Registry(path):
            pass


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
async def test_a_registry_of_a_format_before_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    path = tmp_path / "registry.db"
    with sqlite3.connect(path) as database:
        schema = "".join(
            files("provisioning").joinpath(name).read_text("utf-8") for name in _SCHEMAS[:version]
        )
        database.executescript(
            f"{schema} PRAGMA application_id = {0x4D555354}; PRAGMA user_version = {version};"
        )
        database.execute(
            "INSERT INTO devices VALUES ('d1', 'm', '1', '{}', 1, 1, 'provisioned', 'r0', 1, 1, NULL, 2)"
        )
        database.execute(
            "INSERT INTO runs (run_id, started_at, ended_at, status, devices, options)"
            " VALUES ('r0', 1.0, 2.0, 'completed', 1, '{}')"
        )
    database.close()
    for _ in range(2):
        async with Registry(path) as registry:
            assert (await _state(registry, "d1"))[0] is DeviceState.PROVISIONED
            assert [run.run_id for run in await registry.runs(limit=9)] == ["r0"]
            assert await RolloutViews(registry).latest() == []
            assert [(run.options, run.release) for run in await registry.runs(limit=9)] == [({}, None)]
            assert await registry.ask(lambda database: ReleaseTables(database).all()) == []
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


async def test_rollouts_of_the_format_before_go_on(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    package = files("provisioning")
    with sqlite3.connect(path) as database:
        for schema in ("registry_schema.sql", "rollouts/schema.sql"):
            database.executescript(package.joinpath(schema).read_text("utf-8"))
        database.executescript(f"PRAGMA application_id = {0x4D555354}; PRAGMA user_version = 2;")
        database.execute("INSERT INTO runs VALUES ('rollout-1', 1.0, NULL, 'running', 1, '{}')")
        database.execute(
            "INSERT INTO devices VALUES ('d1', 'm', '1', '{}', 1, 1, 'queued', 'rollout-1', 0, NULL, NULL, 2)"
        )
        plan = json.dumps({"name": "spring", "pace": {"in_flight": 3}})
        database.execute(
            "INSERT INTO rollouts VALUES ('rollout-1', ?, NULL, 1.0, NULL, 'scheduled', NULL, 0, 0, NULL,"
            " '[]', 0, '{}', NULL, NULL, 0, 0.0)",
            (plan,),
        )
        database.execute("INSERT INTO rollout_devices VALUES ('rollout-1', 'd1', 1, 1, NULL, NULL, NULL)")
    database.close()
    async with Registry(path) as registry:
        view = await RolloutViews(registry).view("rollout-1", now=5.0)
        assert (view["name"], view["plan"]["pace"]["in_flight"], view["counts"]["pending"]) == (
            "spring",
            3,
            1,
        )
        decision = await RolloutStore(registry).decide("rollout-1", now=5.0, under_way=None)
        assert (decision["do"], decision["lanes"]) == ("run_wave", 1)


async def test_writes_wait_for_a_disk_that_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning.registry._RETRY_INTERVAL_S", 0.001)
    async with Registry(tmp_path / "registry.db", linger_s=0) as registry:
        write, left = registry._transact, 3

        def failing(work: Any) -> Any:
            nonlocal left
            if left:
                left -= 1
                raise sqlite3.OperationalError("database or disk is full")
            return write(work)

        monkeypatch.setattr(registry, "_transact", failing)
        await _register(registry, "d1")
        assert (left, registry.statistics().commit_failures) == (0, 3)
        assert await registry.count_devices() == 1


async def test_every_end_can_be_recorded(registry: Registry) -> None:
    names = {end: f"d-{end}" for end in sorted(FINAL)}
    await _register(registry, *names.values())
    await registry.claim("r1", None, options={}, limit=10)
    await asyncio.gather(*(registry.record_outcome(_outcome(name, end)) for end, name in names.items()))
    for end, name in names.items():
        assert (await _state(registry, name))[0] is end
