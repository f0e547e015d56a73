"""The parts of a rollout plan: targets, waves, pace, abort criteria, deadlines, schedule.

Every bound has a name here. What contradicts itself within a part is refused here too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    Tag,
    model_validator,
)

from broker.topics import DEVICE_ID_PATTERN, MAX_RUN_ID_CHARS, TOKEN_CLASS
from provisioning.errors import OptionError, PlanError, SettingsError
from provisioning.settings import MAX_RUN_DEVICES, RunOptions
from provisioning.states import FINAL, WORKING, DeviceState

from .documents import CONSTANT, GROWING, Part, shown, unknown_key

MAX_LABEL_CHARS: Final = 200
MAX_LABELS: Final = 1_000
"""Models, or firmware versions, that one plan names."""
MAX_TAGS: Final = 64
MAX_IN_FLIGHT: Final = 1_000
"""A wave's history has two events for each."""
MAX_PER_MINUTE: Final = 1_000_000.0
MIN_PER_MINUTE: Final = 0.001
MAX_FACTOR: Final = 100.0
MAX_SEED: Final = 2**63 - 1
MAX_WINDOWS: Final = 50
MAX_DURATION_S: Final = 366 * 86_400.0
"""Of a pause, or of a whole rollout."""
YEARS: Final = range(2000, 2200)
"""In which a schedule may begin and end."""

IDLE: Final = tuple(state for state in DeviceState if state not in WORKING)
"""The states of a device that no run is working on."""
UNSUCCESSFUL: Final = tuple(state for state in DeviceState if state in FINAL - {DeviceState.PROVISIONED})
_NEW: Final = (DeviceState.NEW,)
_FAILED: Final = (DeviceState.FAILED, DeviceState.TIMED_OUT)

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""By `datetime.weekday()`."""
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T")
_INSTANT = "a time with its zone, as in 2030-01-31T22:00:00Z"


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise PlanError("", f"{shown(str(value))} is given twice", "name each once")
        seen.add(value)
    return values


def _instant(value: datetime) -> datetime:
    if value.year not in YEARS:
        raise PlanError("", f"the year {value.year}", f"give a time from {YEARS[0]} to {YEARS[-1]}")
    return value.astimezone(UTC)


def _read_instant(value: object) -> datetime:
    """A time as a text or by itself; pydantic would take numbers too, and texts of digits."""
    if isinstance(value, datetime):
        return value
    try:
        if isinstance(value, str) and _DATE.match(value):
            return datetime.fromisoformat(value)
    except ValueError:
        pass
    raise PlanError("", f"{shown(value)} is no time", f"give {_INSTANT}")


def _options(value: object) -> RunOptions:
    if isinstance(value, RunOptions):
        return value
    if not isinstance(value, Mapping):
        raise PlanError("", f"{shown(value)} is no table", "give options by name, as in ack_timeout_s = 60")
    for name, option in value.items():
        if name not in RunOptions.__dataclass_fields__:
            raise unknown_key(name, RunOptions.__dataclass_fields__)
        if name == "retries":
            continue  # in the light of max_attempts, below
        try:
            RunOptions.from_json({name: option})
        except SettingsError as error:
            remedy = str(error).rstrip(".")
            raise PlanError(
                name, f"{shown(option)} can't be used", remedy[:1].lower() + remedy[1:]
            ) from error
    try:
        return RunOptions.from_json(value)
    except OptionError as error:
        raise PlanError(error.key, error.problem, error.remedy) from error


DeviceId = Annotated[str, StringConstraints(pattern=rf"^{DEVICE_ID_PATTERN}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS)]
TagValue = Annotated[str, StringConstraints(max_length=MAX_LABEL_CHARS)]
DeviceIds = Annotated[tuple[DeviceId, ...], Field(max_length=MAX_RUN_DEVICES), AfterValidator(_unique)]
Labels = Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_LABELS), AfterValidator(_unique)]
States = Annotated[tuple[DeviceState, ...], Field(min_length=1), AfterValidator(_unique)]
Percent = Annotated[float, Field(gt=0, le=100)]
PerMinute = Annotated[float, Field(ge=MIN_PER_MINUTE, le=MAX_PER_MINUTE)]
DurationS = Annotated[float, Field(gt=0, le=MAX_DURATION_S)]
Instant = Annotated[AwareDatetime, AfterValidator(_instant), BeforeValidator(_read_instant)]
ClockTime = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Options = Annotated[
    RunOptions,
    PlainValidator(_options),
    PlainSerializer(RunOptions.to_json, return_type=dict[str, Any]),
]

_IDS = f"1 to {MAX_RUN_DEVICES:,} device ids, each of 1 to 64 letters, digits, '.', '_' or '-'"
_LABELS = f"1 to {MAX_LABELS:,} of them, each of 1 to {MAX_LABEL_CHARS} characters"
_PERCENT = "a number above 0, at most 100"
_RATE = f"a number from {MIN_PER_MINUTE:g} to {MAX_PER_MINUTE:,.0f}"
_AFTER = f"a whole number from 1 to {MAX_RUN_DEVICES:,}"
_DURATION = f"seconds, above 0 and at most {MAX_DURATION_S:,.0f}"
_CLOCK = "a time of day from 00:00 to 23:59, in UTC, as in '22:00'"


class Targets(Part):
    """Which devices: those named, or those that match all that is given; `percent` of them."""

    devices: Annotated[DeviceIds, Field(min_length=1)] | None = Field(default=None, description=_IDS)
    models: Labels | None = Field(default=None, description=_LABELS)
    firmware_versions: Labels | None = Field(default=None, description=_LABELS)
    tags: Annotated[dict[Label, TagValue], Field(max_length=MAX_TAGS)] | None = Field(
        default=None,
        description=f"at most {MAX_TAGS} names with texts of at most {MAX_LABEL_CHARS} characters",
    )
    """A device has all of these, with these values."""
    states: States | None = Field(default=None, description=f"some of {', '.join(IDLE)}")
    """None: see `qualifying_states`."""
    percent: Percent = Field(default=100.0, description=_PERCENT)
    """Of the devices that match, by `in_percent`."""
    failed_in: (
        Annotated[str, StringConstraints(max_length=MAX_RUN_ID_CHARS, pattern=rf"^{TOKEN_CLASS}+$")] | None
    ) = Field(default=None, description="the id of a rollout; see `muster rollout list`")
    failed_states: States = Field(default=_FAILED, description=f"some of {', '.join(UNSUCCESSFUL)}")
    """How a device ended in the rollout `failed_in`."""
    exclude: Annotated[tuple[DeviceId, ...], Field(max_length=MAX_RUN_DEVICES), AfterValidator(_unique)] = (
        Field(default=(), description=_IDS)
    )

    continuous: bool = Field(default=False, description="true or false")
    """Devices that register later join, if they match."""

    @property
    def qualifying_states(self) -> tuple[DeviceState, ...]:
        """In which a device may be: new ones; or any idle ones where devices, or a rollout's, are named."""
        if self.states is not None:
            return self.states
        return _NEW if self.devices is None and self.failed_in is None else IDLE

    @model_validator(mode="after")
    def _agree(self) -> Targets:
        if self.devices is not None:
            for key in ("models", "firmware_versions", "tags", "failed_in"):
                if getattr(self, key) is not None:
                    raise PlanError(key, "devices are named one by one too", f"leave out {key} or devices")
        if self.continuous and (self.devices is not None or self.failed_in is not None):
            named = "failed_in" if self.devices is None else "devices"
            raise PlanError(
                "continuous", f"{named} says which devices there are", f"leave out continuous or {named}"
            )
        for state in self.states or ():
            if state not in IDLE:
                raise PlanError(
                    "states", f"a run works on devices that are {state}", f"use {', '.join(IDLE)}"
                )
        for state in self.failed_states:
            if state not in UNSUCCESSFUL:
                raise PlanError("failed_states", f"{state} is no failure", f"use {', '.join(UNSUCCESSFUL)}")
        if self.failed_in is None and self.failed_states != _FAILED:
            raise PlanError("failed_states", "failed_in is missing", "name the rollout, or leave this out")
        return self


