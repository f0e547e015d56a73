"""Histories as clients see them: the engine's records in the SDK's public event types."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from durabletask import history, task

from provisioning.engine import failures
from provisioning.engine.records import RECURSIVE, HistoryEvent, InstanceRow, Kind, Status, to_datetime

_NO_ID = -1
"""``event_id`` of all but what the orchestrator asked for, as in the SDK."""

INTERNAL = frozenset({Kind.EVENT_KEYS})
"""Records that say nothing to clients: no public event stands for them.
An execution begins with one at most."""


def public_history(row: InstanceRow, events: Iterable[HistoryEvent]) -> list[history.HistoryEvent]:
    """The history of an instance's execution, in order; times are aware, UTC.

    ``INTERNAL`` records are left out. What the engine does not record is not in it: the SDK's
    OrchestratorStarted and OrchestratorCompleted, which say where turns begin and end. The
    ``execution_id`` of an instance is the number of its execution.
    """
    due: dict[int, datetime] = {}
    found = []
    for event in events:
        if event.kind == Kind.TIMER_CREATED:
            due[event.task_id] = _aware(int(event.ref or 0))
        if event.kind not in INTERNAL:
            found.append(_CONVERTERS[event.kind](row, event, due))
    return found


def _aware(at: int) -> datetime:
    return to_datetime(at).replace(tzinfo=UTC)


def _failure(event: HistoryEvent) -> task.FailureDetails | None:
    return None if event.data is None else failures.decode(event.data)


def _tags(text: str | None) -> dict[str, str] | None:
    return None if text is None else json.loads(text)


def _started(row: InstanceRow, event: HistoryEvent, _: Any) -> history.HistoryEvent:
    parent = row.parent
    return history.ExecutionStartedEvent(
        _NO_ID,
        _aware(event.at),
        name=event.name or "",
        version=event.ref,
        input=event.data,
        orchestration_instance=history.OrchestrationInstance(row.id, str(row.execution)),
        parent_instance=None
        if parent is None
        else history.ParentInstanceInfo(
            parent.task_id,
            orchestration_instance=history.OrchestrationInstance(parent.instance_id, str(parent.execution)),
        ),
        tags=_tags(row.tags),
    )


def _completed(_: InstanceRow, event: HistoryEvent, __: Any) -> history.HistoryEvent:
    status = Status[event.name or ""]
    failed = status == Status.FAILED
    return history.ExecutionCompletedEvent(
        _NO_ID,
        _aware(event.at),
        orchestration_status=status.value,
        result=None if failed else event.data,
        failure_details=_failure(event) if failed else None,
    )


def _terminated(_: InstanceRow, event: HistoryEvent, __: Any) -> history.HistoryEvent:
    recurse = event.ref == RECURSIVE
    return history.ExecutionTerminatedEvent(_NO_ID, _aware(event.at), input=event.data, recurse=recurse)


def _scheduled(_: InstanceRow, event: HistoryEvent, __: Any) -> history.HistoryEvent:
    return history.TaskScheduledEvent(
        event.task_id, _aware(event.at), name=event.name or "", input=event.data, tags=_tags(event.ref)
    )


def _child_created(_: InstanceRow, event: HistoryEvent, __: Any) -> history.HistoryEvent:
    return history.SubOrchestrationInstanceCreatedEvent(
        event.task_id,
        _aware(event.at),
        instance_id=event.ref or "",
        name=event.name or "",
        input=event.data,
    )


def _timer_created(_: InstanceRow, event: HistoryEvent, due: dict[int, datetime]) -> history.HistoryEvent:
    return history.TimerCreatedEvent(event.task_id, _aware(event.at), fire_at=due[event.task_id])


def _timer_fired(_: InstanceRow, event: HistoryEvent, due: dict[int, datetime]) -> history.HistoryEvent:
    return history.TimerFiredEvent(
        _NO_ID, _aware(event.at), fire_at=due[event.task_id], timer_id=event.task_id
    )


def _event_sent(_: InstanceRow, event: HistoryEvent, __: Any) -> history.HistoryEvent:
    return history.EventSentEvent(
        event.task_id,
        _aware(event.at),
        instance_id=event.ref or "",
        name=event.name or "",
        input=event.data,
    )


_Converter = Callable[[InstanceRow, HistoryEvent, dict[int, datetime]], history.HistoryEvent]

_CONVERTERS: dict[int, _Converter] = {
    Kind.EXECUTION_STARTED: _started,
    Kind.EXECUTION_COMPLETED: _completed,
    Kind.TERMINATED: _terminated,
    Kind.TASK_SCHEDULED: _scheduled,
    Kind.TASK_COMPLETED: lambda _, e, __: history.TaskCompletedEvent(
        _NO_ID, _aware(e.at), task_scheduled_id=e.task_id, result=e.data
    ),
    Kind.TASK_FAILED: lambda _, e, __: history.TaskFailedEvent(
        _NO_ID, _aware(e.at), task_scheduled_id=e.task_id, failure_details=_failure(e)
    ),
    Kind.CHILD_CREATED: _child_created,
    Kind.CHILD_COMPLETED: lambda _, e, __: history.SubOrchestrationInstanceCompletedEvent(
        _NO_ID, _aware(e.at), task_scheduled_id=e.task_id, result=e.data
    ),
    Kind.CHILD_FAILED: lambda _, e, __: history.SubOrchestrationInstanceFailedEvent(
        _NO_ID, _aware(e.at), task_scheduled_id=e.task_id, failure_details=_failure(e)
    ),
    Kind.TIMER_CREATED: _timer_created,
    Kind.TIMER_FIRED: _timer_fired,
    Kind.EVENT_RAISED: lambda _, e, __: history.EventRaisedEvent(
        _NO_ID, _aware(e.at), name=e.name or "", input=e.data
    ),
    Kind.EVENT_SENT: _event_sent,
    Kind.SUSPENDED: lambda _, e, __: history.ExecutionSuspendedEvent(_NO_ID, _aware(e.at), input=e.data),
    Kind.RESUMED: lambda _, e, __: history.ExecutionResumedEvent(_NO_ID, _aware(e.at), input=e.data),
    Kind.EXECUTION_REWOUND: lambda _, e, __: history.ExecutionRewoundEvent(
        _NO_ID, _aware(e.at), reason=e.data
    ),
}
