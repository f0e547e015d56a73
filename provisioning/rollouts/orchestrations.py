"""The orchestrations of a rollout, written against the Durable Task SDK's context: they run on either engine.

`RolloutOrchestration` asks what is to be done, does it and asks again; it decides nothing itself.
`WaveOrchestration` runs lanes, as many as devices may be in flight at once; `LaneOrchestration` takes one
device after the other and provisions it in a sub-orchestration. A lane that is told so stops, and when all
have stopped the rollout asks what is next; earlier where something has changed or the time has come. Devices
in flight need no message for that: lanes that begin meanwhile count them.

No history grows with the number of devices: lanes, and the rollout itself, continue as new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import Any

from durabletask import task
from durabletask.task import OrchestrationContext, TaskFailedError

from broker.topics import check_run_id
from provisioning.orchestrations import CANCEL_PROVISIONING, RECORD_OUTCOME, call_patiently, of_release
from provisioning.states import DeviceState

from .parts import MAX_IN_FLIGHT

DECIDE_ROLLOUT = "DecideRollout"
TAKE_DEVICE = "TakeDevice"
STOP_ROLLOUT = "StopRollout"
TELL_CANCELLED = "TellCancelled"
END_LOST = "EndLost"

ROLLOUT_CHANGED = "RolloutChanged"
"""An operator has done something, or devices have come: decide anew."""

QUESTIONS_PER_EXECUTION = 100
"""Of a lane, each of which brings a device or a wait, before it continues as new."""
STEPS_PER_EXECUTION = 50
"""Decisions of a rollout before it continues as new."""

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
    rollout = _Rollout(ctx, check_run_id(request["rollout_id"]), request.get("decisions", 0))
    while rollout.steps < STEPS_PER_EXECUTION:
        decision: Json = yield from rollout.decide()
        match decision["do"]:
            case "run_wave":
                yield from rollout.run_wave(decision)
            case "wait":
                yield from rollout.wait(decision)
            case "stop":
                yield from rollout.stop(force=decision["force"])
            case "unknown":
                raise ValueError(f"there is no rollout {rollout.rollout_id!r}")
            case "end":
                return {
                    "rollout_id": rollout.rollout_id,
                    "state": decision["state"],
                    "reason": decision["reason"],
                }
    _cancel(rollout.changed)
    ctx.continue_as_new({"rollout_id": rollout.rollout_id, "decisions": rollout.decisions}, save_events=True)
    return None


def WaveOrchestration(ctx: OrchestrationContext, request: Json) -> Flow:  # noqa: N802
    """Run the lanes of a wave until all have stopped.

    Input: `{"rollout_id", "wave", "generation", "lanes", "first_lane", "options", "release"?}`. Output:
    `{"stopped": {why: lanes}}`.
    """
    if request["lanes"] > MAX_IN_FLIGHT:
        raise ValueError(f"{request['lanes']} lanes: there are {MAX_IN_FLIGHT} at most")
    first = request.get("first_lane", 1)
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
        for lane in range(first, first + request["lanes"])
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
    for _ in range(QUESTIONS_PER_EXECUTION):
        taken: Json = yield from _call(
            ctx,
            TAKE_DEVICE,
            {
                "rollout_id": request["rollout_id"],
                "wave": request["wave"],
                "generation": request["generation"],
                "lane": request["lane"],
                "seq": seq + 1,
            },
        )
        if taken["device_id"] is not None:
            seq += 1
            yield from _provision(ctx, request, taken["device_id"])
        elif taken["wait_s"] is not None:
            yield ctx.create_timer(timedelta(seconds=taken["wait_s"]))
        else:
            if taken.get("tell"):
                ctx.send_event(request["rollout_id"], ROLLOUT_CHANGED)
            return taken["stop"]
    ctx.continue_as_new({**request, "seq": seq})
    return None


def _provision(ctx: OrchestrationContext, request: Json, device_id: str) -> Flow:
    rollout_id = request["rollout_id"]
    began = ctx.current_utc_datetime
    try:
        yield ctx.call_sub_orchestrator(
            "DeviceProvisioningOrchestration",
            input={
                "device_id": device_id,
                "options": request["options"],
                "cancels_activities": True,
                **of_release(request),
            },
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


class _Rollout:
    """A rollout on its way through one execution of its orchestration."""

    def __init__(self, ctx: OrchestrationContext, rollout_id: str, decisions: int) -> None:
        self._ctx = ctx
        self.rollout_id = rollout_id
        self.decisions = decisions
        """Of all executions: they number the waves."""
        self.steps = 0
        """Of this execution: it is to end before its history is long."""
        self.changed: task.CancellableTask[Any] = ctx.wait_for_external_event(ROLLOUT_CHANGED)
        # In flight without a lane when it was last looked.
        self._suspects: list[str] = []

    def decide(self, *, under_way: Json | None = None) -> Flow:
        """What is to be done; ``under_way``: generation, wave and number of the lanes that were started."""
        self.decisions += 1
        self.steps += 1
        request: Json = {"rollout_id": self.rollout_id}
        if under_way is not None:
            request["under_way"] = under_way
        return _call(self._ctx, DECIDE_ROLLOUT, request)

    def run_wave(self, decision: Json) -> Flow:
        """Until all of its lanes have stopped, or this history is long enough.

        What operators do in the meantime the lanes find out by themselves, but for a cancellation by force:
        those in flight have to be told. So it is where the time alone changes something: the schedule's end,
        a window. Devices that join may need more lanes than there are. Where lanes are to begin anew (another
        wave, another pace, a resume) nobody waits for those of before, as one device may keep them busy for
        long; nor where this history is long enough. The earlier ones stop, each when its device has ended.
        """
        under_way = {key: decision[key] for key in ("generation", "wave", "lanes")}
        lanes = [self._start_lanes(decision)]
        look = self._look_again(decision)
        while lanes:
            due = look is not None and look.is_complete
            if not self.changed.is_complete and not due:
                yield task.when_any([*lanes, self.changed, *([] if look is None else [look])])
                lanes = [wave for wave in lanes if not wave.is_complete]
                continue
            if self.steps >= STEPS_PER_EXECUTION:
                break
            if self.changed.is_complete:
                self.changed = self._ctx.wait_for_external_event(ROLLOUT_CHANGED)
            meanwhile: Json = yield from self.decide(under_way=under_way)
            if meanwhile["do"] == "stop":
                yield from self.stop(force=meanwhile["force"])
            elif meanwhile.get("anew"):
                break
            elif meanwhile.get("lanes"):
                lanes.append(self._start_lanes(meanwhile))
                under_way["lanes"] += meanwhile["lanes"]
            _cancel(look)
            look = self._look_again(meanwhile)
        _cancel(look)

    def _look_again(self, decision: Json) -> task.CancellableTask[Any] | None:
        """Devices of earlier lanes make room for others as they end, and tell nobody; nor does the time."""
        waits = []
        if (after_s := decision.get("look_again_s")) is not None:
            waits.append(timedelta(seconds=after_s))
        if (at := decision.get("look_again_at")) is not None:
            until = datetime.fromisoformat(at).astimezone(UTC).replace(tzinfo=None)
            waits.append(max(until - self._ctx.current_utc_datetime, timedelta()))
        return self._ctx.create_timer(min(waits)) if waits else None

    def _start_lanes(self, decision: Json) -> task.CompletableTask[Any]:
        return self._ctx.call_sub_orchestrator(
            WaveOrchestration,
            input={
                "rollout_id": self.rollout_id,
                "wave": decision["wave"],
                "generation": decision["generation"],
                "lanes": decision["lanes"],
                "first_lane": decision["first_lane"],
                "options": decision["options"],
                **of_release(decision),
            },
            instance_id=f"{self.rollout_id}#{self.decisions}",
        )

    def wait(self, decision: Json) -> Flow:
        """Until the time that was decided, or until something has changed."""
        if not self.changed.is_complete:
            if decision.get("orphaned"):
                self._suspects = yield from _call(
                    self._ctx, END_LOST, {"rollout_id": self.rollout_id, "suspects": self._suspects}
                )
            yield from self._wait_until(decision["until"])
        if self.changed.is_complete:
            self.changed = self._ctx.wait_for_external_event(ROLLOUT_CHANGED)

    def _wait_until(self, until: str | None) -> Flow:
        if until is None:
            yield self.changed
            return
        timer = self._ctx.create_timer(datetime.fromisoformat(until))
        yield task.when_any([self.changed, timer])
        if not timer.is_complete:
            timer.cancel()

    def stop(self, *, force: bool) -> Flow:
        """Start nothing more; with ``force`` the devices in flight are told, and their provisioning ends."""
        in_flight: list[str] = yield from _call(
            self._ctx, STOP_ROLLOUT, {"rollout_id": self.rollout_id, "force": force}
        )
        if not force:
            return
        for device_id in in_flight:
            self._ctx.send_event(
                f"{self.rollout_id}:{device_id}",
                CANCEL_PROVISIONING,
                data={"reason": "the rollout was cancelled"},
            )
        # After that: their orchestrations end though the broker is away. What a device that never hears of it
        # still says, nobody waits for.
        with contextlib.suppress(TaskFailedError):
            yield from _call(
                self._ctx,
                TELL_CANCELLED,
                {"rollout_id": self.rollout_id, "device_ids": in_flight},
                tolerance_s=_TELL_TOLERANCE_S,
            )


def _cancel(waited_for: task.CancellableTask[Any] | None) -> None:
    if waited_for is not None and not waited_for.is_complete:
        waited_for.cancel()


def _call(
    ctx: OrchestrationContext, activity: str, request: Json, *, tolerance_s: float = _TOLERANCE_S
) -> Flow:
    now = f"{ctx.current_utc_datetime.isoformat(timespec='milliseconds')}+00:00"
    return call_patiently(ctx, activity, {**request, "now": now}, tolerance_s=tolerance_s)