class Wave(Part):
    """So many devices, and what must be so before the next wave starts."""

    percent: Percent | None = Field(default=None, description=_PERCENT)
    """Of all devices, up to and with this wave."""
    count: Annotated[int, Field(ge=1, le=MAX_RUN_DEVICES)] | None = Field(default=None, description=_AFTER)
    """Of this wave alone."""
    success_threshold_percent: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="a number from 0 to 100"
    )
    """Provisioned devices of those of the wave that have ended; less, and the rollout does not go on."""
    gate: Literal["none", "approval", "pause"] = Field(default="none", description="none, approval or pause")
    """What stands between the end of this wave and the next."""
    pause_s: DurationS | None = Field(default=None, description=_DURATION)
    """How long the gate "pause" stays shut."""

    @model_validator(mode="after")
    def _agree(self) -> Wave:
        if self.percent is not None and self.count is not None:
            raise PlanError("count", "percent is given too", "give one of the two")
        if self.gate == "pause" and self.pause_s is None:
            raise PlanError("pause_s", "it is missing", "say how many seconds the gate stays shut")
        if self.gate != "pause" and self.pause_s is not None:
            raise PlanError("pause_s", f"the gate is {self.gate}", 'write gate = "pause", or leave this out')
        return self


class GrowingRate(Part):
    """Starts a minute, multiplied by `factor` each time so many devices have come so far."""

    base: PerMinute = Field(description=_RATE)
    factor: Annotated[float, Field(ge=1, le=MAX_FACTOR)] = Field(
        description=f"a number from 1 to {MAX_FACTOR:g}"
    )
    grow_after_notified: Annotated[int, Field(ge=1, le=MAX_RUN_DEVICES)] | None = Field(
        default=None, description=_AFTER
    )
    grow_after_succeeded: Annotated[int, Field(ge=1, le=MAX_RUN_DEVICES)] | None = Field(
        default=None, description=_AFTER
    )
    maximum: PerMinute = Field(description=_RATE)

    @model_validator(mode="after")
    def _agree(self) -> GrowingRate:
        if (self.grow_after_notified is None) == (self.grow_after_succeeded is None):
            problem = (
                "it is missing" if self.grow_after_notified is None else "grow_after_succeeded is given too"
            )
            raise PlanError(
                "grow_after_notified", problem, "give one of grow_after_notified and grow_after_succeeded"
            )
        if self.maximum < self.base:
            raise PlanError(
                "maximum",
                f"{self.maximum:g} is below base",
                f"give at least {self.base:g}, or a smaller base",
            )
        return self


