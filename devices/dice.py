"""A device's dice: every random choice it makes, the same for the same seed.

A throw follows from the device's seed, what it is about, and how often that was thrown before: so choices
about one thing do not depend on how often, or when, others were made, and no generator is kept per device
(Python's holds 2.5 KB).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final, TypeVar

T = TypeVar("T")

Trace = Callable[[str, str, int, float], None]
"""Told of each throw: device id, what it was about, which one of these it was (from 0), the number."""

_RANGE: Final = 2.0**64


def device_seed(fleet_seed: int, device_id: str) -> int:
    """The seed of one device of a fleet; 64 bits."""
    return _hash(f"{fleet_seed}:{device_id}")


class Dice:
    """The dice of one device; ``what`` names what a throw is about, in a word or two."""

    __slots__ = ("_counts", "_device_id", "_seed", "_trace")

    def __init__(self, seed: int, *, device_id: str = "", trace: Trace | None = None) -> None:
        self._seed = seed
        self._device_id = device_id
        self._trace = trace
        self._counts: dict[str, int] | None = None

    def number(self, what: str) -> float:
        """At least 0 and less than 1."""
        if self._counts is None:
            self._counts = {}
        nth = self._counts.get(what, 0)
        self._counts[what] = nth + 1
        # The 53 bits that a float holds: more would round up to 1.
        value = (_hash(f"{self._seed}:{what}:{nth}") >> 11) / 2.0**53
        if self._trace is not None:
            self._trace(self._device_id, what, nth, value)
        return value

    def uniform(self, what: str, low: float, high: float) -> float:
        """A number between ``low`` and ``high``."""
        return low + (high - low) * self.number(what)

    def whole(self, what: str, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + int((high - low + 1) * self.number(what))

    def chance(self, what: str, probability: float) -> bool:
        """True with that probability."""
        return self.number(what) < probability

    def choice(self, what: str, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[int(len(options) * self.number(what))]


def share_of(seed: int) -> float:
    """Where a device stands among all, from 0 to 1: so a percentage is always the same devices."""
    return _hash(f"share:{seed}") / _RANGE


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
