"""Which devices a fleet has and how each behaves, and what operators have changed since.

A fleet is its spec and the changes made to it, in order: a process that is started again goes through them
and has the same devices as before. All of it is pure, and the same for the same seed.

Weights are shares: of 200 devices with ``{"healthy": 0.9, "slow": 0.1}`` exactly 180 are healthy (largest
remainders get what rounding leaves), and the seed says which. A shard is every n-th device, so that
several processes, or hosts, run one fleet between them without talking to each other.

Only the standard library is imported here: the command line uses it within its 0.3 s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal, get_args

from devices.behaviours import NO_LIMITS, Outcome
from devices.dice import device_seed, share_of
from devices.errors import FleetSpecError
from devices.spec import FleetSpec, Group

MAX_SHARDS: Final = 64_000
MAX_CHANGES: Final = 1_000
MAX_FOR_S: Final = 7 * 86_400.0

Action = Literal["add", "stop", "kill", "start", "offline", "online", "behave", "storm"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
# Which of them overrule each other: the last one holds.
_FAMILIES: Final[Mapping[str, str]] = {
    "stop": "running",
    "kill": "running",
    "start": "running",
    "offline": "network",
    "online": "network",
    "behave": "behaviour",
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Some devices of a fleet: those to which all that is given applies. Raises `FleetSpecError`."""

    group: str | None = None
    devices: tuple[str, ...] | None = None
    """Ids."""
    behaviour: str | None = None
    """By name, as it is at the moment."""
    share: float | None = None
    """More than 0, up to 1: always the same devices, those of a smaller share among a larger one's."""

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise FleetSpecError(
                "which.share", f"{self.share!r} is no share", "give a number above 0 and up to 1"
            )

    @property
    def everything(self) -> bool:
        """Whether it is the whole fleet."""
        return self == Selection()

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Selection:
        """A selection as the API has it."""
        _check_keys("which", document, cls)
        given = dict(document)
        for name in ("group", "behaviour"):
            if not isinstance(given.get(name), str | None):
                raise FleetSpecError(f"which.{name}", f"{given[name]!r} is no name", "give a text")
        _check_number("which.share", given.get("share"))
        if (ids := given.get("devices")) is not None:
            if not isinstance(ids, list | tuple) or not all(isinstance(i, str) for i in ids):
                raise FleetSpecError("which.devices", "it is no list of ids", "give a list of texts")
            given["devices"] = tuple(ids)
        return cls(**given)

    def to_document(self) -> dict[str, Any]:
        """What `from_document` reads."""
        return {
            f.name: list(value) if isinstance(value, tuple) else value
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) is not None
        }


@dataclass(frozen=True, kw_only=True)
class Change:
    """What an operator does to a fleet that runs. Raises `FleetSpecError`.

    | do | effect on the devices of ``which`` |
    |---|---|
    | add | none: the devices of ``group`` join |
    | stop | say goodbye, disconnect, are gone |
    | kill | are gone without a DISCONNECT: the broker publishes their wills |
    | start | stopped and killed ones are there again, as if switched on |
    | offline | lose the network: for ``for_s``, or until they are taken online |
    | online | have it again |
    | behave | behave like ``behaviour`` from now on |
    | storm | lose their connections all at once and connect again within ``spread_s``, past the ramp |
    """

    do: Action
    which: Selection = field(default_factory=Selection)
    group: Group | None = None
    behaviour: str | None = None
    for_s: float | None = None
    spread_s: float = 0.0

    def __post_init__(self) -> None:
        if self.do not in ACTIONS:
            raise FleetSpecError("do", f"{self.do!r} is nothing to do", f"use {', '.join(ACTIONS)}")
        for name, verb in (("group", "add"), ("behaviour", "behave")):
            if (getattr(self, name) is not None) != (self.do == verb):
                problem = "it is missing" if self.do == verb else f"{self.do} has none"
                raise FleetSpecError(name, problem, f"give it with {verb}, and with nothing else")
        if self.for_s is not None and (self.do != "offline" or not 0 < self.for_s <= MAX_FOR_S):
            raise FleetSpecError(
                "for_s",
                f"{self.for_s!r} can't be",
                f"give seconds, up to {MAX_FOR_S:,.0f}, with offline",
            )
        if not 0 <= self.spread_s <= 3_600:
            raise FleetSpecError("spread_s", f"{self.spread_s!r} can't be", "give 0 to 3,600 seconds")

    @property
    def lasts(self) -> bool:
        """Whether a device that is started anew must be told of it."""
        return self.do != "storm" and self.for_s is None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Change:
        """A change as the API has it."""
        _check_keys("", document, cls)
        given = dict(document)
        if "do" not in given:
            raise FleetSpecError("do", "it is missing", f"use {', '.join(ACTIONS)}")
        given["which"] = Selection.from_document(_table("which", given.get("which") or {}))
        if given.get("group") is not None:
            try:
                given["group"] = Group.from_document(_table("", given["group"]))
            except FleetSpecError as error:
                raise error.below("group") from error.__cause__
        for name in ("for_s", "spread_s"):
            _check_number(name, given.get(name))
        if not isinstance(given.get("behaviour"), str | None):
            raise FleetSpecError("behaviour", f"{given['behaviour']!r} is no name", "give a text")
        return cls(**given)

    def to_document(self) -> dict[str, Any]:
        """What `from_document` reads; JSON values."""
        document: dict[str, Any] = {"do": self.do, "which": self.which.to_document()}
        if self.group is not None:
            document["group"] = self.group.to_document()
        for name in ("behaviour", "for_s"):
            if (value := getattr(self, name)) is not None:
                document[name] = value
        if self.spread_s:
            document["spread_s"] = self.spread_s
        return document


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePlan:
    """One device as it was asked for: its id, its group, how it behaves, the seed of all its dice."""

    device_id: str
    group: str
    behaviour: str
    seed: int


