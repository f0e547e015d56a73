"""How devices behave: a table of small behaviours that combine.

A behaviour is data: what sets a device apart from a healthy one. The emulator (`devices.device`) asks
it at each step. Behaviours are drawn from a seeded generator, so the same seed gives the same device,
and combine by name: ``"slow+offline"`` is both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final, Literal

from devices.errors import FleetSpecError

Outcome = Literal["provisioned", "timed_out"]


class Step(StrEnum):
    """The moments of a device's life at which a behaviour may strike."""

    REGISTERED = "registered"
    NOTIFIED = "notified"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    ACTIVATING = "activating"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outage:
    """The device's network is gone, without a goodbye, once, at ``step``, for ``duration_s``.

    At `Step.DOWNLOADING` it strikes when ``at_fraction`` of the package has arrived.
    """

    step: Step
    duration_s: float
    at_fraction: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Behaviour:
    """What sets one device apart; the defaults are those of a healthy one."""

    bandwidth_bytes_per_s: int | None = None
    outage: Outage | None = None
    answers: bool = True
    expected_outcome: Outcome = "provisioned"


HEALTHY: Final = Behaviour()

_SLOW_BYTES_PER_S: Final = (16 * 1024, 64 * 1024)
_OUTAGE_S: Final = (1.0, 4.0)


def _healthy(_: Random) -> Behaviour:
    return HEALTHY


def _slow(rng: Random) -> Behaviour:
    return Behaviour(bandwidth_bytes_per_s=rng.randint(*_SLOW_BYTES_PER_S))


def _offline(rng: Random) -> Behaviour:
    return Behaviour(
        outage=Outage(
            step=rng.choice(list(Step)),
            duration_s=rng.uniform(*_OUTAGE_S),
            at_fraction=rng.uniform(0.2, 0.8),
        )
    )


def _never_answers(_: Random) -> Behaviour:
    return Behaviour(answers=False, expected_outcome="timed_out")


BEHAVIOURS: Final[dict[str, Callable[[Random], Behaviour]]] = {
    "healthy": _healthy,
    "slow": _slow,
    "offline": _offline,
    "never-answers": _never_answers,
}
NAMES: Final = tuple(BEHAVIOURS)


def check_name(name: str) -> str:
    """Return ``name`` if it is a behaviour or several joined by '+'; raises `FleetSpecError`."""
    parts = name.split("+")
    unknown = [part for part in parts if part not in BEHAVIOURS]
    if unknown or len(set(parts)) != len(parts):
        problem = f"unknown behaviour {unknown[0]!r}" if unknown else f"{name!r} names one twice"
        raise FleetSpecError("behaviours", problem, f"use {', '.join(NAMES)}, or several joined by '+'")
    return name


def behaviour(name: str, seed: int) -> Behaviour:
    """The behaviour called ``name``, drawn with ``seed``; raises `FleetSpecError` for an unknown name."""
    parts = check_name(name).split("+")
    rng = Random(seed)
    combined = BEHAVIOURS[parts[0]](rng)
    for part in parts[1:]:
        combined = _both(combined, BEHAVIOURS[part](rng))
    return combined


def expected_outcome(name: str) -> Outcome:
    """The state in which the service ends a device that behaves like ``name``."""
    return behaviour(name, 0).expected_outcome


def _both(one: Behaviour, other: Behaviour) -> Behaviour:
    caps = [cap for cap in (one.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s) if cap is not None]
    answers = one.answers and other.answers
    return Behaviour(
        bandwidth_bytes_per_s=min(caps, default=None),
        outage=one.outage or other.outage,
        answers=answers,
        expected_outcome="provisioned" if answers else "timed_out",
    )
