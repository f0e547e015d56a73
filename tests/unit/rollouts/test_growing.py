"""Rollouts that devices come to while they run."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from provisioning.registry import Registry, statements
from provisioning.rollouts import store
from provisioning.rollouts.operations import Rollouts
from tests.unit.rollouts.harness import Devices, register, service_on

CONTINUOUS = {"targets": {"continuous": True, "models": ["demo-1"]}}


async def test_devices_that_register_later_join_a_continuous_rollout(tmp_path: Path) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 3)
        rollout_id = (await service.rollouts.create(CONTINUOUS, actor="test"))["rollout_id"]
        view = await service.in_state(rollout_id, "waiting")
        assert view["counts"]["provisioned"] == 3
        assert "waits for devices that register" in view["reason"]
        later = await register(service.registry, 4, prefix="later")
        await register(service.registry, 2, prefix="other", model="other")
        view = await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 7)
        log = await service.rollouts.log(rollout_id)
        await service.rollouts.act(rollout_id, "cancel", actor="ann")
        view = await service.ended(rollout_id)
        await register(service.registry, 1, prefix="too-late")
    assert (view["state"], view["devices"]) == ("cancelled", 7)
    assert devices.started[3:] == later
    assert [line["detail"] for line in log if line["what"] == "joined"] == [
        "4 devices, the latest later-00001, later-00002, later-00003, later-00004"
    ]


async def test_a_continuous_rollout_may_begin_without_any_device_and_ends_with_its_deadline(
    tmp_path: Path,
) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        plan = {"targets": {"continuous": True}, "deadlines": {"rollout_s": 0.3}}
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.in_state(rollout_id, "waiting")
        await register(service.registry, 2)
        view = await service.ended(rollout_id)
    assert (view["state"], view["counts"]["provisioned"]) == ("completed", 2)


async def test_devices_that_register_while_nobody_looks_join_at_the_next_start(tmp_path: Path) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        rollout_id = (await service.rollouts.create(CONTINUOUS, actor="test"))["rollout_id"]
        await service.in_state(rollout_id, "waiting")
        # As if the service died between a registration and what follows from it.
        service.registry.on_registered = lambda device_ids: None
        await register(service.registry, 5)
    async with service_on(tmp_path, devices) as service:
        await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 5)


async def test_a_device_joins_the_oldest_of_several_continuous_rollouts_and_once(tmp_path: Path) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        first = (await service.rollouts.create(CONTINUOUS, actor="test"))["rollout_id"]
        await service.in_state(first, "waiting")
        second = (await service.rollouts.create(CONTINUOUS, actor="test"))["rollout_id"]
        await service.in_state(second, "waiting")
        await register(service.registry, 3)
        await service.wait(first, lambda view: view["counts"]["provisioned"] == 3)
        # What it says of itself again makes it join nothing again.
        await register(service.registry, 3)
        await asyncio.sleep(0.2)
        assert (await service.rollouts.view(first))["devices"] == 3
        assert (await service.rollouts.view(second))["devices"] == 0
    assert len(devices.started) == 3


async def test_devices_that_join_get_lanes_of_their_own_and_the_bound_holds(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 1)
        plan = {"targets": {"devices": ids}, "pace": {"in_flight": 4}}
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 1)
        more = await register(service.registry, 9, prefix="more")
        await service.rollouts.act(rollout_id, "add", actor="ann", devices=more)
        # The one that is in flight stays so: the others don't wait for it.
        await service.wait(rollout_id, lambda view: view["in_flight"] == 4)
        await service.rollouts.act(rollout_id, "add", actor="ann", devices=[more[0]])
        devices.open.set()
        view = await service.ended(rollout_id)
    assert view["counts"]["provisioned"] == 10
    assert devices.most_in_flight == 4


async def test_a_device_whose_wave_and_orchestration_were_ended_by_hand_does_not_stay_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOOK_AGAIN_S", 0.2)
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 3)
        rollout_id = (await service.rollouts.create({"pace": {"in_flight": 1}}, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 1)
        # The wave with all that is below it.
        await service.client.terminate_orchestration(f"{rollout_id}#1", recursive=True)
        devices.open.set()
        view = await service.ended(rollout_id)
    assert (view["counts"]["failed"], view["counts"]["provisioned"]) == (1, 2)
    assert "ended by hand" in view["reasons"][0]["reason"]


async def test_the_start_of_a_device_costs_the_same_whether_the_plan_names_few_or_many(
    tmp_path: Path,
) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 3_000)
        plan = {"targets": {"devices": ids}, "pace": {"in_flight": 1}}
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 1)
        view = await service.rollouts.view(rollout_id)
        # A page of ids, and how many there are.
        assert len(view["plan"]["targets"]["devices"]) == 100
        assert view["plan"]["targets"]["devices_named"] == 3_000
        await service.rollouts.act(rollout_id, "cancel", actor="ann")
        devices.open.set()
        await service.ended(rollout_id)
    database = sqlite3.connect(tmp_path / "registry.db")
    longest = database.execute(
        "SELECT max(length(rollout_id) + length(coalesce(reason, ''))) FROM rollouts"
    ).fetchone()[0]
    columns = {row[1] for row in database.execute("PRAGMA table_info(rollouts)")}
    database.close()
    # What each start writes again holds no plan.
    assert "plan" not in columns
    assert longest < 1_000


async def test_what_registers_between_a_rollouts_creation_and_its_start_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Rollouts._start

    async def start_late(rollouts: Rollouts, rollout_id: str) -> None:
        await register(service.registry, 3)
        await start(rollouts, rollout_id)

    async with service_on(tmp_path, Devices()) as service:
        # It is known by now that no rollout takes in what registers.
        await asyncio.sleep(0.2)
        monkeypatch.setattr(Rollouts, "_start", start_late)
        rollout_id = (await service.rollouts.create(CONTINUOUS, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 3, timeout_s=10.0)


async def test_the_devices_of_other_runs_that_are_no_new_ones_join_at_no_restart(tmp_path: Path) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 3)
        plan = {"targets": {"devices": ids}}
        await service.ended((await service.rollouts.create(plan, actor="test"))["rollout_id"])
        waiting = {**CONTINUOUS, "overlap": "wait"}
        rollout_id = (await service.rollouts.create(waiting, actor="test"))["rollout_id"]
        await service.in_state(rollout_id, "waiting")
        devices.open.clear()
        other = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.wait(other, lambda view: view["in_flight"] == 3)
        # Nor where one of them is switched on again.
        await register(service.registry, 1)
        await asyncio.sleep(0.2)
        assert (await service.rollouts.view(rollout_id))["devices"] == 0
    devices.open.set()
    async with service_on(tmp_path, devices) as service:
        await service.ended(other)
        await register(service.registry, 1, prefix="later")
        await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 1)
        assert (await service.rollouts.view(rollout_id))["devices"] == 1


@pytest.mark.parametrize(
    "name", ["waiting", "in_flight_by_wave", "in_flight", "strays", "may_go_on", "last_place"]
)
async def test_what_is_asked_at_each_joining_reads_no_device_that_has_ended(
    tmp_path: Path, name: str
) -> None:
    sql = statements("provisioning.rollouts", "statements.sql")[name]
    arguments = ("r", 1, "1.")[: 1 if "?1" not in sql else 3 if "?3" in sql else 2 if "?2" in sql else 1]
    async with Registry(tmp_path / "registry.db") as registry:
        plan = await registry.ask(
            lambda database: database.execute(f"EXPLAIN QUERY PLAN {sql}", arguments).fetchall()
        )
    of_devices = [
        step for *_, step in plan if "rollout_devices" in step and step.startswith(("SEARCH", "SCAN"))
    ]
    # Partial indexes have only those that have not.
    partial = ("rollout_devices_next", "rollout_devices_held ", "rollout_devices_in_flight")
    assert all(any(index in step for index in partial) for step in of_devices), plan
