"""The orchestration context that user code sees, over an :class:`Execution`'s bookkeeping.

The context only turns calls into actions and tasks; what it collects is read by
:mod:`provisioning.engine.execution` after the generator has yielded. It does no I/O.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from durabletask import task

from provisioning.engine.errors import EntitiesUnsupportedError, PayloadTooLargeError
from provisioning.engine.failures import ResultTask
from provisioning.engine.functions import function_name, return_type_of
from provisioning.engine.records import Kind, to_datetime, to_microseconds
from provisioning.engine.retries import Retry

if TYPE_CHECKING:
    from provisioning.engine.execution import Execution

# The SDK's namespace: the same orchestration gets the same ids on either engine.
_UUID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "9e952958-5e33-4daf-827f-2fa12937b875")


class Action:
    """Something that the orchestrator asked for; its ``kind`` is that of the event that confirms it."""

    __slots__ = ("data", "due", "kind", "name", "ref", "task_id", "version")

    def __init__(
        self,
        kind: Kind,
        task_id: int,
        *,
        name: str | None = None,
        ref: str | None = None,
        data: str | None = None,
        due: int = 0,
        version: str | None = None,
    ) -> None:
        self.kind = kind
        self.task_id = task_id
        self.name = name
        self.ref = ref
        self.data = data
        self.due = due
        self.version = version


class Pending:
    """A task that waits for an outside result, by the id under which that result will come."""

    __slots__ = ("action", "final_due", "resumes", "retry", "return_type", "task")

    def __init__(
        self,
        action: Action,
        task_: ResultTask[Any] | task.TimerTask | None,
        *,
        return_type: Any = None,
        retry: Retry | None = None,
        final_due: int = 0,
        resumes: Pending | None = None,
    ) -> None:
        self.action = action
        self.task = task_
        self.return_type = return_type
        self.retry = retry
        #: Timers: when the whole is due, where it is made of several.
        self.final_due = final_due
        #: Retry timers: what to ask for again when they fire.
        self.resumes = resumes


class Context(task.OrchestrationContext):
    """:class:`durabletask.task.OrchestrationContext` on the embedded engine."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._uuid_counter = 0

    @property
    def instance_id(self) -> str:
        return self._execution.instance_id

    @property
    def parent_instance_id(self) -> str | None:
        return self._execution.parent_id

    @property
    def version(self) -> str | None:
        return self._execution.version

    @property
    def current_utc_datetime(self) -> datetime:
        return to_datetime(self._execution.now)

    @property
    def is_replaying(self) -> bool:
        return self._execution.replaying

    def set_custom_status(self, custom_status: Any) -> None:
        x = self._execution
        text = x.converter.serialize(custom_status)
        x.custom_status = check_size("custom status", text, x.options.max_custom_status_bytes)

    def create_timer(self, fire_at: datetime | timedelta) -> task.TimerTask:
        x = self._execution
        if isinstance(fire_at, timedelta):
            due = x.now + round(fire_at / timedelta(microseconds=1))
        elif isinstance(fire_at, datetime):
            due = to_microseconds(fire_at.astimezone(UTC) if fire_at.utcoffset() is not None else fire_at)
        else:
            raise TypeError(f"a timer is due at a datetime or after a timedelta, not {fire_at!r}")
        timer = task.TimerTask()
        pending = x.start_timer(timer, due)
        timer.set_cancel_handler(lambda: x.cancel_timer(pending))
        return timer

    def call_activity(
        self,
        activity: task.Activity[Any, Any] | str,
        *,
        input: Any | None = None,
        retry_policy: task.RetryPolicy | None = None,
        tags: dict[str, str] | None = None,
        return_type: type | None = None,
    ) -> task.CompletableTask[Any]:
        x = self._execution
        name = function_name(activity)
        if return_type is None and callable(activity):
            return_type = return_type_of(activity, x.converter)
        check_text("the activity's name", name)
        data = x.encode("the input of activity", name, input)
        ref = json.dumps(tags) if tags else None
        action = Action(Kind.TASK_SCHEDULED, x.next_id(), name=name, ref=ref, data=data)
        return self._ask(action, return_type, retry_policy)

    def call_sub_orchestrator(
        self,
        orchestrator: task.Orchestrator[Any, Any] | str,
        *,
        input: Any | None = None,
        instance_id: str | None = None,
        retry_policy: task.RetryPolicy | None = None,
        version: str | None = None,
        return_type: type | None = None,
    ) -> task.CompletableTask[Any]:
        x = self._execution
        name = function_name(orchestrator)
        check_text("the sub-orchestration's name", name)
        check_text("the sub-orchestration's instance id", instance_id)
        check_text("the sub-orchestration's version", version)
        data = x.encode("the input of sub-orchestration", name, input)
        task_id = x.next_id()
        child_id = instance_id or f"{x.instance_id}:{task_id:04x}"
        action = Action(
            Kind.CHILD_CREATED,
            task_id,
            name=name,
            ref=child_id,
            data=data,
            version=version or x.default_version,
        )
        return self._ask(action, return_type, retry_policy)

    def _ask(
        self, action: Action, return_type: Any, policy: task.RetryPolicy | None
    ) -> task.CompletableTask[Any]:
        x = self._execution
        result: ResultTask[Any] = ResultTask()
        retry = None if policy is None else Retry(policy, started_at=x.now)
        x.actions[action.task_id] = action
        x.pending[action.task_id] = Pending(action, result, return_type=return_type, retry=retry)
        return result

    def wait_for_external_event(
        self, name: str, *, data_type: type | None = None
    ) -> task.CancellableTask[Any]:
        x = self._execution
        wait: task.CancellableTask[Any] = task.CancellableTask()
        if not isinstance(name, str):
            raise TypeError(f"the event's name must be text, not {type(name).__name__!r}")
        folded = name.casefold()
        buffered = x.events.take(folded)
        if buffered is not None:
            wait.complete(x.converter.deserialize(buffered.data, data_type))
            return wait
        # By number: a handler that held the wait would make a cycle, which lives until Python looks for such.
        number = x.events.wait(folded, (wait, data_type))
        wait.set_cancel_handler(lambda: x.events.forget(folded, number))
        return wait

    def send_event(self, instance_id: str, event_name: str, *, data: Any | None = None) -> None:
        if not instance_id or not instance_id.strip():
            raise ValueError("instance_id cannot be empty")
        if instance_id.startswith("@"):
            raise ValueError("instance ids that start with '@' are reserved for entities")
        if not event_name or not event_name.strip():
            raise ValueError("event_name cannot be empty")
        check_text("the target's instance id", instance_id)
        check_text("the event's name", event_name)
        x = self._execution
        payload = x.encode("the data of event", event_name, data)
        task_id = x.next_id()
        x.actions[task_id] = Action(Kind.EVENT_SENT, task_id, name=event_name, ref=instance_id, data=payload)

    def continue_as_new(
        self, new_input: Any, *, save_events: bool = False, new_version: str | None = None
    ) -> None:
        check_text("the new version", new_version)
        x = self._execution
        text = x.encode("the input of continue_as_new in", x.instance_id, new_input)
        x.continue_as_new(text, save_events, new_version)

    def new_uuid(self) -> str:
        x = self._execution
        now = to_datetime(x.now).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        name = f"{x.instance_id}_{now}_{self._uuid_counter}"
        self._uuid_counter += 1
        return str(uuid.uuid5(_UUID_NAMESPACE, name))

    def call_entity(self, *args: Any, **kwargs: Any) -> NoReturn:
        _no_entities()

    def signal_entity(self, *args: Any, **kwargs: Any) -> NoReturn:
        _no_entities()

    def lock_entities(self, *args: Any, **kwargs: Any) -> NoReturn:
        _no_entities()

    def _exit_critical_section(self) -> None:
        """Nothing to leave: there are no entity locks to hold."""


def _no_entities() -> NoReturn:
    raise EntitiesUnsupportedError


def check_text(what: str, text: str | None) -> None:
    """Raises TypeError or ValueError for what the store could not keep as text."""
    if text is None:
        return
    if not isinstance(text, str):
        raise TypeError(f"{what} must be text, not {type(text).__name__!r}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} has a character that is no valid Unicode: {error}") from None


def check_size(what: str, text: str | None, limit_bytes: int) -> str | None:
    """``text`` itself; raises PayloadTooLargeError where it is over the limit, or as :func:`check_text`."""
    check_text(what, text)
    # Four bytes is the most that one character takes: most payloads need no second look.
    if text is not None and len(text) * 4 > limit_bytes:
        size = len(text.encode())
        if size > limit_bytes:
            raise PayloadTooLargeError(what, size, limit_bytes)
    return text
