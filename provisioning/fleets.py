"""What the service knows of fleets: a request, a record, and who launches them.

The service never imports the devices: the command line, which knows both, gives it a `FleetLauncher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from .settings import MAX_FLEET_DEVICES

_Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Prefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]


class FleetRequest(BaseModel):
    """A fleet to launch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Annotated[int, Field(ge=1, le=MAX_FLEET_DEVICES)]
    seed: int = 1
    behaviours: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Weights by name of a behaviour; None: the launcher's default mix."""
    model: _Label = "demo-1"
    firmware_version: _Label = "0.9.0"
    tags: Annotated[dict[_Label, str], Field(max_length=64)] = Field(default_factory=dict)
    processes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Operating system processes that share the fleet; None: the launcher's choice by count."""
    prefix: _Prefix = "dev"
    """What the device ids begin with."""


class FleetRecord(BaseModel):
    """A fleet that was launched."""

    model_config = ConfigDict(frozen=True, extra="allow")

    fleet_id: str
    count: int
    seed: int
    behaviours: dict[str, float] | None = None
    model: str
    firmware_version: str
    tags: dict[str, str] = Field(default_factory=dict)
    prefix: str
    pids: list[int]
    running: bool
    started_at: str
    """ISO 8601, UTC."""


class FleetLauncher(Protocol):
    """Starts and stops the processes of fleets; they outlive the service unless `stop_all` is called."""

    async def launch(self, request: FleetRequest) -> FleetRecord:
        """Start a fleet; a `provisioning.errors.RequestError` says why that can't be done."""
        ...

    async def list(self) -> Sequence[FleetRecord]:
        """All fleets on record, the latest first."""
        ...

    async def stop(self, fleet_id: str) -> FleetRecord:
        """Stop a fleet's processes; UnknownFleetError where there is none of that id."""
        ...

    async def stop_all(self) -> None:
        """Stop every fleet that runs."""
        ...
