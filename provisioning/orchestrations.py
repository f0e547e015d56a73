"""The two orchestrations, written against the Durable Task SDK's context: they run on either engine.

`ProvisionNewDevices` claims devices for a run and provisions each in a sub-orchestration of its own;
`DeviceProvisioningOrchestration` takes one device through packaging, notifying, downloading and activating.

They are deterministic: time comes from the context, everything else from activities and events. Nothing
here does I/O, and no device's failure is an exception: it is an outcome.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from durabletask import task
from durabletask.task import OrchestrationContext, TaskFailedError

from broker.topics import check_device_id, check_run_id

from .device_progress import MAX_ERROR_CHARS, brief
from .device_steps import CancelledError, DeadlineError, DeviceSteps
from .names import (
    ACTIVATE_DEVICE,
    ACTIVATION_COMPLETED,
    ACTIVATION_FAILED,
    CANCEL_PROVISIONING,
    CREATE_INSTALLATION_PACKAGE,
    DEVICE_RETURNED,
    DOWNLOAD_COMPLETED_ACK,
    DOWNLOAD_FAILED,
    GET_NEW_DEVICE_IDS,
    PACKAGE_NOT_PRESENT,
    PACKAGE_REJECTED,
    RECORD_OUTCOME,
    SEND_PACKAGE_URL_TO_DEVICE,
)
from .patience import Flow, Json, call_patiently
from .settings import RunOptions
from .states import DeviceState

__all__ = [
    "ACTIVATE_DEVICE",
    "ACTIVATION_COMPLETED",
    "ACTIVATION_FAILED",
    "CANCEL_PROVISIONING",
    "CREATE_INSTALLATION_PACKAGE",
    "DEVICE_RETURNED",
    "DOWNLOAD_COMPLETED_ACK",
    "DOWNLOAD_FAILED",
    "GET_NEW_DEVICE_IDS",
    "MAX_ERROR_CHARS",
    "MAX_FAILURES_LISTED",
    "PACKAGE_NOT_PRESENT",
    "PACKAGE_REJECTED",
    "RECORD_OUTCOME",
    "SEND_PACKAGE_URL_TO_DEVICE",
    "DeviceProvisioningOrchestration",
    "ProvisionNewDevices",
    "call_patiently",
    "of_release",
]

MAX_FAILURES_LISTED = 20
"""Failures in the output of a run; all of them are in the registry."""


def _options(given: Json | None) -> RunOptions:
    """The options of a run, read and checked once and not for each of its devices."""
    if not given:
        return _DEFAULT_OPTIONS
    retries = given.get("retries")
    if retries is None:
        return _read_options(tuple(given.items()))
    return _read_options(tuple({**given, "retries": json.dumps(retries)}.items()))


@lru_cache(maxsize=64)
def _read_options(given: tuple[tuple[str, Any], ...]) -> RunOptions:
    options = dict(given)
    if "retries" in options:
        options["retries"] = json.loads(options["retries"])
    return RunOptions.from_json(options)


_DEFAULT_OPTIONS = RunOptions()


def _check_input(request: object) -> None:
    if not isinstance(request, Mapping):
        raise TypeError("the input is no object: '{}' at least")


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
    # Whoever starts one by hand hears at once of what no try would get through with, and no device is
    # claimed for it: it would be busy for as long as an outage is tolerated.
    _check_input(request)
    check_run_id(ctx.instance_id)
    options = RunOptions.from_json(request.get("options"))
    options_json = options.to_json()
    if not isinstance(request.get("device_ids"), list | None):
        raise TypeError("device_ids is neither a list nor null")
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
                state, error = DeviceState.FAILED.value, brief(str(child.get_exception()))
            else:
                outcome: Json = child.get_result()
                state, error = outcome["state"], outcome["error"]
            counts[state] = counts.get(state, 0) + 1
            if state != DeviceState.PROVISIONED and len(failures) < MAX_FAILURES_LISTED:
                failures.append({"device_id": device_id, "state": state, "error": error})
    return {"run_id": ctx.instance_id, "devices": len(device_ids), "counts": counts, "failures": failures}


def DeviceProvisioningOrchestration(ctx: OrchestrationContext, request: Json) -> Flow:  # noqa: N802
    """Provision one device.

    Input: `{"device_id", "options": {...}, "release"?, "cancels_activities"?}`; the last is true for a
    rollout's devices, but for those that began before there was such a thing. Output, whatever became of it:
    `{"device_id", "state", "attempts", "error", "firmware_version", "package", "steps", "started_at",
    "ended_at"}`, with `steps` as in the custom status:
    `[{"step", "attempt", "started_at", "ended_at", "error"} …]`; the step "waiting", for the next attempt,
    also has `retrying_at` and `retrying_after`, the kind of failure.
    """
    _check_input(request)
    run_id, _, device_id = ctx.instance_id.rpartition(":")
    if not run_id:
        raise ValueError(f"the instance id {ctx.instance_id!r} is not '{{run_id}}:{{device_id}}'")
    check_run_id(run_id)
    options = _options(request.get("options"))
    wanted = check_device_id(request.get("device_id", device_id))
    device = DeviceSteps(
        *(ctx, run_id, wanted, options, of_release(request)),
        cancels_activities=request.get("cancels_activities", False),
    )
    try:
        yield from device.provision()
    except TaskFailedError as error:
        # An activity failed for longer than the run's options tolerate.
        device.end(DeviceState.FAILED, brief(error.details.message))
    except (DeadlineError, CancelledError) as passed:
        device.end_by(passed)
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
