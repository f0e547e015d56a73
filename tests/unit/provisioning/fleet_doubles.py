"""Devices of fleets that nobody runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ADevice:
    """A `provisioning.fleets.FleetDevice`."""

    device_id: str
    group: str = "lab"
    behaviour: str = "healthy"
    running: bool = True
    online: bool = True
    changed_at: float | None = None
    outcome: Callable[[int], str] = lambda _: "provisioned"

    def expected_outcome(self, *, max_attempts: int) -> str:
        return self.outcome(max_attempts)


def a_device(device_id: str) -> ADevice:
    """A healthy one."""
    return ADevice(device_id=device_id)
