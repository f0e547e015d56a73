"""The shapes of the service's answers, as far as the command line reads them.

They are TypedDicts: no cost at start-up, no validation (the service is ours and checked by the API's
own tests), and unknown fields pass through to ``--json`` untouched.
"""

from __future__ import annotations

from typing import Any, TypedDict

Json = dict[str, Any]


class Percentiles(TypedDict, total=False):
    """Seconds; a missing or null value means that nothing was measured."""

    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


class RunPercentiles(TypedDict, total=False):
    """Durations of a whole device and of each of its steps."""

    device: Percentiles
    steps: dict[str, Percentiles]


class Failure(TypedDict, total=False):
    """One device that did not end as provisioned."""

    device_id: str
    state: str
    reason: str | None
    at: str | None


class Run(TypedDict, total=False):
    """GET /api/runs/{run_id}."""

    run_id: str
    status: str
    devices: int
    counts: dict[str, int]
    started_at: str | None
    ended_at: str | None
    elapsed_s: float | None
    devices_per_s: float | None
    eta_s: float | None
    failures: list[Failure]
    percentiles: RunPercentiles | None


class Enrolment(TypedDict):
    """GET /api/enrolments/{device_id}."""

    device_id: str
    state: str
    by: str
    enrolled_at: str
    revoked_at: str | None


class Step(TypedDict, total=False):
    """One attempt at one step of a device's provisioning."""

    step: str
    attempt: int
    started_at: str | None
    ended_at: str | None
    error: str | None
    retrying_at: str
    """When the attempt begins that is waited for, which is the step "waiting"."""
    retrying_after: str
    """The kind of failure of the attempt before."""


class Package(TypedDict, total=False):
    """The installation package of a device; its URL comes with the signature masked."""

    id: str
    size_bytes: int
    sha256: str
    url: str


class Device(TypedDict, total=False):
    """One row of GET /api/devices, and with the last nine fields GET /api/devices/{id}."""

    device_id: str
    model: str
    firmware_version: str
    state: str
    online: bool
    run_id: str | None
    attempt: int | None
    progress: float | None
    updated_at: str | None
    error: str | None
    revoked: bool
    tags: dict[str, str]
    registered_at: str | None
    instance_id: str | None
    retrying_at: str | None
    retrying_after: str | None
    steps: list[Step]
    package: Package | None
    outcome: Json | str | None


class DevicePage(TypedDict, total=False):
    """GET /api/devices: one page, the id after which the next one starts, and the filter's total."""

    devices: list[Device]
    next: str | None
    total: int


class FleetGroup(TypedDict, total=False):
    """Devices of one kind in a fleet."""

    name: str
    count: int
    model: str
    firmware_version: str
    tags: dict[str, str]
    behaviours: dict[str, float]
    prefix: str
    bandwidth_bytes_per_s: int


class Fleet(TypedDict, total=False):
    """GET /api/fleets: a fleet and the processes that it runs in; one by its id with ``statistics``."""

    fleet_id: str
    devices: int
    connected: int
    seed: int
    groups: list[FleetGroup]
    processes: int
    shard: str | None
    pids: list[int]
    running: bool
    restarts: int
    changes: int
    started_at: str | None
    error: str | None
    statistics: Json


class Firmware(TypedDict):
    """Of a release."""

    sha256: str
    size_bytes: int


class Release(TypedDict):
    """GET /api/releases/{name}; ``models`` are none where it is for all."""

    name: str
    version: str
    models: list[str]
    firmware: Firmware
    configuration: Json | None
    notes: str
    created_at: str
    default: bool


class Wave(TypedDict, total=False):
    """One wave of a rollout; ``success_percent`` is null before a device of it has ended."""

    number: int
    devices: int
    state: str
    counts: dict[str, int]
    success_percent: float | None


class Reason(TypedDict, total=False):
    """Why devices did not end as provisioned: one reason with how many, and one device of them."""

    reason: str
    state: str
    count: int
    example: str


class Held(TypedDict):
    """Devices of a rollout that another run has; ``how`` is wait or join."""

    run_id: str
    how: str
    devices: int


class RolloutDevice(TypedDict, total=False):
    """One of GET /api/rollouts/{rollout_id}/devices, with its steps where it is asked for alone;
    a run's have no wave.
    """

    device_id: str
    wave: int
    state: str
    held: str | None
    held_by: str | None
    attempts: int
    progress: float | None
    error: str | None
    online: bool
    model: str
    firmware_version: str
    ended_at: str | None
    device_s: float | None
    steps_s: dict[str, float | None]
    instance_id: str
    steps: list[Step]
    retrying_at: str | None
    retrying_after: str | None


class RolloutDevicePage(TypedDict):
    """GET /api/rollouts/{rollout_id}/devices, or /api/runs/{run_id}/devices."""

    devices: list[RolloutDevice]
    next: str | None
    total: int


class Rollout(TypedDict, total=False):
    """GET /api/rollouts/{rollout_id}."""

    rollout_id: str
    name: str | None
    release: str | None
    state: str
    reason: str | None
    wave: int
    devices: int
    counts: dict[str, int]
    waves: list[Wave]
    in_flight: int
    elapsed_s: float | None
    devices_per_s: float | None
    eta_s: float | None
    reasons: list[Reason]
    held: list[Held]
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    retry_of: str | None
    plan: Json
    not_fitting: int
    """Right after it was created: how many devices its release does not fit."""


class ShortRollout(TypedDict, total=False):
    """One row of GET /api/rollouts: ``waves`` is their number."""

    rollout_id: str
    name: str | None
    release: str | None
    state: str
    reason: str | None
    wave: int
    waves: int
    devices: int
    counts: dict[str, int]
    created_at: str | None
    ended_at: str | None


class PlannedRollout(TypedDict, total=False):
    """POST /api/rollouts/plan: what a plan would come to, its waves by their devices."""

    plan: Json
    devices: int
    waves: list[int]
    not_fitting: int
    held: list[Held]


class RolloutAnswer(TypedDict, total=False):
    """POST /api/rollouts/{rollout_id}/actions."""

    view: Rollout
    changed: bool


class LogEntry(TypedDict, total=False):
    """One thing that was done to a rollout, or that it did."""

    at: str
    actor: str
    what: str
    detail: Json | str | None
