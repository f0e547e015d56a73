"""What a Durable Functions orchestrator asks its context for, by way of the SDK's context."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from durabletask import task

from provisioning.engine.durable_functions.tasks import AllTask, AnyTask, Relay, Task, TimerTask, tasks_of
from provisioning.engine.errors import UnsupportedError
from provisioning.engine.functions import AnyFunction
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER

_UNSUPPORTED = {
    "call_http": "call an activity that makes the request",
    "call_entity": "keep the state in an orchestration of its own and send it events",
    "signal_entity": "keep the state in an orchestration of its own and send it events",
    "function_context": "there is no Functions host: pass what you need as input",
    "histories": "ask the client for it",
}


class RetryOptions(task.RetryPolicy):
    """At most ``max_number_of_attempts``, the first included, with the same interval between them.

    Raises ValueError for an interval or a number below one.
    """

    def __init__(self, first_retry_interval_in_milliseconds: int, max_number_of_attempts: int) -> None:
        if first_retry_interval_in_milliseconds <= 0:
            raise ValueError("first_retry_interval_in_milliseconds must be greater than 0")
        super().__init__(
            first_retry_interval=timedelta(milliseconds=first_retry_interval_in_milliseconds),
            max_number_of_attempts=max_number_of_attempts,
        )

    @property
    def first_retry_interval_in_milliseconds(self) -> int:
        return round(self.first_retry_interval / timedelta(milliseconds=1))


class DurableOrchestrationContext:
    """What a Durable Functions orchestrator gets, over the SDK's context."""

    def __init__(self, context: task.OrchestrationContext, input_: Any = None) -> None:
        self._context = context
        self._input = input_
        self._custom_status: Any = None
        self._will_continue_as_new = False
        #: Waits for events that have not come, by name; the latest comes last.
        self._waits: dict[str, list[task.CompletableTask[Any]]] = {}

    @property
    def instance_id(self) -> str:
        return self._context.instance_id

    @property
    def parent_instance_id(self) -> str | None:
        return self._context.parent_instance_id

    @property
    def version(self) -> str | None:
        return self._context.version

    @property
    def is_replaying(self) -> bool:
        return self._context.is_replaying

    @property
    def current_utc_datetime(self) -> datetime:
        """The orchestration's time, with its time zone (the SDK's has none)."""
        return self._context.current_utc_datetime.replace(tzinfo=UTC)

    @property
    def custom_status(self) -> Any:
        """What :meth:`set_custom_status` has set in this execution, else None."""
        return self._custom_status

    @property
    def will_continue_as_new(self) -> bool:
        return self._will_continue_as_new

    def get_input(self, expected_type: type | None = None) -> Any:
        """The input; rebuilt to ``expected_type`` by the default converter where one is given."""
        return DEFAULT_DATA_CONVERTER.coerce(self._input, expected_type)

    def set_custom_status(self, status: Any) -> None:
        self._context.set_custom_status(status)
        self._custom_status = status

    def call_activity(
        self, name: str | AnyFunction, input_: Any = None, expected_type: type | None = None
    ) -> Task:
        return Task(self._context.call_activity(name, input=input_, return_type=expected_type))

    def call_activity_with_retry(
        self,
        name: str | AnyFunction,
        retry_options: task.RetryPolicy,
        input_: Any = None,
        expected_type: type | None = None,
    ) -> Task:
        return Task(
            self._context.call_activity(
                name, input=input_, retry_policy=retry_options, return_type=expected_type
            )
        )

    def call_sub_orchestrator(
        self,
        name: str | AnyFunction,
        input_: Any = None,
        instance_id: str | None = None,
        version: str | None = None,
        expected_type: type | None = None,
    ) -> Task:
        return Task(
            self._context.call_sub_orchestrator(
                name, input=input_, instance_id=instance_id, version=version, return_type=expected_type
            )
        )

    def call_sub_orchestrator_with_retry(
        self,
        name: str | AnyFunction,
        retry_options: task.RetryPolicy,
        input_: Any = None,
        instance_id: str | None = None,
        version: str | None = None,
        expected_type: type | None = None,
    ) -> Task:
        return Task(
            self._context.call_sub_orchestrator(
                name,
                input=input_,
                instance_id=instance_id,
                retry_policy=retry_options,
                version=version,
                return_type=expected_type,
            )
        )

    def create_timer(self, fire_at: datetime) -> TimerTask:
        """A timer that is due at ``fire_at``; without a time zone it is taken as UTC."""
        return TimerTask(self._context.create_timer(fire_at))

    def wait_for_external_event(self, name: str, expected_type: type | None = None) -> Task:
        """A wait for the event ``name``. Of several waits for it the latest takes the next event.

        The SDK gives it to the earliest. Orchestrators in this style race a new wait with a timer, time
        and again, and have no way to cancel one that lost: the event is meant for the latest.
        """
        event = self._context.wait_for_external_event(name, data_type=expected_type)
        waits = self._waits.setdefault(name.casefold(), [])
        latest = task.CompletableTask[Any]()
        waits.append(latest)
        Relay(event, lambda value: waits.pop().complete(value))
        return Task(latest)

    def task_all(self, activities: Iterable[Any]) -> Task:
        """All results, in order. It fails as soon as one fails; of nothing it is ``[]`` at once."""
        return AllTask(tasks_of("task_all", activities))

    def task_any(self, activities: Iterable[Any]) -> Task:
        """The first task to end, well or not: the object that was passed. The others go on.

        Raises ValueError where there is none: it would never end.
        """
        tasks = tasks_of("task_any", activities)
        if not tasks:
            raise ValueError("task_any([]) never completes: give it at least one task")
        return AnyTask(*tasks)

    def continue_as_new(self, input_: Any) -> None:
        """Begin anew with ``input_`` at the next yield or return. Events that nobody took are dropped."""
        self._will_continue_as_new = True
        self._context.continue_as_new(input_)

    def new_uuid(self) -> str:
        return self._context.new_uuid()

    def new_guid(self) -> uuid.UUID:
        return uuid.UUID(self._context.new_uuid())

    if not TYPE_CHECKING:  # a type checker shall say that these are not there

        def __getattr__(self, name: str) -> Any:
            remedy = _UNSUPPORTED.get(name)
            if remedy is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise UnsupportedError(f"{name} of Durable Functions is not supported here: {remedy}")
