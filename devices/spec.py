"""A fleet as it is asked for: groups of devices, how they behave, how fast they come.

A spec is checked when it is made, and every error names the key at fault as a fleet file has it
(``groups[1].behaviours``) and the remedy. `FleetSpec.from_document` reads what a fleet file or the API says,
`to_document` says it again.

Only the standard library is imported here: the command line uses it within its 0.3 s.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from broker.labels import label_problem
from devices.behaviours import Catalogue, expand, split
from devices.errors import FleetSpecError

MAX_DEVICES: Final = 100_000
MAX_GROUPS: Final = 1_000
MAX_STAGES: Final = 100
MAX_PREFIX_CHARS: Final = 50
MAX_LABEL_CHARS: Final = 200
MAX_TAGS: Final = 64
MAX_SEED: Final = 2**63 - 1
MAX_WEIGHT: Final = 1e12
MAX_RATE_PER_S: Final = 100_000.0
MAX_SPEED: Final = 10_000.0

DEFAULT_BEHAVIOURS: Final[Mapping[str, float]] = MappingProxyType(
    {"healthy": 0.90, "slow": 0.05, "offline": 0.05}
)
DEFAULT_DEVICES_PER_S: Final = 500.0
DEFAULT_GROUP: Final = "devices"

_DEVICE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GROUP_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Group:
    """Devices that are of one kind. Raises `FleetSpecError`, with keys as seen from the group.

    ``behaviours`` are weights by name; they need not add up to one. Names combine: ``"slow+offline"``.
    ``ids`` are the devices' ids where they are named one by one; else they are ``prefix-00001`` and so on,
    from number ``first``.
    """

    name: str = DEFAULT_GROUP
    count: int
    behaviours: Mapping[str, float] = field(default_factory=lambda: DEFAULT_BEHAVIOURS)
    model: str = "demo-1"
    firmware_version: str = "0.9.0"
    tags: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "dev"
    first: int = 1
    ids: tuple[str, ...] | None = None
    bandwidth_bytes_per_s: int | None = None
    """Cap on each download of the group's devices, whatever their behaviour."""

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        _check_integer("count", self.count, 1, MAX_DEVICES)
        _check_weights(self.behaviours)
        _check_label("model", self.model)
        _check_label("firmware_version", self.firmware_version)
        _check_tags(self.tags)
        _check_prefix(self.prefix)
        _check_integer("first", self.first, 0, MAX_SEED)
        if self.ids is not None:
            self._check_ids(self.ids)
        elif not _DEVICE_ID.fullmatch(last := self._id_of(self.first + self.count - 1)):
            raise FleetSpecError(
                "first", f"{last} is no device id", "use a shorter prefix, or lower numbers: 64 characters"
            )
        if self.bandwidth_bytes_per_s is not None:
            _check_integer("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s, 1, 10**12)

    def device_ids(self) -> Iterator[str]:
        """The devices' ids, in order."""
        if self.ids is not None:
            return iter(self.ids)
        return (self._id_of(number) for number in range(self.first, self.first + self.count))

    def shared_with(self, other: Group) -> str | None:
        """An id that ``other`` has too. It costs as much as there are ids named one by one, if any."""
        if self.ids is not None:
            return next((device_id for device_id in self.ids if other.has(device_id)), None)
        if other.ids is not None:
            return other.shared_with(self)
        first = max(self.first, other.first)
        end = min(self.first + self.count, other.first + other.count)
        return self._id_of(first) if self.prefix == other.prefix and first < end else None

    def has(self, device_id: str) -> bool:
        """Whether it is the id of one of the devices."""
        if self.ids is not None:
            return device_id in self._ids
        prefix, _, number = device_id.rpartition("-")
        if prefix != self.prefix or not (number.isascii() and number.isdigit()):
            return False
        # Any other way to write the number is another id.
        return self.first <= int(number) < self.first + self.count and self._id_of(int(number)) == device_id

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(self.ids or ())

    def _id_of(self, number: int) -> str:
        return f"{self.prefix}-{number:05d}"

    def _check_ids(self, ids: Sequence[str]) -> None:
        if len(ids) != self.count:
            raise FleetSpecError("ids", f"{len(ids):,} ids for {self.count:,} devices", "leave count out")
        seen: set[str] = set()
        for device_id in ids:
            if not _DEVICE_ID.fullmatch(device_id):
                raise FleetSpecError(
                    "ids",
                    f"{device_id!r} is no device id",
                    "use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
                )
            if device_id in seen:
                raise FleetSpecError("ids", f"{device_id!r} is given twice", "name each device once")
            seen.add(device_id)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Group:
        """A group as a fleet file has it."""
        given = _known(document, cls)
        if (ids := given.get("ids")) is not None:
            given["ids"] = tuple(str(device_id) for device_id in _list("ids", ids))
            given.setdefault("count", len(given["ids"]))
        if "count" not in given:
            raise FleetSpecError("count", "it is missing", "say how many devices the group has")
        if "behaviours" in given:
            given["behaviours"] = expand(_weights(given["behaviours"]))
        if "tags" in given:
            _mapping("tags", given["tags"])
        return cls(**given)

    def to_document(self) -> dict[str, Any]:
        """What `from_document` reads; JSON values."""
        document = {
            "name": self.name,
            "count": self.count,
            "behaviours": dict(self.behaviours),
            "model": self.model,
            "firmware_version": self.firmware_version,
            "tags": dict(self.tags),
            "prefix": self.prefix,
            "first": self.first,
        }
        if self.ids is not None:
            document["ids"] = list(self.ids)
        if self.bandwidth_bytes_per_s is not None:
            document["bandwidth_bytes_per_s"] = self.bandwidth_bytes_per_s
        return document


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the ramp: so many devices a second, for so many seconds."""

    devices_per_s: float
    for_s: float

    def __post_init__(self) -> None:
        _check_number("devices_per_s", self.devices_per_s, 0.001, MAX_RATE_PER_S)
        _check_number("for_s", self.for_s, 0.001, 7 * 86_400)


@dataclass(frozen=True, kw_only=True)
class RampSpec:
    """How fast the whole fleet connects, at first and after it was cut off.

    The stages one after the other, then ``devices_per_s`` for good; each connection up to ``jitter_s`` later.
    """

    devices_per_s: float = DEFAULT_DEVICES_PER_S
    jitter_s: float = 0.0
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        _check_number("devices_per_s", self.devices_per_s, 0.001, MAX_RATE_PER_S)
        _check_number("jitter_s", self.jitter_s, 0, 3_600)
        if len(self.stages) > MAX_STAGES:
            raise FleetSpecError("stages", f"{len(self.stages)} of them", f"give at most {MAX_STAGES}")

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> RampSpec:
        """A ramp as a fleet file has it."""
        given = _known(document, cls)
        stages = []
        for index, stage in enumerate(_list("stages", given.pop("stages", []))):
            with _under(f"stages[{index}]"):
                known = _known(_mapping("", stage), Stage)
                for name in ("devices_per_s", "for_s"):
                    if name not in known:
                        raise FleetSpecError(name, "it is missing", "a stage has devices_per_s and for_s")
                stages.append(Stage(**known))
        return cls(**given, stages=tuple(stages))

    def to_document(self) -> dict[str, Any]:
        """What `from_document` reads; JSON values."""
        return {
            "devices_per_s": self.devices_per_s,
            "jitter_s": self.jitter_s,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
        }


@dataclass(frozen=True, kw_only=True)
class FleetSpec:
    """A whole fleet. Raises `FleetSpecError`; loads the code of behaviours of the user's own.

    ``behaviours`` defines further ones by name, as `devices.behaviours.Catalogue` takes them. ``speed`` is
    how many times as fast as it should all that devices wait for by themselves goes by: their sleeps,
    outages, pauses and bandwidths, not what others have to answer.
    """

    groups: tuple[Group, ...]
    seed: int = 1
    behaviours: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ramp: RampSpec = field(default_factory=RampSpec)
    speed: float = 1.0

    def __post_init__(self) -> None:
        _check_integer("seed", self.seed, 0, MAX_SEED)
        _check_number("speed", self.speed, 0.001, MAX_SPEED)
        self._check_size(len(self.groups), self.count)
        catalogue = self.catalogue
        for index, group in enumerate(self.groups):
            for name in group.behaviours:
                catalogue.check(name, key=f"groups[{index}].behaviours.{name}")
        self._check_distinct()

    @classmethod
    def of(
        cls,
        *,
        seed: int = 1,
        ramp: RampSpec | None = None,
        speed: float = 1.0,
        definitions: Mapping[str, Mapping[str, Any]] | None = None,
        **group: Any,
    ) -> FleetSpec:
        """A fleet of one group, which has ``group``; ``definitions`` are its own behaviours."""
        return cls(
            groups=(Group(**group),),
            seed=seed,
            ramp=ramp if ramp is not None else RampSpec(),
            speed=speed,
            behaviours=definitions or {},
        )

    @property
    def count(self) -> int:
        """How many devices it has."""
        return sum(group.count for group in self.groups)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The behaviours that it knows."""
        return Catalogue(self.behaviours)

    def device_ids(self) -> Iterator[str]:
        """The ids of all devices, group after group."""
        for group in self.groups:
            yield from group.device_ids()

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> FleetSpec:
        """A fleet as a fleet file, or the API, has it."""
        given = _known(_mapping("", document), cls)
        groups = []
        groups_given = given.pop("groups", [])
        if isinstance(groups_given, Mapping):
            raise FleetSpecError("groups", "it is one table", "write [[groups]], once for each group")
        for index, group in enumerate(_list("groups", groups_given)):
            with _under(f"groups[{index}]"):
                groups.append(Group.from_document(_mapping("", group)))
        if not groups:
            raise FleetSpecError("groups", "there is none", "write at least one [[groups]] with a count")
        if "ramp" in given:
            with _under("ramp"):
                given["ramp"] = RampSpec.from_document(_mapping("", given["ramp"]))
        if "behaviours" in given:
            _mapping("behaviours", given["behaviours"])
        return cls(**given, groups=tuple(groups))

    def to_document(self) -> dict[str, Any]:
        """What `from_document` reads; JSON values."""
        return {
            "seed": self.seed,
            "speed": self.speed,
            "ramp": self.ramp.to_document(),
            "behaviours": {name: dict(definition) for name, definition in self.behaviours.items()},
            "groups": [group.to_document() for group in self.groups],
        }

    def with_group(self, group: Group) -> FleetSpec:
        """This fleet and one group more; raises `FleetSpecError` where they don't go together.

        Only what is new is looked at, and no code is loaded again: a fleet may grow a thousand times.
        """
        at = f"groups[{len(self.groups)}]"
        self._check_size(len(self.groups) + 1, self.count + group.count)
        for name in group.behaviours:
            self.catalogue.check(name, key=f"{at}.behaviours.{name}")
        for index, other in enumerate(self.groups):
            if other.name == group.name:
                raise _same_name(at, index, group.name)
            if (device_id := group.shared_with(other)) is not None:
                raise _same_device(at, index, group, device_id)
        grown = copy.copy(self)
        object.__setattr__(grown, "groups", (*self.groups, group))
        return grown

    @staticmethod
    def _check_size(groups: int, count: int) -> None:
        if not 1 <= groups <= MAX_GROUPS:
            raise FleetSpecError("groups", f"{groups} of them", f"give 1 to {MAX_GROUPS:,}")
        if count > MAX_DEVICES:
            raise FleetSpecError(
                "groups", f"{count:,} devices", f"give at most {MAX_DEVICES:,} in all, or several fleets"
            )

    def _check_distinct(self) -> None:
        names: dict[str, int] = {}
        owners: dict[str, int] = {}
        for index, group in enumerate(self.groups):
            if (other := names.setdefault(group.name, index)) != index:
                raise _same_name(f"groups[{index}]", other, group.name)
            if len(self.groups) == 1 and group.ids is None:
                return
            for device_id in group.device_ids():
                if (other := owners.setdefault(device_id, index)) != index:
                    raise _same_device(f"groups[{index}]", other, group, device_id)


def _same_name(key: str, other: int, name: str) -> FleetSpecError:
    return FleetSpecError(
        f"{key}.name", f"groups[{other}] is called {name!r} too", "give each group a name of its own"
    )


def _same_device(key: str, other: int, group: Group, device_id: str) -> FleetSpecError:
    return FleetSpecError(
        f"{key}.{'prefix' if group.ids is None else 'ids'}",
        f"{device_id} is in groups[{other}] too",
        "give each group a prefix (or a first number) of its own",
    )


def parse_behaviours(text: str) -> dict[str, float]:
    """Weights from ``"healthy=0.9,hangs(after=notified)=0.1"``; a name alone weighs 1.

    ``all`` is every built-in behaviour, in equal parts.

    Raises `FleetSpecError`.
    """
    weights: dict[str, float] = {}
    for item in split(text, ","):
        name, *number = split(item.strip(), "=")
        try:
            weight = float("".join(number)) if number else 1.0
        except ValueError:
            raise FleetSpecError(
                "behaviours",
                f"{item.strip()!r} has no number",
                "write NAME=WEIGHT, as in healthy=0.9,slow=0.1",
            ) from None
        if name in weights:
            raise FleetSpecError("behaviours", f"{name!r} is given twice", "give each name once")
        weights[name] = weight
    weights = expand(weights)
    _check_weights(weights)
    catalogue = Catalogue()
    for name in weights:
        catalogue.check(name, key="behaviours")
    return weights


class _under:  # noqa: N801 (used as a statement)
    """Errors raised in the block have their key below ``key``."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FleetSpecError):
            raise error.below(self._key) from error.__cause__


def _known(document: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    """A copy of ``document``; `FleetSpecError` for a key that is no field of ``cls``."""
    names = [f.name for f in dataclasses.fields(cls)]
    for key in document:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"use {', '.join(names)}"
            raise FleetSpecError(str(key), "there is no such key", remedy)
    return dict(document)


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FleetSpecError(key, f"{value!r} is no table", "give keys with values")
    return value


def _list(key: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise FleetSpecError(key, f"{value!r} is no list", "give a list")
    return value


def _weights(value: Any) -> Mapping[str, float]:
    if not isinstance(value, Mapping):
        raise FleetSpecError(
            "behaviours",
            f"{value!r} is no table",
            "give weights, as in { healthy = 0.9, slow = 0.1 }",
        )
    for name, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight > MAX_WEIGHT:
            raise FleetSpecError(
                f"behaviours.{name}", f"{weight!r} is no weight", "give a number, as in healthy = 0.9"
            )
    return {name: float(weight) for name, weight in value.items()}


def _check_integer(key: str, value: Any, low: int, high: int) -> None:
    # bool is an int to Python and a mistake to everyone else.
    if isinstance(value, bool) or not isinstance(value, int):
        raise FleetSpecError(key, f"{value!r} is no whole number", f"give one from {low:,} to {high:,}")
    if not low <= value <= high:
        raise FleetSpecError(
            key, f"{value:,} is out of range", f"give a whole number from {low:,} to {high:,}"
        )


def _check_number(key: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise FleetSpecError(key, f"{value!r} is out of range", f"give a number from {low:g} to {high:,g}")


def _check_weights(weights: Mapping[str, float]) -> None:
    if not weights:
        raise FleetSpecError("behaviours", "none given", "give at least one, as in healthy=1")
    for name, weight in weights.items():
        if not 0 <= weight <= MAX_WEIGHT:
            raise FleetSpecError(
                "behaviours",
                f"the weight of {name!r} is {weight}",
                f"give a number that is not negative, up to {MAX_WEIGHT:g}",
            )
    if not any(weight > 0 for weight in weights.values()):
        raise FleetSpecError(
            "behaviours", "all weights are zero", "give at least one a weight, as in healthy=1"
        )


def _check_label(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise FleetSpecError(key, f"{value!r} is no text", "write it in quotation marks")
    if not 1 <= len(value) <= MAX_LABEL_CHARS:
        raise FleetSpecError(
            key, f"it has {len(value)} characters", f"give 1 to {MAX_LABEL_CHARS} characters"
        )
    _check_text(key, value)


def _check_text(key: str, value: str) -> None:
    # Others would be refused when the device registers.
    if (problem := label_problem(value)) is not None:
        raise FleetSpecError(key, f"{value!r} is no label: {problem}", "write it in letters of one script")


def _check_tags(tags: Mapping[str, Any]) -> None:
    if len(tags) > MAX_TAGS:
        raise FleetSpecError("tags", f"{len(tags)} of them", f"give at most {MAX_TAGS}")
    for key, value in tags.items():
        _check_label("tags", key)
        if not isinstance(value, str):
            raise FleetSpecError(f"tags.{key}", f"{value!r} is no text", "write it in quotation marks")
        if len(value) > MAX_LABEL_CHARS:
            raise FleetSpecError(
                "tags", f"the value of {key!r} is too long", f"use at most {MAX_LABEL_CHARS} characters"
            )
        _check_text(f"tags.{key}", value)


def _check_name(key: str, name: Any) -> None:
    if not isinstance(name, str) or not _GROUP_NAME.fullmatch(name):
        raise FleetSpecError(key, f"{name!r} is no name", "use 1 to 64 letters, digits, '.', '_' or '-'")


def _check_prefix(prefix: Any) -> None:
    if not isinstance(prefix, str) or not _DEVICE_ID.fullmatch(prefix) or len(prefix) > MAX_PREFIX_CHARS:
        raise FleetSpecError(
            "prefix",
            f"{prefix!r} can't begin a device id",
            f"use 1 to {MAX_PREFIX_CHARS} letters, digits, '.', '_' or '-', the first a letter or digit",
        )
