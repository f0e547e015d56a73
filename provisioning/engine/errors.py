"""Everything the engine raises to its callers.

EngineError
├── StateError                       the state file can't be used
│   ├── StateInUseError              another process owns it
│   └── StateFormatError             not a database of ours, damaged, or of a newer version
├── EngineStoppedError               the engine is not running (not started, stopping, or broken)
├── OrchestrationNotFoundError       no instance of that id
├── OrchestrationAlreadyExistsError  an instance of that id exists
├── OrchestrationStatusError         an instance whose status does not allow what was asked
├── EntitiesUnsupportedError         durable entities, which this engine does not have
├── PayloadTooLargeError             an input, output, event or status over its limit
├── HistoryTooLongError              an execution that should have continued as new
├── ChildTerminatedError             what a parent sees of a sub-orchestration that was terminated
└── UnsupportedError                 what Durable Functions has and Durable Task has not
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of all errors of the embedded engine."""


class StateError(EngineError):
    """The state file can't be used. ``path`` names it."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class StateInUseError(StateError):
    """Another process owns the state file; ``owner_pid`` is that process where it is known."""

    def __init__(self, path: str, owner_pid: int | None) -> None:
        owner = f"process {owner_pid}" if owner_pid else "another process"
        super().__init__(
            path, f"{path} is in use by {owner}: stop that one first, or choose another place for the state"
        )
        self.owner_pid = owner_pid


class StateFormatError(StateError):
    """The file is no state file, is damaged, or was written by a newer version."""


class EngineStoppedError(EngineError):
    """The engine is not running; the work was not accepted."""


class OrchestrationNotFoundError(EngineError):
    """No orchestration instance has the id ``instance_id``, or not the execution ``execution_id``."""

    def __init__(self, instance_id: str, execution_id: str | None = None) -> None:
        execution = f" and an execution {execution_id!r}; only the latest is kept" if execution_id else ""
        super().__init__(f"no orchestration instance has the id {instance_id!r}{execution}")
        self.instance_id = instance_id
        self.execution_id = execution_id


class OrchestrationAlreadyExistsError(EngineError):
    """An orchestration instance with the id ``instance_id`` already exists."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(f"an orchestration instance with the id {instance_id!r} already exists")
        self.instance_id = instance_id


class OrchestrationStatusError(EngineError):
    """The instance ``instance_id`` is in ``status`` (a name), which does not allow what was asked."""

    def __init__(self, instance_id: str, status: str, rule: str) -> None:
        super().__init__(f"orchestration instance {instance_id!r} is {status}: {rule}")
        self.instance_id = instance_id
        self.status = status


class EntitiesUnsupportedError(EngineError, NotImplementedError):
    """Durable entities were asked for."""

    def __init__(self) -> None:
        super().__init__(
            "the embedded engine has no durable entities: keep the state in an orchestration, "
            "or run on a Durable Task backend that has them"
        )


class PayloadTooLargeError(EngineError):
    """A payload is over its limit (both in bytes)."""

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{what} has {size_bytes:,} bytes, over the limit of {limit_bytes:,}: "
            "keep large data in storage and pass its address"
        )
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class HistoryTooLongError(EngineError):
    """The history of an execution is over its limit (both in events)."""

    def __init__(self, events: int, limit: int) -> None:
        super().__init__(
            f"the history of this execution would have {events:,} events, over the limit of {limit:,}: call "
            "continue_as_new in the orchestrator before it grows so long, share the work among "
            "sub-orchestrations, or raise EngineOptions.max_history_events"
        )
        self.events = events
        self.limit = limit


class ChildTerminatedError(EngineError):
    """A sub-orchestration was terminated before it could return anything."""


class UnsupportedError(EngineError, AttributeError):
    """Asked for by a Durable Functions orchestrator, and not there; so ``hasattr`` says no."""
