"""What a rollout does next, from its plan and what is so: no clock, no storage, the same answer each time.

`decide` goes through the rules in this order; the first that applies says what is done:

1. cancelled by an operator: take back what has not started, then wait for what is in flight;
2. the schedule's end, then the deadline;
3. the schedule's start;
4. a pause;
5. the windows;
6. the abort criteria;
7. devices of the waves that are open, once no other run has them;
8. a wave is done: its threshold, its gate;
9. the next wave; or all is done, and a continuous rollout waits for devices that join.

Whoever asks repeats the question when something changed (an outcome, an action of an operator), and at the
directive's `until`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from provisioning.states import DeviceState

from .facts import Cancel, Cause, Counts, Directive, End, Facts, RunWave, Wait, WaitState, WaveFacts
from .judgement import meets, should_abort, success_percent
from .plan import RolloutPlan, Wave
from .schedule import next_change, open_at

__all__ = [
    "Cancel",
    "Counts",
    "Directive",
    "End",
    "Facts",
    "RunWave",
    "Wait",
    "WaveFacts",
    "decide",
    "should_abort",
    "success_percent",
]

_RESUME: Final = "`muster rollout resume` goes on, `muster rollout cancel` gives it up."
_WATCH: Final = "`muster rollout watch` shows them."


def decide(plan: RolloutPlan, facts: Facts) -> Directive:
    """What the rollout does next. ValueError for facts that don't fit the plan."""
    if len(facts.waves) != len(plan.waves) or not 1 <= facts.wave <= len(plan.waves):
        raise ValueError(
            f"{len(facts.waves)} waves, the {facts.wave}. under way, and {len(plan.waves)} planned"
        )
    return (
        _cancelled(facts)
        or _over(plan, facts)
        or _held(plan, facts)
        or _aborted(plan, facts)
        or _go_on(plan, facts)
    )


def _cancelled(facts: Facts) -> Directive | None:
    if facts.cancel is None:
        return None
    why = facts.cancel_reason or "Cancelled by an operator."
    if not facts.pending and not facts.in_flight:
        return End(state="cancelled", reason=why)
    force = facts.cancel == "force"
    if facts.pending or facts.cancelled is None or (force and facts.cancelled != "force"):
        return Cancel(force=force, reason=why)
    told = (
        f"were told to stop; {_WATCH[:-1]}"
        if force
        else "may finish; `muster rollout cancel --force` tells them to stop"
    )
    return Wait(
        until=None,
        state="cancelling",
        cause="cancel",
        reason=f"{why} {_devices(facts.in_flight)} in flight {told}.",
    )


def _over(plan: RolloutPlan, facts: Facts) -> Directive | None:
    """The rules of the schedule's end and the deadline."""
    schedule = plan.schedule
    if schedule.end_at is not None and facts.now >= schedule.end_at:
        why = f"The schedule ended at {_time(schedule.end_at)}."
        if not facts.pending and not facts.in_flight:
            return _ended(plan, facts)
        if schedule.at_end != "finish":
            return Cancel(force=schedule.at_end == "force_cancel", reason=why)
        if facts.in_flight:
            # The deadline has nothing left to take back.
            return Wait(
                until=None,
                state="running",
                cause="end",
                reason=f"{why} {_devices(facts.in_flight)} in flight may finish; "
                f"`muster rollout cancel --force` tells them to stop.",
            )
        return End(
            state="completed",
            reason=f"{why} {_devices(facts.pending)} not started; `muster rollout create` takes them up.",
        )
    deadline = _deadline(plan, facts)
    if deadline is not None and facts.now >= deadline:
        if not facts.pending and not facts.in_flight:
            return _ended(plan, facts)
        return Cancel(
            force=False,
            reason=f"The deadline passed at {_time(deadline)}, {plan.deadlines.rollout_s:g} s after the "
            f"rollout's start; `muster rollout create` takes up again what it did not reach.",
        )
    return None


