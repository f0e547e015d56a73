"""What the management API says, in Durable Functions' JSON; no secret leaves by it.

Histories are Durable Functions' too: an activity's or a sub-orchestration's end has its name and the time
when it was scheduled, and takes the place of the event that scheduled it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from durabletask import history, task
from durabletask.client import OrchestrationState, OrchestrationStatus
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from broker.masking import masked

Json = dict[str, Any]

MANAGEMENT = "/runtime/webhooks/durabletask"


class RuntimeStatus(StrEnum):
    """Durable Functions' words for the statuses of Durable Task."""

    RUNNING = "Running"
    COMPLETED = "Completed"
    CONTINUED_AS_NEW = "ContinuedAsNew"
    FAILED = "Failed"
    CANCELED = "Canceled"
    TERMINATED = "Terminated"
    PENDING = "Pending"
    SUSPENDED = "Suspended"


class ManagementUrls(BaseModel):
    """Where an instance can be asked after and managed."""

    id: str
    statusQueryGetUri: str
    sendEventPostUri: str
    terminatePostUri: str
    rewindPostUri: str
    purgeHistoryDeleteUri: str
    restartPostUri: str
    suspendPostUri: str
    resumePostUri: str


class HistoryEntry(BaseModel):
    """One event of a history; what else it has depends on its type."""

    model_config = ConfigDict(extra="allow")

    EventType: str = Field(examples=["TaskCompleted"])
    Timestamp: datetime


class InstanceStatus(BaseModel):
    """How it stands with an instance."""

    name: str
    instanceId: str
    runtimeStatus: RuntimeStatus
    input: Any = None
    customStatus: Any = None
    output: Any = None
    createdTime: datetime
    lastUpdatedTime: datetime
    historyEvents: list[HistoryEntry] = Field(default=[], description="With showHistory alone.")


class PurgeResult(BaseModel):
    """What a purge has removed."""

    instancesDeleted: int


class MaskedJson(JSONResponse):
    """JSON with everything secret masked. In ASCII: payloads may have what is no valid Unicode."""

    def render(self, content: Any) -> bytes:
        return masked(json.dumps(content, separators=(",", ":"))).encode("ascii")


def management_urls(instance_id: str, base: str, task_hub: str) -> Json:
    """The URLs of an instance; `{eventName}` and `{text}` are for the caller to fill in."""
    here = f"{base}{MANAGEMENT}/instances/{quote(instance_id, safe='')}"
    # There is a query in each: clients append theirs with an ampersand.
    hub = f"taskHub={quote(task_hub, safe='')}"
    return ManagementUrls(
        id=instance_id,
        statusQueryGetUri=f"{here}?{hub}",
        sendEventPostUri=f"{here}/raiseEvent/{{eventName}}?{hub}",
        terminatePostUri=f"{here}/terminate?reason={{text}}&{hub}",
        rewindPostUri=f"{here}/rewind?reason={{text}}&{hub}",
        purgeHistoryDeleteUri=f"{here}?{hub}",
        restartPostUri=f"{here}/restart?{hub}",
        suspendPostUri=f"{here}/suspend?reason={{text}}&{hub}",
        resumePostUri=f"{here}/resume?reason={{text}}&{hub}",
    ).model_dump()


def status_name(status: OrchestrationStatus) -> str:
    """The status as Durable Functions calls it."""
    return RuntimeStatus[status.name].value


def state_json(state: OrchestrationState, *, show_input: bool) -> Json:
    """An instance, without its history."""
    output = decoded(state.serialized_output)
    if state.runtime_status == OrchestrationStatus.FAILED and state.failure_details is not None:
        output = state.failure_details.message
    return {
        "name": state.name,
        "instanceId": state.instance_id,
        "runtimeStatus": status_name(state.runtime_status),
        "input": decoded(state.serialized_input) if show_input else None,
        "customStatus": decoded(state.serialized_custom_status),
        "output": output,
        "createdTime": _seconds(state.created_at),
        "lastUpdatedTime": _seconds(state.last_updated_at),
    }


