"""What a rollout's decisions are made from, and what they can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Literal

from provisioning.states import FINAL, DeviceState

Counts = Mapping[DeviceState, int]
"""Devices that have ended, by how."""

Cause = Literal[
    "cancel",
    "end",
    "start",
    "pause",
    "window",
    "abort",
    "in_flight",
    "overlap",
    "threshold",
    "approval",
    "gate",
    "targets",
]
"""Which rule holds a rollout up."""

WaitState = Literal["scheduled", "waiting", "running", "paused", "awaiting_approval", "cancelling"]
"""The rollout's state meanwhile; a "paused" or "awaiting_approval" one goes on when an operator says so."""


@dataclass(frozen=True, kw_only=True)
class WaveFacts:
    """Where a wave's devices are; ValueError where that can't be. What is neither is in flight."""

    devices: int
    """Without those that an operator has excluded before they started."""
    pending: int
    """Not started yet."""
    held: int = 0
    """Those of the pending ones that can't be: another run has them."""
    ended: Counts = field(default_factory=dict)
    ended_at: datetime | None = None
    """When the last of its devices ended; None while one has not."""

    def __post_init__(self) -> None:
        if strange := self.ended.keys() - FINAL:
            raise ValueError(f"a device has not ended when it is {min(strange)}")
        if min(self.pending, self.held, self.available, self.in_flight, *self.ended.values()) < 0:
            raise ValueError(f"the devices of a wave don't add up: {self}")

    @cached_property
    def in_flight(self) -> int:
        """Started and not ended."""
        return self.devices - self.pending - sum(self.ended.values())

    @property
    def available(self) -> int:
        """Pending, and nobody else's."""
        return self.pending - self.held

    @property
    def done(self) -> bool:
        """All its devices have ended; so it is where it has none."""
        return not self.pending and not self.in_flight


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is so, as the store has it. All times are aware."""

    now: datetime
    created_at: datetime
    started_at: datetime | None = None
    """When the first wave began."""
    waves: tuple[WaveFacts, ...]
    """One for each of the plan's."""
    wave: int = 1
    """The latest wave that has begun, from 1."""
    paused: str | None = None
    """Why, for people: an operator's pause, or that of an abort criterion."""
    approved_waves: frozenset[int] = frozenset()
    """After which an operator lets it go on: opens the gate "approval", and overrules the threshold."""
    skipped_to: int = 0
    """An operator's "next": waves up to this one may start, whatever is before them; 0: none."""
    cancel: Literal["finish", "force"] | None = None
    """What an operator, or an earlier `Cancel`, has asked for; "force" goes further than "finish"."""
    cancel_reason: str | None = None
    cancelled: Literal["finish", "force"] | None = None
    """The `Cancel` that was carried out."""
    forgiven: Counts = field(default_factory=dict)
    """What had ended when an operator last resumed: criteria that pause look at what ended since."""

    @property
    def pending(self) -> int:
        """Devices not started yet."""
        return sum(wave.pending for wave in self.waves)

    @property
    def in_flight(self) -> int:
        """Devices started and not ended."""
        return sum(wave.in_flight for wave in self.waves)

    @property
    def ended(self) -> dict[DeviceState, int]:
        """Devices that have ended, by how."""
        return {state: sum(wave.ended.get(state, 0) for wave in self.waves) for state in FINAL}


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Start no device. With the cause "abort" the pause is to be recorded: `Facts.paused` from then on."""

    until: datetime | None
    """When to ask again though nothing has happened; None: only when something has."""
    state: WaitState
    cause: Cause
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunWave:
    """Devices of this wave may be started."""

    number: int
    """From 1; `Facts.wave` from then on, if that was smaller."""
    lanes: int
    """How many of the wave's devices may be in flight at once, those that are already included."""
    until: datetime | None
    """When to ask again, before any further start."""


@dataclass(frozen=True, kw_only=True)
class End:
    """The rollout is over. Nothing is in flight; what is pending is not started any more."""

    state: Literal["completed", "cancelled", "failed"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """Take back what is pending (it ends as cancelled), and with `force` tell devices in flight to stop.

    It is said again until `Facts.cancelled` has it.
    """

    force: bool
    reason: str


Directive = Wait | RunWave | End | Cancel
