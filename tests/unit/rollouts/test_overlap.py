"""Two rollouts that mean the same devices: the second waits for them, joins the first, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from provisioning.errors import NothingToDoError
from provisioning.rollouts.records import RolloutRefusedError
from provisioning.states import DeviceState
from tests.unit.rollouts.harness import Devices, Service, register, service_on

Json = dict[str, Any]


async def _first(service: Service, ids: list[str], *, in_flight: int = 100) -> str:
    """A rollout that has devices in hand, of which so many are in flight until `Devices.open`."""
    plan = {"targets": {"devices": ids}, "pace": {"in_flight": in_flight}}
    rollout_id: str = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
    await service.wait(rollout_id, lambda view: view["in_flight"] == min(in_flight, len(ids)))
    return rollout_id


async def test_a_waiting_rollout_starts_each_device_when_the_other_has_done_with_it(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 20)
        first = await _first(service, ids[:12])
        second = await service.rollouts.create(
            {"targets": {"devices": ids[4:]}, "overlap": "wait", "pace": {"in_flight": 5}}, actor="test"
        )
        assert second["devices"] == 16
        assert second["held"] == [{"run_id": first, "how": "wait", "devices": 8}]
        second_id = second["rollout_id"]
        view = await service.wait(second_id, lambda view: view["in_flight"] == 5)
        assert set(devices.started[12:]) <= set(ids[12:])
        devices.open.set()
        await service.ended(first)
        view = await service.ended(second_id)
        log = await service.rollouts.log(second_id)
    assert (view["state"], view["counts"]["provisioned"], view["held"]) == ("completed", 16, [])
    assert log[0]["detail"] == "16 devices, 8 in the hands of other runs (wait)"
    # Those of both were started twice, and never while they were in flight: that is checked by `Devices`.
    assert sorted(devices.started) == sorted([*ids[:12], *ids[4:]])
    assert devices.twice_at_once == set()


async def test_a_rollout_that_only_waits_says_for_whom_and_is_told_when_a_device_is_free(
    tmp_path: Path,
) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 3)
        first = await _first(service, ids)
        second = await service.rollouts.create({"targets": {"devices": ids}, "overlap": "wait"}, actor="test")
        view = await service.in_state(second["rollout_id"], "waiting")
        assert "3 devices in the hands of other runs" in view["reason"]
        assert view["counts"]["pending"] == 3
        devices.open.set()
        await service.ended(first)
        assert (await service.ended(second["rollout_id"]))["counts"]["provisioned"] == 3


async def test_those_who_wait_get_a_device_in_the_order_of_their_coming(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 1)
        runs = [await _first(service, ids)]
        for _ in range(3):
            plan = {"targets": {"devices": ids}, "overlap": "wait"}
            runs.append((await service.rollouts.create(plan, actor="test"))["rollout_id"])
        devices.open.set()
        ended = [(await service.ended(run_id))["ended_at"] for run_id in runs]
    assert len(devices.started) == 4
    assert ended == sorted(ended)


async def test_a_device_whose_state_is_not_wanted_after_the_wait_is_not_started(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    devices.outcome = lambda device_id: "failed" if device_id == "dev-00002" else "provisioned"
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 3)
        await _first(service, ids)
        plan = {"targets": {"devices": ids, "states": ["failed"]}, "overlap": "wait"}
        second = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        devices.open.set()
        view = await service.ended(second)
    assert (view["counts"]["failed"], view["counts"]["cancelled"]) == (1, 2)
    assert {one["state"] for one in view["reasons"]} == {"failed", "cancelled"}
    assert any("it is provisioned" in one["reason"] for one in view["reasons"])
    assert devices.started[3:] == ["dev-00002"]


async def test_a_joining_rollout_takes_the_others_outcomes_and_starts_nobody_twice(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    devices.outcome = lambda device_id: "timed_out" if device_id == "dev-00005" else "provisioned"
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 10)
        first = await _first(service, ids[:6], in_flight=2)
        second = await service.rollouts.create(
            {"targets": {"devices": ids[2:]}, "overlap": "join"}, actor="test"
        )
        assert second["held"] == [{"run_id": first, "how": "join", "devices": 4}]
        devices.open.set()
        first_view = await service.ended(first)
        view = await service.ended(second["rollout_id"])
    assert (view["counts"]["provisioned"], view["counts"]["timed_out"]) == (7, 1)
    assert (first_view["counts"]["provisioned"], first_view["counts"]["timed_out"]) == (5, 1)
    assert sorted(devices.started) == ids


@pytest.mark.parametrize("overlap", ["wait", "join"])
async def test_a_cancelled_rollout_leaves_alone_what_another_has(tmp_path: Path, overlap: str) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 5)
        first = await _first(service, ids)
        plan = {"targets": {"devices": ids}, "overlap": overlap}
        second = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.in_state(second, "waiting")
        await service.rollouts.act(second, "force_cancel", actor="ann")
        view = await service.ended(second)
        assert (view["state"], view["counts"]["cancelled"]) == ("cancelled", 5)
        devices.open.set()
        assert (await service.ended(first))["counts"]["provisioned"] == 5
        assert (await service.rollouts.view(second))["counts"]["cancelled"] == 5
    assert sorted(devices.started) == ids


@pytest.mark.parametrize("overlap", ["wait", "join"])
async def test_a_rollout_whose_orchestration_was_terminated_gets_no_device_any_more(
    tmp_path: Path, overlap: str
) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 2)
        first = await _first(service, ids)
        plan = {"targets": {"devices": ids}, "overlap": overlap}
        second = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.in_state(second, "waiting")
        await service.registry.end_run(
            second, status="terminated", left_over=DeviceState.CANCELLED, reason="by hand"
        )
        devices.open.set()
        await service.ended(first)
        view = await service.rollouts.view(second)
        found = {one.device_id: (one.state, one.run_id) for one in await service.registry.devices(limit=9)}
    assert view["counts"]["cancelled"] == 2
    assert found == dict.fromkeys(ids, (DeviceState.PROVISIONED, first))


async def test_devices_that_another_run_has_are_added_by_the_rollouts_rule(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 6)
        await _first(service, ids[:2])
        refusing = await _first(service, ids[2:4])
        with pytest.raises(RolloutRefusedError, match=r"--overlap.*wait takes them"):
            await service.rollouts.act(refusing, "add", actor="ann", devices=ids[:1])
        plan = {"targets": {"devices": ids[4:]}, "overlap": "wait"}
        waiting = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        added = await service.rollouts.act(waiting, "add", actor="ann", devices=ids[:1])
        assert added["view"]["held"][0]["devices"] == 1
        devices.open.set()
        assert (await service.ended(waiting))["counts"]["provisioned"] == 3
    assert sorted(devices.started) == sorted([*ids, ids[0]])


@pytest.mark.parametrize("overlap", ["wait", "join"])
async def test_a_service_that_ends_while_a_rollout_waits_is_gone_on_with(
    tmp_path: Path, overlap: str
) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 4)
        first = await _first(service, ids)
        plan = {"targets": {"devices": ids}, "overlap": overlap}
        second = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.in_state(second, "waiting")
    devices.open.set()
    async with service_on(tmp_path, devices) as service:
        await service.ended(first)
        view = await service.ended(second)
    assert (view["state"], view["counts"]["provisioned"]) == ("completed", 4)


async def test_a_preview_says_what_other_runs_have(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 4)
        first = await _first(service, ids[:3])
        preview = await service.rollouts.preview({"overlap": "wait"})
        assert (preview["devices"], preview["held"]) == (
            4,
            [{"run_id": first, "how": "wait", "devices": 3}],
        )
        # By itself it means new devices only: those in the hands of another are none.
        assert (await service.rollouts.preview({}))["devices"] == 1
        devices.open.set()
        await service.ended(first)


async def test_where_other_runs_have_all_that_is_meant_it_says_so(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        with pytest.raises(NothingToDoError, match=r"^No new device waits"):
            await service.rollouts.create({}, actor="test")
        await register(service.registry, 3)
        first = (await service.rollouts.create({}, actor="test"))["rollout_id"]
        for plan in ({}, {"targets": {"models": ["demo-1"]}}, {"overlap": "skip"}):
            with pytest.raises(NothingToDoError) as caught:
                await service.rollouts.create(plan, actor="test")
            assert str(caught.value) == (
                f"All devices that the plan means (3) are being provisioned by {first}: wait for its end, or "
                f"say by overlap (--overlap) wait or join what is to become of them."
            )
        devices.open.set()
        await service.ended(first)


async def test_what_was_only_rejected_is_not_said_to_be_tried_again(tmp_path: Path) -> None:
    devices = Devices()
    devices.outcome = lambda _: "rejected"
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 3)
        rollout_id = (await service.rollouts.create({}, actor="test"))["rollout_id"]
        assert (await service.ended(rollout_id))["reason"] == "0 of 3 devices provisioned."
        with pytest.raises(NothingToDoError, match=f"^No device of {rollout_id} ended as failed, timed out"):
            await service.rollouts.retry(rollout_id, actor="test")