def _held(plan: RolloutPlan, facts: Facts) -> Wait | None:
    """The rules of the start, the pause and the windows."""
    schedule = plan.schedule
    if schedule.start_at is not None and facts.now < schedule.start_at:
        return _wait(
            plan,
            facts,
            until=schedule.start_at,
            state="scheduled",
            cause="start",
            reason=f"It starts at {_time(schedule.start_at)}; `muster rollout cancel` gives it up.",
        )
    if facts.paused is not None:
        return _wait(
            plan,
            facts,
            state="paused",
            cause="pause",
            reason=_paused(facts.paused),
        )
    if not open_at(schedule.windows, facts.now):
        opens = next_change(schedule.windows, facts.now)
        when = f"the next opens at {_time(opens)}" if opens is not None else "none opens any more"
        return _wait(
            plan,
            facts,
            until=opens,
            state="waiting",
            cause="window",
            reason=f"Outside its windows no device is started: {when}; `muster rollout cancel` gives it up.",
        )
    return None


def _aborted(plan: RolloutPlan, facts: Facts) -> Directive | None:
    abort = should_abort(plan, facts.ended, forgiven=facts.forgiven)
    if abort is None:
        return None
    action, why = abort
    if action == "cancel":
        return Cancel(force=False, reason=f"{why} `muster rollout retry` tries the failed devices again.")
    return _wait(plan, facts, state="paused", cause="abort", reason=_paused(why))


def _go_on(plan: RolloutPlan, facts: Facts) -> Directive:
    """The rules of the waves."""
    if not facts.pending and not facts.in_flight:
        return _joining(plan, facts) if plan.targets.continuous else _ended(plan, facts)
    reached = min(max(facts.wave, facts.skipped_to), len(plan.waves))
    for number, wave in enumerate(facts.waves, start=1):
        # Nothing is left to hold back where nothing is pending.
        if number > reached and facts.pending and (held := _between(plan, facts, number - 1)) is not None:
            return held
        if wave.available:
            return _run(plan, facts, number)
        if wave.held:
            return _wait(
                plan,
                facts,
                state="running" if facts.in_flight else "waiting",
                cause="overlap",
                reason=f"Wave {number}: {_devices(wave.held)} in the hands of other runs; `muster rollout "
                f"show` names these, `muster rollout exclude` waits no longer.",
            )
    return _in_flight(plan, facts, f"{_devices(facts.in_flight)} in flight, the last ones; {_WATCH}")


def _run(plan: RolloutPlan, facts: Facts, number: int) -> Directive:
    wave = facts.waves[number - 1]
    # An earlier wave may have devices in flight where an operator started the next one.
    free = plan.pace.in_flight - (facts.in_flight - wave.in_flight)
    if free <= wave.in_flight:
        reason = (
            f"{_devices(facts.in_flight)} in flight, the most at once; `muster rollout pace` changes that."
        )
        return _in_flight(plan, facts, reason)
    return RunWave(
        number=number,
        lanes=min(free, wave.available + wave.in_flight),
        until=_earliest(plan, facts, next_change(plan.schedule.windows, facts.now)),
    )


def _between(plan: RolloutPlan, facts: Facts, number: int) -> Wait | None:
    """What stands between the end of a wave and the next one."""
    wave, planned = facts.waves[number - 1], plan.waves[number - 1]
    if not wave.done:
        return _in_flight(plan, facts, f"Wave {number}: {_devices(wave.in_flight)} in flight; {_WATCH}")
    approved = number in facts.approved_waves
    if not approved and not meets(planned.success_threshold_percent, wave):
        return _wait(
            plan,
            facts,
            state="paused",
            cause="threshold",
            reason=f"{_missed(number, planned, wave)} `muster rollout approve` goes on all the same, "
            f"`muster rollout cancel` gives it up.",
        )
    if not approved and planned.gate == "approval":
        return _wait(
            plan,
            facts,
            state="awaiting_approval",
            cause="approval",
            reason=f"Wave {number} is done; `muster rollout approve` starts the next one.",
        )
    if planned.gate == "pause" and wave.devices:
        opens = _pause_ends(planned, wave)
        if facts.now < opens:
            return _wait(
                plan,
                facts,
                until=opens,
                state="waiting",
                cause="gate",
                reason=f"Wave {number} is done; the next one starts at {_time(opens)}, or now by "
                f"`muster rollout next`.",
            )
    return None


