"""Which devices a fleet has and how each behaves: pure, and the same for the same seed.

Weights are shares: of 200 devices with ``{"healthy": 0.9, "slow": 0.1}`` exactly 180 are healthy (largest
remainders get what rounding leaves), and the seed says which. A shard is every n-th device, so that
several processes, or hosts, run one fleet between them without talking to each other.

Only the standard library is imported here: the command line uses it within its 0.3 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from types import MappingProxyType
from typing import Final

from devices.behaviours import Outcome, check_name, expected_outcome
from devices.errors import FleetSpecError

__all__ = [
    "DEFAULT_BEHAVIOURS",
    "MAX_DEVICES",
    "DevicePlan",
    "FleetSpec",
    "FleetSpecError",
    "parse_behaviours",
    "parse_shard",
    "plan",
]

MAX_DEVICES: Final = 100_000
MAX_PREFIX_CHARS: Final = 50
MAX_LABEL_CHARS: Final = 200
MAX_TAGS: Final = 64
MAX_SHARDS: Final = 1_000
MAX_SEED: Final = 2**63 - 1

DEFAULT_BEHAVIOURS: Final[Mapping[str, float]] = MappingProxyType(
    {"healthy": 0.90, "slow": 0.05, "offline": 0.05}
)


@dataclass(frozen=True, kw_only=True)
class FleetSpec:
    """A fleet: how many devices, how they behave, what they say they are. Raises `FleetSpecError`.

    ``behaviours`` are weights by name; they need not add up to one. Names combine: ``"slow+offline"``.
    """

    count: int
    seed: int = 1
    behaviours: Mapping[str, float] = field(default_factory=lambda: DEFAULT_BEHAVIOURS)
    model: str = "demo-1"
    firmware_version: str = "0.9.0"
    tags: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "dev"

    def __post_init__(self) -> None:
        _check_integer("count", self.count, 1, MAX_DEVICES)
        _check_integer("seed", self.seed, 0, MAX_SEED)
        _check_weights(self.behaviours)
        _check_label("model", self.model)
        _check_label("firmware_version", self.firmware_version)
        _check_prefix(self.prefix)
        if len(self.tags) > MAX_TAGS:
            raise FleetSpecError("tags", f"{len(self.tags)} of them", f"give at most {MAX_TAGS}")
        for key, value in self.tags.items():
            _check_label("tags", key)
            if len(value) > MAX_LABEL_CHARS:
                raise FleetSpecError(
                    "tags", f"the value of {key!r} is too long", f"use at most {MAX_LABEL_CHARS} characters"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePlan:
    """One device: its id, how it behaves, the seed of all its dice, how the service should end it."""

    device_id: str
    behaviour: str
    seed: int
    expected_outcome: Outcome


def plan(spec: FleetSpec, shard: tuple[int, int] = (1, 1)) -> Iterator[DevicePlan]:
    """The devices of ``spec`` in order of id, or those of shard k of n.

    Deterministic: the shards 1..n of a spec are disjoint and together are the whole fleet.
    Raises `FleetSpecError` at once for a shard that can't be.
    """
    _check_shard(shard)
    return _devices(spec, shard)


def parse_behaviours(text: str) -> dict[str, float]:
    """Weights from ``"healthy=0.9,slow=0.1"``; a name alone weighs 1. Raises `FleetSpecError`."""
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = item.strip().partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            raise FleetSpecError(
                "behaviours",
                f"{item.strip()!r} has no number",
                "write NAME=WEIGHT, as in healthy=0.9,slow=0.1",
            ) from None
        if name in weights:
            raise FleetSpecError("behaviours", f"{name!r} is given twice", "give each name once")
        weights[name] = weight
    _check_weights(weights)
    return weights


def parse_shard(text: str) -> tuple[int, int]:
    """A shard from ``"k/n"``; raises `FleetSpecError`."""
    k, _, n = text.partition("/")
    if not (k.isascii() and k.isdigit() and n.isascii() and n.isdigit()):
        raise FleetSpecError("shard", f"{text!r} is no shard", "write K/N, as in 1/4 for the first of four")
    shard = (int(k), int(n))
    _check_shard(shard)
    return shard


def _devices(spec: FleetSpec, shard: tuple[int, int]) -> Iterator[DevicePlan]:
    names = _behaviours_in_order(spec)
    outcomes = {name: expected_outcome(name) for name in set(names)}
    k, n = shard
    for index in range(k - 1, spec.count, n):
        device_id = f"{spec.prefix}-{index + 1:05d}"
        yield DevicePlan(
            device_id=device_id,
            behaviour=names[index],
            seed=_device_seed(spec.seed, device_id),
            expected_outcome=outcomes[names[index]],
        )


def _behaviours_in_order(spec: FleetSpec) -> list[str]:
    """The behaviour of each device: exact shares by largest remainder, shuffled by the seed."""
    weights = sorted((name, weight) for name, weight in spec.behaviours.items() if weight > 0)
    total = math.fsum(weight for _, weight in weights)
    quotas = [(name, spec.count * weight / total) for name, weight in weights]
    shares = {name: math.floor(quota) for name, quota in quotas}
    missing = spec.count - sum(shares.values())
    by_remainder = sorted(quotas, key=lambda item: (math.floor(item[1]) - item[1], item[0]))
    for name, _ in by_remainder[:missing]:
        shares[name] += 1
    names = [name for name, share in shares.items() for _ in range(share)]
    Random(spec.seed).shuffle(names)
    return names


def _device_seed(fleet_seed: int, device_id: str) -> int:
    digest = blake2b(f"{fleet_seed}:{device_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _check_integer(key: str, value: int, low: int, high: int) -> None:
    # bool is an int to Python and a mistake to everyone else.
    if isinstance(value, bool) or not isinstance(value, int):
        raise FleetSpecError(key, f"{value!r} is no whole number", f"give one from {low:,} to {high:,}")
    if not low <= value <= high:
        raise FleetSpecError(
            key, f"{value:,} is out of range", f"give a whole number from {low:,} to {high:,}"
        )


def _check_weights(weights: Mapping[str, float]) -> None:
    if not weights:
        raise FleetSpecError("behaviours", "none given", "give at least one, as in healthy=1")
    for name, weight in weights.items():
        check_name(name)
        if not math.isfinite(weight) or weight < 0:
            raise FleetSpecError(
                "behaviours", f"the weight of {name!r} is {weight}", "give a number that is not negative"
            )
    if not any(weight > 0 for weight in weights.values()):
        raise FleetSpecError(
            "behaviours", "all weights are zero", "give at least one a weight, as in healthy=1"
        )


def _check_label(key: str, value: str) -> None:
    if not 1 <= len(value) <= MAX_LABEL_CHARS:
        raise FleetSpecError(
            key, f"it has {len(value)} characters", f"give 1 to {MAX_LABEL_CHARS} characters"
        )


def _check_prefix(prefix: str) -> None:
    allowed = prefix.isascii() and prefix.replace(".", "").replace("_", "").replace("-", "").isalnum()
    if not allowed or not prefix[0].isalnum() or len(prefix) > MAX_PREFIX_CHARS:
        raise FleetSpecError(
            "prefix",
            f"{prefix!r} can't begin a device id",
            f"use 1 to {MAX_PREFIX_CHARS} letters, digits, '.', '_' or '-', the first a letter or digit",
        )


def _check_shard(shard: tuple[int, int]) -> None:
    k, n = shard
    if not 1 <= k <= n <= MAX_SHARDS:
        raise FleetSpecError(
            "shard", f"{k}/{n} can't be", f"give K/N with 1 <= K <= N <= {MAX_SHARDS:,}, as in 1/4"
        )