def decoded(text: str | None) -> Any:
    """What JSON says; what is none, as text."""
    if text is None:
        return None
    try:
        # Python writes what JSON has no words for (NaN); others could not read it.
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def history_json(
    events: Sequence[history.HistoryEvent], *, show_input: bool, show_output: bool
) -> list[Json]:
    """A history as Durable Functions shows it."""
    shown: list[Json | None] = []
    # What waits for its answer, and where it stands: the last try, where there are several.
    scheduled: dict[int, tuple[int, Any]] = {}
    for event in events:
        if isinstance(event, history.OrchestratorStartedEvent | history.OrchestratorCompletedEvent):
            continue
        entry: Json = {
            "EventType": type(event).__name__.removesuffix("Event"),
            "Timestamp": _precise(event.timestamp),
        }
        _DETAILS.get(type(event), _any_other)(event, entry)
        if isinstance(event, _ANSWERS):
            if event.task_scheduled_id in scheduled:
                place, asked = scheduled.pop(event.task_scheduled_id)
                shown[place] = None
                entry["ScheduledTime"] = _precise(asked.timestamp)
                entry["FunctionName"] = asked.name
                entry["Input"] = asked.input
        elif isinstance(event, _QUESTIONS):
            scheduled[event.event_id] = (len(shown), event)
        if not show_input:
            entry.pop("Input", None)
        if not show_output:
            entry.pop("Result", None)
        shown.append(entry)
    return [entry for entry in shown if entry is not None]


_QUESTIONS = (history.TaskScheduledEvent, history.SubOrchestrationInstanceCreatedEvent)
_ANSWERS = (
    history.TaskCompletedEvent,
    history.TaskFailedEvent,
    history.SubOrchestrationInstanceCompletedEvent,
    history.SubOrchestrationInstanceFailedEvent,
)


def _started(event: Any, entry: Json) -> None:
    entry |= {"FunctionName": event.name, "Input": event.input}


def _ended(event: Any, entry: Json) -> None:
    entry["OrchestrationStatus"] = status_name(OrchestrationStatus(event.orchestration_status))
    entry["Result"] = decoded(event.result)
    _failure(event, entry)


def _asked(event: Any, entry: Json) -> None:
    entry |= {"Name": event.name, "Input": event.input}
    if not isinstance(event, history.TaskScheduledEvent | history.EventRaisedEvent):
        entry["InstanceId"] = event.instance_id


def _answered(event: Any, entry: Json) -> None:
    entry["Result"] = decoded(event.result)


def _failure(event: Any, entry: Json) -> None:
    if event.failure_details is not None:
        details: task.FailureDetails = event.failure_details
        entry |= {"Reason": details.message, "Details": details.stack_trace}
        entry["FailureDetails"] = {"ErrorType": details.error_type, "ErrorMessage": details.message}


def _timer(event: Any, entry: Json) -> None:
    entry["FireAt"] = _precise(event.fire_at)


def _reason(event: Any, entry: Json) -> None:
    entry["Reason"] = event.reason if isinstance(event, history.ExecutionRewoundEvent) else event.input


def _terminated(event: Any, entry: Json) -> None:
    entry["Input"] = event.input


def _any_other(event: history.HistoryEvent, entry: Json) -> None:
    """Of a backend that has more than the orchestrations here use."""
    for name, value in event.to_dict().items():
        if name not in ("event_id", "timestamp") and value is not None:
            entry["".join(part.title() for part in name.split("_"))] = value


_DETAILS: dict[type[history.HistoryEvent], Callable[[Any, Json], None]] = {
    history.ExecutionStartedEvent: _started,
    history.ExecutionCompletedEvent: _ended,
    history.ExecutionTerminatedEvent: _terminated,
    history.ExecutionSuspendedEvent: _reason,
    history.ExecutionResumedEvent: _reason,
    history.ExecutionRewoundEvent: _reason,
    history.TaskScheduledEvent: _asked,
    history.TaskCompletedEvent: _answered,
    history.TaskFailedEvent: _failure,
    history.SubOrchestrationInstanceCreatedEvent: _asked,
    history.SubOrchestrationInstanceCompletedEvent: _answered,
    history.SubOrchestrationInstanceFailedEvent: _failure,
    history.TimerCreatedEvent: _timer,
    history.TimerFiredEvent: _timer,
    history.EventRaisedEvent: _asked,
    history.EventSentEvent: _asked,
}


def _utc(at: datetime) -> datetime:
    return (at.astimezone(UTC) if at.tzinfo is not None else at).replace(tzinfo=None)


def _seconds(at: datetime) -> str:
    return f"{_utc(at).isoformat(timespec='seconds')}Z"


def _precise(at: datetime) -> str:
    return f"{_utc(at).isoformat(timespec='microseconds')}Z"
