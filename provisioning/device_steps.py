"""One device's way through packaging, notifying, downloading and activating, within its orchestration."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from durabletask import task
from durabletask.task import OrchestrationContext, TaskFailedError

from .device_progress import DeviceProgress, Step, brief, iso
from .names import (
    ACTIVATE_DEVICE,
    ACTIVATION_COMPLETED,
    ACTIVATION_FAILED,
    CANCEL_PROVISIONING,
    CREATE_INSTALLATION_PACKAGE,
    DEADLINE,
    DEVICE_RETURNED,
    DOWNLOAD_COMPLETED_ACK,
    DOWNLOAD_FAILED,
    PACKAGE_NOT_PRESENT,
    PACKAGE_REJECTED,
    REJECTED_BY_DEVICE,
    SEND_PACKAGE_URL_TO_DEVICE,
)
from .patience import Flow, Json, OutOfTimeError, call_patiently
from .retries import FailureKind
from .settings import RunOptions
from .states import DeviceState

HAS_PACKAGE: Final = "has_package"
ENDED: Final = "ended"
Came = FailureKind | Literal["has_package", "ended"]
"""What came of waiting for the device."""

_OF_DOWNLOADS = (DOWNLOAD_COMPLETED_ACK, PACKAGE_REJECTED, DOWNLOAD_FAILED, DEVICE_RETURNED)
_OF_ACTIVATIONS = (ACTIVATION_COMPLETED, ACTIVATION_FAILED, DEVICE_RETURNED)


class DeadlineError(Exception):
    """A deadline has passed that ends the device; the message says which, and in which step."""

    def __init__(self, which: str) -> None:
        super().__init__(f"{DEADLINE}{which}")


class CancelledError(Exception):
    """Whoever has the device's rollout wants no more of it, while an activity runs; the message says why."""


