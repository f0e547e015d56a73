"""Rollouts name a release: known when they are created, told to each device, and kept by a retry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from provisioning.errors import PlanError
from provisioning.releases.records import ReleaseRefusedError
from provisioning.releases.store import Releases
from provisioning.rollouts.plan import RolloutPlan
from provisioning.rollouts.records import RolloutRefusedError
from tests.unit.releases.making import DEFAULT, add
from tests.unit.rollouts.harness import Devices, Service, register, service_on


async def releases_of(service: Service, directory: Path) -> Releases:
    releases = Releases(registry=service.registry, state_dir=directory, default=DEFAULT)
    await releases.open()
    return releases


def test_a_release_in_a_plan_is_a_name_or_none() -> None:
    assert RolloutPlan.from_json({}).release is None
    assert RolloutPlan.from_json({"release": "fw-2.0"}).to_json()["release"] == "fw-2.0"
    for value in ("", "a/b", "a.", 7):
        with pytest.raises(PlanError, match=r"^release: .*; give the name of a release: 1 to 64 letters"):
            RolloutPlan.from_json({"release": value})


async def test_a_release_that_is_unknown_is_an_error_of_the_plan(tmp_path: Path) -> None:
    async with service_on(tmp_path, Devices()) as service:
        await register(service.registry, 3)
        for call in (service.rollouts.preview, lambda plan: service.rollouts.create(plan, actor="test")):
            with pytest.raises(PlanError) as caught:
                await call({"release": "fw-9"})
            assert caught.value.key == "release"
            assert str(caught.value) == (
                "release: there is no release 'fw-9'; name one that `muster release list` shows"
            )
        assert await service.rollouts.latest() == []
        assert (await service.registry.states())["new"] == 3  # type: ignore[index]


async def test_it_is_said_how_many_devices_it_does_not_fit_and_each_is_told_of_it(tmp_path: Path) -> None:
    devices = Devices()
    devices.outcome = lambda device_id: "failed" if device_id == "new-00001" else "provisioned"
    plan: dict[str, Any] = {"release": "fw-2", "waves": [{"count": 1}, {}], "pace": {"in_flight": 2}}
    async with service_on(tmp_path, devices) as service:
        releases = await releases_of(service, tmp_path)
        await add(releases, models=["new"])
        await register(service.registry, 3, model="new", prefix="new")
        await register(service.registry, 2, model="old", prefix="old")
        preview = await service.rollouts.preview(plan)
        assert (preview["devices"], preview["not_fitting"], preview["plan"]["release"]) == (5, 2, "fw-2")
        made = await service.rollouts.create(plan, actor="test")
        assert (made["not_fitting"], made["release"]) == (2, "fw-2")
        with pytest.raises(ReleaseRefusedError, match=made["rollout_id"]):
            await releases.remove("fw-2")
        await service.ended(made["rollout_id"])
        assert devices.releases == ["fw-2"] * 5
        log = await service.rollouts.log(made["rollout_id"])
        assert log[0]["detail"] == "5 devices, 2 that the release fw-2 does not fit"
        assert [one["release"] for one in await service.rollouts.latest()] == ["fw-2"]
        again = await service.rollouts.retry(made["rollout_id"], actor="test")
        assert (again["release"], again["devices"], again["not_fitting"]) == ("fw-2", 1, 0)
        await service.ended(again["rollout_id"])
        assert devices.releases == ["fw-2"] * 6
        await releases.remove("fw-2")
        with pytest.raises(PlanError, match="there is no release 'fw-2'"):
            await service.rollouts.retry(made["rollout_id"], actor="test")


async def test_the_service_s_own_goes_by_its_name_too_and_needs_no_word(tmp_path: Path) -> None:
    devices = Devices()
    async with service_on(tmp_path, devices) as service:
        await register(service.registry, 1)
        made = await service.rollouts.create({"release": "demo-1.0.0"}, actor="test")
        assert (made["release"], made["not_fitting"]) == (None, 0)
        await service.ended(made["rollout_id"])
    assert devices.releases == [None]


async def test_only_the_same_release_can_be_joined(tmp_path: Path) -> None:
    devices = Devices()
    devices.open.clear()
    async with service_on(tmp_path, devices) as service:
        await add(await releases_of(service, tmp_path), "fw-2")
        ids = await register(service.registry, 4)
        first = await service.rollouts.create({"release": "fw-2"}, actor="test")
        named = {"targets": {"devices": ids}, "overlap": "join"}
        for call in (service.rollouts.preview, lambda plan: service.rollouts.create(plan, actor="test")):
            with pytest.raises(RolloutRefusedError, match=r"brings the release fw-2 .* the service's own"):
                await call(named)
        joining = await service.rollouts.create(named | {"release": "fw-2"}, actor="test")
        assert joining["held"] == [{"run_id": first["rollout_id"], "how": "join", "devices": 4}]
        # Nobody is there to be refused when a device joins by itself: it waits for the other release's end.
        continuous = {"targets": {"continuous": True}, "overlap": "join"}
        with pytest.raises(RolloutRefusedError):
            await service.rollouts.create(continuous, actor="test")
        devices.open.set()
        assert (await service.ended(joining["rollout_id"]))["counts"]["provisioned"] == 4
