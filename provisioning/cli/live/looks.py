"""What the pages show: fetched with a bounded number of requests, whatever the number of devices.

A look at a rollout or run is one request. Up to MAP_DEVICES devices are fetched one by one, in one page; of
more than that the first of those in flight and of those that failed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from provisioning.cli.client import ServiceClient
from provisioning.cli.documents import Device, Failure, Fleet, Json, Rollout, RolloutDevice, Run
from provisioning.cli.errors import ApiError
from provisioning.cli.followed import Followed, Page
from provisioning.cli.rates import Rates
from provisioning.cli.rollout.words import has_ended
from provisioning.states import FINAL, WORKING, DeviceState

MAP_DEVICES: Final = 1_000
"""So many devices are shown one by one."""
ROWS_FETCHED: Final = 200
"""Of those in flight, and of those that failed, where there are more than MAP_DEVICES."""
DEVICES_EVERY_S: Final = 1.0
FLEETS_EVERY_S: Final = 2.0
RECENT_S: Final = 30.0
MEANINGFUL_S: Final = 3.0
MISSED: Final = (DeviceState.FAILED, DeviceState.TIMED_OUT, DeviceState.REJECTED)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One device, in a rollout, a run or neither."""

    device_id: str
    state: str
    wave: int | None = None
    attempt: int | None = None
    progress: float | None = None
    error: str | None = None
    online: bool | None = None
    model: str = ""
    firmware_version: str = ""
    held_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Members:
    """Devices that are shown one by one; ``states`` are those of all where there are few enough."""

    in_flight: Sequence[Member] = ()
    missed: Sequence[Member] = ()
    in_flight_total: int = 0
    missed_total: int = 0
    states: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """All that is known at one moment; what was not asked for is as it was before."""

    rollout: Rollout | None = None
    run: Run | None = None
    members: Members = field(default_factory=Members)
    fleets: Sequence[Fleet] = ()
    fleet: Fleet | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    failures: Sequence[Failure] = ()
    recent_per_s: float | None = None
    """Devices that ended per second, lately; None before there is anything to tell it from."""
    ended: bool = False
    """Whether what is followed has ended."""

    @property
    def devices(self) -> int:
        """Of the rollout or run."""
        if self.rollout is not None:
            return self.rollout["devices"]
        return 0 if self.run is None else self.run["devices"]


class Looker:
    """Looks again and again; called from one thread, with the page that is shown."""

    def __init__(self, followed: Followed, now: Callable[[], float] = time.monotonic) -> None:
        self._followed = followed
        self._now = now
        self._rates: dict[str, Rates] = {}
        self._devices_at = self._fleets_at = float("-inf")
        self._members = Members()
        self._failures: Sequence[Failure] = ()
        self._fleets: Sequence[Fleet] = ()
        self._ends: deque[tuple[float, int]] = deque()

    def look(self, client: ServiceClient, page: Page) -> Look:
        """Return what is now, by at most a dozen requests."""
        followed = self._followed
        rollout = client.rollout(followed.id) if followed.kind == "rollout" else None
        run = client.run(followed.id) if followed.kind == "run" else None
        ended = (rollout is not None and has_ended(rollout["state"])) or (
            run is not None and run["status"] != "running"
        )
        now = self._now()
        if page != "fleet" and (ended or now >= self._devices_at + DEVICES_EVERY_S):
            self._members, self._devices_at = self._look_at_devices(client, rollout, run), now
            if rollout is not None:
                self._failures = client.run(followed.id).get("failures", [])
        if page == "fleet" or now >= self._fleets_at + FLEETS_EVERY_S:
            self._fleets, self._fleets_at = client.fleets(), now
        fleet, rates = self._look_at_fleet(client) if page == "fleet" else (None, {})
        gone = followed.kind == "fleet" and all(one["fleet_id"] != followed.id for one in self._fleets)
        return Look(
            rollout=rollout,
            run=run,
            members=self._members,
            fleets=self._fleets,
            fleet=fleet,
            rates=rates,
            failures=self._failures if run is None else run.get("failures", []),
            recent_per_s=self._recent(now, rollout, run),
            ended=ended or gone,
        )

    def _recent(self, now: float, rollout: Rollout | None, run: Run | None) -> float | None:
        """The rate of the last RECENT_S: that since the start counts what was waited at gates too."""
        counts = run["counts"] if run is not None else rollout["counts"] if rollout is not None else None
        if counts is None:
            return None
        self._ends.append((now, sum(counts.get(state, 0) for state in FINAL)))
        while len(self._ends) > 2 and self._ends[1][0] <= now - RECENT_S:
            self._ends.popleft()
        (then, before), (_, ended) = self._ends[0], self._ends[-1]
        return (ended - before) / (now - then) if now - then >= MEANINGFUL_S else None

    def _look_at_devices(self, client: ServiceClient, rollout: Rollout | None, run: Run | None) -> Members:
        if rollout is not None:
            return _of_rollout(client, rollout)
        run_id = None if run is None else run["run_id"]
        counts = None if run is None else run["counts"]
        if run is not None and run["devices"] <= MAP_DEVICES:
            found = client.devices_page(run_id=run_id, limit=MAP_DEVICES)["devices"]
            return _whole([_member(device) for device in found])
        in_flight, in_flight_total = _by_state(client, WORKING, run_id, counts)
        missed, missed_total = _by_state(client, MISSED, run_id, counts)
        return Members(
            in_flight=in_flight, in_flight_total=in_flight_total, missed=missed, missed_total=missed_total
        )

    def _look_at_fleet(self, client: ServiceClient) -> tuple[Fleet | None, Mapping[str, float]]:
        """The fleet that is followed, else the latest."""
        ids = [fleet["fleet_id"] for fleet in self._fleets]
        if not ids:
            return None, {}
        fleet_id = self._followed.id if self._followed.id in ids else ids[-1]
        try:
            fleet = client.fleet(fleet_id)
        except ApiError as error:
            if error.status == 404:  # it was stopped a moment ago
                return None, {}
            raise
        rates = self._rates.setdefault(fleet_id, Rates(self._now))
        return fleet, rates.update(fleet["statistics"])