@dataclass(kw_only=True, slots=True)
class Entry:
    """One device as it is to be at the moment."""

    plan: DevicePlan
    behaviour: str
    running: bool = True
    online: bool = True
    changed_at: float | None = None
    """When an operator last changed how it is: seconds since the epoch; None: never."""


class Roster:
    """The devices of a spec, or of a shard of it, as the changes leave them."""

    def __init__(
        self, spec: FleetSpec, changes: Iterable[Change] = (), *, shard: tuple[int, int] = (1, 1)
    ) -> None:
        """Raises `FleetSpecError` for a shard that can't be, or a change that does not fit."""
        check_shard(shard)
        self.spec = spec
        self._shard = shard
        self.entries: dict[str, Entry] = {}
        self._count = 0
        for group in spec.groups:
            self._join(group)
        for change in changes:
            self.apply(change)

    def apply(self, change: Change, *, at: float = 0.0) -> list[Entry]:
        """Make ``change``; returns the entries that it is about. `FleetSpecError` changes nothing.

        ``at`` is when it was made, for `Entry.changed_at`.
        """
        if change.group is not None:
            self.spec = self.spec.with_group(change.group)
            return self._join(change.group)
        if change.behaviour is not None:
            self.spec.catalogue.check(change.behaviour, key="behaviour")
        selected = self.select(change.which)
        for entry in selected:
            if change.do != "storm":
                entry.changed_at = at
            match change.do:
                case "stop" | "kill":
                    entry.running = False
                case "start":
                    entry.running = True
                case "offline" if change.for_s is None:
                    entry.online = False
                case "online":
                    entry.online = True
                case "behave":
                    assert change.behaviour is not None
                    entry.behaviour = change.behaviour
        return selected

    def select(self, which: Selection) -> list[Entry]:
        """The entries of ``which``; raises `FleetSpecError` for a group that there isn't."""
        if which.group is not None and all(group.name != which.group for group in self.spec.groups):
            names = ", ".join(group.name for group in self.spec.groups[:20])
            raise FleetSpecError("which.group", f"there is no group {which.group!r}", f"use one of: {names}")
        found: Iterable[Entry] = self.entries.values()
        if which.devices is not None:
            # Of another shard, or of none: the caller who knows the whole fleet says so.
            found = (self.entries[i] for i in dict.fromkeys(which.devices) if i in self.entries)
        return [
            entry
            for entry in found
            if (which.group is None or entry.plan.group == which.group)
            and (which.behaviour is None or entry.behaviour == which.behaviour)
            and (which.share is None or share_of(entry.plan.seed) < which.share)
        ]

    def is_so(self, change: Change) -> bool:
        """Whether all devices that ``change`` is about are as it would make them already."""
        if change.do in ("add", "storm") or change.for_s is not None:
            return False
        selected = self.select(change.which)
        return bool(selected) and all(_is_so(entry, change) for entry in selected)

    def exact(self, which: Selection) -> Selection:
        """``which`` with its share moved to where so many devices are that share of those selected.

        Devices stand at random between 0 and 1, so that a share as it is given would fit a few devices
        alone by luck. One device at least is selected, where there is any. Who knows only some of the
        devices, as a process of the fleet does, selects the same ones by the share that was moved.
        """
        if which.share is None or which.share == 1:
            return which
        among = sorted(share_of(e.plan.seed) for e in self.select(dataclasses.replace(which, share=None)))
        wanted = max(1, round(which.share * len(among)))
        share = among[wanted] if wanted < len(among) else 1.0
        return dataclasses.replace(which, share=share)

    def expected_outcome(
        self, entry: Entry, *, max_attempts: int, limits: Mapping[str, int] = NO_LIMITS
    ) -> Outcome:
        """How the service should end the device, if it stays as it is at the moment."""
        if not (entry.running and entry.online):
            return "timed_out"
        return self.spec.catalogue.expected_outcome(
            entry.behaviour, entry.plan.seed, max_attempts=max_attempts, limits=limits
        )

    def _join(self, group: Group) -> list[Entry]:
        k, n = self._shard
        joined = []
        for index, plan in enumerate(group_plans(self.spec.seed, group), start=self._count):
            if index % n == k - 1:
                joined.append(Entry(plan=plan, behaviour=plan.behaviour))
        self._count += group.count
        for entry in joined:
            self.entries[entry.plan.device_id] = entry
        return joined


