"""Devices of fleets that nobody runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    by_kind: Callable[[Mapping[str, int]], str] | None = None

    def expected_outcome(self, *, max_attempts: int, limits: Mapping[str, int]) -> str:
        return self.outcome(max_attempts) if self.by_kind is None else self.by_kind(limits)


def a_device(device_id: str) -> ADevice:
    """A healthy one."""
    return ADevice(device_id=device_id)
