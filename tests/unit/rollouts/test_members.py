"""A rollout's devices one by one: where each is, what became of it, its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning.rollouts.records import NotInRolloutError, UnknownRolloutError
from tests.unit.rollouts.harness import Devices, register, service_on


async def test_devices_come_by_pages_with_what_became_of_them_in_this_rollout(tmp_path: Path) -> None:
    devices = Devices()
    devices.outcome = lambda device_id: "failed" if device_id == "dev-00002" else "provisioned"
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 5)
        plan = {"waves": [{"count": 2}, {}], "targets": {"devices": ids}}
        first = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.ended(first)
        devices.outcome = lambda _: "provisioned"
        second = (await service.rollouts.retry(first, actor="test"))["rollout_id"]
        await service.ended(second)

        page = await service.rollouts.devices(first, limit=3)
        assert (page["total"], page["next"]) == (5, "dev-00003")
        shown = [(one["device_id"], one["wave"], one["state"], one["error"]) for one in page["devices"]]
        # As it ended here, though the later rollout brought it home.
        assert shown == [
            ("dev-00001", 1, "provisioned", None),
            ("dev-00002", 1, "failed", "it failed"),
            ("dev-00003", 2, "provisioned", None),
        ]
        rest = await service.rollouts.devices(first, after=page["next"], limit=3)
        assert ([one["device_id"] for one in rest["devices"]], rest["next"]) == (ids[3:], None)
        failed = await service.rollouts.devices(first, states=["failed"], limit=9)
        assert (failed["total"], [one["device_id"] for one in failed["devices"]]) == (1, ["dev-00002"])
        second_wave = await service.rollouts.devices(first, wave=2, limit=9)
        assert second_wave["total"] == len(second_wave["devices"]) == 3
        assert (await service.rollouts.device(second, "dev-00002"))["state"] == "provisioned"
        with pytest.raises(NotInRolloutError, match="muster rollout devices"):
            await service.rollouts.device(second, "dev-00001")
        with pytest.raises(UnknownRolloutError):
            await service.rollouts.devices("rollout-x", limit=1)


async def test_what_is_shown_of_devices_under_way_agrees_with_the_counts(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 6)
        first = await service.rollouts.create({"targets": {"devices": ids[:2]}}, actor="test")
        await service.wait(first["rollout_id"], lambda view: view["in_flight"] == 2)
        plan = {"targets": {"devices": ids}, "overlap": "join", "pace": {"in_flight": 3}}
        second = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        view = await service.wait(second, lambda view: view["in_flight"] == 3)
        found = (await service.rollouts.devices(second, limit=9))["devices"]
        states = [one["state"] for one in found]
        assert {state: states.count(state) for state in set(states)} == {
            state: count for state, count in view["counts"].items() if count
        }
        assert [one["held_by"] for one in found[:3]] == [first["rollout_id"]] * 2 + [None]
        joined = await service.rollouts.device(second, ids[0])
        assert joined["instance_id"] == f"{first['rollout_id']}:{ids[0]}"
        devices.open.set()
        await service.ended(second)
