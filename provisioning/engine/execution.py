"""The pure core: history and messages in, events and actions out.

An :class:`Execution` is one run of one orchestrator. It folds history events into the state of a
live generator, and reports what the generator asked for. It has no clock, no I/O and no logging:
time comes with the events, so the same history always gives the same actions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from types import GeneratorType
from typing import Any, ClassVar

from durabletask import task
from durabletask.serialization import DataConverter
from durabletask.worker import OrchestratorNotRegisteredError

from provisioning.engine import failures, nondeterminism
from provisioning.engine.completion import Completion, Turn
from provisioning.engine.context import Action, Context, Pending, check_size
from provisioning.engine.errors import HistoryTooLongError
from provisioning.engine.external_events import ExternalEvents
from provisioning.engine.failures import ResultTask
from provisioning.engine.functions import Functions
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import HistoryEvent, Kind, Message, Status

_CONFIRMS = frozenset({Kind.TASK_SCHEDULED, Kind.CHILD_CREATED, Kind.TIMER_CREATED, Kind.EVENT_SENT})
_CONTROL = frozenset({Kind.SUSPENDED, Kind.RESUMED, Kind.TERMINATED})
_NEVER_HELD = _CONFIRMS | {Kind.RESUMED, Kind.TERMINATED, Kind.EXECUTION_REWOUND}
_EVENT_RAISED = Kind.EVENT_RAISED  # a name of the module costs a fifth of an enumeration's attribute
_new = tuple.__new__  # half the price of a named tuple's own constructor
_ANSWERS: dict[int, Kind] = {
    Kind.TASK_COMPLETED: Kind.TASK_SCHEDULED,
    Kind.TASK_FAILED: Kind.TASK_SCHEDULED,
    Kind.CHILD_COMPLETED: Kind.CHILD_CREATED,
    Kind.CHILD_FAILED: Kind.CHILD_CREATED,
    Kind.TIMER_FIRED: Kind.TIMER_CREATED,
}
"""What each answer must have been asked by."""

LAST_DUE = 253_402_300_799_999_999
"""The end of the year 9999, the last time that a date can say, in microseconds."""


class Execution:
    """One run of an orchestrator, kept live between turns."""

    __slots__ = (
        "_cancelled_timers",
        "_generator",
        "_held",
        "_last_id",
        "_length",
        "_max_payload",
        "_started",
        "_waiting",
        "actions",
        "completion",
        "converter",
        "custom_status",
        "default_version",
        "events",
        "functions",
        "instance_id",
        "now",
        "number",
        "options",
        "parent_id",
        "pending",
        "properties_of",
        "refusal",
        "replaying",
        "suspended",
        "version",
    )

    def __init__(
        self,
        *,
        instance_id: str,
        number: int,
        parent_id: str | None,
        version: str | None,
        functions: Functions,
        converter: DataConverter,
        options: EngineOptions,
        custom_status: str | None = None,
        properties_of: failures.PropertiesOf = failures.no_properties,
    ) -> None:
        self.instance_id = instance_id
        self.number = number
        self.parent_id = parent_id
        self.version = version
        #: Of sub-orchestrations that name none.
        self.default_version: str | None = None
        #: Why it is to fail instead of running, as encoded failure.
        self.refusal: str | None = None
        self.functions = functions
        self.converter = converter
        self.options = options
        self.custom_status = custom_status
        self.properties_of = properties_of
        self.now = 0
        self.replaying = False
        self.suspended = False
        self.completion: Completion | None = None
        self.actions: dict[int, Action] = {}
        self.pending: dict[int, Pending] = {}
        self.events = ExternalEvents(options.max_buffered_events)
        self._length = 0
        self._max_payload = options.max_payload_bytes
        self._held: list[HistoryEvent] = []
        self._cancelled_timers: list[int] = []
        self._last_id = 0
        self._started = False
        self._generator: Generator[task.Task[Any], Any, Any] | None = None
        self._waiting: task.Task[Any] | None = None

    # What the context calls

    def next_id(self) -> int:
        """The next task id; ids start at 1 in each execution.

        Raises HistoryTooLongError where the history could not hold what the ids before it ask for.
        """
        if self._last_id >= self.options.max_history_events and not self.replaying:
            raise HistoryTooLongError(self._last_id + 1, self.options.max_history_events)
        return self._take_id()

    def _take_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def encode(self, what: str, name: str, value: Any) -> str | None:
        """``value`` as text; raises PayloadTooLargeError, or what the converter raises."""
        text = self.converter.serialize(value)
        if text is None or (type(text) is str and text.isascii() and len(text) <= self._max_payload):
            return text  # most payloads: what they are called is never said
        return check_size(f"{what} {name!r}", text, self._max_payload)

    def start_timer(self, timer: task.TimerTask | None, due: int, resumes: Pending | None = None) -> Pending:
        """Ask for a timer that is due at ``due``, in pieces where that is far off."""
        # A time long past or far off is as good as any, and may not fit the store's integers.
        due = min(max(due, 0), LAST_DUE)
        # A timer that no code asks for has no code to raise in: the length of the history bounds those.
        task_id = self.next_id() if timer is not None else self._take_id()
        action = Action(Kind.TIMER_CREATED, task_id, due=self._piece(due))
        action.ref = str(action.due)
        pending = Pending(action, timer, final_due=due, resumes=resumes)
        self.actions[task_id] = action
        self.pending[task_id] = pending
        return pending

    def _piece(self, due: int) -> int:
        interval = self.options.maximum_timer_interval
        longest = (interval.days * 86_400 + interval.seconds) * 1_000_000 + interval.microseconds
        return min(due, self.now + longest)

    def cancel_timer(self, pending: Pending) -> None:
        """Forget a timer; where it is on disk already, the turn reports it for removal."""
        task_id = pending.action.task_id
        self.pending.pop(task_id, None)
        pending.task = None  # the timer's handler holds it
        if self.actions.pop(task_id, None) is None:
            self._cancelled_timers.append(task_id)

    def continue_as_new(self, new_input: str | None, save_events: bool, new_version: str | None) -> None:
        """Ask for another execution; the first call wins, the code runs on to its next yield."""
        if self.completion is None:
            self.completion = Completion(Status.CONTINUED_AS_NEW)
            self.completion.new_input = new_input
            self.completion.new_version = new_version
            self.completion.save_events = save_events

    # What the engine calls

    def replay(self, history: Sequence[HistoryEvent]) -> None:
        """Rebuild the state from the whole history of this execution.

        An orchestrator that does not ask for what the history says it asked for ends as FAILED with
        NonDeterminismError; the next turn reports that.
        """
        self.replaying = True
        self._length = len(history)
        try:
            for event in history:
                self._apply(event)
                if event.kind == Kind.EXECUTION_STARTED and not self._runs(event.name):
                    self.pending = _outstanding(history)
                    break
            if self.actions:
                raise nondeterminism.unexpected(next(iter(self.actions.values())))
        except task.NonDeterminismError as error:
            self.actions.clear()
            self.pending = _outstanding(history)
            self.completion = None
            self._fail(error)
        self._cancelled_timers.clear()
        self.replaying = False

    def _runs(self, name: str | None) -> bool:
        return self.refusal is None and name in self.functions.orchestrators

    def turn(self, now: int, messages: Sequence[Message]) -> Turn:
        """Take ``messages`` at time ``now`` (never before the last turn's) and run to the next wait."""
        at = max(now, self.now)
        number = self.number
        events: list[HistoryEvent] = []
        misfit = self.completion
        for message in messages:
            message.consumed = True
            if message.execution != number and message.execution != 0:
                continue
            if self.completion is not None:
                if self.completion is misfit and message.kind not in _CONTROL and self._wants(message):
                    # The code did not fit its history: kept for a rewind, when it does.
                    self.pending.pop(message.task_id, None)
                    events.append(
                        HistoryEvent(
                            message.kind, at, message.task_id, message.name, message.ref, message.data
                        )
                    )
                    continue
                self._take_late(self.completion, message)
            elif self._wants(message):
                event = _new(
                    HistoryEvent, (message.kind, at, message.task_id, message.name, message.ref, message.data)
                )
                events.append(event)
                self._apply(event)
        if self._length + len(events) + len(self.actions) > self.options.max_history_events:
            self._end_as_too_long(len(events))
        actions: list[Action] = []
        if self.actions:
            actions += self.actions.values()
            self.actions.clear()
            for a in actions:
                events.append(_new(HistoryEvent, (a.kind, at, a.task_id, a.name, a.ref, a.data)))  # noqa: PERF401
        completion = self.completion
        if completion is not None:
            self._carry(completion)
            data = completion.failure if completion.failure is not None else completion.output
            events.append(HistoryEvent(Kind.EXECUTION_COMPLETED, at, name=completion.status.name, data=data))
            self.close()
        self._length += len(events)
        cancelled: list[int] = []
        if self._cancelled_timers:
            cancelled, self._cancelled_timers = self._cancelled_timers, []
        return Turn(events, actions, cancelled, completion)

    def close(self) -> None:
        """Let the generator go. What its ``finally`` blocks ask for is no longer heard."""
        generator, self._generator = self._generator, None
        if generator is not None:
            try:
                generator.close()
            except KeyboardInterrupt:  # the user's wish, not the code's
                raise
            except BaseException:  # user code that won't be closed changes nothing any more
                return

    def release(self) -> None:
        """Let go of everything, so that nothing is left of it in memory: it is never asked again."""
        self.close()
        self.events.let_go()
        for pending in self.pending.values():
            pending.task = None  # a timer's handler holds `pending`
        self.pending.clear()
        self._waiting = None

    def outstanding(self, kind: Kind) -> list[Action]:
        """What was asked for and has not come, of one kind. What a suspension holds back has come."""
        held = {e.task_id for e in self._held if e.kind in _ANSWERS}
        actions = [p.action for p in self.pending.values() if p.action.kind == kind]
        return [a for a in actions if a.task_id not in held]

    def _end_as_too_long(self, new: int) -> None:
        """Fail, unless the end has come anyway. What this turn asks for has no room, and is not begun."""
        completion = self.completion
        if completion is not None and (not self.actions or completion.status == Status.TERMINATED):
            return
        error = HistoryTooLongError(self._length + new + len(self.actions), self.options.max_history_events)
        for task_id in self.actions:
            self.pending.pop(task_id, None)
        self.actions.clear()
        self.completion = None
        self._fail(error)

    def _take_late(self, completion: Completion, message: Message) -> None:
        """What comes in the turn that ends this execution: the next one gets what is meant for it."""
        if completion.status != Status.CONTINUED_AS_NEW:
            return
        if message.kind == _EVENT_RAISED:
            if not self._wants(message):
                return
            if message.ref is not None:
                self.events.note([message.ref])
            if completion.save_events:
                completion.carried.append(message)
        elif message.kind in _CONTROL:
            completion.carried.append(message)

    def _carry(self, completion: Completion) -> None:
        """What the next execution begins with: keys of events that were applied, events that were not."""
        if completion.status != Status.CONTINUED_AS_NEW:
            return
        if completion.save_events:
            earlier = [
                Message(Kind.EVENT_RAISED, name=e.name, ref=e.ref, data=e.data) for e in self.events.left()
            ]
            completion.carried = earlier + completion.carried
        keys = self.events.keys()
        if keys:
            with_their_events = {m.ref for m in completion.carried}
            applied = [key for key in keys if key not in with_their_events]
            latest = applied[-self.options.max_carried_event_keys :]
            if latest:
                completion.carried.insert(0, Message(Kind.EVENT_KEYS, data=json.dumps(latest)))

    def _wants(self, message: Message) -> bool:
        """Whether the message still means something here: late and repeated ones leave no trace."""
        kind = message.kind
        asked = _ANSWERS.get(kind)
        if asked is not None:
            pending = self.pending.get(message.task_id)
            if pending is None or pending.action.kind != asked:
                return False
            child_id, message.ref = message.ref, None  # the history has it already, where it was asked for
            # Another child than the one asked for is one of an earlier instance of this id, which was purged.
            return child_id is None or child_id == pending.action.ref
        if kind == _EVENT_RAISED:
            return message.ref is None or not self.events.knows(message.ref)
        if kind == Kind.EXECUTION_STARTED:
            return not self._started
        if kind == Kind.SUSPENDED:
            return not self.suspended
        if kind == Kind.RESUMED:
            return self.suspended
        return True

    # Folding

    def _apply(self, event: HistoryEvent) -> None:
        kind = event.kind
        if kind == _EVENT_RAISED and event.ref is not None:
            self.events.note([event.ref])
        if self.suspended and kind not in _NEVER_HELD:
            self._hold(event)
            return
        self.now = event.at
        self._HANDLERS[kind](self, event)

    def _hold(self, event: HistoryEvent) -> None:
        """Keep for after the suspension. Only events are more than what was asked for: they have a bound."""
        if event.kind == _EVENT_RAISED:
            if self.events.full:
                self._fail_by_events(event)
                return
            self.events.held += 1
        self._held.append(event)

    def _fail_by_events(self, event: HistoryEvent) -> None:
        waiting = self.events.waiting + self.events.held
        remedy = "resume this instance" if self.suspended else f"wait for {event.name!r} in the orchestrator"
        self._fail(
            BufferError(f"{waiting:,} external events wait and nobody takes them: {remedy}, or raise fewer")
        )

    def _on_started(self, event: HistoryEvent) -> None:
        self._started = True
        if self.refusal is not None:
            self.completion = Completion(Status.FAILED, failure=self.refusal)
            return
        function = self.functions.orchestrators.get(event.name or "")
        try:
            if function is None:
                raise OrchestratorNotRegisteredError(f"A '{event.name}' orchestrator was not registered.")
            value = self.converter.deserialize(event.data, function.input_type)
            result = function.call(Context(self), value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever ends user code is that orchestration's failure alone
            self._fail(error)
            return
        if isinstance(result, GeneratorType):
            self._generator = result
            self._advance(None, None)
        else:
            self._finish(result)

    def _on_result(self, event: HistoryEvent) -> None:
        pending = self.pending.pop(event.task_id, None)
        if pending is None or not isinstance(pending.task, ResultTask):
            return
        self._settle(pending.task, event.data, pending.return_type)

    def _on_failure(self, event: HistoryEvent) -> None:
        pending = self.pending.pop(event.task_id, None)
        if pending is None or not isinstance(pending.task, ResultTask):
            return
        if pending.retry is not None:
            delay = pending.retry.next_delay(self.now)
            if delay is not None:
                pending.retry.attempt += 1
                self.start_timer(None, self.now + delay, resumes=pending)
                return
        details = failures.decode(event.data or "{}")
        if event.kind == Kind.TASK_FAILED:
            message = f"{self.instance_id}: Activity task #{event.task_id} failed: {details.message}"
        else:
            message = f"Sub-orchestration task #{event.task_id} failed: {details.message}"
        try:
            pending.task.fail_with(failures.StoredFailure(message, details))
        except Exception as error:  # see _settle
            self._fail(error)
        self._resume()

    def _on_timer_fired(self, event: HistoryEvent) -> None:
        pending = self.pending.pop(event.task_id, None)
        if pending is None:
            return
        if pending.action.due < pending.final_due:
            following = self.start_timer(None, pending.final_due, resumes=pending.resumes)
            # The cancel handler holds `pending`: keep it as the timer's one record.
            pending.action = following.action
            self.pending[following.action.task_id] = pending
        elif pending.resumes is not None:
            again = pending.resumes
            self.actions[again.action.task_id] = again.action
            self.pending[again.action.task_id] = again
        elif isinstance(pending.task, task.TimerTask):
            timer, pending.task = pending.task, None  # its handler holds `pending`
            self._settle(timer, None, None)

    def _on_event_raised(self, event: HistoryEvent) -> None:
        name = (event.name or "").casefold()
        # Once continue_as_new is asked for, waits of this execution take nothing more.
        waiter = self.events.next_waiter(name) if self.completion is None else None
        if waiter is not None:
            self._settle(waiter[0], event.data, waiter[1])
        elif self.events.full:
            self._fail_by_events(event)
        else:
            self.events.keep(name, event)

    def _on_event_keys(self, event: HistoryEvent) -> None:
        """Keys of events that earlier executions of this instance have had."""
        self.events.note(json.loads(event.data or "[]"))

    def _on_suspended(self, event: HistoryEvent) -> None:
        self.suspended = True

    def _on_resumed(self, event: HistoryEvent) -> None:
        self.suspended = False
        held, self._held = self._held, []
        for earlier in held:
            raised = earlier.kind == _EVENT_RAISED
            self.events.held -= raised
            # What ended the execution may be among them: after it only events count, to be carried over.
            if raised or self.completion is None:
                # Held events are seen at the time of the resume: the orchestration's clock never goes back.
                self._HANDLERS[earlier.kind](self, earlier)
            else:
                self.pending.pop(earlier.task_id, None)  # it has come: it is not to be asked for again

    def _on_terminated(self, event: HistoryEvent) -> None:
        if self.completion is None or self.completion.status == Status.CONTINUED_AS_NEW:
            self.completion = Completion(Status.TERMINATED, output=event.data)

    def _on_rewound(self, event: HistoryEvent) -> None:
        """What is asked for again has all its attempts before it."""
        for pending in self.pending.values():
            if pending.retry is not None:
                pending.retry.attempt, pending.retry.started_at = 1, event.at

    def _on_confirmed(self, event: HistoryEvent) -> None:
        """Replay: the code must have asked for just this."""
        nondeterminism.check(event, self.actions.pop(event.task_id, None))

    def _on_completed(self, event: HistoryEvent) -> None:
        """The end of an execution says nothing that its events did not."""

    _HANDLERS: ClassVar[dict[int, Callable[[Execution, HistoryEvent], None]]] = {
        Kind.EXECUTION_STARTED: _on_started,
        Kind.TASK_SCHEDULED: _on_confirmed,
        Kind.TASK_COMPLETED: _on_result,
        Kind.TASK_FAILED: _on_failure,
        Kind.CHILD_CREATED: _on_confirmed,
        Kind.CHILD_COMPLETED: _on_result,
        Kind.CHILD_FAILED: _on_failure,
        Kind.TIMER_CREATED: _on_confirmed,
        Kind.TIMER_FIRED: _on_timer_fired,
        Kind.EVENT_RAISED: _on_event_raised,
        Kind.EVENT_SENT: _on_confirmed,
        Kind.SUSPENDED: _on_suspended,
        Kind.RESUMED: _on_resumed,
        Kind.TERMINATED: _on_terminated,
        Kind.EXECUTION_COMPLETED: _on_completed,
        Kind.EVENT_KEYS: _on_event_keys,
        Kind.EXECUTION_REWOUND: _on_rewound,
    }

    # The generator

    def _settle(self, settled: task.CompletableTask[Any], data: str | None, wanted: Any) -> None:
        """Complete a task with the data that has come for it, and go on if it was waited for."""
        try:
            # A converter that refuses the data fails the orchestration; and so does, as in the SDK, the
            # completion of a composite that has a cancelled task.
            settled.complete(None if data is None else self.converter.deserialize(data, wanted))
        except Exception as error:
            self._fail(error)
        self._resume()

    def _resume(self) -> None:
        """Go on, if what the generator waits for is complete."""
        waiting = self._waiting
        if waiting is None or self.completion is not None or not waiting.is_complete:
            return
        self._advance(*self._outcome(waiting))

    @staticmethod
    def _outcome(done: task.Task[Any]) -> tuple[Any, Exception | None]:
        """What to tell the generator of the task that it has waited for: a value, or an error."""
        if done.is_failed:
            return None, done.get_exception()
        try:
            return done.get_result(), None
        except Exception as without_result:  # cancelled, or a composite of such
            return None, without_result

    def _advance(self, value: Any, error: Exception | None) -> None:
        """Run the generator until it waits for a task that is not complete, or ends."""
        generator = self._generator
        if generator is None:
            return
        try:
            while True:
                awaited = generator.send(value) if error is None else generator.throw(error)
                if self.completion is not None:  # continue_as_new was asked for: this yield is the end
                    return
                if not isinstance(awaited, task.Task):
                    value, error = None, _no_task(awaited)
                elif awaited.is_complete:
                    value, error = self._outcome(awaited)
                elif isinstance(awaited, task.CompositeTask) and not awaited.get_tasks():
                    value, error = _empty(awaited)
                else:
                    self._waiting = awaited
                    return
        except StopIteration as end:
            self._finish(end.value)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # as in _on_started
            self._fail(failure)

    def _finish(self, result: Any) -> None:
        if self.completion is not None:
            return
        try:
            output = self.encode("the output of", self.instance_id, result)
        except Exception as error:
            failure = TypeError(f"the output of the orchestration can't be kept: {error}")
            failure.__cause__ = error
            self._fail(failure)
            return
        self.completion = Completion(Status.COMPLETED, output=output)

    def _fail(self, error: BaseException) -> None:
        """End as failed, unless it has ended already: the first end counts."""
        if self.completion is None:
            details = failures.details_of(error, self.properties_of)
            self.completion = Completion(Status.FAILED, failure=failures.encode(details))


def _no_task(awaited: object) -> TypeError:
    return TypeError(
        f"an orchestrator yields tasks, not {type(awaited).__name__!r}: "
        "yield what call_activity, create_timer, when_all, … return"
    )


def _empty(awaited: task.CompositeTask[Any]) -> tuple[Any, Exception | None]:
    """A composite of nothing: all of nothing is done, any of nothing never will be."""
    if isinstance(awaited, task.WhenAllTask):
        return [], None
    return None, ValueError("when_any([]) never completes: give it at least one task")


def _outstanding(history: Sequence[HistoryEvent]) -> dict[int, Pending]:
    """What the history shows as asked for and not come, where the code can't tell any more."""
    found: dict[int, Pending] = {}
    for event in history:
        if event.kind in _CONFIRMS and event.kind != Kind.EVENT_SENT:
            action = Action(Kind(event.kind), event.task_id, name=event.name, ref=event.ref, data=event.data)
            found[event.task_id] = Pending(action, None)
        elif event.kind in _ANSWERS:
            found.pop(event.task_id, None)
    return found
