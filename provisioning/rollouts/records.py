"""What the store keeps of a rollout, and what it hands out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from provisioning.errors import RequestError
from provisioning.states import DeviceState

from .plan import RolloutPlan

How = Literal["finish", "force"]
"""How a rollout is cancelled: those in flight may finish, or are told to stop."""
Held = Literal["wait", "join"]
"""What becomes of a device that another run has: it waits for its turn, or shares that run's outcome."""


class UnknownRolloutError(RequestError):
    """There is no rollout of that id."""

    status = 404
    title = "Unknown rollout"

    def __init__(self, rollout_id: str) -> None:
        super().__init__(f"There is no rollout {rollout_id!r}: `muster rollout list` shows all.")


class NotInRolloutError(RequestError):
    """The rollout has no such device."""

    status = 404
    title = "Not in the rollout"

    def __init__(self, rollout_id: str, device_id: str) -> None:
        super().__init__(
            f"{device_id!r} is no device of {rollout_id}: `muster rollout devices {rollout_id}` lists them."
        )


class RolloutRefusedError(RequestError):
    """What was asked of a rollout can't be done as it is now."""

    status = 409
    title = "Rollout refused"


class RolloutChangedError(RequestError):
    """It is no more as it was when somebody decided what to do."""

    status = 412
    title = "Rollout changed"

    def __init__(self, rollout_id: str, state: str) -> None:
        super().__init__(
            f"{rollout_id} has changed since ({state} now), and nothing was done: look at it, and ask again."
        )


@dataclass(kw_only=True, slots=True)
class Rollout:
    """One row of the table `rollouts`; changed within a transaction only."""

    rollout_id: str
    retry_of: str | None
    created_at: float
    started_at: float | None
    state: str
    reason: str | None
    wave: int
    generation: int
    paused: str | None
    approved_json: str
    skipped_to: int
    forgiven_json: str
    cancel: How | None
    cancelled: How | None
    taken: int
    next_at: float
    plan_version: int
    continuous: bool
    lanes: int
    plan: RolloutPlan
    """As it is now; another one is written with the next `Tables.update`."""

    @property
    def approved(self) -> frozenset[int]:
        """The waves after which an operator lets it go on."""
        return frozenset(json.loads(self.approved_json))

    @property
    def forgiven(self) -> dict[DeviceState, int]:
        """How many had ended how when it was last resumed."""
        return {DeviceState(state): count for state, count in json.loads(self.forgiven_json).items()}

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ("completed", "cancelled", "failed")


@dataclass(frozen=True, slots=True)
class Member:
    """A device of a rollout, when it joins."""

    device_id: str
    wave: int
    place: int
    """In order of which they are started."""
    held: Held | None = None
    """None: it is the rollout's own by now."""
    held_by: str | None = None
    """The run that has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    """What a lane is told when it asks for a device: one of the three."""

    device_id: str | None = None
    wait_s: float | None = None
    """Ask again after so many seconds."""
    stop: str | None = None
    """There is nothing more for this lane, and why."""
    tell: bool = False
    """The rollout is to hear at once that it stops."""

    def to_json(self) -> dict[str, Any]:
        """As an activity's result."""
        told = {"tell": True} if self.tell else {}
        return {"device_id": self.device_id, "wait_s": self.wait_s, "stop": self.stop, **told}
