"""Drives the pure core by hand: messages in, history and actions out, and replay checked after each turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from typing import Any

from durabletask import task
from durabletask.serialization import DataConverter

from provisioning.engine import failures
from provisioning.engine.completion import Completion, Turn
from provisioning.engine.execution import Execution
from provisioning.engine.functions import Functions
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import HistoryEvent, Kind, Message, Status
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER

Ctx = task.OrchestrationContext
Steps = Generator[task.Task[Any], Any, Any]
Task = task.CompletableTask[Any]

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
"""Where the drivers' clocks begin: 2023-11-14 22:13:20 UTC."""


def failure_json(message: str, error_type: str = "builtins.ValueError") -> str:
    """A failure as an activity or a child would report it."""
    return failures.encode(
        task.FailureDetails(message=message, error_type=error_type, stack_trace="", inner_failure=None)
    )


def snapshot(execution: Execution) -> dict[str, Any]:
    """All of an execution's state that later turns depend on, comparable."""
    return {
        "pending": {
            task_id: (
                p.action.kind,
                p.action.task_id,
                p.action.name,
                p.action.ref,
                p.action.data,
                p.action.due,
                p.final_due,
                p.retry.attempt if p.retry else None,
                p.resumes.action.task_id if p.resumes else None,
            )
            for task_id, p in execution.pending.items()
        },
        "events": execution.events.snapshot(),
        "length": execution._length,
        "custom_status": execution.custom_status,
        "last_id": execution._last_id,
        "now": execution.now,
        "suspended": execution.suspended,
        "held": list(execution._held),
        "actions": dict(execution.actions),
        "ended": execution.completion is not None,
    }


class Driver:
    """One orchestration on the pure core. Times advance by one second a turn unless told otherwise."""

    def __init__(
        self,
        orchestrator: Callable[..., Any] | None,
        *,
        options: EngineOptions | None = None,
        instance_id: str = "i",
        parent_id: str | None = None,
        version: str | None = None,
        converter: DataConverter = DEFAULT_DATA_CONVERTER,
    ) -> None:
        self.converter = converter
        self.functions = Functions(converter)
        if orchestrator is not None:
            self.functions.add_orchestrator("main", orchestrator)
        self.options = options or EngineOptions()
        self.instance_id, self.parent_id, self.version = instance_id, parent_id, version
        self.number = 1
        self.now = START
        self.history: list[HistoryEvent] = []
        self.execution = self.fresh()
        self.last: Turn | None = None

    def fresh(self) -> Execution:
        """An execution that has seen nothing yet."""
        return Execution(
            instance_id=self.instance_id,
            number=self.number,
            parent_id=self.parent_id,
            version=self.version,
            functions=self.functions,
            converter=self.converter,
            options=self.options,
        )

    def replayed(self, history: Iterable[HistoryEvent] | None = None) -> Execution:
        """An execution rebuilt from the recorded history, or from another one."""
        execution = self.fresh()
        execution.replay(list(self.history if history is None else history))
        return execution

    def turn(self, *messages: Message, after_s: float = 1.0) -> Turn:
        """One turn; replay must lead to where the live execution is."""
        self.now += round(after_s * SECOND)
        turn = self.execution.turn(self.now, messages)
        self.history += turn.events
        if turn.completion is None:
            again = self.replayed()
            assert snapshot(again) == snapshot(self.execution)
            again.close()
        self.last = turn
        return turn

    def reload(self) -> None:
        """Go on with a replayed execution, as after a restart or an eviction."""
        self.execution.close()
        self.execution = self.replayed()

    def continue_as_new(self, completion: Completion) -> Turn:
        """Begin the next execution as the engine does."""
        assert completion.status == Status.CONTINUED_AS_NEW
        self.number += 1
        self.version = completion.new_version or self.version
        self.history = []
        self.execution = self.fresh()
        start = Message(Kind.EXECUTION_STARTED, name="main", data=completion.new_input)
        carried = [Message(m.kind, name=m.name, ref=m.ref, data=m.data) for m in completion.carried]
        return self.turn(start, *carried)

    # Messages

    def start(self, input: Any = None) -> Turn:
        return self.turn(self.start_message(input))

    @staticmethod
    def start_message(input: Any = None) -> Message:
        data = None if input is None else json.dumps(input)
        return Message(Kind.EXECUTION_STARTED, name="main", data=data)

    def done(self, task_id: int, result: Any = None) -> Message:
        return Message(Kind.TASK_COMPLETED, task_id=task_id, data=json.dumps(result), execution=self.number)

    def failed(self, task_id: int, message: str = "boom", error_type: str = "builtins.ValueError") -> Message:
        return Message(
            Kind.TASK_FAILED, task_id=task_id, data=failure_json(message, error_type), execution=self.number
        )

    def child_done(self, task_id: int, result: Any = None) -> Message:
        return Message(Kind.CHILD_COMPLETED, task_id=task_id, data=json.dumps(result), execution=self.number)

    def child_failed(self, task_id: int, message: str = "boom") -> Message:
        return Message(Kind.CHILD_FAILED, task_id=task_id, data=failure_json(message), execution=self.number)

    def fired(self, task_id: int) -> Message:
        return Message(Kind.TIMER_FIRED, task_id=task_id, execution=self.number)

    @staticmethod
    def event(name: str, data: Any = None, key: str | None = None) -> Message:
        return Message(Kind.EVENT_RAISED, name=name, data=json.dumps(data), ref=key)

    @staticmethod
    def suspend() -> Message:
        return Message(Kind.SUSPENDED)

    @staticmethod
    def resume() -> Message:
        return Message(Kind.RESUMED)

    @staticmethod
    def terminate(output: Any = None) -> Message:
        return Message(Kind.TERMINATED, data=None if output is None else json.dumps(output))


def asked(turn: Turn) -> list[tuple[str, int, str | None]]:
    """What a turn asked for: kind, task id, name."""
    return [(a.kind.name, a.task_id, a.name) for a in turn.actions]


def output_of(turn: Turn) -> Any:
    """The decoded output of a turn that completed the orchestration."""
    assert turn.completion is not None, "the orchestration has not ended"
    assert turn.completion.status in (Status.COMPLETED, Status.TERMINATED), turn.completion.failure
    return None if turn.completion.output is None else json.loads(turn.completion.output)


def failure_of(turn: Turn) -> task.FailureDetails:
    """The failure of a turn that failed the orchestration."""
    assert turn.completion is not None, "the orchestration has not ended"
    assert turn.completion.status == Status.FAILED
    assert turn.completion.failure is not None
    return failures.decode(turn.completion.failure)
