"""How fast a rollout starts devices: the time between two starts, from the counts so far."""

from __future__ import annotations

import math

from .plan import GrowingRate


def interval_s(per_minute: float | GrowingRate | None, *, notified: int, succeeded: int) -> float:
    """Seconds between two starts, when so many devices were notified and so many succeeded; 0: no limit.

    The growing rate is that of AWS IoT jobs: ``base * factor ** (count // grow_after)`` a minute, at most
    `maximum`.
    """
    if per_minute is None:
        return 0.0
    if not isinstance(per_minute, GrowingRate):
        return 60.0 / per_minute
    if per_minute.grow_after_notified is not None:
        steps = notified // per_minute.grow_after_notified
    else:
        steps = succeeded // (per_minute.grow_after_succeeded or 1)
    return 60.0 / _rate(per_minute, steps)


def _rate(growing: GrowingRate, steps: int) -> float:
    if growing.factor == 1.0:
        return growing.base
    # Beyond these steps the maximum is passed in any case; the power of all steps could be beyond a float.
    enough = math.ceil(math.log(growing.maximum / growing.base, growing.factor)) + 1
    return float(min(growing.maximum, growing.base * growing.factor ** min(steps, enough)))
