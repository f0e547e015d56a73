"""Devices of a fleet as they ended, against what was expected of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from provisioning.fleet_check import MAX_DIFFERENCES, check_fleet
from provisioning.registry import Outcome, Registry, Standing
from provisioning.settings import RunOptions
from provisioning.states import DeviceState
from tests.unit.provisioning.fleet_doubles import ADevice


def standing(
    state: DeviceState,
    *,
    run_id: str | None = "r",
    options: RunOptions | None = None,
    started_at: float = 100.0,
    error: str = "why",
) -> Standing:
    return Standing(state=state, run_id=run_id, error=error, options=options, run_started_at=started_at)


@pytest.mark.parametrize(
    ("state", "error", "judged"),
    [
        (DeviceState.CANCELLED, "the rollout was cancelled", 0),
        (DeviceState.TIMED_OUT, "deadline of the device (5 s) passed in downloading, attempt 1", 0),
        (DeviceState.REJECTED, "the release fw-2 is for the model a, and the device's model is b", 0),
        (DeviceState.REJECTED, "rejected the package: older-version (the package is 1; what runs is 2)", 0),
        (DeviceState.REJECTED, "rejected the package: wrong-model", 1),
        (DeviceState.TIMED_OUT, "no acknowledgement of the download within 5 s", 1),
    ],
)
def test_an_end_that_says_nothing_of_the_device_is_not_judged(
    state: DeviceState, error: str, judged: int
) -> None:
    found = check_fleet("fleet-1", [ADevice(device_id="d1")], {"d1": standing(state, error=error)})
    assert (found["different"], found["not_judged"]) == (judged, 1 - judged)


def test_each_device_is_compared_with_what_its_run_should_lead_to() -> None:
    devices = [
        ADevice(device_id="good"),
        ADevice(device_id="bad", behaviour="corrupt"),
        ADevice(device_id="fails", outcome=lambda _: "failed"),
        ADevice(device_id="stopped", changed_at=101.0),
        ADevice(device_id="under-way"),
        ADevice(device_id="new"),
        ADevice(device_id="unknown"),
    ]
    found = check_fleet(
        "fleet-1",
        devices,
        {
            "good": standing(DeviceState.PROVISIONED),
            "bad": standing(DeviceState.TIMED_OUT),
            "fails": standing(DeviceState.FAILED),
            "stopped": standing(DeviceState.TIMED_OUT),
            "under-way": standing(DeviceState.DOWNLOADING),
            "new": standing(DeviceState.NEW, run_id=None),
        },
    )
    assert found == {
        "fleet_id": "fleet-1",
        "devices": 7,
        "as_expected": 2,
        "not_judged": 1,
        "not_provisioned_yet": 3,
        "different": 1,
        "differences": [
            {
                "device_id": "bad",
                "group": "lab",
                "behaviour": "corrupt",
                "expected": "provisioned",
                "actual": "timed_out",
                "error": "why",
            }
        ],
    }


def test_the_attempts_are_those_of_the_devices_own_run() -> None:
    device = ADevice(device_id="d", outcome=lambda attempts: "failed" if attempts < 2 else "provisioned")
    for attempts, different in ((1, 1), (2, 0), (None, 0)):
        options = None if attempts is None else RunOptions(max_attempts=attempts)
        found = check_fleet("f", [device], {"d": standing(DeviceState.PROVISIONED, options=options)})
        assert found["different"] == different


def test_the_limits_by_kind_of_failure_are_those_of_the_devices_own_run() -> None:
    def outcome(limits: Mapping[str, int]) -> str:
        assert limits["rejected"] == 1
        return "timed_out" if limits.get("no_ack") == 1 else "provisioned"

    devices = [ADevice(device_id=name, by_kind=outcome) for name in ("a", "b")]
    limited = RunOptions.from_json({"retries": {"no_ack": {"max_attempts": 1}}})
    found = check_fleet(
        "f",
        devices,
        {
            "a": standing(DeviceState.TIMED_OUT, run_id="r1", options=limited),
            "b": standing(DeviceState.PROVISIONED, run_id="r2", options=RunOptions()),
        },
    )
    assert (found["as_expected"], found["different"]) == (2, 0)


@pytest.mark.parametrize(
    ("error", "not_judged"),
    [
        ("deadline of the device (5 s) passed in downloading, attempt 1", 1),
        ("deadline of packaging (5 s) passed: the wire is cut", 1),
        ("no acknowledgement of the download within 60 s", 0),
    ],
)
def test_a_deadline_that_says_nothing_of_the_devices_behaviour_is_not_judged(
    error: str, not_judged: int
) -> None:
    found = check_fleet("f", [ADevice(device_id="d")], {"d": standing(DeviceState.TIMED_OUT, error=error)})
    assert (found["not_judged"], found["different"]) == (not_judged, 1 - not_judged)


@pytest.mark.parametrize(("changed_at", "not_judged"), [(99.0, 0), (101.0, 1)])
def test_a_change_that_is_newer_than_the_run_says_nothing_of_it(changed_at: float, not_judged: int) -> None:
    device = ADevice(device_id="d", changed_at=changed_at, outcome=lambda _: "failed")
    found = check_fleet("f", [device], {"d": standing(DeviceState.FAILED)})
    assert (found["not_judged"], found["different"]) == (not_judged, 0)


def test_only_so_many_differences_are_named() -> None:
    devices = [ADevice(device_id=f"d{number}") for number in range(MAX_DIFFERENCES + 5)]
    failed = {device.device_id: standing(DeviceState.FAILED) for device in devices}
    found = check_fleet("f", devices, failed)
    assert (len(found["differences"]), found["different"]) == (MAX_DIFFERENCES, MAX_DIFFERENCES + 5)


async def test_the_registry_says_where_devices_have_got_to(tmp_path: Path) -> None:
    async with Registry(tmp_path / "registry.db", clock=lambda: 7.0) as registry:
        for device_id in ("a", "b", "c"):
            registry.register(device_id, model="m", firmware_version="1", tags={})
        await registry.claim("run-1", ["a", "b"], options={"max_attempts": 5}, limit=10)
        await registry.record_outcome(
            Outcome(
                run_id="run-1",
                device_id="b",
                state=DeviceState.CANCELLED,
                attempts=1,
                error="so",
                ended_at=8.0,
                device_s=1.0,
                steps_s={},
            )
        )
        found = await registry.standings(["a", "b", "c", "ghost"])
    assert set(found) == {"a", "b", "c"}
    assert (found["a"].state, found["a"].run_id, found["a"].options) == (
        "queued",
        "run-1",
        RunOptions(max_attempts=5),
    )
    assert (found["b"].state, found["b"].error, found["b"].run_started_at) == ("cancelled", "so", 7.0)
    assert (found["c"].run_id, found["c"].options) == (None, None)
