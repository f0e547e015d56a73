"""Rollouts with real devices: a canary, an abort, a retry that brings the rest home."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from broker.local import LocalBroker, start_broker
from devices.control import ControlAddress
from devices.roster import Change
from provisioning.azurite import LocalAzurite
from provisioning.service import Service
from provisioning.settings import ServiceSettings

from .driving import Api, instance_counts, service_process, wait_until

pytestmark = pytest.mark.real

CANARY = [{"percent": 5, "success_threshold_percent": 50}, {"percent": 25}, {"percent": 100}]
OPTIONS = {"ack_timeout_s": 20, "activation_timeout_s": 20, "max_attempts": 2}


@pytest_asyncio.fixture
async def own_broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    """A broker that knows no devices of other tests."""
    async with await start_broker(state_dir=tmp_path / "broker", port=0) as broker:
        yield broker


@contextlib.asynccontextmanager
async def fleet(
    broker_url: str, trust: str, directory: Path, *, count: int, behaviours: str
) -> AsyncIterator[Path]:
    """Real devices in a process that can be told of changes."""
    control = directory / "control"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devices", "--broker", broker_url, "--count", str(count)),
        *("--trust", trust, "--behaviours", behaviours, "--control-file", str(control)),
    )
    try:
        yield control
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


def settings(directory: Path, broker: LocalBroker, azurite: LocalAzurite, container: str) -> ServiceSettings:
    return ServiceSettings(
        state_dir=directory,
        broker_url=broker.url,
        blob_connection_string=azurite.connection_string,
        container=container,
        api_port=0,
    )


async def ended(api: Api, rollout_id: str, *states: str) -> dict[str, Any]:
    view: dict[str, Any] = {}

    async def check() -> bool:
        nonlocal view
        view = await api.get(f"/api/rollouts/{rollout_id}")
        assert sum(view["counts"].values()) == view["devices"]
        return view["state"] in states

    await wait_until(f"{rollout_id} is {' or '.join(states)}", check, timeout_s=180)
    return view


@pytest.mark.timeout(300)
async def test_a_canary_goes_through_and_a_retry_brings_the_rest_home(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    plan = {
        "name": "canary",
        "waves": CANARY,
        "pace": {"in_flight": 100, "order": "random"},
        "abort": [{"on": "all", "threshold_percent": 20, "min_sample": 25}],
        "options": OPTIONS,
    }
    async with Service(settings(state_dir, own_broker, azurite, unique)):
        api = Api(state_dir)
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        weights = "healthy=0.9,out-of-storage=0.05,rejects=0.05"
        async with fleet(own_broker.url, trust, tmp_path, count=500, behaviours=weights) as control:
            await api.wait_registered(500)
            status, created = await api.call("POST", "/api/rollouts", {"plan": plan, "actor": "test"})
            assert status == 201, created
            assert [wave["devices"] for wave in created["waves"]] == [25, 100, 375]
            view = await ended(api, created["rollout_id"], "completed", "paused", "cancelled")
            assert view["state"] == "completed", view["reason"]
            assert (view["counts"]["provisioned"], view["counts"]["failed"], view["counts"]["rejected"]) == (
                450,
                25,
                25,
            )
            assert {reason["count"] for reason in view["reasons"]} == {25}
            # Somebody makes room, and gives them the right model.
            address = ControlAddress.read(control)
            assert address is not None
            assert await address.tell(Change(do="behave", behaviour="healthy"), number=None) == 500
            status, retry = await api.call(
                "POST",
                f"/api/rollouts/{created['rollout_id']}/retry",
                {"states": ["failed", "timed_out", "rejected"]},
            )
            assert status == 201, retry
            again = await ended(api, retry["rollout_id"], "completed")
            assert (again["retry_of"], again["counts"]["provisioned"]) == (created["rollout_id"], 50)
            assert (await api.get("/api/statistics"))["states"]["provisioned"] == 500


@pytest.mark.timeout(300)
async def test_a_rollout_that_goes_wrong_stops_before_it_has_done_much(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    plan = {
        "waves": CANARY,
        "pace": {"in_flight": 5},
        "abort": [{"on": "failed", "threshold_percent": 20, "min_sample": 5, "action": "cancel"}],
        "options": OPTIONS,
    }
    async with Service(settings(state_dir, own_broker, azurite, unique)):
        api = Api(state_dir)
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        async with fleet(
            own_broker.url, trust, tmp_path, count=100, behaviours="healthy=0.5,bad-signature=0.5"
        ):
            await api.wait_registered(100)
            status, created = await api.call("POST", "/api/rollouts", {"plan": plan})
            assert status == 201, created
            view = await ended(api, created["rollout_id"], "cancelled")
            log = (await api.get(f"/api/rollouts/{created['rollout_id']}/log"))["log"]
    assert "reaches the 20 %" in view["reason"]
    counts = view["counts"]
    # Five in flight when the criterion was met may have ended after it.
    assert 5 <= counts["provisioned"] + counts["failed"] <= 15
    assert counts["cancelled"] == 100 - counts["provisioned"] - counts["failed"]
    assert log[-1]["what"] == "cancelled"


async def test_what_cannot_be_is_refused_with_its_key(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    async with Service(settings(state_dir, own_broker, azurite, unique)):
        api = Api(state_dir)
        status, problem = await api.call("POST", "/api/rollouts", {"plan": {"waves": [{"percnt": 5}, {}]}})
        assert (status, problem["detail"]) == (
            422,
            "waves[0].percnt: there is no such key; did you mean 'percent'?",
        )
        assert (await api.call("POST", "/api/rollouts", {"plan": {}}))[0] == 409
        assert (await api.call("GET", "/api/rollouts/rollout-x"))[0] == 404
        assert (await api.get("/api/rollouts"))["rollouts"] == []


@pytest.mark.parametrize("phase", ["running", "awaiting_approval", "paused", "cancelling", "retrying"])
async def test_a_kill_in_any_phase_leads_to_the_same_end(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str, phase: str
) -> None:
    state_dir = tmp_path / "state"
    plan = {
        "waves": [{"count": 8, "gate": "approval"}, {}],
        "pace": {"in_flight": 8},
        "options": OPTIONS | {"max_attempts": 1},
    }
    api = Api(state_dir)

    def life() -> contextlib.AbstractAsyncContextManager[Any]:
        return service_process(state_dir, own_broker.url, azurite.connection_string, unique)

    async def act(action: str) -> None:
        status, answer = await api.call("POST", f"/api/rollouts/{rollout_id}/actions", {"action": action})
        assert status == 200, answer

    async with contextlib.AsyncExitStack() as stack:
        async with life():
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            weights = "healthy=0.5,corrupt=0.5" if phase == "retrying" else "healthy=0.5,slow=0.5"
            control = await stack.enter_async_context(
                fleet(own_broker.url, trust, tmp_path, count=24, behaviours=weights)
            )
            await api.wait_registered(24)
            status, created = await api.call("POST", "/api/rollouts", {"plan": plan})
            assert status == 201, created
            rollout_id = created["rollout_id"]
            if phase != "awaiting_approval":
                await ended(api, rollout_id, "awaiting_approval")
                await act("approve")
            if phase == "retrying":
                await ended(api, rollout_id, "completed")
                address = ControlAddress.read(control)
                assert address is not None
                await address.tell(Change(do="behave", behaviour="slow"), number=None)
                status, created = await api.call("POST", f"/api/rollouts/{rollout_id}/retry", {})
                assert status == 201, created
                rollout_id = created["rollout_id"]
                await ended(api, rollout_id, "running", "awaiting_approval")
            elif phase in ("paused", "cancelling"):
                await ended(api, rollout_id, "running")
                await act("pause" if phase == "paused" else "cancel")
            else:
                await ended(api, rollout_id, phase)
            # Killed at the end of the block.
        async with life():
            if phase == "paused":
                assert (await ended(api, rollout_id, "paused"))["reason"].startswith("Paused: by api")
                await act("resume")
            if phase in ("awaiting_approval", "retrying"):
                await ended(api, rollout_id, "awaiting_approval")
                await act("approve")
            view = await ended(api, rollout_id, "completed", "cancelled")
            known = (await api.get("/api/statistics"))["states"]
    assert view["counts"]["pending"] == view["in_flight"] == 0
    if phase == "cancelling":
        assert view["state"] == "cancelled"
        assert view["counts"]["provisioned"] + view["counts"]["cancelled"] == 24
        assert view["counts"]["provisioned"] >= 8
    else:
        assert view["state"] == "completed"
        assert known["provisioned"] == 24
    # However often activities ran: one orchestration for each device of each rollout.
    started = instance_counts(state_dir)["DeviceProvisioningOrchestration"]
    assert started == 24 + (12 if phase == "retrying" else 0) - view["counts"]["cancelled"]


@pytest.mark.timeout(300)
async def test_two_rollouts_at_once_on_the_same_devices(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    """A second that waits, a third that joins it, a fourth that is refused; and the service is killed."""
    state_dir = tmp_path / "state"
    api = Api(state_dir)

    def life() -> contextlib.AbstractAsyncContextManager[Any]:
        return service_process(state_dir, own_broker.url, azurite.connection_string, unique)

    async def create(**plan: Any) -> tuple[int, dict[str, Any]]:
        return await api.call("POST", "/api/rollouts", {"plan": {"options": OPTIONS, **plan}})

    async with contextlib.AsyncExitStack() as stack:
        async with life():
            trust = (await api.get("/api/health"))["trust"]["public_key"]
            # All of them slow: none has ended before the other rollouts are there.
            weights = "slow=1"
            await stack.enter_async_context(
                fleet(own_broker.url, trust, tmp_path, count=20, behaviours=weights)
            )
            await api.wait_registered(20)
            status, first = await create(pace={"in_flight": 10})
            assert (status, first["devices"]) == (201, 20)
            status, waiting = await create(overlap="wait", pace={"in_flight": 8})
            assert (status, waiting["devices"]) == (201, 20)
            status, joining = await create(overlap="join")
            assert (status, joining["devices"]) == (201, 20)
            named = [one["device_id"] for one in (await api.get("/api/devices?limit=5"))["devices"]]
            status, problem = await create(targets={"devices": named})
            assert status == 409
            assert "overlap" in problem["detail"]

            async def some_handed_on() -> bool:
                view = await api.get(f"/api/rollouts/{waiting['rollout_id']}")
                return 0 < int(view["counts"]["provisioned"]) + int(view["in_flight"]) < 20

            await wait_until("the second has some of the devices", some_handed_on)
            # Killed at the end of the block.
        async with life():
            views = {
                name: await ended(api, made["rollout_id"], "completed", "failed")
                for name, made in (("first", first), ("waiting", waiting), ("joining", joining))
            }
            steps: dict[str, list[tuple[str, str]]] = {}
            for name, made in (("first", first), ("waiting", waiting)):
                listed = await api.get(f"/api/rollouts/{made['rollout_id']}/devices?limit=100")
                for one in listed["devices"]:
                    path = f"/api/rollouts/{made['rollout_id']}/devices/{one['device_id']}"
                    of_device = (await api.get(path))["steps"]
                    steps.setdefault(one["device_id"], []).append(
                        (of_device[0]["started_at"], of_device[-1]["ended_at"])
                    )
                assert listed["total"] == 20, name
    assert {name: view["counts"]["provisioned"] for name, view in views.items()} == {
        "first": 20,
        "waiting": 20,
        "joining": 20,
    }
    # Two packages each, the second one sent after the first was done with: never two in flight.
    assert all(times[0][1] <= times[1][0] for times in steps.values())
    assert instance_counts(state_dir)["DeviceProvisioningOrchestration"] == 40


@pytest.mark.timeout(300)
async def test_devices_that_are_launched_later_join_a_continuous_rollout(
    tmp_path: Path, own_broker: LocalBroker, azurite: LocalAzurite, unique: str
) -> None:
    state_dir = tmp_path / "state"
    async with Service(settings(state_dir, own_broker, azurite, unique)):
        api = Api(state_dir)
        trust = (await api.get("/api/health"))["trust"]["public_key"]
        plan = {"targets": {"continuous": True}, "pace": {"in_flight": 20}, "options": OPTIONS}
        status, created = await api.call("POST", "/api/rollouts", {"plan": plan})
        assert (status, created["devices"]) == (201, 0)
        rollout_id = created["rollout_id"]
        async with fleet(own_broker.url, trust, tmp_path, count=60, behaviours="healthy=1"):
            await api.wait_registered(60)

            async def all_provisioned() -> bool:
                view = await api.get(f"/api/rollouts/{rollout_id}")
                return bool(view["counts"]["provisioned"] == 60)

            await wait_until("those that were launched are provisioned", all_provisioned)
            await ended(api, rollout_id, "waiting")
            await api.call("POST", f"/api/rollouts/{rollout_id}/actions", {"action": "cancel"})
            assert (await ended(api, rollout_id, "cancelled"))["counts"]["provisioned"] == 60
