"""A rollout as it is asked for: which devices, in which waves, how fast, when, and when not to go on.

`RolloutPlan.from_json` reads what a file or the API says and raises `PlanError`, which names the key at fault
as a TOML file has it (``waves[1].percent``) and what to write instead; `to_json` says it again. Which devices
come when follows from the plan and their ids alone, so each call gives the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from hashlib import blake2b
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from provisioning.errors import PlanError
from provisioning.releases.records import NAME_IN_WORDS, NAME_PATTERN
from provisioning.settings import RunOptions

from .documents import Part
from .parts import (
    AbortCriterion,
    Deadlines,
    GrowingRate,
    Options,
    Pace,
    Schedule,
    Targets,
    Wave,
    Window,
)

__all__ = [
    "AbortCriterion",
    "Deadlines",
    "GrowingRate",
    "Pace",
    "PlanError",
    "RolloutPlan",
    "Schedule",
    "Targets",
    "Wave",
    "Window",
    "exact",
    "in_percent",
    "ordered",
    "wave_sizes",
]

MAX_NAME_CHARS: Final = 200
MAX_WAVES: Final = 100
MAX_CRITERIA: Final = 20


class RolloutPlan(Part):
    """A whole rollout."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS)] | None = Field(
        default=None, description=f"a text of 1 to {MAX_NAME_CHARS} characters"
    )
    release: Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$")] | None = Field(
        default=None, description=f"the name of a release: {NAME_IN_WORDS}"
    )
    """None: the one that comes with the service."""
    targets: Targets = Field(default=Targets(), description="a table with the keys of targets")
    waves: Annotated[tuple[Wave, ...], Field(min_length=1, max_length=MAX_WAVES)] = Field(
        default=(Wave(percent=100.0),), description=f"1 to {MAX_WAVES} waves, or leave them out for one"
    )
    pace: Pace = Field(default=Pace(), description="a table with the keys of pace")
    abort: Annotated[tuple[AbortCriterion, ...], Field(max_length=MAX_CRITERIA)] = Field(
        default=(), description=f"at most {MAX_CRITERIA} criteria, each with on and threshold_percent"
    )
    deadlines: Deadlines = Field(default=Deadlines(), description="a table with rollout_s")
    options: Options = Field(default=RunOptions(), description="options by name")
    schedule: Schedule = Field(default=Schedule(), description="a table with the keys of schedule")
    overlap: Literal["refuse", "skip", "wait", "join"] = Field(
        default="refuse", description="refuse, skip, wait or join"
    )
    """What becomes of targets that another run has in hand: the rollout is refused, goes without them, starts
    them when the other run has done with them, or takes the other run's outcome for its own."""

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The plan that a JSON or TOML document describes; `PlanError` names the first key at fault."""
        if isinstance(document, Mapping) and "retries" in document:
            raise PlanError("retries", "retries are options of the devices", "write [options.retries.no_ack]")
        return super().from_json(document)

    @model_validator(mode="after")
    def _agree(self) -> RolloutPlan:
        _check_waves(self.waves)
        for index, criterion in enumerate(self.abort):
            for earlier in self.abort[:index]:
                if (earlier.on, earlier.action) == (criterion.on, criterion.action):
                    raise PlanError(
                        f"abort[{index}].on",
                        f"another criterion says when to {criterion.action} on {criterion.on}",
                        "keep one of them, or give it another action",
                    )
        return self


def _check_waves(waves: tuple[Wave, ...]) -> None:
    reached = 0.0
    for index, wave in enumerate(waves[:-1]):
        key = f"waves[{index}]"
        if wave.percent is None and wave.count is None:
            raise PlanError(key, "it has no size", "give percent or count; only the last wave takes the rest")
        if wave.percent is not None:
            if wave.percent <= reached:
                raise PlanError(
                    f"{key}.percent",
                    f"{wave.percent:g} is no more than the {reached:g} of the waves before",
                    "percentages are of all devices and ascend, as in 5, 25, 100",
                )
            if wave.percent == 100:
                raise PlanError(f"{key}.percent", "100 leaves nothing for the next wave", "give less")
            reached = wave.percent
    key, last = f"waves[{len(waves) - 1}]", waves[-1]
    # The last wave takes the rest. Whoever wrote another number there meant something else by it.
    if last.count is not None:
        raise PlanError(
            f"{key}.count", "the last wave takes the rest", "leave it out, or add a wave {percent = 100}"
        )
    if last.percent is not None and last.percent != 100:
        raise PlanError(
            f"{key}.percent",
            "the last wave takes the rest",
            "write 100 or add such a wave; for a part of the devices there is targets.percent",
        )
    if last.gate != "none":
        raise PlanError(f"{key}.gate", "no wave comes after the last", "leave it out")


def exact(number: float) -> Fraction:
    """The decimal number that was written, where a float is only near it: 0.1 is a tenth."""
    return Fraction(str(number))


def wave_sizes(plan: RolloutPlan, devices: int) -> list[int]:
    """How many of so many devices each wave has; they add up to `devices`.

    Percentages are of all devices, up to and with the wave, rounded up: five percent of three devices are
    one, so that a canary is never left out. A later wave may be empty.
    """
    sizes, placed = [], 0
    for wave in plan.waves[:-1]:
        if wave.percent is not None:
            reach = math.ceil(exact(wave.percent) * devices / 100)
        else:
            reach = placed + (wave.count or 0)
        size = max(0, min(reach, devices) - placed)
        sizes.append(size)
        placed += size
    return [*sizes, devices - placed]


def in_percent(device_id: str, percent: float) -> bool:
    """Whether a device is among so many percent of all, by a hash of its id: the same ones each time.

    Those of a smaller percentage are among those of a larger one. It is about so many, not exactly.
    """
    place = int.from_bytes(blake2b(device_id.encode(), digest_size=8).digest())
    return place * 100 < exact(percent) * 2**64


def ordered(plan: RolloutPlan, ids: Iterable[str]) -> list[str]:
    """The ids in the order in which the devices have their turn: by id, or shuffled by the plan's seed.

    An id's place among others depends on it and the seed, not on who else is there.
    """
    if plan.pace.order == "id":
        return sorted(ids)
    salt = plan.pace.seed.to_bytes(8)
    return sorted(ids, key=lambda device_id: (blake2b(device_id.encode(), salt=salt).digest(), device_id))
