"""What the service knows of fleets: a request, a record, and who launches them.

The service never imports the devices: the command line, which knows both, gives it a `FleetLauncher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from .settings import MAX_FLEET_PROCESSES, RunOptions

Json = dict[str, Any]


class FleetRequest(BaseModel):
    """A fleet to launch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: dict[str, Any]
    """The fleet as a fleet file has it: groups, seed, ramp, speed, behaviours. The launcher checks it."""
    processes: Annotated[int, Field(ge=1, le=MAX_FLEET_PROCESSES)] | None = None
    """Operating system processes that share the fleet; None: the launcher's choice by count."""
    shard: Annotated[str, Field(max_length=20)] | None = None
    """``K/N``: the K-th of N parts of the fleet is this host's; None: all of it."""


class FleetGroup(BaseModel):
    """Devices of one kind in a fleet. `count` is that of the whole fleet, whatever the shard."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    count: int
    model: str
    firmware_version: str
    tags: dict[str, str] = Field(default_factory=dict)
    behaviours: dict[str, float]
    prefix: str


class FleetRecord(BaseModel):
    """A fleet that was launched."""

    model_config = ConfigDict(frozen=True, extra="allow")

    fleet_id: str
    devices: int
    """How many it has on this host."""
    connected: int = 0
    seed: int
    groups: list[FleetGroup]
    processes: int
    shard: str | None = None
    pids: list[int]
    running: bool
    """Whether all its processes are there."""
    restarts: int = 0
    """How often one of them was started again since the launch."""
    changes: int = 0
    """How many lasting changes were made to it and still hold."""
    started_at: str
    """ISO 8601, UTC."""
    error: str | None = None
    """Why processes of it are down and stay so."""


class FleetDevice(Protocol):
    """One device of a fleet, as it is to be at the moment."""

    @property
    def device_id(self) -> str: ...

    @property
    def group(self) -> str: ...

    @property
    def behaviour(self) -> str: ...

    @property
    def running(self) -> bool:
        """Whether it is switched on."""
        ...

    @property
    def online(self) -> bool:
        """Whether it has the network."""
        ...

    @property
    def changed_at(self) -> float | None:
        """When an operator last changed how it is, in seconds since the epoch; None: never."""
        ...

    def expected_outcome(self, *, max_attempts: int, limits: Mapping[str, int]) -> str:
        """The state in which a run should leave it, if it stays as it is at the moment.

        ``limits`` are attempts by kind of failure, as in `settings.RunOptions.attempts_by_kind`.
        """
        ...


class FleetLauncher(Protocol):
    """Runs the processes of fleets; they outlive the service unless `stop_all` is called.

    What names a fleet raises `provisioning.errors.UnknownFleetError` where there is none of that id.
    """

    async def launch(self, request: FleetRequest) -> FleetRecord:
        """Start a fleet; a `provisioning.errors.RequestError` says why that can't be done."""
        ...

    async def list(self) -> Sequence[FleetRecord]:
        """All fleets on record, the latest first."""
        ...

    async def show(self, fleet_id: str) -> FleetRecord:
        """One fleet, with its `statistics` as a further field."""
        ...

    async def stop(self, fleet_id: str) -> FleetRecord:
        """Stop a fleet's processes and forget it; its last `statistics` are a further field."""
        ...

    async def stop_all(self) -> None:
        """Stop every fleet that runs."""
        ...

    async def change(self, fleet_id: str, change: Mapping[str, Any]) -> Json:
        """Change devices of a fleet while it runs; says how many are ``affected``.

        A `provisioning.errors.RequestError` says why that can't be done, and then nothing has changed.
        """
        ...

    async def devices(self, fleet_id: str) -> Sequence[FleetDevice]:
        """The devices of a fleet on this host, group after group."""
        ...

    def behaviours(self, *, max_attempts: int) -> Sequence[Json]:
        """The behaviours that devices may have: name, summary, parameters, and how each should end."""
        ...

    async def metrics(self, fleet_id: str | None = None) -> str:
        """The statistics of one fleet, or all, in Prometheus' text format 0.0.4."""
        ...


def page_of(
    devices: Sequence[FleetDevice],
    *,
    group: str | None = None,
    behaviour: str | None = None,
    after: str | None = None,
    limit: int,
    max_attempts: int,
) -> Json:
    """Up to ``limit`` devices in the fleet's order, from the one that follows ``after``."""
    found = [
        device
        for device in devices
        if group in (None, device.group) and behaviour in (None, device.behaviour)
    ]
    limits = RunOptions(max_attempts=max_attempts).attempts_by_kind()
    start = 0
    if after is not None:
        start = 1 + next((i for i, device in enumerate(found) if device.device_id == after), len(found))
    page = found[start : start + limit]
    return {
        "devices": [
            {
                "device_id": device.device_id,
                "group": device.group,
                "behaviour": device.behaviour,
                "running": device.running,
                "online": device.online,
                "expected": device.expected_outcome(max_attempts=max_attempts, limits=limits),
            }
            for device in page
        ],
        "next": page[-1].device_id if start + limit < len(found) else None,
        "total": len(found),
    }