class DeviceSteps(DeviceProgress):
    """One device's way through its orchestration; lives as long as the generator.

    Of what comes in the same turn, that counts which the history has first. A step is not begun any more
    once the device's deadline is reached, even where the timer's turn is yet to come.
    """

    def __init__(
        self,
        ctx: OrchestrationContext,
        run_id: str,
        device_id: str,
        options: RunOptions,
        release: Json,
        *,
        cancels_activities: bool = False,
    ) -> None:
        """``release``: as it goes into the activity that makes the package. ``cancels_activities``: a
        cancellation is not kept until an activity that runs has ended.
        """
        super().__init__(ctx, run_id, device_id)
        self._options = options
        self._release = release
        self._cancels_activities = cancels_activities
        self._activations = 0
        self._lost_attempts = 0
        self._failures: dict[str, int] = {}
        # One open wait per event, kept from attempt to attempt: a wait that is left behind would take
        # the next event of its name, and a second wait would never see it.
        self._waits: dict[str, task.CancellableTask[Any]] = {}
        self._timer: task.TimerTask | None = None
        # The device's own deadline: none or one.
        self._deadline: tuple[task.TimerTask, ...] = ()
        self._ends_at: datetime | None = None
        if options.device_timeout_s is not None:
            lasts = timedelta(seconds=options.device_timeout_s)
            self._ends_at = self._began + lasts
            self._deadline = (ctx.create_timer(lasts),)

    # -- the steps -----------------------------------------------------------------------------------

    def provision(self) -> Flow:
        """Raises DeadlineError, CancelledError, and TaskFailedError where an activity fails longer than is
        tolerated.
        """
        while True:
            self._attempt += 1
            package = yield from self._create_package()
            if package is None:
                return
            yield from self._notify(package)
            came: Came | None = yield from self._wait_for_download(package)
            while came is not None:
                if came == ENDED:
                    return
                if came == HAS_PACKAGE:
                    came = yield from self._activate(package)
                else:
                    came = yield from self._wait_to_retry(came, package)

    def _create_package(self) -> Flow:
        """None where the release is not for this device, which ends it: no attempt would change that."""
        self._begin("packaging", DeviceState.PACKAGING)
        package: Json = yield from self._call(
            CREATE_INSTALLATION_PACKAGE,
            {**({"allow_downgrade": True} if self._options.allow_downgrade else {}), **self._release},
            what="packaging",
            timeout_s=self._options.packaging_timeout_s,
        )
        if "rejected" in package:
            self.end(DeviceState.REJECTED, brief(package["rejected"]))
            return None
        # What earlier versions recorded has its URL in it, which stays out of status and output.
        self._package = {key: package[key] for key in ("package_id", "release", "size_bytes", "sha256")}
        return package

    def _notify(self, package: Json) -> Flow:
        self._begin("notifying", DeviceState.PACKAGING)
        yield from self._send(package, self._options.ack_timeout_s)

    def _send(self, package: Json, waited_s: float) -> Flow:
        """By a URL that is made when it is sent, and good for as long as the device is waited for."""
        return self._call(
            SEND_PACKAGE_URL_TO_DEVICE,
            {
                "package": package,
                "ack_timeout_s": self._options.ack_timeout_s,
                "sas_lifetime_s": self._options.url_lifetime_s(waited_s),
            },
            what="notifying",
            timeout_s=self._options.notifying_timeout_s,
        )

    def _wait_for_download(self, package: Json) -> Flow:
        """HAS_PACKAGE when the right package was acknowledged, ENDED, or how the attempt failed."""
        self._begin("downloading", DeviceState.NOTIFIED)
        began, waited_s = self._ctx.current_utc_datetime, self._options.ack_timeout_s
        timer = self._start_timer(waited_s)
        while True:
            name, event = yield from self._next_event(timer, CANCEL_PROVISIONING, *_OF_DOWNLOADS)
            if name == CANCEL_PROVISIONING:
                return self._cancel(timer, event)
            if name == DEVICE_RETURNED:
                # The same attempt: a device that has heard of it all the same answers once more.
                passed_s = (self._ctx.current_utc_datetime - began).total_seconds()
                yield from self._send(package, max(0.0, waited_s - passed_s))
                continue
            if name is None:
                self.end(
                    DeviceState.TIMED_OUT,
                    f"no acknowledgement of the download within {self._options.ack_timeout_s:g} s",
                )
                return "no_ack"
            came, problem = self._read(name, event, package)
            if came is None:
                continue
            if came != HAS_PACKAGE and not self._counts(came, event):
                # An earlier attempt's failure, or its bad ack, says nothing about this one.
                self._remark(f"late from attempt {event.get('attempt')}: {problem}")
                continue
            timer.cancel()
            if came == HAS_PACKAGE:
                self._state = DeviceState.DOWNLOADED
            else:
                self.end(DeviceState.REJECTED if came == "rejected" else DeviceState.FAILED, problem)
            return came

    def _read(self, name: str, event: Json, package: Json) -> tuple[Came | None, str]:
        """What an event says of the download, and what is wrong; None where it is not about this one."""
        if event.get("package_id") != package["package_id"]:
            self._remark(f"{name} for another package, {event.get('package_id')}")
            return None, ""
        if name == PACKAGE_REJECTED:
            return "rejected", _reason(REJECTED_BY_DEVICE, event)
        if name == DOWNLOAD_FAILED:
            return "download_failed", _reason("download failed", event)
        if event.get("attempt", 1) <= self._lost_attempts:
            self._remark(f"late from attempt {event.get('attempt')}: {name} of a download that was lost")
            return None, ""
        # Of an earlier attempt too: it is the same package, and the device has it.
        problem = _mismatch(event, package)
        return (HAS_PACKAGE, "") if problem is None else ("bad_ack", problem)

    def _counts(self, kind: Came, event: Json) -> bool:
        """Whether a failure is of this attempt. A rejection that is final is, whenever it was said."""
        final = kind == "rejected" and self._rejection_is_final
        return final or event.get("attempt") == self._attempt

    @property
    def _rejection_is_final(self) -> bool:
        return self._options.attempts("rejected") == 1

    def _wait_to_retry(self, kind: FailureKind, package: Json) -> Flow:
        """ENDED when this was the last attempt, None when it is time for the next.

        HAS_PACKAGE when it has turned out in between that the device has the package all the same.
        """
        failures = self._failures[kind] = self._failures.get(kind, 0) + 1
        if self._attempt >= self._options.max_attempts or failures >= self._options.attempts(kind):
            return ENDED
        timer = self._wait_after(kind, failures, self._attempt + 1)
        while timer is not None:
            name, event = yield from self._next_event(timer, CANCEL_PROVISIONING, *_OF_DOWNLOADS)
            if name is None:
                break
            if name == CANCEL_PROVISIONING:
                return self._cancel(timer, event)
            if name == DEVICE_RETURNED:
                continue  # the next attempt tells it all there is to know
            came, problem = self._read(name, event, package)
            if came == HAS_PACKAGE:
                timer.cancel()
                self._state = DeviceState.DOWNLOADED
                return HAS_PACKAGE
            if came == "rejected" and self._rejection_is_final:
                timer.cancel()
                self.end(DeviceState.REJECTED, problem)
                return ENDED
            if came is not None:
                self._remark(f"late from attempt {event.get('attempt')}: {problem}")
        return None

    def _activate(self, package: Json) -> Flow:
        """ENDED, whatever it ended as; or "package_lost", when the device has not got it any more."""
        failures: dict[str, int] = {}
        for tried in range(1, self._options.max_attempts + 1):
            # Counted on over downloads: an answer must not be taken for that to an earlier command.
            self._activations += 1
            attempt = self._activations
            self._begin("activating", DeviceState.ACTIVATING, attempt=attempt)
            yield from self._command_activation(package, attempt)
            timer = self._start_timer(self._options.activation_timeout_s)
            kind: Came = yield from self._wait_for_activation(timer, package, attempt)
            if kind == "package_lost":
                # It was switched off: it needs the package again, and what it said of this download (twice,
                # on an engine without idempotency keys) counts no more.
                self._lost_attempts = self._attempt
            if kind not in ("activation_failed", "activation_timeout"):
                return kind
            failures[kind] = failures.get(kind, 0) + 1
            if tried == self._options.max_attempts or failures[kind] >= self._options.attempts(kind):
                break
            waiting = self._wait_after(kind, failures[kind], attempt + 1)
            if waiting is not None and (yield from self._wait_to_activate(waiting, package)) == ENDED:
                break
        return ENDED

    def _command_activation(self, package: Json, attempt: int) -> Flow:
        return self._call(
            ACTIVATE_DEVICE,
            {
                "package_id": package["package_id"],
                "release": package["release"],
                "activation_attempt": attempt,
            },
        )

    def _wait_for_activation(self, timer: task.TimerTask, package: Json, attempt: int) -> Flow:
        """ENDED, or how the attempt failed; the state says so too."""
        while True:
            name, event = yield from self._next_event(timer, CANCEL_PROVISIONING, *_OF_ACTIVATIONS)
            if name == CANCEL_PROVISIONING:
                return self._cancel(timer, event)
            if name == DEVICE_RETURNED:
                yield from self._command_activation(package, attempt)
                continue
            if name is None:
                self.end(
                    DeviceState.TIMED_OUT,
                    f"no confirmation of the activation within {self._options.activation_timeout_s:g} s",
                )
                return "activation_timeout"
            if self._is_activated(name, event, package):
                timer.cancel()
                return ENDED
            if name == ACTIVATION_FAILED and self._is_about(package, event):
                problem = _reason("activation failed", event)
                if event.get("attempt") != attempt:
                    self._remark(f"late from attempt {event.get('attempt')}: {problem}")
                    continue
                timer.cancel()
                self.end(DeviceState.FAILED, problem)
                return "package_lost" if event.get("reason") == PACKAGE_NOT_PRESENT else "activation_failed"

    def _wait_to_activate(self, timer: task.TimerTask, package: Json) -> Flow:
        """ENDED, or None when it is time for the next attempt."""
        while True:
            name, event = yield from self._next_event(timer, CANCEL_PROVISIONING, *_OF_ACTIVATIONS)
            if name is None:
                return None
            if name == CANCEL_PROVISIONING:
                return self._cancel(timer, event)
            if self._is_activated(name, event, package):
                timer.cancel()
                return ENDED
            if name == ACTIVATION_FAILED and self._is_about(package, event):
                self._remark(
                    f"late from attempt {event.get('attempt')}: {_reason('activation failed', event)}"
                )

    def _is_about(self, package: Json, event: Json) -> bool:
        return bool(event.get("package_id") == package["package_id"])

    def _is_activated(self, name: str, event: Json, package: Json) -> bool:
        """Whether the event confirms the activation, whichever attempt it was; the device has then ended."""
        if name == DEVICE_RETURNED:
            return False
        if not self._is_about(package, event):
            self._remark(f"{name} for another package, {event.get('package_id')}")
            return False
        if name != ACTIVATION_COMPLETED:
            return False
        self._firmware_version = event.get("firmware_version")
        self.end(DeviceState.PROVISIONED, None)
        return True

    def _cancel(self, timer: task.TimerTask, event: Json) -> Came:
        timer.cancel()
        self.end(DeviceState.CANCELLED, brief(_why(event)))
        return ENDED

    def _begin(
        self, step: Step, state: DeviceState, *, attempt: int | None = None, more: Json | None = None
    ) -> None:
        # Though the deadline's timer may be yet to fire.
        if self._ends_at is not None and self._ctx.current_utc_datetime >= self._ends_at:
            raise self._out_of_time()
        super()._begin(step, state, attempt=attempt, more=more)

    # -- waiting -------------------------------------------------------------------------------------

    def _wait_after(self, kind: FailureKind, failures: int, attempt: int) -> task.TimerTask | None:
        """Begin to wait for that attempt; None where there is nothing to be waited for."""
        delay_s = self._options.retries.of(kind).delay_after(failures, f"{self._device_id}:{kind}:{failures}")
        if delay_s == 0:
            return None
        until = iso(self._ctx.current_utc_datetime + timedelta(seconds=delay_s))
        self._begin(
            "waiting", self._working, attempt=attempt, more={"retrying_at": until, "retrying_after": kind}
        )
        return self._start_timer(delay_s)

    def _start_timer(self, seconds: float) -> task.TimerTask:
        """One for what the device is waited for; there is one at a time."""
        self._timer = self._ctx.create_timer(timedelta(seconds=seconds))
        return self._timer

    def _next_event(self, timer: task.TimerTask, *names: str) -> Flow:
        """The next of the events, as (name, payload), or (None, {}) when the timer fires first.

        Raises DeadlineError when the device's deadline passes first.
        """
        waits = [self._wait_for(name) for name in names]
        yield task.when_any([*waits, timer, *self._deadline])
        for name, wait in zip(names, waits, strict=True):
            # What has come counts before a timer that fired in the same moment.
            if wait.is_complete:
                del self._waits[name]
                payload = wait.get_result()
                return name, payload if isinstance(payload, dict) else {}
        if any(deadline.is_complete for deadline in self._deadline):
            raise self._out_of_time()
        return None, {}

    def _wait_for(self, name: str) -> task.CancellableTask[Any]:
        if name not in self._waits:
            self._waits[name] = self._ctx.wait_for_external_event(name)
        return self._waits[name]

    def end_by(self, passed: DeadlineError | CancelledError) -> None:
        """End the device, whose time is up or which is cancelled, and what it was waited for."""
        # Not where an activity has failed for too long: recorded histories have the timer fire after that.
        if self._timer is not None:
            self._timer.cancel()
        cancelled = isinstance(passed, CancelledError)
        self.end(DeviceState.CANCELLED if cancelled else DeviceState.TIMED_OUT, brief(str(passed)))

    def stop_waiting(self) -> None:
        """Leave no wait behind."""
        for wait in (*self._waits.values(), *self._deadline):
            wait.cancel()
        self._waits.clear()

    def _out_of_time(self) -> DeadlineError:
        step = self._steps[-1]
        return DeadlineError(
            f"the device ({self._options.device_timeout_s:g} s) passed in {step['step']}, "
            f"attempt {step['attempt']}"
        )

    def _call(self, activity: str, more: Json, *, what: str = "", timeout_s: float | None = None) -> Flow:
        request = {
            "run_id": self._run_id,
            "device_id": self._device_id,
            "instance_id": self._ctx.instance_id,
            "attempt": self._attempt,
            **more,
        }
        if timeout_s is not None or self._deadline or self._cancels_activities:
            return self._call_in_time(activity, request, what, timeout_s)
        return call_patiently(self._ctx, activity, request, tolerance_s=self._options.outage_tolerance_s)

    def _call_in_time(self, activity: str, request: Json, what: str, timeout_s: float | None) -> Flow:
        """The same, ended by the device's deadline, after ``timeout_s``, or by a cancellation."""
        timers: list[task.TimerTask] = []
        cancel = [self._wait_for(CANCEL_PROVISIONING)] if self._cancels_activities else []
        if timeout_s is not None:
            timers.append(self._ctx.create_timer(timedelta(seconds=timeout_s)))
        try:
            result = yield from call_patiently(
                self._ctx,
                activity,
                request,
                tolerance_s=self._options.outage_tolerance_s if timeout_s is None else timeout_s,
                timers=[*timers, *self._deadline, *cancel],
            )
        except (TaskFailedError, OutOfTimeError) as error:
            for timer in timers:
                timer.cancel()
            if isinstance(error, OutOfTimeError):
                if any(wait.is_complete for wait in cancel):
                    raise CancelledError(_why(self._waits.pop(CANCEL_PROVISIONING).get_result())) from None
                if any(deadline.is_complete for deadline in self._deadline):
                    raise self._out_of_time() from None
                failure = error.failure
            elif timeout_s is None:
                raise
            else:
                failure = error.details.message
            because = f": {failure}" if failure else ""
            raise DeadlineError(f"{what} ({timeout_s:g} s) passed{because}") from None
        for timer in timers:
            timer.cancel()
        return result


def _why(event: object) -> str:
    return str((event.get("reason") if isinstance(event, Mapping) else None) or "cancelled")


def _mismatch(ack: Mapping[str, Any], package: Mapping[str, Any]) -> str | None:
    """Why an acknowledgement of the right package is not good; None if it is."""
    if ack.get("sha256") != package["sha256"]:
        return f"acknowledged with SHA-256 {str(ack.get('sha256'))[:16]}…, expected {package['sha256'][:16]}…"
    if ack.get("size_bytes") != package["size_bytes"]:
        return f"acknowledged {ack.get('size_bytes')} bytes, expected {package['size_bytes']}"
    return None


def _reason(what: str, event: Mapping[str, Any]) -> str:
    detail = event.get("detail")
    return brief(f"{what}: {event.get('reason')}" + (f" ({detail})" if detail else ""))
