"""Whether the devices of a fleet ended as they should: what the registry has against what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .fleets import FleetDevice
from .names import DEADLINE, OLDER_VERSION, REJECTED_BY_DEVICE
from .registry import Standing
from .settings import RunOptions
from .states import FINAL, DeviceState

MAX_DIFFERENCES: Final = 1_000
"""Devices that are named; the others are counted."""

_DEFAULT_OPTIONS: Final = RunOptions()

Json = dict[str, Any]


def check_fleet(fleet_id: str, devices: Sequence[FleetDevice], standings: Mapping[str, Standing]) -> Json:
    """Compare each device that has ended in a run with what was expected of it under that run's options.

    Devices that an operator has changed since their run began are ``not_judged``, nor are those whose end
    says nothing of their behaviour: cancelled ones, those that a deadline ended, those that a release is not
    for, or that run a newer version. Those that no run has brought to an end are ``not_provisioned_yet``.
    Neither are differences. The cost grows with the number of devices.
    """
    as_expected = not_judged = not_yet = wrong = 0
    differences: list[Json] = []
    limits: dict[str, dict[str, int]] = {}
    for device in devices:
        standing = standings.get(device.device_id)
        if standing is None or standing.run_id is None or standing.state not in FINAL:
            not_yet += 1
            continue
        options = standing.options or _DEFAULT_OPTIONS
        if (of_run := limits.get(standing.run_id)) is None:
            of_run = limits[standing.run_id] = options.attempts_by_kind()
        expected = device.expected_outcome(max_attempts=options.max_attempts, limits=of_run)
        if _tells_nothing(device, standing):
            not_judged += 1
        elif expected == standing.state:
            as_expected += 1
        else:
            wrong += 1
            if wrong <= MAX_DIFFERENCES:
                differences.append(
                    {
                        "device_id": device.device_id,
                        "group": device.group,
                        "behaviour": device.behaviour,
                        "expected": expected,
                        "actual": standing.state.value,
                        "error": standing.error,
                    }
                )
    return {
        "fleet_id": fleet_id,
        "devices": len(devices),
        "as_expected": as_expected,
        "not_judged": not_judged,
        "not_provisioned_yet": not_yet,
        "different": wrong,
        "differences": differences,
    }


def _tells_nothing(device: FleetDevice, standing: Standing) -> bool:
    """Whether how the device ended says nothing of its behaviour."""
    error = standing.error or ""
    match standing.state:
        case DeviceState.CANCELLED:
            return True
        case DeviceState.TIMED_OUT if error.startswith(DEADLINE):
            return True
        case DeviceState.REJECTED if not error.startswith(REJECTED_BY_DEVICE):
            # It was never asked: the release is for others.
            return True
        case DeviceState.REJECTED if error.startswith(f"{REJECTED_BY_DEVICE}: {OLDER_VERSION}"):
            return True
    return device.changed_at is not None and device.changed_at > (standing.run_started_at or 0.0)