def _pause_ends(planned: Wave, wave: WaveFacts) -> datetime:
    if wave.ended_at is None:
        raise ValueError("a wave is done, and when is not said")
    return wave.ended_at + timedelta(seconds=planned.pause_s or 0.0)


def _ended(plan: RolloutPlan, facts: Facts) -> End:
    """Every device has ended. The last wave's threshold holds nothing back: it says whether all is well."""
    counts = facts.ended
    provisioned, all_of_them = counts[DeviceState.PROVISIONED], sum(counts.values())
    what = f"{provisioned:,} of {_devices(all_of_them)} provisioned."
    # What was rejected is not tried again by itself.
    failed = counts[DeviceState.FAILED] + counts[DeviceState.TIMED_OUT]
    retry = " `muster rollout retry` tries those that failed again." if failed else ""
    number = next((n for n in range(len(facts.waves), 0, -1) if facts.waves[n - 1].devices), 1)
    wave, planned = facts.waves[number - 1], plan.waves[number - 1]
    if number not in facts.approved_waves and not meets(planned.success_threshold_percent, wave):
        return End(state="failed", reason=f"{_missed(number, planned, wave)} {what}{retry}")
    return End(state="completed", reason=what + retry)


def _joining(plan: RolloutPlan, facts: Facts) -> Wait:
    """A continuous rollout has done all there is to do, and goes on with whoever comes."""
    counts = facts.ended
    return _wait(
        plan,
        facts,
        state="waiting",
        cause="targets",
        reason=f"{counts[DeviceState.PROVISIONED]:,} of {_devices(sum(counts.values()))} provisioned; it "
        f"waits for devices that register, until `muster rollout cancel`.",
    )


def _in_flight(plan: RolloutPlan, facts: Facts, reason: str) -> Wait:
    return _wait(plan, facts, state="running", cause="in_flight", reason=reason)


def _wait(
    plan: RolloutPlan,
    facts: Facts,
    *,
    until: datetime | None = None,
    state: WaitState,
    cause: Cause,
    reason: str,
) -> Wait:
    return Wait(until=_earliest(plan, facts, until), state=state, cause=cause, reason=reason)


def _earliest(plan: RolloutPlan, facts: Facts, until: datetime | None) -> datetime | None:
    """When the time alone may change what was decided: the end and the deadline overrule all that waits."""
    times = (until, plan.schedule.end_at, _deadline(plan, facts))
    return min((time for time in times if time is not None and time > facts.now), default=None)


def _deadline(plan: RolloutPlan, facts: Facts) -> datetime | None:
    if plan.deadlines.rollout_s is None:
        return None
    started_at = facts.started_at
    if started_at is None and plan.targets.continuous:
        # It is under way though no device has come yet.
        started_at = max(facts.created_at, plan.schedule.start_at or facts.created_at)
    return None if started_at is None else started_at + timedelta(seconds=plan.deadlines.rollout_s)


def _paused(why: str) -> str:
    """The reason of a pause, which may have been recorded as it was said here."""
    why = why.removeprefix("Paused: ").removesuffix(_RESUME).strip()
    return f"Paused: {why}{'' if why.endswith(('.', '!', '?')) else '.'} {_RESUME}"


def _missed(number: int, planned: Wave, wave: WaveFacts) -> str:
    return (
        f"Wave {number} succeeded by {success_percent(wave):.4g} %, less than its threshold of "
        f"{planned.success_threshold_percent:g} %."
    )


def _devices(count: int) -> str:
    return f"{count:,} device{'' if count == 1 else 's'}"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
