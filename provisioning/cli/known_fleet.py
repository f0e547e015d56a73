"""A fleet as the launcher knows it: its record, its devices as the changes leave them, how it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from devices.errors import FleetSpecError
from devices.roster import Change, Entry, Roster, parse_shard, record
from devices.spec import FleetSpec
from provisioning.cli.fleet_processes import shard_of
from provisioning.cli.fleet_records import FleetEntry

Json = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class KnownFleet:
    """A fleet of this host. ``roster`` is None where its record names one that can't be (any more)."""

    entry: FleetEntry
    roster: Roster | None
    problem: str | None = None
    """Why it does not run."""
    stopped: bool = False
    """Whether its processes are down on purpose."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many devices each group has on this host."""

    @property
    def fleet_id(self) -> str:
        """Its id."""
        return self.entry.fleet_id

    @property
    def size(self) -> int:
        """How many devices it has on this host."""
        return len(self.roster.entries) if self.roster is not None else 0

    @property
    def groups(self) -> list[Json]:
        """Its groups as a fleet file has them, without the ids of their devices."""
        if self.roster is None:
            groups = self.entry.request["spec"]["groups"]
        else:
            groups = [group.to_document() for group in self.roster.spec.groups]
        return [
            {"behaviours": {}, **{name: value for name, value in group.items() if name != "ids"}}
            for group in groups
        ]

    @classmethod
    def load(cls, entry: FleetEntry) -> KnownFleet:
        """The fleet on record."""
        try:
            return cls.of(entry, roster_of(entry.request["spec"], shard_of(entry)))
        except FleetSpecError as error:
            return cls(entry=entry, roster=None, problem=f"it can't be as it was any more: {error}")

    @classmethod
    def of(cls, entry: FleetEntry, roster: Roster) -> KnownFleet:
        """The fleet with that entry, ``roster`` being as it was launched."""
        fleet = cls(entry=entry, roster=roster)
        for change, at in fleet.lasting():
            fleet.apply(change, at=at)
        fleet._count()
        return fleet

    def lasting(self) -> list[tuple[Change, float]]:
        """The changes on record, and when each was made."""
        return [(Change.from_document(one["change"]), float(one["at"])) for one in self.entry.changes]

    def apply(self, change: Change, *, at: float) -> Sequence[Entry]:
        """Make a change in the roster; returns whom it is about. FleetSpecError changes nothing."""
        assert self.roster is not None
        affected = self.roster.apply(change, at=at)
        if change.do == "add":
            self._count()
        return affected

    def recorded(self, change: Change, *, at: float) -> FleetEntry:
        """The entry with ``change`` on record; FleetSpecError when there are too many."""
        earlier = self.lasting()
        times = {id(one): made_at for one, made_at in earlier}
        kept = record([one for one, _ in earlier], change)
        if not change.lasts:
            return self.entry
        return replace(
            self.entry,
            number=self.entry.number + 1,
            changes=tuple({"change": one.to_document(), "at": times.get(id(one), at)} for one in kept),
        )

    def devices(self) -> list[DeviceView]:
        """The devices, group after group."""
        assert self.roster is not None
        return [DeviceView(self.roster, entry) for entry in self.roster.entries.values()]

    def _count(self) -> None:
        assert self.roster is not None
        counts = {group.name: 0 for group in self.roster.spec.groups}
        for entry in self.roster.entries.values():
            counts[entry.plan.group] += 1
        self.counts = counts


class DeviceView:
    """A `provisioning.fleets.FleetDevice`."""

    __slots__ = ("_entry", "_roster")

    def __init__(self, roster: Roster, entry: Entry) -> None:
        self._roster = roster
        self._entry = entry

    @property
    def device_id(self) -> str:
        return self._entry.plan.device_id

    @property
    def group(self) -> str:
        return self._entry.plan.group

    @property
    def behaviour(self) -> str:
        return self._entry.behaviour

    @property
    def running(self) -> bool:
        return self._entry.running

    @property
    def online(self) -> bool:
        return self._entry.online

    @property
    def changed_at(self) -> float | None:
        return self._entry.changed_at

    def expected_outcome(self, *, max_attempts: int, limits: Mapping[str, int]) -> str:
        return self._roster.expected_outcome(self._entry, max_attempts=max_attempts, limits=limits)


def roster_of(spec: Mapping[str, Any], shard: str | tuple[int, int] | None) -> Roster:
    """The devices of this host; FleetSpecError for a spec or a shard that can't be."""
    if not isinstance(shard, tuple):
        shard = (1, 1) if shard is None else parse_shard(shard)
    return Roster(FleetSpec.from_document(spec), shard=shard)


def owner_of(device_ids: Iterable[str], fleets: Iterable[KnownFleet]) -> tuple[str, str] | None:
    """The first of the ids that a fleet has, and that fleet's id; None where there is none."""
    rosters = [(fleet.fleet_id, fleet.roster.entries) for fleet in fleets if fleet.roster is not None]
    for device_id in device_ids:
        for fleet_id, entries in rosters:
            if device_id in entries:
                return device_id, fleet_id
    return None
