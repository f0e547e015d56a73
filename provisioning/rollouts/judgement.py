"""How well devices have done, against what a plan asks for: abort criteria, success thresholds."""

from __future__ import annotations

from typing import Literal

from provisioning.states import FINAL, DeviceState

from .facts import Counts, WaveFacts
from .plan import RolloutPlan, exact


def should_abort(
    plan: RolloutPlan, counts: Counts, *, forgiven: Counts | None = None
) -> tuple[Literal["pause", "cancel"], str] | None:
    """What the abort criteria ask for, with the reason, where devices have ended so; "cancel" goes first.

    Criteria that pause are judged by what ended since the `forgiven` ones; those that cancel by all. A
    cancelled device is an operator's doing, and counts neither as ended nor as ended badly.
    """
    for criterion in sorted(plan.abort, key=lambda one: one.action):
        before = (forgiven or {}) if criterion.action == "pause" else {}
        since = {s: counts.get(s, 0) - before.get(s, 0) for s in FINAL - {DeviceState.CANCELLED}}
        ended = sum(since.values())
        if criterion.on == "all":
            bad = ended - since[DeviceState.PROVISIONED]
        else:
            bad = since[DeviceState(criterion.on)]
        if ended >= criterion.min_sample and bad * 100 >= exact(criterion.threshold_percent) * ended > 0:
            how = "did not end as provisioned" if criterion.on == "all" else f"ended as {criterion.on}"
            return criterion.action, (
                f"{bad:,} of {ended:,} devices {how}, which reaches the {criterion.threshold_percent:g} % at "
                f"which this rollout is to {criterion.action}."
            )
    return None


def success_percent(wave: WaveFacts) -> float | None:
    """Provisioned devices in percent of those that have ended, less cancelled ones; None: there are none."""
    ended = _judged(wave)
    return 100 * wave.ended.get(DeviceState.PROVISIONED, 0) / ended if ended else None


def _judged(wave: WaveFacts) -> int:
    return sum(wave.ended.values()) - wave.ended.get(DeviceState.CANCELLED, 0)


def meets(threshold: float | None, wave: WaveFacts) -> bool:
    """Whether so many percent succeeded; where no device can be judged, or none need be, it is met."""
    provisioned = wave.ended.get(DeviceState.PROVISIONED, 0)
    return threshold is None or provisioned * 100 >= exact(threshold) * _judged(wave)
