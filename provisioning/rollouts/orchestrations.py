"""The orchestrations of a rollout, written against the Durable Task SDK's context: they run on either engine.

`RolloutOrchestration` asks what is to be done, does it and asks again; it decides nothing itself.
`WaveOrchestration` runs lanes, as many as devices may be in flight at once; `LaneOrchestration` takes one
device after the other and provisions it in a sub-orchestration. A lane that is told so stops, and when all
have stopped the rollout asks what is next: so a pause, a gate or another pace needs no message to those in
flight.

No history grows with the number of devices: lanes, and the rollout itself, continue as new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from datetime import datetime, timedelta
from typing import Any

from durabletask import task
from durabletask.task import OrchestrationContext, TaskFailedError

from provisioning.orchestrations import CANCEL_PROVISIONING, RECORD_OUTCOME, call_patiently, of_release
from provisioning.states import DeviceState

DECIDE_ROLLOUT = "DecideRollout"
TAKE_DEVICE = "TakeDevice"
STOP_ROLLOUT = "StopRollout"
TELL_CANCELLED = "TellCancelled"

ROLLOUT_CHANGED = "RolloutChanged"
"""An operator has done something: decide anew."""

DEVICES_PER_EXECUTION = 100
"""Devices that a lane provisions before it continues as new."""
DECISIONS_PER_EXECUTION = 50

# The registry is the service's own disk.
_TOLERANCE_S = 3_600.0
# For how long devices are to be told that they are not waited for any more, while the broker is away.
_TELL_TOLERANCE_S = 300.0

Flow = Generator[task.Task[Any], Any, Any]
Json = dict[str, Any]


def RolloutOrchestration(ctx: OrchestrationContext, request: Json) -> Flow:  # noqa: N802 (as the seed's)
    """Run a rollout to its end.

    Input: `{"rollout_id", "decisions": n}`. Output: `{"rollout_id", "state", "reason"}`.
    """
    rollout_id = request["rollout_id"]
    decisions = request.get("decisions", 0)
    changed: task.CancellableTask[Any] = ctx.wait_for_external_event(ROLLOUT_CHANGED)
    for _ in range(DECISIONS_PER_EXECUTION):
        decisions += 1
        decision: Json = yield from _call(ctx, DECIDE_ROLLOUT, {"rollout_id": rollout_id})
        match decision["do"]:
            case "run_wave":
                changed = yield from _run_wave(ctx, rollout_id, decision, decisions, changed)
            case "wait":
                if not changed.is_complete:
                    yield from _wait(ctx, decision["until"], changed)
                if changed.is_complete:
                    changed = ctx.wait_for_external_event(ROLLOUT_CHANGED)
            case "stop":
                yield from _stop(ctx, rollout_id, force=decision["force"])
            case "end":
                return {
                    "rollout_id": rollout_id,
                    "state": decision["state"],
                    "reason": decision["reason"],
                }
    changed.cancel()
    ctx.continue_as_new({"rollout_id": rollout_id, "decisions": decisions}, save_events=True)
    return None


def WaveOrchestration(ctx: OrchestrationContext, request: Json) -> Flow:  # noqa: N802
    """Run the lanes of a wave until all have stopped.

    Input: `{"rollout_id", "wave", "generation", "lanes", "options", "release"?}`. Output:
    `{"stopped": {why: lanes}}`.
    """
    lanes = [
        ctx.call_sub_orchestrator(
            LaneOrchestration,
            input={
                "rollout_id": request["rollout_id"],
                "wave": request["wave"],
                "generation": request["generation"],
                "lane": lane,
                "options": request["options"],
                **of_release(request),
            },
            instance_id=f"{ctx.instance_id}#{lane}",
        )
        for lane in range(1, request["lanes"] + 1)
    ]
    stopped: dict[str, int] = {}
    for lane in lanes:
        # One that was terminated, or broke, must not leave the others without anyone who waits for them.
        with contextlib.suppress(TaskFailedError):
            if not lane.is_complete:
                yield lane
            why = str(lane.get_result())
            stopped[why] = stopped.get(why, 0) + 1
    return {"stopped": stopped}


def LaneOrchestration(ctx: OrchestrationContext, request: Json) -> Flow:  # noqa: N802
    """Provision one device after the other, until there is none to be had.

    Input: `{"rollout_id", "wave", "generation", "lane", "options", "release"?, "seq": n}`. Output: why
    it stopped.
    """
    seq = request.get("seq", 0)
    for _ in range(DEVICES_PER_EXECUTION):
        seq += 1
        taken = yield from _take(ctx, request, seq)
        if taken["device_id"] is None:
            return taken["stop"]
        yield from _provision(ctx, request, taken["device_id"])
    ctx.continue_as_new({**request, "seq": seq})
    return None


def _take(ctx: OrchestrationContext, request: Json, seq: int) -> Flow:
    """Ask for a device until there is one, or a reason to stop."""
    while True:
        taken: Json = yield from _call(
            ctx,
            TAKE_DEVICE,
            {
                "rollout_id": request["rollout_id"],
                "wave": request["wave"],
                "generation": request["generation"],
                "lane": request["lane"],
                "seq": seq,
            },
        )
        if taken["wait_s"] is None:
            return taken
        yield ctx.create_timer(timedelta(seconds=taken["wait_s"]))


def _provision(ctx: OrchestrationContext, request: Json, device_id: str) -> Flow:
    rollout_id = request["rollout_id"]
    began = ctx.current_utc_datetime
    try:
        yield ctx.call_sub_orchestrator(
            "DeviceProvisioningOrchestration",
            input={"device_id": device_id, "options": request["options"], **of_release(request)},
            instance_id=f"{rollout_id}:{device_id}",
        )
    except TaskFailedError as error:
        # It was terminated, or broke, and has recorded nothing: it must not look busy for ever.
        now = ctx.current_utc_datetime
        yield from _call(
            ctx,
            RECORD_OUTCOME,
            {
                "run_id": rollout_id,
                "device_id": device_id,
                "state": DeviceState.FAILED.value,
                "attempts": 0,
                "error": error.details.message[:500],
                "firmware_version": None,
                "ended_at": f"{now.isoformat(timespec='milliseconds')}+00:00",
                "device_s": (now - began).total_seconds(),
                "steps_s": {},
            },
        )


def _run_wave(
    ctx: OrchestrationContext,
    rollout_id: str,
    decision: Json,
    number: int,
    changed: task.CancellableTask[Any],
) -> Flow:
    """Until its lanes have stopped; returns the wait for the next change.

    What operators do in the meantime the lanes find out by themselves, but for a cancellation by force: those
    in flight have to be told.
    """
    wave: task.CompletableTask[Any] = ctx.call_sub_orchestrator(
        WaveOrchestration,
        input={
            "rollout_id": rollout_id,
            "wave": decision["wave"],
            "generation": decision["generation"],
            "lanes": decision["lanes"],
            "options": decision["options"],
            **of_release(decision),
        },
        instance_id=f"{rollout_id}#{number}",
    )
    while not wave.is_complete:
        if changed.is_complete:
            changed = ctx.wait_for_external_event(ROLLOUT_CHANGED)
            meanwhile: Json = yield from _call(
                ctx, DECIDE_ROLLOUT, {"rollout_id": rollout_id, "under_way": True}
            )
            if meanwhile["do"] == "stop":
                yield from _stop(ctx, rollout_id, force=meanwhile["force"])
        else:
            yield task.when_any([wave, changed])
    return changed


def _wait(ctx: OrchestrationContext, until: str | None, changed: task.CancellableTask[Any]) -> Flow:
    """Until then, or until an operator does something."""
    if until is None:
        yield changed
        return
    timer = ctx.create_timer(datetime.fromisoformat(until))
    yield task.when_any([changed, timer])
    if not timer.is_complete:
        timer.cancel()


def _stop(ctx: OrchestrationContext, rollout_id: str, *, force: bool) -> Flow:
    """Start nothing more; with ``force`` the devices in flight are told, and their provisioning ends."""
    in_flight: list[str] = yield from _call(ctx, STOP_ROLLOUT, {"rollout_id": rollout_id, "force": force})
    if not force:
        return
    for device_id in in_flight:
        ctx.send_event(
            f"{rollout_id}:{device_id}", CANCEL_PROVISIONING, data={"reason": "the rollout was cancelled"}
        )
    # After that: their orchestrations end though the broker is away. What a device that never hears of it
    # still says, nobody waits for.
    with contextlib.suppress(TaskFailedError):
        yield from _call(
            ctx,
            TELL_CANCELLED,
            {"rollout_id": rollout_id, "device_ids": in_flight},
            tolerance_s=_TELL_TOLERANCE_S,
        )


def _call(
    ctx: OrchestrationContext, activity: str, request: Json, *, tolerance_s: float = _TOLERANCE_S
) -> Flow:
    now = f"{ctx.current_utc_datetime.isoformat(timespec='milliseconds')}+00:00"
    return call_patiently(ctx, activity, {**request, "now": now}, tolerance_s=tolerance_s)