def _rate_kind(value: object) -> str:
    return GROWING if isinstance(value, Mapping | GrowingRate) else CONSTANT


Rate = Annotated[
    Annotated[PerMinute, Tag(CONSTANT)] | Annotated[GrowingRate, Tag(GROWING)], Discriminator(_rate_kind)
]


class Pace(Part):
    """How many devices at once, how many starts a minute, in which order."""

    in_flight: Annotated[int, Field(ge=1, le=MAX_IN_FLIGHT)] = Field(
        default=500, description=f"a whole number from 1 to {MAX_IN_FLIGHT:,}"
    )
    per_minute: Rate | None = Field(
        default=None, description=f"{_RATE}, or a table of base, factor, grow_after_… and maximum"
    )
    """None: no limit."""
    order: Literal["id", "random"] = Field(default="id", description="id or random")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(
        default=1, description=f"a whole number from 0 to {MAX_SEED:,}"
    )


class AbortCriterion(Part):
    """When a rollout stops by itself: the share of ended devices that ended so reaches the threshold."""

    on: Literal["failed", "rejected", "timed_out", "all"] = Field(
        description="failed, rejected, timed_out or all"
    )
    threshold_percent: Percent = Field(description=_PERCENT)
    min_sample: Annotated[int, Field(ge=1, le=MAX_RUN_DEVICES)] = Field(default=1, description=_AFTER)
    """Ended devices from which on it is judged."""
    action: Literal["pause", "cancel"] = Field(default="pause", description="pause or cancel")


class Deadlines(Part):
    """How long things may take."""

    rollout_s: DurationS | None = Field(default=None, description=_DURATION)
    """From the rollout's start; then it is cancelled, and what is in flight may finish."""

    @model_validator(mode="before")
    @classmethod
    def _of_devices(cls, given: object) -> object:
        """Those of devices are options, as of runs without a rollout: whoever looks for them here is told."""
        for key in given if isinstance(given, Mapping) else ():
            option = f"{str(key).removesuffix('_s').removesuffix('_timeout')}_timeout_s"
            if option in RunOptions.__dataclass_fields__:
                raise PlanError(str(key), "deadlines of devices are options", f"write options.{option}")
        return given


class Window(Part):
    """A time of day, in UTC, in which devices may be started; past midnight where `to` is before `from`."""

    days: Annotated[tuple[Day, ...], Field(min_length=1), AfterValidator(_unique)] | None = Field(
        default=None, description=f"some of {', '.join(DAYS)}"
    )
    """On which it opens; None: every day."""
    opens: ClockTime = Field(alias="from", description=_CLOCK)
    closes: ClockTime = Field(alias="to", description=_CLOCK)

    @model_validator(mode="after")
    def _agree(self) -> Window:
        # From midnight to midnight is a whole day.
        if self.opens == self.closes != "00:00":
            raise PlanError("to", "it is the same as from", "leave the window out if it never closes")
        return self


class Schedule(Part):
    """When: from, until, and within which windows."""

    start_at: Instant | None = Field(default=None, description=_INSTANT)
    end_at: Instant | None = Field(default=None, description=_INSTANT)
    at_end: Literal["finish", "cancel", "force_cancel"] = Field(
        default="finish", description="finish, cancel or force_cancel"
    )
    """What then becomes of the devices in flight and of the rest; see `decisions.decide`."""
    windows: Annotated[tuple[Window, ...], Field(max_length=MAX_WINDOWS)] = Field(
        default=(), description=f"at most {MAX_WINDOWS} windows, each with from and to"
    )
    """Devices are started while one of them is open; none given: always."""

    @model_validator(mode="after")
    def _agree(self) -> Schedule:
        if self.end_at is None and self.at_end != "finish":
            raise PlanError("at_end", "end_at is missing", "give end_at, or leave this out")
        if self.start_at is not None and self.end_at is not None and self.end_at <= self.start_at:
            raise PlanError("end_at", "it is not after start_at", f"give {_INSTANT}, after start_at")
        return self