def _of_rollout(client: ServiceClient, rollout: Rollout) -> Members:
    rollout_id, counts = rollout["rollout_id"], rollout["counts"]
    if rollout["devices"] <= MAP_DEVICES:
        page = client.rollout_devices_page(rollout_id, limit=MAP_DEVICES)
        return _whole([_rollout_member(device) for device in page["devices"]])

    def some(states: Sequence[str]) -> tuple[list[Member], int]:
        total = sum(counts.get(state, 0) for state in states)
        if not total:
            return [], 0
        page = client.rollout_devices_page(rollout_id, states=states, limit=ROWS_FETCHED)
        return [_rollout_member(device) for device in page["devices"]], page["total"]

    in_flight, in_flight_total = some(WORKING)
    missed, missed_total = some(MISSED)
    return Members(
        in_flight=in_flight, in_flight_total=in_flight_total, missed=missed, missed_total=missed_total
    )


def _by_state(
    client: ServiceClient, states: Sequence[str], run_id: str | None, counts: Mapping[str, int] | None
) -> tuple[list[Member], int]:
    """The service lists one state at a time: a few of each."""
    found: list[Member] = []
    total = 0
    for state in states:
        if counts is None or counts.get(state):
            page = client.devices_page(state=state, run_id=run_id, limit=ROWS_FETCHED // len(states))
            found += [_member(device) for device in page["devices"]]
            total += page.get("total", 0)
    return found, total


def _whole(members: Sequence[Member]) -> Members:
    in_flight = [one for one in members if one.state in WORKING]
    missed = [one for one in members if one.state in FINAL and one.state in MISSED]
    return Members(
        in_flight=in_flight,
        in_flight_total=len(in_flight),
        missed=missed,
        missed_total=len(missed),
        states=[one.state for one in members],
    )


def _rollout_member(device: RolloutDevice) -> Member:
    return Member(
        device_id=device["device_id"],
        state=device["state"],
        wave=device["wave"],
        attempt=device.get("attempts"),
        progress=device.get("progress"),
        error=device.get("error"),
        online=device.get("online"),
        model=device.get("model", ""),
        firmware_version=device.get("firmware_version", ""),
        held_by=device.get("held_by"),
    )


def _member(device: Device) -> Member:
    return Member(
        device_id=device["device_id"],
        state=device["state"],
        attempt=device.get("attempt"),
        progress=device.get("progress"),
        error=device.get("error"),
        online=device.get("online"),
        model=device.get("model", ""),
        firmware_version=device.get("firmware_version", ""),
    )


def document(look: Look) -> Json:
    """Return the devices of a look as JSON."""
    members = look.members
    return {
        "in_flight": [vars(one) for one in members.in_flight],
        "missed": [vars(one) for one in members.missed],
        "in_flight_total": members.in_flight_total,
        "missed_total": members.missed_total,
    }
