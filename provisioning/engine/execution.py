"""The pure core: history and messages in, events and actions out.

An :class:`Execution` is one run of one orchestrator. It folds history events into the state of a
live generator, and reports what the generator asked for. It has no clock, no I/O and no logging:
time comes with the events, so the same history always gives the same actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from types import GeneratorType
from typing import Any, ClassVar

from durabletask import task
from durabletask.serialization import DataConverter
from durabletask.worker import OrchestratorNotRegisteredError

from provisioning.engine import failures
from provisioning.engine.context import Action, Context, Pending, check_size
from provisioning.engine.functions import Functions
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import HistoryEvent, Kind, Message, Status

_CONFIRMS = frozenset({Kind.TASK_SCHEDULED, Kind.CHILD_CREATED, Kind.TIMER_CREATED, Kind.EVENT_SENT})
_RESULTS = frozenset({Kind.TASK_COMPLETED, Kind.TASK_FAILED, Kind.CHILD_COMPLETED, Kind.CHILD_FAILED})
_CONTROL = frozenset({Kind.SUSPENDED, Kind.RESUMED, Kind.TERMINATED})
_NEVER_HELD = _CONFIRMS | {Kind.RESUMED, Kind.TERMINATED}

_METHODS = {
    Kind.TASK_SCHEDULED: "call_activity",
    Kind.CHILD_CREATED: "call_sub_orchestrator",
    Kind.TIMER_CREATED: "create_timer",
    Kind.EVENT_SENT: "send_event",
}


class Completion:
    """How an execution ended.

    ``status`` CONTINUED_AS_NEW starts the next execution with ``new_input``, ``new_version`` and the
    ``carried`` events; otherwise ``output`` or ``failure`` (JSON) is the instance's end.
    """

    __slots__ = ("carried", "failure", "new_input", "new_version", "output", "save_events", "status")

    def __init__(self, status: Status, *, output: str | None = None, failure: str | None = None) -> None:
        self.status = status
        self.output = output
        self.failure = failure
        self.new_input: str | None = None
        self.new_version: str | None = None
        self.save_events = False
        self.carried: list[Message] = []


class Turn:
    """What one turn adds: history ``events``, the ``actions`` among them, timers no longer wanted."""

    __slots__ = ("actions", "cancelled_timers", "completion", "events")

    def __init__(
        self,
        events: list[HistoryEvent],
        actions: list[Action],
        cancelled_timers: list[int],
        completion: Completion | None,
    ) -> None:
        self.events = events
        self.actions = actions
        self.cancelled_timers = cancelled_timers
        self.completion = completion


class Execution:
    """One run of an orchestrator, kept live between turns."""

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
    ) -> None:
        self.instance_id = instance_id
        self.number = number
        self.parent_id = parent_id
        self.version = version
        self.default_version: str | None = None
        self.functions = functions
        self.converter = converter
        self.options = options
        self.custom_status = custom_status
        self.now = 0
        self.replaying = False
        self.suspended = False
        self.completion: Completion | None = None
        self.actions: dict[int, Action] = {}
        self.pending: dict[int, Pending] = {}
        self.waiters: dict[str, deque[tuple[task.CancellableTask[Any], Any]]] = {}
        self._buffers: dict[str, deque[tuple[int, HistoryEvent]]] = {}
        self._buffered = 0
        self._arrivals = 0
        self._keys: set[str] = set()
        self._held: list[HistoryEvent] = []
        self._cancelled_timers: list[int] = []
        self._last_id = 0
        self._started = False
        self._generator: Generator[task.Task[Any], Any, Any] | None = None
        self._waiting: task.Task[Any] | None = None

    # What the context calls

    def next_id(self) -> int:
        """The next task id; ids start at 1 in each execution."""
        self._last_id += 1
        return self._last_id

    def encode(self, what: str, value: Any) -> str | None:
        """``value`` as text; raises PayloadTooLargeError, or what the converter raises."""
        return check_size(what, self.converter.serialize(value), self.options.max_payload_bytes)

    def start_timer(self, timer: task.TimerTask | None, due: int, resumes: Pending | None = None) -> Pending:
        """Ask for a timer that is due at ``due``, in pieces where that is far off."""
        due = max(due, 0)  # a time long past is as good as any, and may not fit the store's integers
        task_id = self.next_id()
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
        if self.actions.pop(task_id, None) is None:
            self._cancelled_timers.append(task_id)

    def take_buffered(self, name: str) -> HistoryEvent | None:
        """The earliest event of that (case-folded) name that nobody has taken."""
        buffer = self._buffers.get(name)
        if not buffer:
            return None
        self._buffered -= 1
        return buffer.popleft()[1]

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
        try:
            for event in history:
                self._apply(event)
                if event.kind == Kind.EXECUTION_STARTED and event.name not in self.functions.orchestrators:
                    self.pending = _outstanding(history)
                    break
            if self.actions:
                raise _unexpected(next(iter(self.actions.values())))
        except task.NonDeterminismError as error:
            self.actions.clear()
            self.pending = _outstanding(history)
            self.completion = None
            self._fail(error)
        self._cancelled_timers.clear()
        self.replaying = False

    def turn(self, now: int, messages: Sequence[Message]) -> Turn:
        """Take ``messages`` at time ``now`` (never before the last turn's) and run to the next wait."""
        at = max(now, self.now)
        events: list[HistoryEvent] = []
        for message in messages:
            message.consumed = True
            if message.execution not in (0, self.number):
                continue
            if self.completion is not None:
                self._take_late(self.completion, message)
                continue
            if self._wants(message):
                event = HistoryEvent(
                    message.kind, at, message.task_id, message.name, message.ref, message.data
                )
                events.append(event)
                self._apply(event)
        actions = list(self.actions.values())
        self.actions.clear()
        events += [HistoryEvent(a.kind, at, a.task_id, a.name, a.ref, a.data) for a in actions]
        completion = self.completion
        if completion is not None:
            self._carry(completion)
            events.append(
                HistoryEvent(
                    Kind.EXECUTION_COMPLETED,
                    at,
                    name=completion.status.name,
                    data=completion.failure if completion.failure is not None else completion.output,
                )
            )
            self.close()
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

    def outstanding(self, kind: Kind) -> list[Action]:
        """What was asked for and has not come, of one kind. What a suspension holds back has come."""
        held = {e.task_id for e in self._held if e.kind in _RESULTS}
        actions = [p.action for p in self.pending.values() if p.action.kind == kind]
        return [a for a in actions if a.task_id not in held]

    @staticmethod
    def _take_late(completion: Completion, message: Message) -> None:
        """What comes in the turn that ends this execution: the next one gets what is meant for it."""
        if completion.status != Status.CONTINUED_AS_NEW:
            return
        if message.kind in _CONTROL or (message.kind == Kind.EVENT_RAISED and completion.save_events):
            completion.carried.append(message)

    def _carry(self, completion: Completion) -> None:
        if not completion.save_events:
            return
        left = sorted((entry for buffer in self._buffers.values() for entry in buffer), key=lambda e: e[0])
        earlier = [Message(Kind.EVENT_RAISED, name=e.name, ref=e.ref, data=e.data) for _, e in left]
        completion.carried = earlier + completion.carried

    def _wants(self, message: Message) -> bool:
        """Whether the message still means something here: late and repeated ones leave no trace."""
        kind = message.kind
        if kind in _RESULTS or kind == Kind.TIMER_FIRED:
            pending = self.pending.get(message.task_id)
            if pending is None:
                return False
            asked = pending.action.kind
            if kind == Kind.TIMER_FIRED:
                return asked == Kind.TIMER_CREATED
            if kind in (Kind.TASK_COMPLETED, Kind.TASK_FAILED):
                return asked == Kind.TASK_SCHEDULED
            return asked == Kind.CHILD_CREATED
        if kind == Kind.EVENT_RAISED:
            return message.ref is None or message.ref not in self._keys
        if kind == Kind.EXECUTION_STARTED:
            return not self._started
        if kind == Kind.SUSPENDED:
            return not self.suspended
        if kind == Kind.RESUMED:
            return self.suspended
        return True

    # Folding

    def _apply(self, event: HistoryEvent) -> None:
        if event.kind == Kind.EVENT_RAISED and event.ref is not None:
            self._keys.add(event.ref)
        if self.suspended and event.kind not in _NEVER_HELD:
            self._held.append(event)
            return
        self.now = event.at
        self._HANDLERS[event.kind](self, event)

    def _on_started(self, event: HistoryEvent) -> None:
        self._started = True
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
            self._advance(result.__next__)
        else:
            self._finish(result)

    def _on_result(self, event: HistoryEvent) -> None:
        pending = self.pending.pop(event.task_id, None)
        if pending is None or not isinstance(pending.task, ResultTask):
            return
        try:
            value = self.converter.deserialize(event.data, pending.return_type)
        except Exception as error:  # a converter that refuses the data fails the orchestration
            self._fail(error)
            return
        self._settle(pending.task, value)

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
            self._settle(pending.task, None)

    def _on_event_raised(self, event: HistoryEvent) -> None:
        name = (event.name or "").casefold()
        waiters = self.waiters.get(name)
        # Once continue_as_new is asked for, waits of this execution take nothing more.
        if waiters and self.completion is None:
            wait, data_type = waiters.popleft()
            try:
                value = self.converter.deserialize(event.data, data_type)
            except Exception as error:  # as for results
                self._fail(error)
                return
            self._settle(wait, value)
            return
        if self._buffered >= self.options.max_buffered_events:
            self._fail(
                BufferError(
                    f"{self._buffered:,} external events wait and nobody takes them: wait for "
                    f"{event.name!r} in the orchestrator, or raise fewer"
                )
            )
            return
        self._arrivals += 1
        self._buffered += 1
        self._buffers.setdefault(name, deque()).append((self._arrivals, event))

    def _on_suspended(self, event: HistoryEvent) -> None:
        self.suspended = True

    def _on_resumed(self, event: HistoryEvent) -> None:
        self.suspended = False
        held, self._held = self._held, []
        for index, earlier in enumerate(held):
            if self.suspended:
                self._held = held[index:] + self._held
                return
            # What ended the execution may be among them: after it only events count, to be carried over.
            if self.completion is None or earlier.kind == Kind.EVENT_RAISED:
                # Held events are seen at the time of the resume: the orchestration's clock never goes back.
                self._HANDLERS[earlier.kind](self, earlier)

    def _on_terminated(self, event: HistoryEvent) -> None:
        if self.completion is None or self.completion.status == Status.CONTINUED_AS_NEW:
            self.completion = Completion(Status.TERMINATED, output=event.data)

    def _on_confirmed(self, event: HistoryEvent) -> None:
        """Replay: the code must have asked for just this; inputs are not compared."""
        action = self.actions.pop(event.task_id, None)
        if action is None:
            raise _missing(event)
        if action.kind != event.kind:
            raise _other_kind(event, action)
        if event.kind != Kind.TIMER_CREATED and action.name != event.name:
            raise _other_name(event, action)
        if event.kind == Kind.EVENT_SENT and action.ref != event.ref:
            raise _other_target(event, action)

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
    }

    # The generator

    def _settle(self, settled: task.CompletableTask[Any], value: Any) -> None:
        try:
            settled.complete(value)
        except Exception as error:
            # A composite of a cancelled task raises that here: as in the SDK, the orchestration fails.
            self._fail(error)
        self._resume()

    def _resume(self) -> None:
        waiting, generator = self._waiting, self._generator
        if waiting is None or generator is None or self.completion is not None or not waiting.is_complete:
            return
        self._advance(self._outcome(generator, waiting))

    @staticmethod
    def _outcome(
        generator: Generator[task.Task[Any], Any, Any], done: task.Task[Any]
    ) -> Callable[[], task.Task[Any]]:
        """How to tell the generator what became of the task that it waits for."""
        if done.is_failed:
            error: Exception = done.get_exception()
        else:
            try:
                value = done.get_result()
            except Exception as without_result:  # cancelled, or a composite of such
                error = without_result
            else:
                return lambda: generator.send(value)
        return lambda: generator.throw(error)

    def _advance(self, step: Callable[[], task.Task[Any]]) -> None:
        """Run the generator until it waits for a task that is not complete, or ends."""
        generator = self._generator
        assert generator is not None
        try:
            while True:
                awaited = step()
                if self.completion is not None:  # continue_as_new was asked for: this yield is the end
                    return
                if not isinstance(awaited, task.Task):
                    wrong = TypeError(
                        f"an orchestrator yields tasks, not {type(awaited).__name__!r}: "
                        "yield what call_activity, create_timer, when_all, … return"
                    )
                    step = _thrower(generator, wrong)
                    continue
                if not awaited.is_complete:
                    if isinstance(awaited, task.CompositeTask) and not awaited.get_tasks():
                        step = self._empty(generator, awaited)
                        continue
                    self._waiting = awaited
                    return
                step = self._outcome(generator, awaited)
        except StopIteration as end:
            self._finish(end.value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as in _on_started
            self._fail(error)

    @staticmethod
    def _empty(
        generator: Generator[task.Task[Any], Any, Any], awaited: task.CompositeTask[Any]
    ) -> Callable[[], task.Task[Any]]:
        """A composite of nothing: all of nothing is done, any of nothing never will be."""
        if isinstance(awaited, task.WhenAllTask):
            return lambda: generator.send([])
        return _thrower(generator, ValueError("when_any([]) never completes: give it at least one task"))

    def _finish(self, result: Any) -> None:
        if self.completion is not None:
            return
        try:
            output = self.encode("the output", result)
        except Exception as error:
            failure = TypeError(f"the output of the orchestration can't be kept: {error}")
            failure.__cause__ = error
            self._fail(failure)
            return
        self.completion = Completion(Status.COMPLETED, output=output)

    def _fail(self, error: BaseException) -> None:
        """End as failed, unless it has ended already: the first end counts."""
        if self.completion is None:
            self.completion = Completion(Status.FAILED, failure=failures.encode(failures.details_of(error)))


ResultTask = failures.ResultTask


def _thrower(
    generator: Generator[task.Task[Any], Any, Any], error: Exception
) -> Callable[[], task.Task[Any]]:
    return lambda: generator.throw(error)


def _outstanding(history: Sequence[HistoryEvent]) -> dict[int, Pending]:
    """What the history shows as asked for and not come, where the code can't tell any more."""
    found: dict[int, Pending] = {}
    for event in history:
        if event.kind in _CONFIRMS and event.kind != Kind.EVENT_SENT:
            action = Action(Kind(event.kind), event.task_id, name=event.name, ref=event.ref, data=event.data)
            found[event.task_id] = Pending(action, None)
        elif event.kind in _RESULTS or event.kind == Kind.TIMER_FIRED:
            found.pop(event.task_id, None)
    return found


_WHY = (
    "The code was changed while this instance was under way, or is not deterministic (it reads a clock, "
    "chance, or the outside world without an activity)."
)


def _step(kind: int, task_id: int, name: str | None) -> str:
    called = _METHODS[Kind(kind)]
    return f"{called}({name!r}) as step {task_id}" if name else f"{called} as step {task_id}"


def _missing(event: HistoryEvent) -> task.NonDeterminismError:
    before = _step(event.kind, event.task_id, event.name)
    return task.NonDeterminismError(f"A previous execution called {before}; the code now does not. {_WHY}")


def _unexpected(action: Action) -> task.NonDeterminismError:
    now = _step(action.kind, action.task_id, action.name)
    return task.NonDeterminismError(
        f"The code now calls {now}; the previous execution had not at that point. {_WHY}"
    )


def _other_kind(event: HistoryEvent, action: Action) -> task.NonDeterminismError:
    before = _step(event.kind, event.task_id, event.name)
    now = _step(action.kind, action.task_id, action.name)
    return task.NonDeterminismError(f"A previous execution called {before}; the code now calls {now}. {_WHY}")


_other_name = _other_kind


def _other_target(event: HistoryEvent, action: Action) -> task.NonDeterminismError:
    return task.NonDeterminismError(
        f"A previous execution called {_step(event.kind, event.task_id, event.name)} for instance "
        f"{event.ref!r}; the code now sends it to {action.ref!r}. {_WHY}"
    )
