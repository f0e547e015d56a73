"""The two orchestrations, written against the Durable Task SDK's context: they run on either engine.

`ProvisionNewDevices` claims devices for a run and provisions each in a sub-orchestration of its own;
`DeviceProvisioningOrchestration` takes one device through packaging, notifying, downloading and activating.

They are deterministic: time comes from the context, everything else from activities and events. Nothing
here does I/O, and no device's failure is an exception: it is an outcome.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from durabletask import task
from durabletask.task import OrchestrationContext, TaskFailedError

from .settings import RunOptions
from .states import DeviceState

GET_NEW_DEVICE_IDS = "GetNewDeviceIds"
CREATE_INSTALLATION_PACKAGE = "CreateInstallationPackage"
SEND_PACKAGE_URL_TO_DEVICE = "SendPackageUrlToDevice"
ACTIVATE_DEVICE = "ActivateDevice"
RECORD_OUTCOME = "RecordOutcome"

DOWNLOAD_COMPLETED_ACK = "DownloadCompletedAck"
DOWNLOAD_FAILED = "DownloadFailed"
PACKAGE_REJECTED = "PackageRejected"
ACTIVATION_COMPLETED = "ActivationCompleted"
ACTIVATION_FAILED = "ActivationFailed"
DEVICE_RETURNED = "DeviceReturned"
"""The device may have missed what was sent: it was started again, or the broker has lost a session."""
CANCEL_PROVISIONING = "CancelProvisioning"
"""An operator has cancelled it: the device has been told, and nothing is waited for any more."""
# Why an activation fails on a device that was switched off and kept nothing.
PACKAGE_NOT_PRESENT = "package-not-present"

MAX_FAILURES_LISTED = 20
"""Failures in the output of a run; all of them are in the registry."""
MAX_ERROR_CHARS = 500
_RECORDED = ("device_id", "state", "attempts", "error", "firmware_version", "ended_at")
"""Of an outcome: what RecordOutcome is given."""

Flow = Generator[task.Task[Any], Any, Any]
Json = dict[str, Any]

_FIRST_RETRY = timedelta(seconds=0.5)
_LONGEST_RETRY = timedelta(seconds=5)
_MAX_RETRIES = 900


def call_patiently(ctx: OrchestrationContext, activity: str, request: Json, *, tolerance_s: float) -> Flow:
    """The result of an activity, tried again for `tolerance_s` seconds: after 0.5, 1, 2, 4, 5, 5 … s.

    Raises TaskFailedError, of the last try. Where it would be very many tries they are further apart, for
    the history's sake. By orchestration time, which the SDK's RetryPolicy is not: its worker compares
    `retry_timeout` with the wall clock, in replay too, so that on a remote engine a try that succeeded is
    taken back as soon as the time has run out.
    """
    began = ctx.current_utc_datetime
    delay = _FIRST_RETRY
    longest = max(_LONGEST_RETRY, timedelta(seconds=tolerance_s / _MAX_RETRIES))
    while True:
        try:
            return (yield ctx.call_activity(activity, input=request))
        except TaskFailedError:
            if ctx.current_utc_datetime - began >= timedelta(seconds=tolerance_s):
                raise
        yield ctx.create_timer(delay)
        delay = min(delay * 2, longest)


@lru_cache(maxsize=64)
def _options(given: tuple[tuple[str, Any], ...]) -> RunOptions:
    """The options of a run, read and checked once and not for each of its devices."""
    return RunOptions.from_json(dict(given))


def of_release(request: Mapping[str, Any]) -> Json:
    """The release, as it goes on into an input: nothing where it is that of the service."""
    release = request.get("release")
    return {} if release is None else {"release": release}


def ProvisionNewDevices(ctx: OrchestrationContext, request: Json) -> Flow:  # noqa: N802 (the seed's name)
    """Provision the devices of a run, all in parallel.

    Input: `{"device_ids": [...] | null, "options": {...}, "release"?}`; null means all new devices, and no
    release that of the service. Output:
    `{"run_id", "devices", "counts": {state: n}, "failures": [{"device_id", "state", "error"} … first 20]}`.
    """
    options = RunOptions.from_json(request.get("options"))
    options_json = options.to_json()
    release = of_release(request)
    device_ids: list[str] = yield from call_patiently(
        ctx,
        GET_NEW_DEVICE_IDS,
        {
            "run_id": ctx.instance_id,
            "device_ids": request.get("device_ids"),
            "options": options_json,
            **release,
        },
        tolerance_s=options.outage_tolerance_s,
    )
    counts: dict[str, int] = {}
    failures: list[Json] = []
    if device_ids:
        children: list[task.Task[Any]] = [
            ctx.call_sub_orchestrator(
                "DeviceProvisioningOrchestration",
                input={"device_id": device_id, "options": options_json, **release},
                instance_id=f"{ctx.instance_id}:{device_id}",
            )
            for device_id in device_ids
        ]
        # Fails when a child was terminated or broke: the others' outcomes count all the same.
        with contextlib.suppress(TaskFailedError):
            yield task.when_all(children)
        for device_id, child in zip(device_ids, children, strict=True):
            if child.is_failed:
                state, error = DeviceState.FAILED.value, _brief(str(child.get_exception()))
            else:
                outcome: Json = child.get_result()
                state, error = outcome["state"], outcome["error"]
            counts[state] = counts.get(state, 0) + 1
            if state != DeviceState.PROVISIONED and len(failures) < MAX_FAILURES_LISTED:
                failures.append({"device_id": device_id, "state": state, "error": error})
    return {"run_id": ctx.instance_id, "devices": len(device_ids), "counts": counts, "failures": failures}


def DeviceProvisioningOrchestration(ctx: OrchestrationContext, request: Json) -> Flow:  # noqa: N802
    """Provision one device.

    Input: `{"device_id", "options": {...}, "release"?}`. Output, whatever became of the device:
    `{"device_id", "state", "attempts", "error", "firmware_version", "package", "steps", "started_at",
    "ended_at"}`, with `steps` as in the custom status:
    `[{"step", "attempt", "started_at", "ended_at", "error"} …]`.
    """
    run_id, _, device_id = ctx.instance_id.rpartition(":")
    options = _options(tuple((request.get("options") or {}).items()))
    device = _Device(ctx, run_id, request.get("device_id", device_id), options, of_release(request))
    try:
        yield from device.provision()
    except TaskFailedError as error:
        # An activity failed for longer than the run's options tolerate.
        device.end(DeviceState.FAILED, _brief(error.details.message))
    device.stop_waiting()
    outcome = device.outcome()
    yield from call_patiently(
        ctx,
        RECORD_OUTCOME,
        device.record(outcome),
        # Not bounded by the outage that is tolerated: the registry is the service's own disk.
        tolerance_s=max(options.outage_tolerance_s, 3_600.0),
    )
    return outcome


class _Device:
    """One device's way through its orchestration; lives as long as the generator."""

    def __init__(
        self, ctx: OrchestrationContext, run_id: str, device_id: str, options: RunOptions, release: Json
    ) -> None:
        self._ctx = ctx
        self._run_id = run_id
        self._device_id = device_id
        self._options = options
        self._release = release
        self._began = self._step_began = ctx.current_utc_datetime
        self._steps: list[Json] = []
        self._steps_s: dict[str, float] = {}
        self._state = DeviceState.QUEUED
        self._attempt = 0
        self._activations = 0
        self._lost_attempts = 0
        self._error: str | None = None
        self._firmware_version: str | None = None
        self._package: Json | None = None
        # One open wait per event, kept from attempt to attempt: a wait that is left behind would take
        # the next event of its name, and a second wait would never see it.
        self._waits: dict[str, task.CancellableTask[Any]] = {}

    # -- the steps -----------------------------------------------------------------------------------

    def provision(self) -> Flow:
        for attempt in range(1, self._options.max_attempts + 1):
            self._attempt = attempt
            package = yield from self._create_package()
            if package is None:
                return
            yield from self._notify(package)
            downloaded = yield from self._wait_for_download(package)
            if downloaded:
                has_package = yield from self._activate(package)
                if has_package:
                    return
                # A device that was switched off has lost its download: it needs another one, and what it
                # said of this one (twice, on an engine without idempotency keys) counts no more.
                self._lost_attempts = attempt
                continue
            if self._state in (DeviceState.REJECTED, DeviceState.CANCELLED):
                return

    def _create_package(self) -> Flow:
        """None where the release is not for this device, which ends it."""
        self._begin("packaging", DeviceState.PACKAGING)
        package: Json = yield from self._call(
            CREATE_INSTALLATION_PACKAGE, sas_lifetime_s=self._options.sas_lifetime_s, **self._release
        )
        if "rejected" in package:
            self.end(DeviceState.REJECTED, _brief(package["rejected"]))
            return None
        # The URL stays out of status and output: they are shown, and it is a secret.
        self._package = {key: package[key] for key in ("package_id", "release", "size_bytes", "sha256")}
        return package

    def _notify(self, package: Json) -> Flow:
        self._begin("notifying", DeviceState.PACKAGING)
        yield from self._send(package)

    def _send(self, package: Json) -> Flow:
        return self._call(
            SEND_PACKAGE_URL_TO_DEVICE, package=package, ack_timeout_s=self._options.ack_timeout_s
        )

    def _wait_for_download(self, package: Json) -> Flow:
        """True when the right package was acknowledged; else the state says how the attempt ended."""
        self._begin("downloading", DeviceState.NOTIFIED)
        timer = self._ctx.create_timer(timedelta(seconds=self._options.ack_timeout_s))
        while True:
            name, event = yield from self._next_event(
                timer,
                CANCEL_PROVISIONING,
                DOWNLOAD_COMPLETED_ACK,
                PACKAGE_REJECTED,
                DOWNLOAD_FAILED,
                DEVICE_RETURNED,
            )
            if name == CANCEL_PROVISIONING:
                self._cancel(timer, event)
                return False
            if name == DEVICE_RETURNED:
                # The same attempt: a device that has heard of it all the same answers once more.
                yield from self._send(package)
                continue
            if name is None:
                self.end(
                    DeviceState.TIMED_OUT,
                    f"no acknowledgement of the download within {self._options.ack_timeout_s:g} s",
                )
                return False
            if event.get("package_id") != package["package_id"]:
                self._remark(f"{name} for another package, {event.get('package_id')}")
                continue
            if name == DOWNLOAD_COMPLETED_ACK and event.get("attempt", 1) <= self._lost_attempts:
                self._remark(f"late from attempt {event.get('attempt')}: {name} of a download that was lost")
                continue
            if name == DOWNLOAD_COMPLETED_ACK:
                # Of an earlier attempt too: it is the same package, and the device has it.
                problem = _mismatch(event, package)
                if problem is None:
                    timer.cancel()
                    self._state = DeviceState.DOWNLOADED
                    return True
            elif name == PACKAGE_REJECTED:
                timer.cancel()
                self.end(DeviceState.REJECTED, _reason("rejected the package", event))
                return False
            else:
                problem = _reason("download failed", event)
            if event.get("attempt") != self._attempt:
                # An earlier attempt's failure, or its bad ack, says nothing about this one.
                self._remark(f"late from attempt {event.get('attempt')}: {problem}")
                continue
            timer.cancel()
            self.end(DeviceState.FAILED, problem)
            return False

    def _activate(self, package: Json) -> Flow:
        """False when the device has not got the package any more; else the state says how it ended."""
        for _ in range(self._options.max_attempts):
            # Counted on over downloads: an answer must not be taken for that to an earlier command.
            self._activations += 1
            attempt = self._activations
            self._begin("activating", DeviceState.ACTIVATING, attempt=attempt)
            yield from self._command_activation(package, attempt)
            timer = self._ctx.create_timer(timedelta(seconds=self._options.activation_timeout_s))
            answer = yield from self._wait_for_activation(timer, package, attempt)
            if answer is not None:
                return answer != PACKAGE_NOT_PRESENT
        return True

    def _command_activation(self, package: Json, attempt: int) -> Flow:
        return self._call(
            ACTIVATE_DEVICE,
            package_id=package["package_id"],
            release=package["release"],
            activation_attempt=attempt,
        )

    def _wait_for_activation(self, timer: task.TimerTask, package: Json, attempt: int) -> Flow:
        """What ended it: ACTIVATION_COMPLETED, PACKAGE_NOT_PRESENT, CANCEL_PROVISIONING; None: try again.

        The state says how the attempt ended.
        """
        while True:
            name, event = yield from self._next_event(
                timer, CANCEL_PROVISIONING, ACTIVATION_COMPLETED, ACTIVATION_FAILED, DEVICE_RETURNED
            )
            if name == CANCEL_PROVISIONING:
                self._cancel(timer, event)
                return CANCEL_PROVISIONING
            if name == DEVICE_RETURNED:
                yield from self._command_activation(package, attempt)
                continue
            if name is None:
                self.end(
                    DeviceState.TIMED_OUT,
                    f"no confirmation of the activation within {self._options.activation_timeout_s:g} s",
                )
                return None
            if event.get("package_id") != package["package_id"]:
                self._remark(f"{name} for another package, {event.get('package_id')}")
                continue
            if name == ACTIVATION_COMPLETED:
                timer.cancel()
                self._firmware_version = event.get("firmware_version")
                self.end(DeviceState.PROVISIONED, None)
                return ACTIVATION_COMPLETED
            problem = _reason("activation failed", event)
            if event.get("attempt") != attempt:
                self._remark(f"late from attempt {event.get('attempt')}: {problem}")
                continue
            timer.cancel()
            self.end(DeviceState.FAILED, problem)
            return PACKAGE_NOT_PRESENT if event.get("reason") == PACKAGE_NOT_PRESENT else None

    def _cancel(self, timer: task.TimerTask, event: Json) -> None:
        timer.cancel()
        self.end(DeviceState.CANCELLED, _brief(str(event.get("reason") or "cancelled")))

    # -- waiting -------------------------------------------------------------------------------------

    def _next_event(self, timer: task.TimerTask, *names: str) -> Flow:
        """The next of the events, as (name, payload), or (None, {}) when the timer fires first."""
        waits = []
        for name in names:
            if name not in self._waits:
                self._waits[name] = self._ctx.wait_for_external_event(name)
            waits.append(self._waits[name])
        yield task.when_any([*waits, timer])
        for name, wait in zip(names, waits, strict=True):
            # What has come counts before a timer that fired in the same moment.
            if wait.is_complete:
                del self._waits[name]
                payload = wait.get_result()
                return name, payload if isinstance(payload, dict) else {}
        return None, {}

    def stop_waiting(self) -> None:
        """Leave no wait behind."""
        for wait in self._waits.values():
            wait.cancel()
        self._waits.clear()

    def _call(self, activity: str, **more: Any) -> Flow:
        return call_patiently(
            self._ctx,
            activity,
            {
                "run_id": self._run_id,
                "device_id": self._device_id,
                "instance_id": self._ctx.instance_id,
                "attempt": self._attempt,
                **more,
            },
            tolerance_s=self._options.outage_tolerance_s,
        )

    # -- status --------------------------------------------------------------------------------------

    def _begin(
        self,
        step: Literal["packaging", "notifying", "downloading", "activating"],
        state: DeviceState,
        *,
        attempt: int | None = None,
    ) -> None:
        at = self._ctx.current_utc_datetime
        now = _iso(at)
        self._close_step(at)
        self._step_began = at
        number = attempt if attempt is not None else self._attempt
        self._steps.append(
            {"step": step, "attempt": number, "started_at": now, "ended_at": None, "error": None}
        )
        self._state = state
        self._error = None
        self._ctx.set_custom_status(
            {
                "state": state.value,
                "step": step,
                "attempt": number,
                "since": now,
                "steps": self._steps,
                "package": self._package,
            }
        )

    def _close_step(self, at: datetime) -> None:
        if self._steps and self._steps[-1]["ended_at"] is None:
            step = self._steps[-1]
            step["ended_at"] = _iso(at)
            took_s = (at - self._step_began).total_seconds()
            self._steps_s[step["step"]] = self._steps_s.get(step["step"], 0.0) + took_s

    def _remark(self, text: str) -> None:
        """Keep a trace of an event that changed nothing."""
        step = self._steps[-1]
        step["error"] = _brief(f"{step['error']}; {text}" if step["error"] else text)

    def end(self, state: DeviceState, error: str | None) -> None:
        """End the present step, and for now the device: a later attempt may still do better."""
        self._state = state
        self._error = error
        if self._steps:
            self._close_step(self._ctx.current_utc_datetime)
            if error is not None:
                self._remark(error)

    def outcome(self) -> Json:
        """The output of the orchestration."""
        now = self._ctx.current_utc_datetime
        self._close_step(now)
        return {
            "device_id": self._device_id,
            "state": self._state.value,
            "attempts": self._attempt,
            "error": self._error,
            "firmware_version": self._firmware_version,
            "package": self._package,
            "steps": self._steps,
            "started_at": _iso(self._began),
            "ended_at": _iso(now),
        }

    def record(self, outcome: Json) -> Json:
        """What the registry keeps of the outcome, and no more: it is written for each device."""
        now = self._ctx.current_utc_datetime
        return {
            "run_id": self._run_id,
            **{name: outcome[name] for name in _RECORDED},
            "device_s": (now - self._began).total_seconds(),
            "steps_s": self._steps_s,
        }


def _mismatch(ack: Mapping[str, Any], package: Mapping[str, Any]) -> str | None:
    """Why an acknowledgement of the right package is not good; None if it is."""
    if ack.get("sha256") != package["sha256"]:
        return f"acknowledged with SHA-256 {str(ack.get('sha256'))[:16]}…, expected {package['sha256'][:16]}…"
    if ack.get("size_bytes") != package["size_bytes"]:
        return f"acknowledged {ack.get('size_bytes')} bytes, expected {package['size_bytes']}"
    return None


def _reason(what: str, event: Mapping[str, Any]) -> str:
    detail = event.get("detail")
    return _brief(f"{what}: {event.get('reason')}" + (f" ({detail})" if detail else ""))


def _brief(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 1] + "…"


def _iso(at: datetime) -> str:
    """A naive time, which is UTC, as text."""
    return f"{at.isoformat(timespec='milliseconds')}+00:00"
