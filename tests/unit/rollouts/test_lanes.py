"""How many lanes a rollout has, whatever becomes of them: the bound on devices in flight, and not less."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from durabletask.task import ActivityContext

from provisioning.engine import AsyncTaskHubClient, Engine
from provisioning.registry import Registry
from provisioning.rollouts import orchestrations
from provisioning.rollouts.activities import RolloutActivities
from provisioning.rollouts.plan import RolloutPlan
from provisioning.rollouts.store import RolloutStore, TakeRequest
from tests.unit.rollouts.harness import Devices, Publisher, register, service_on

CONTINUOUS = {"targets": {"continuous": True}}


def _has_in_flight(number: int, view: dict[str, Any]) -> bool:
    return bool(view["in_flight"] == number)


async def test_devices_that_keep_coming_get_lanes_and_no_history_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrations, "STEPS_PER_EXECUTION", 4)
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        plan = {**CONTINUOUS, "pace": {"in_flight": 12}}
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        for number in range(1, 13):
            await register(service.registry, 1, prefix=f"one-{number}")
            # None of those before has ended: each needs a lane of its own.
            await service.wait(rollout_id, partial(_has_in_flight, number))
        await register(service.registry, 20, prefix="more")
        await service.wait(rollout_id, lambda view: view["counts"]["pending"] == 20)
        await asyncio.sleep(1.5)
        devices.open.set()
        await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 32)
    assert devices.most_in_flight == 12
    assert len(devices.started) == 32
    with contextlib.closing(sqlite3.connect(tmp_path / "engine.db")) as database:
        query = "SELECT max(events) FROM (SELECT count(*) AS events FROM history GROUP BY instance)"
        assert database.execute(query).fetchone()[0] < 100


async def test_devices_in_flight_whose_lanes_were_ended_by_hand_count_when_others_join(
    tmp_path: Path,
) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 3)
        plan = {**CONTINUOUS, "pace": {"in_flight": 4}}
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 3)
        for instance_id in (f"{rollout_id}#1", *(f"{rollout_id}#1#{lane}" for lane in (1, 2, 3))):
            await service.client.terminate_orchestration(instance_id, recursive=False)
        await register(service.registry, 10, prefix="more")
        await service.wait(rollout_id, lambda view: view["in_flight"] == 4)
        await asyncio.sleep(2.5)
        devices.open.set()
        await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 13)
    assert devices.most_in_flight == 4


async def test_a_decision_that_nobody_heard_of_has_started_no_lanes(tmp_path: Path) -> None:
    now = time.time()
    async with Registry(tmp_path / "registry.db") as registry:
        store = RolloutStore(registry)
        await register(registry, 1)
        plan = RolloutPlan.from_json({**CONTINUOUS, "pace": {"in_flight": 8}})
        await store.create("r", plan, actor="test", now=now)
        begun = await store.decide("r", now=now, under_way=None)
        assert (begun["first_lane"], begun["lanes"]) == (1, 1)
        generation = begun["generation"]
        request = TakeRequest(rollout_id="r", wave=1, generation=generation, lane=1, seq=1, now=now)
        assert (await store.take(request)).device_id == "dev-00001"
        await register(registry, 4)
        await store.join(None, now=now)
        under_way = {"generation": generation, "wave": 1, "lanes": 1}
        for _ in range(2):
            # The service dies after the first, and its engine has not got the answer.
            more = await store.decide("r", now=now, under_way=under_way)
            assert (more["generation"], more["first_lane"], more["lanes"]) == (generation, 2, 3)
        assert (await store.decide("r", now=now, under_way={**under_way, "lanes": 4}))["lanes"] == 0


async def test_a_rollout_that_was_paused_is_told_of_a_device_that_is_free(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 3)
        plan = {"targets": {"devices": ids[:2]}, "schedule": {"start_at": "2100-01-01T00:00:00Z"}}
        first = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        plan = {"targets": {"devices": ids}, "overlap": "wait", "pace": {"in_flight": 1}}
        second = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.wait(second, lambda view: view["in_flight"] == 1)
        # Its lane stops for the pause, and not for want of devices.
        await service.rollouts.act(second, "pause", actor="ann")
        devices.open.set()
        await service.wait(second, lambda view: view["counts"]["provisioned"] == 1)
        await service.rollouts.act(second, "resume", actor="ann")
        await service.in_state(second, "waiting")
        await service.rollouts.act(first, "exclude", actor="ann", devices=ids[:1])
        await service.wait(second, lambda view: view["counts"]["provisioned"] == 2, timeout_s=10.0)


async def test_a_question_that_is_asked_again_after_hours_is_answered_by_the_time_it_is_then(
    tmp_path: Path,
) -> None:
    asked = datetime(2030, 1, 7, 10, 30, tzinfo=UTC)
    async with Registry(tmp_path / "registry.db") as registry:
        store = RolloutStore(registry)
        await register(registry, 1)
        plan = RolloutPlan.from_json({"schedule": {"windows": [{"from": "10:00", "to": "11:00"}]}})
        await store.create("r", plan, actor="test", now=asked.timestamp())
        begun = await store.decide("r", now=asked.timestamp(), under_way=None)
        request = {"rollout_id": "r", "wave": 1, "generation": begun["generation"], "lane": 1, "seq": 1}
        async with Engine(tmp_path / "engine.db") as engine:
            activities = RolloutActivities(
                store=store,
                client=AsyncTaskHubClient(engine),
                publisher=Publisher(),
                publish_timeout_s=1.0,
                clock=lambda: asked.timestamp() + 7_200.0,
            )
            taken = await activities.take_device(
                ActivityContext("r", 1), {**request, "now": asked.isoformat()}
            )
    assert (taken["device_id"], taken["stop"]) == (None, "window")
