"""Fleets that nobody runs, and devices of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provisioning.errors import RequestError, UnknownFleetError
from provisioning.fleets import FleetDevice, FleetRecord, FleetRequest


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


class NoSuchFleetError(RequestError):
    """A fleet that can't be."""

    status = 422


class Launcher:
    """A launcher that launches nothing."""

    def __init__(self) -> None:
        self.fleets: dict[str, FleetRecord] = {}

    async def launch(self, request: FleetRequest) -> FleetRecord:
        groups = request.spec.get("groups")
        if not groups:
            raise NoSuchFleetError("groups: there is none; write at least one")
        record = FleetRecord(
            fleet_id=f"fleet-{len(self.fleets) + 1}",
            devices=sum(group["count"] for group in groups),
            seed=request.spec["seed"],
            groups=groups,
            processes=request.processes or 1,
            pids=[1],
            running=True,
            started_at="2026-01-01T00:00:00+00:00",
        )
        self.fleets[record.fleet_id] = record
        return record

    async def show(self, fleet_id: str) -> FleetRecord:
        return self._known(fleet_id).model_copy(update={"statistics": {"connected": 3}})

    async def change(self, fleet_id: str, change: Mapping[str, Any]) -> dict[str, Any]:
        self._known(fleet_id)
        return {"affected": 2, "do": change["do"]}

    async def devices(self, fleet_id: str) -> Sequence[FleetDevice]:
        self._known(fleet_id)
        return [a_device(f"dev-{number}") for number in range(3)]

    def behaviours(self, *, max_attempts: int) -> Sequence[dict[str, Any]]:
        return [{"name": "healthy", "summary": "", "parameters": {}, "expected": "provisioned"}]

    async def metrics(self, fleet_id: str | None = None) -> str:
        return f"# {fleet_id}\n"

    def _known(self, fleet_id: str) -> FleetRecord:
        if fleet_id not in self.fleets:
            raise UnknownFleetError(fleet_id)
        return self.fleets[fleet_id]

    async def list(self) -> Sequence[FleetRecord]:
        return list(self.fleets.values())

    async def stop(self, fleet_id: str) -> FleetRecord:
        if fleet_id not in self.fleets:
            raise UnknownFleetError(fleet_id)
        return self.fleets.pop(fleet_id)

    async def stop_all(self) -> None:
        self.fleets.clear()
