"""Rollouts run by the embedded engine: waves, bounds, gates, aborts, operators, and services that end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from provisioning.errors import EngineAwayError, NothingToDoError, UnknownDeviceError
from provisioning.rollouts.records import RolloutRefusedError, Take, UnknownRolloutError
from provisioning.rollouts.store import RolloutStore, TakeRequest
from provisioning.states import DeviceState
from tests.unit.rollouts.harness import Devices, Service, register, service_on

CANARY = [{"percent": 5}, {"percent": 25}, {"percent": 100}]


async def test_waves_follow_each_other_and_every_device_is_started_once(tmp_path: Path) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 100)
        made = await service.rollouts.create({"waves": CANARY, "pace": {"in_flight": 7}}, actor="test")
        view = await service.ended(made["rollout_id"])
        assert (view["state"], view["devices"]) == ("completed", 100)
        assert view["counts"]["provisioned"] == 100
        assert [wave["devices"] for wave in view["waves"]] == [5, 20, 75]
        assert {wave["state"] for wave in view["waves"]} == {"done"}
        log = await service.log(made["rollout_id"])
    assert devices.started == ids
    assert devices.most_in_flight == 7
    assert log == ["created", "running", "completed"]


async def test_what_is_in_flight_is_never_more_than_the_bound(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 30)
        made = await service.rollouts.create({"pace": {"in_flight": 4}}, actor="test")
        await service.wait(made["rollout_id"], lambda view: view["in_flight"] == 4)
        view = await service.rollouts.view(made["rollout_id"])
        assert view["counts"]["pending"] == 26
        devices.open.set()
        await service.ended(made["rollout_id"])
    assert devices.most_in_flight == 4


async def test_a_gate_waits_for_an_approval(tmp_path: Path) -> None:
    devices = Devices()
    plan = {"waves": [{"count": 3, "gate": "approval"}, {}]}
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 10)
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        view = await service.in_state(rollout_id, "awaiting_approval")
        assert "muster rollout approve" in view["reason"]
        assert len(devices.started) == 3
        assert (await service.rollouts.act(rollout_id, "approve", actor="ann"))["changed"]
        view = await service.ended(rollout_id)
        log = await service.rollouts.log(rollout_id)
    assert view["state"] == "completed"
    assert [(line["actor"], line["what"]) for line in log] == [
        ("test", "created"),
        ("muster", "running"),
        ("muster", "awaiting_approval"),
        ("ann", "approve"),
        ("muster", "running"),
        ("muster", "completed"),
    ]


async def test_next_starts_the_next_wave_whatever_is_before_it(tmp_path: Path) -> None:
    devices = Devices()
    plan = {"waves": [{"count": 3, "gate": "pause", "pause_s": 3600}, {"count": 2, "gate": "approval"}, {}]}
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 8)
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.in_state(rollout_id, "waiting")
        assert (await service.rollouts.act(rollout_id, "next", actor="ann"))["changed"]
        await service.in_state(rollout_id, "awaiting_approval")
        await service.rollouts.act(rollout_id, "next", actor="ann")
        assert (await service.ended(rollout_id))["counts"]["provisioned"] == 8


async def test_a_wave_below_its_threshold_stops_the_rollout_until_somebody_approves(tmp_path: Path) -> None:
    devices = Devices()
    devices.outcome = lambda device_id: "failed" if device_id <= "dev-00002" else "provisioned"
    plan = {"waves": [{"count": 4, "success_threshold_percent": 75}, {}]}
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 10)
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        view = await service.in_state(rollout_id, "paused")
        assert "50 %" in view["reason"]
        assert len(devices.started) == 4
        await service.rollouts.act(rollout_id, "approve", actor="ann")
        view = await service.ended(rollout_id)
    assert (view["state"], view["counts"]["provisioned"], view["counts"]["failed"]) == ("completed", 8, 2)
    assert view["reasons"] == [{"state": "failed", "reason": "it failed", "count": 2, "example": "dev-00001"}]


@pytest.mark.parametrize("action", ["pause", "cancel"])
async def test_a_rollout_aborts_exactly_when_a_criterion_is_met(tmp_path: Path, action: str) -> None:
    devices = Devices()
    devices.outcome = lambda device_id: "provisioned" if device_id <= "dev-00007" else "timed_out"
    criterion = {"on": "timed_out", "threshold_percent": 30, "min_sample": 10, "action": action}
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 50)
        plan = {"abort": [criterion], "pace": {"in_flight": 1}}
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        state = "paused" if action == "pause" else "cancelled"
        view = await service.in_state(rollout_id, state)
        # Seven went well: the third time-out is the tenth device, and 30 %.
        assert len(devices.started) == 10
        assert view["counts"]["timed_out"] == 3
        if action == "cancel":
            assert view["counts"]["cancelled"] == 40
            return
        # Whoever resumes has seen that; it pauses again when as many have timed out since.
        await service.rollouts.act(rollout_id, "resume", actor="ann")
        view = await service.wait(
            rollout_id, lambda v: v["state"] == "paused" and v["counts"]["timed_out"] > 3
        )
        assert view["counts"]["timed_out"] == 13


async def test_a_pause_lets_those_in_flight_finish_and_starts_nobody_else(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 20)
        rollout_id = (await service.rollouts.create({"pace": {"in_flight": 3}}, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 3)
        first = await service.rollouts.act(rollout_id, "pause", actor="ann", reason="lunch")
        again = await service.rollouts.act(rollout_id, "pause", actor="ann", reason="lunch")
        assert (first["changed"], again["changed"]) == (True, False)
        assert first["view"]["state"] == "paused"
        assert "ann, lunch" in first["view"]["reason"]
        devices.open.set()
        view = await service.wait(rollout_id, lambda view: view["in_flight"] == 0)
        assert (view["counts"]["provisioned"], view["counts"]["pending"]) == (3, 17)
        assert (await service.rollouts.act(rollout_id, "resume", actor="ann"))["changed"]
        assert (await service.ended(rollout_id))["counts"]["provisioned"] == 20


@pytest.mark.parametrize("force", [False, True])
async def test_a_cancelled_rollout_lets_those_in_flight_finish_or_tells_them(
    tmp_path: Path, force: bool
) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 20)
        rollout_id = (await service.rollouts.create({"pace": {"in_flight": 3}}, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 3)
        action = "force_cancel" if force else "cancel"
        await service.rollouts.act(rollout_id, action, actor="ann")
        await service.wait(rollout_id, lambda view: view["counts"]["cancelled"] >= 17)
        if not force:
            assert (await service.rollouts.view(rollout_id))["state"] == "cancelling"
            devices.open.set()
        view = await service.ended(rollout_id)
        devices.open.set()
        told = [topic for topic in service.publisher.published if topic.endswith("/commands/Cancel")]
        with pytest.raises(RolloutRefusedError, match="has ended"):
            await service.rollouts.act(rollout_id, "resume", actor="ann")
    assert view["state"] == "cancelled"
    assert view["counts"]["cancelled"] == (20 if force else 17)
    assert len(told) == (3 if force else 0)
    assert len(devices.started) == 3


async def test_a_retry_takes_those_that_failed_and_names_the_rollout(tmp_path: Path) -> None:
    devices = Devices()
    devices.outcome = lambda device_id: {"dev-00002": "failed", "dev-00005": "timed_out"}.get(
        device_id, "provisioned"
    )
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 6)
        devices.open.clear()
        first = (await service.rollouts.create({"name": "spring"}, actor="test"))["rollout_id"]
        with pytest.raises(RolloutRefusedError, match="has not ended"):
            await service.rollouts.retry(first, actor="ann")
        devices.open.set()
        await service.ended(first)
        devices.outcome = lambda _: "provisioned"
        second = await service.rollouts.retry(first, actor="ann")
        view = await service.ended(second["rollout_id"])
    assert (view["retry_of"], view["name"], view["devices"]) == (first, "spring", 2)
    assert devices.started[6:] == ["dev-00002", "dev-00005"]


async def test_the_pace_can_be_changed_while_it_runs(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 40)
        rollout_id = (await service.rollouts.create({"pace": {"in_flight": 2}}, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 2)
        await service.rollouts.act(rollout_id, "pace", actor="ann", pace={"in_flight": 9})
        devices.open.set()
        await service.ended(rollout_id)
        log = await service.rollouts.log(rollout_id)
    assert devices.most_in_flight <= 9
    assert devices.most_in_flight > 2
    assert ("pace", "in_flight 9") in {(line["what"], line["detail"]) for line in log}


async def test_devices_are_excluded_and_added(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 6)
        plan = {"targets": {"devices": [f"dev-{n:05d}" for n in range(1, 5)]}, "pace": {"in_flight": 1}}
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 1)
        excluded = await service.rollouts.act(
            rollout_id, "exclude", actor="ann", devices=["dev-00001", "dev-00003"]
        )
        added = await service.rollouts.act(rollout_id, "add", actor="ann", devices=["dev-00006"])
        again = await service.rollouts.act(rollout_id, "add", actor="ann", devices=["dev-00006"])
        assert [one["changed"] for one in (excluded, added, again)] == [True, True, False]
        with pytest.raises(UnknownDeviceError):
            await service.rollouts.act(rollout_id, "add", actor="ann", devices=["nobody"])
        devices.open.set()
        view = await service.ended(rollout_id)
    assert devices.started == ["dev-00001", "dev-00002", "dev-00004", "dev-00006"]
    assert (view["devices"], view["counts"]["cancelled"], view["counts"]["provisioned"]) == (5, 1, 4)


async def test_a_rollout_that_cannot_be_read_holds_up_no_other(tmp_path: Path) -> None:
    async with service_on(tmp_path, Devices()) as service:
        await register(service.registry, 4)
        store = RolloutStore(service.registry)
        good = (await service.rollouts.create({"schedule": {"start_at": "2190-01-01T00:00:00Z"}}, actor="t"))[
            "rollout_id"
        ]
        asked = [
            TakeRequest(rollout_id=rollout_id, wave=1, generation=0, lane=1, seq=1, now=0.0)
            for rollout_id in ("rollout-gone", good)
        ]
        gone, there = await asyncio.gather(*(store.take(one) for one in asked), return_exceptions=True)
    assert isinstance(gone, UnknownRolloutError)
    assert there == Take(stop="scheduled")


@pytest.mark.parametrize(("status", "state"), [("failed", "failed"), ("terminated", "cancelled")])
async def test_a_rollout_ends_with_its_orchestration_however_that_ends(
    tmp_path: Path, status: str, state: str
) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 5)
        rollout_id = (await service.rollouts.create({"pace": {"in_flight": 2}}, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 2)
        # What whoever watches the run does when its orchestration has ended like this.
        await service.registry.end_run(
            rollout_id, status=status, left_over=DeviceState.FAILED, reason="it broke"
        )
        view = await service.rollouts.view(rollout_id)
        devices.open.set()
    assert (view["state"], view["in_flight"], view["counts"]["failed"]) == (state, 0, 5)
    assert status in view["reason"]


async def test_a_forced_cancel_ends_what_is_in_flight_though_the_broker_is_away(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 6)
        rollout_id = (await service.rollouts.create({"pace": {"in_flight": 3}}, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 3)
        service.publisher.away = True
        await service.rollouts.act(rollout_id, "force_cancel", actor="ann")
        view = await service.wait(rollout_id, lambda view: view["counts"]["cancelled"] == 6)
        assert view["in_flight"] == 0
        service.publisher.away = False
        await service.ended(rollout_id)
        devices.open.set()
    # It was tried again until they could be told.
    assert len([topic for topic in service.publisher.published if topic.endswith("/commands/Cancel")]) >= 3


async def test_two_rollouts_never_have_the_same_device(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        ids = await register(service.registry, 8)
        first = (await service.rollouts.create({"targets": {"devices": ids[:5]}}, actor="test"))["rollout_id"]
        with pytest.raises(RolloutRefusedError, match=r"dev-00004 and 1 more|dev-00004, dev-00005 are being"):
            await service.rollouts.create({"targets": {"devices": ids[3:]}}, actor="test")
        second = await service.rollouts.create(
            {"targets": {"devices": ids[3:]}, "overlap": "skip"}, actor="test"
        )
        assert second["devices"] == 3
        devices.open.set()
        await service.ended(first)
        await service.ended(second["rollout_id"])
    assert sorted(devices.started) == ids


async def test_targets_are_by_model_tag_and_share(tmp_path: Path) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 40)
        await register(service.registry, 40, model="other", prefix="oth")
        preview = await service.rollouts.preview(
            {"targets": {"models": ["other"], "tags": {"site": "lab"}, "percent": 50}, "waves": CANARY}
        )
        assert 10 < preview["devices"] < 30
        assert sum(preview["waves"]) == preview["devices"]
        with pytest.raises(NothingToDoError, match=r"^No device is as the plan's targets say, and new: "):
            await service.rollouts.preview({"targets": {"tags": {"site": "field"}}})
        with pytest.raises(UnknownRolloutError):
            await service.rollouts.preview({"targets": {"failed_in": "rollout-x"}})


async def test_a_pace_by_the_minute_spaces_the_starts(tmp_path: Path) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 6)
        plan = {"pace": {"in_flight": 4, "per_minute": 600}}
        view = await service.rollouts.create(plan, actor="test")
        view = await service.ended(view["rollout_id"])
    assert view["counts"]["provisioned"] == 6
    # Ten a second: five intervals between six starts.
    assert view["elapsed_s"] >= 0.5


PHASES: list[Any] = ["running", "paused", "awaiting_approval", "cancelling"]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_service_that_ends_in_any_phase_is_gone_on_with(tmp_path: Path, phase: str) -> None:
    devices = Devices()
    devices.open.clear()
    plan = {"waves": [{"count": 4, "gate": "approval"}, {}], "pace": {"in_flight": 2}}
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 12)
        rollout_id = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
        await service.wait(rollout_id, lambda view: view["in_flight"] == 2)
        if phase == "paused":
            await service.rollouts.act(rollout_id, "pause", actor="ann")
        elif phase == "cancelling":
            await service.rollouts.act(rollout_id, "cancel", actor="ann")
        elif phase == "awaiting_approval":
            devices.open.set()
        await service.in_state(rollout_id, phase)
    devices.open.set()
    async with service_on(tmp_path, devices) as service:
        if phase == "paused":
            await service.in_state(rollout_id, "paused")
            await service.rollouts.act(rollout_id, "resume", actor="ann")
        if phase != "cancelling":
            await service.in_state(rollout_id, "awaiting_approval")
            await service.rollouts.act(rollout_id, "approve", actor="ann")
        view = await service.ended(rollout_id)
    if phase == "cancelling":
        assert (view["state"], view["counts"]["provisioned"], view["counts"]["cancelled"]) == (
            "cancelled",
            2,
            10,
        )
    else:
        assert (view["state"], view["counts"]["provisioned"]) == ("completed", 12)
    # Activities that the end has cut off run again: at least once. Nobody else is started.
    assert len(set(devices.started)) == view["counts"]["provisioned"]


async def test_an_engine_that_is_away_is_told_later_what_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.rollouts.operations._AWAY_INTERVAL_S", 0.01)
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 3)
        away = True
        client = service.rollouts._client

        class Client:
            def __getattr__(self, name: str) -> Any:
                if away and name in ("schedule_new_orchestration", "raise_orchestration_event"):
                    raise EngineAwayError("the engine", "gone")
                return getattr(client, name)

        monkeypatch.setattr(service.rollouts, "_client", Client())
        made = await service.rollouts.create({"waves": [{"count": 1, "gate": "approval"}, {}]}, actor="test")
        assert made["state"] == "scheduled"
        away = False
        await service.in_state(made["rollout_id"], "awaiting_approval")
        away = True
        assert (await service.rollouts.act(made["rollout_id"], "approve", actor="ann"))["changed"]
        away = False
        assert (await service.ended(made["rollout_id"]))["counts"]["provisioned"] == 3


async def _one_that_hangs(service: Service, devices: Devices, plan: dict[str, Any]) -> str:
    """A rollout whose first device is in flight for as long as the test likes."""
    devices.hanging = {"dev-00001"}
    await register(service.registry, 20)
    rollout_id: str = (await service.rollouts.create(plan, actor="test"))["rollout_id"]
    await service.wait(rollout_id, lambda view: devices.in_flight == {"dev-00001"} and view["wave"] == 1)
    return rollout_id


async def test_the_next_wave_starts_now_though_a_device_of_this_one_takes_long(tmp_path: Path) -> None:
    devices = Devices()
    plan = {"waves": [{"count": 2}, {"count": 6}, {}], "pace": {"in_flight": 3}}
    async with service_on(tmp_path, devices) as service:
        rollout_id = await _one_that_hangs(service, devices, plan)
        await service.rollouts.act(rollout_id, "next", actor="ann")
        await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 7, timeout_s=5.0)
        await service.rollouts.act(rollout_id, "next", actor="ann")
        await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 19, timeout_s=15.0)
        devices.let_go()
        await service.ended(rollout_id)
    assert devices.most_in_flight == 3


@pytest.mark.parametrize("actions", [[("pace", {"in_flight": 4})], [("pause", None), ("resume", None)]])
async def test_what_an_operator_changes_does_not_wait_for_a_device_that_takes_long(
    tmp_path: Path, actions: list[tuple[str, dict[str, Any] | None]]
) -> None:
    devices = Devices()
    devices.outcome = lambda device_id: "failed" if device_id == "dev-00003" else "provisioned"
    criterion = {"on": "failed", "threshold_percent": 1, "min_sample": 1, "action": "pause"}
    async with service_on(tmp_path, devices) as service:
        rollout_id = await _one_that_hangs(
            service, devices, {"abort": [criterion], "pace": {"in_flight": 2, "order": "id"}}
        )
        # The criterion is met while that device is in flight, and all can see it.
        await service.in_state(rollout_id, "paused")
        view = await service.rollouts.view(rollout_id)
        assert (view["in_flight"], view["counts"]["failed"]) == (1, 1)
        await service.rollouts.act(rollout_id, "resume", actor="ann")
        for action, pace in actions:
            await service.rollouts.act(rollout_id, action, actor="ann", pace=pace)
        await service.wait(rollout_id, lambda view: view["counts"]["provisioned"] == 18, timeout_s=15.0)
        devices.let_go()
        await service.ended(rollout_id)


@pytest.mark.parametrize("at_end", ["finish", "cancel", "force_cancel"])
async def test_the_end_of_the_schedule_comes_while_a_device_takes_long(tmp_path: Path, at_end: str) -> None:
    devices = Devices()
    end_at = datetime.now(UTC) + timedelta(seconds=1)
    plan = {"schedule": {"end_at": end_at.isoformat(), "at_end": at_end}, "waves": [{"count": 1}, {}]}
    async with service_on(tmp_path, devices) as service:
        rollout_id = await _one_that_hangs(service, devices, plan)
        if at_end == "force_cancel":
            view = await service.ended(rollout_id)
            assert (view["state"], view["counts"]["cancelled"]) == ("cancelled", 20)
            assert service.publisher.published == ["devices/dev-00001/commands/Cancel"]
        elif at_end == "cancel":
            view = await service.in_state(rollout_id, "cancelling")
            await service.wait(rollout_id, lambda view: view["counts"]["cancelled"] == 19)
        else:
            view = await service.wait(rollout_id, lambda view: "schedule ended" in (view["reason"] or ""))
            assert (view["state"], view["in_flight"]) == ("running", 1)
        devices.let_go()
        await service.ended(rollout_id)


async def test_a_resume_that_is_asked_twice_approves_nothing(tmp_path: Path) -> None:
    devices = Devices()
    plan = {"waves": [{"count": 3, "gate": "approval"}, {}], "pace": {"in_flight": 1}}
    async with service_on(tmp_path, devices) as service:
        rollout_id = await _one_that_hangs(service, devices, plan)
        await service.rollouts.act(rollout_id, "pause", actor="ann")
        both = await asyncio.gather(
            *(service.rollouts.act(rollout_id, "resume", actor="ann") for _ in range(2))
        )
        assert [one["changed"] for one in both] == [True, False]
        devices.let_go()
        await service.in_state(rollout_id, "awaiting_approval")