def plan(spec: FleetSpec, shard: tuple[int, int] = (1, 1)) -> Iterator[DevicePlan]:
    """The devices of ``spec`` in order, or those of shard k of n.

    Deterministic: the shards 1..n of a spec are disjoint and together are the whole fleet.
    Raises `FleetSpecError` at once for a shard that can't be.
    """
    check_shard(shard)
    return (entry.plan for entry in Roster(spec, shard=shard).entries.values())


def group_plans(seed: int, group: Group) -> Iterator[DevicePlan]:
    """The devices of one group of a fleet with that seed."""
    for device_id, behaviour in zip(group.device_ids(), _behaviours_in_order(seed, group), strict=True):
        yield DevicePlan(
            device_id=device_id,
            group=group.name,
            behaviour=behaviour,
            seed=device_seed(seed, device_id),
        )


def record(changes: Sequence[Change], change: Change) -> tuple[Change, ...]:
    """``changes`` and then ``change``, without what it overrules; `FleetSpecError` when it is too many."""
    if not change.lasts:
        return tuple(changes)
    family = _FAMILIES.get(change.do)
    kept = [
        earlier
        for index, earlier in enumerate(changes)
        if family is None
        or _FAMILIES.get(earlier.do) != family
        or not _covers(change.which, earlier.which)
        # Who is selected by behaviour depends on what they were told before.
        or (family == "behaviour" and any(c.which.behaviour is not None for c in changes[index + 1 :]))
    ]
    if len(kept) >= MAX_CHANGES:
        raise FleetSpecError(
            "changes", f"{MAX_CHANGES:,} were made to this fleet", "stop it and launch it as it should be"
        )
    return (*kept, change)


def _is_so(entry: Entry, change: Change) -> bool:
    match change.do:
        case "stop" | "kill" | "start":
            return entry.running == (change.do == "start")
        case "offline" | "online":
            return entry.online == (change.do == "online")
    return entry.behaviour == change.behaviour


def _covers(later: Selection, earlier: Selection) -> bool:
    """Whether all of ``earlier`` are in ``later``, whatever happened in between."""
    return later.everything or (later == earlier and later.behaviour is None)


def parse_shard(text: str) -> tuple[int, int]:
    """A shard from ``"k/n"``; raises `FleetSpecError`."""
    k, _, n = text.partition("/")
    if not (k.isascii() and k.isdigit() and n.isascii() and n.isdigit()):
        raise FleetSpecError("shard", f"{text!r} is no shard", "write K/N, as in 1/4 for the first of four")
    shard = (int(k), int(n))
    check_shard(shard)
    return shard


def check_shard(shard: tuple[int, int]) -> None:
    """Raise `FleetSpecError` for a shard that can't be."""
    k, n = shard
    if not 1 <= k <= n <= MAX_SHARDS:
        raise FleetSpecError(
            "shard", f"{k}/{n} can't be", f"give K/N with 1 <= K <= N <= {MAX_SHARDS:,}, as in 1/4"
        )


def part_of(shard: tuple[int, int], part: int, parts: int) -> tuple[int, int]:
    """The shard of the ``part``-th of ``parts`` processes that share the devices of ``shard``."""
    k, n = shard
    return k + n * (part - 1), n * parts


def _behaviours_in_order(seed: int, group: Group) -> list[str]:
    """The behaviour of each device: exact shares by largest remainder, shuffled by the seed."""
    weights = sorted((name, weight) for name, weight in group.behaviours.items() if weight > 0)
    total = math.fsum(weight for _, weight in weights)
    quotas = [(name, group.count * weight / total) for name, weight in weights]
    shares = {name: math.floor(quota) for name, quota in quotas}
    missing = group.count - sum(shares.values())
    by_remainder = sorted(quotas, key=lambda item: (math.floor(item[1]) - item[1], item[0]))
    for name, _ in by_remainder[:missing]:
        shares[name] += 1
    names = [name for name, share in shares.items() for _ in range(share)]
    Random(device_seed(seed, group.name)).shuffle(names)
    return names


def _check_keys(key: str, document: Mapping[str, Any], cls: type[Any]) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = next((name for name in _table(key, document) if name not in names), None)
    if unknown is not None:
        raise FleetSpecError(
            f"{key}.{unknown}" if key else str(unknown), "there is no such key", f"use {', '.join(names)}"
        )


def _check_number(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise FleetSpecError(key, f"{value!r} is no number", "give one")


def _table(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FleetSpecError(key, f"{value!r} is no table", "give keys with values")
    return value
