"""The engine: turns on the loop, commits in a thread, effects after commits.

State in memory runs ahead of the disk by at most one batch under way and one being gathered.
Nothing that a batch caused leaves the process before that batch is on disk: activities start,
callers return and observers hear only then. Messages between instances stay inside: they are
taken by a turn in the same batch, or written with it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from durabletask.serialization import DataConverter

from provisioning.engine import failures
from provisioning.engine.activities import ActivityRunner
from provisioning.engine.context import Action
from provisioning.engine.errors import (
    ChildTerminatedError,
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
)
from provisioning.engine.execution import Completion, Execution, Turn
from provisioning.engine.functions import AnyFunction, Functions, function_name
from provisioning.engine.instances import Instance, Transaction
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import (
    ENDED,
    RECURSIVE,
    ActivityCall,
    InstanceRow,
    Kind,
    Message,
    ParentLink,
    Status,
)
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER
from provisioning.engine.sqlite_store import SqliteStore
from provisioning.engine.store import Store, StoredTimer
from provisioning.engine.timers import TimerQueue
from provisioning.engine.writer import Writer

_MICROSECONDS = 1_000_000
_SLICE_S = 0.002
"""How long turns run before the loop serves others."""
_LONGEST_SLEEP_S = 5.0
"""The wall clock is looked at again after at most this, so that a jump of it is noticed."""
_TIMERS_AT_ONCE = 1_000


def wall_clock() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1_000


@dataclass(frozen=True, kw_only=True)
class EngineStatistics:
    """A look at a running engine; counters are since its start."""

    live_instances: int
    armed_timers: int
    activity_backlog: int
    waiting_starts: int
    turns: int
    commits: int
    rows: int
    replays: int
    storage_trouble: str | None


class Engine:
    """An embedded durable engine on one state file.

    Register functions, then ``async with engine:``. All its methods belong to the loop on which it
    was started. Raises StateInUseError or StateFormatError on entering.
    """

    def __init__(
        self,
        path: Path | str | Store,
        *,
        options: EngineOptions | None = None,
        data_converter: DataConverter | None = None,
        logger: logging.Logger | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self._store: Store = SqliteStore(Path(path)) if isinstance(path, str | Path) else path
        self.options = options or EngineOptions()
        self.converter = data_converter or DEFAULT_DATA_CONVERTER
        self._log = logger or logging.getLogger("provisioning.engine")
        self._clock = clock
        self._functions = Functions(self.converter)
        self._running = False
        self._failed: BaseException | None = None

    def __repr__(self) -> str:
        return f"Engine({self._store!r}, running={self._running})"

    # Registration

    def add_orchestrator(self, fn: AnyFunction) -> str:
        """Register an orchestrator under its own name, which is returned."""
        return self.add_named_orchestrator(function_name(fn), fn)

    def add_named_orchestrator(self, name: str, fn: AnyFunction) -> str:
        self._not_running("orchestrators")
        self._functions.add_orchestrator(name, fn)
        return name

    def add_activity(self, fn: AnyFunction) -> str:
        """Register an activity, plain or ``async``, under its own name, which is returned."""
        return self.add_named_activity(function_name(fn), fn)

    def add_named_activity(self, name: str, fn: AnyFunction) -> str:
        self._not_running("activities")
        self._functions.add_activity(name, fn)
        return name

    def _not_running(self, what: str) -> None:
        if self._running:
            raise RuntimeError(f"{what} can't be added while the engine is running")

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the state, recover what was under way, and go to work."""
        if self._running:
            raise RuntimeError("the engine is running already")
        self._loop = asyncio.get_running_loop()
        self._store.open()
        self._failed = None
        self._instances: dict[str, Instance] = {}
        self._idle: OrderedDict[str, Instance] = OrderedDict()
        self._ready: deque[Instance] = deque()
        self._starts: deque[str] = deque()
        self._timers = TimerQueue()
        self._timer_handle: asyncio.TimerHandle | None = None
        self._armed_for: int | None = None
        self._window = self.options.timer_window // timedelta(microseconds=1)
        self._end_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._start_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._activities = ActivityRunner(
            self._functions, self.converter, self.options, self._on_activity_done
        )
        self._now = 0
        self._batch_number = 1
        self._committing: Transaction | None = None
        self._commit_ended: asyncio.Future[None] | None = None
        self._open = Transaction(self._batch_number)
        self._step_scheduled = False
        self._stopping = False
        self._stop_task: asyncio.Task[None] | None = None
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._turns = self._commits = self._rows = self._replays = 0
        self._writer = Writer(self._store)
        try:
            self._next_key = self._store.next_key()
            self._next_message = self._store.next_message_id()
            self._recover()
        except BaseException:
            self._failed = EngineStoppedError("the engine did not start")
            await self._activities.stop()
            if self._timer_handle is not None:
                self._timer_handle.cancel()
            self._store.close()
            raise
        self._writer.start()
        self._gc_threshold = gc.get_threshold()
        if self._gc_threshold[0] != 0:  # 0: the process does without
            gc.set_threshold(max(self.options.gc_threshold, self._gc_threshold[0]), *self._gc_threshold[1:])
        self._running = True

    async def stop(self) -> None:
        """End user code, write what is left, close. A second call waits for the first, or does nothing.

        It goes on where its caller is cancelled: half a stop would keep the file.
        """
        if not self._running:
            return
        if self._stop_task is None:
            self._stopping = True
            self._stop_task = self._loop.create_task(self._stop(), name="engine-stop")
        await asyncio.shield(self._stop_task)

    async def _stop(self) -> None:
        if self._timer_handle is not None:
            self._timer_handle.cancel()
        await self._activities.stop()
        self._submit()
        while self._committing is not None and self._writer.trouble is None:
            await asyncio.wait([self._commit_end()], timeout=0.1)
        await self._writer.stop(give_up=True)
        self._refuse_all()
        self._running = False
        gc.set_threshold(*self._gc_threshold)
        for instance in self._instances.values():
            if instance.execution is not None:
                instance.execution.close()
        self._instances.clear()
        self._idle.clear()
        self._store.close()

    async def wait_broken(self) -> BaseException | None:
        """Returns if the engine has to stop by itself, with the reason: a damaged state file, a defect."""
        await asyncio.shield(self._broken)
        return self._failed

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            live_instances=len(self._instances),
            armed_timers=len(self._timers),
            activity_backlog=self._activities.backlog,
            waiting_starts=len(self._starts),
            turns=self._turns,
            commits=self._commits,
            rows=self._rows,
            replays=self._replays,
            storage_trouble=self._writer.trouble,
        )

    def _recover(self) -> None:
        """Find by query what the last process left: starts, messages, activities, timers.

        Instances that only wait are not touched: they come back when something comes for them.
        """
        for instance_id, message in self._store.messages():
            instance = self._look_up(instance_id)
            if instance is None or instance.status in ENDED:
                self._open.batch.messages_gone.append((message.stored_id,))
            else:
                self._enqueue(instance, message)
        self._starts.extend(self._store.ready_starts())
        for call in self._store.unfinished_activities():
            self._activities.submit(call)
        self._extend_timers()
        self._schedule_step()

    def _check_running(self) -> None:
        if not self._running:
            raise EngineStoppedError("the engine is not running: start it first")
        if self._stopping or self._failed is not None:
            raise self._stopped_error()

    # What clients ask for

    def create(
        self,
        *,
        instance_id: str,
        name: str,
        input: str | None,
        start_at: int | None = None,
        version: str | None = None,
        tags: str | None = None,
    ) -> asyncio.Future[None]:
        """Create an instance; the future is done when it is on disk.

        Raises OrchestrationAlreadyExistsError, EngineStoppedError.
        """
        self._check_running()
        if instance_id in self._instances or self._store.find(instance_id) is not None:
            raise OrchestrationAlreadyExistsError(instance_id)
        now = self._tick()
        instance = Instance(key=self._next_key, id=instance_id, name=name, created_at=now)
        self._next_key += 1
        instance.input, instance.version, instance.tags = input, version, tags
        self._instances[instance_id] = instance
        self._open.rows += 1
        self._mark(instance)
        if start_at is not None and start_at > now:
            self._add_timer(instance, 0, start_at)
        else:
            self._starts.append(instance_id)
        return self._when_committed()

    def send(self, instance_id: str, message: Message) -> asyncio.Future[None]:
        """Hand a message to an instance; the future is done when it is on disk, or dropped for good.

        Ended instances drop it silently. Raises OrchestrationNotFoundError, EngineStoppedError.
        """
        self._check_running()
        instance = self._look_up(instance_id)
        if instance is None:
            raise OrchestrationNotFoundError(instance_id)
        if instance.status in ENDED:
            return self._when_committed()
        if not instance.begun and message.kind != Kind.TERMINATED:
            # It may be long before its first turn: the message is kept by a row of its own, and the
            # instance in memory for as long as its inbox holds it.
            self._touch(instance)
            self._keep(instance, message)
            instance.inbox.append(message)
            return self._when_committed()
        message.waiter = self._loop.create_future()
        self._enqueue(instance, message)
        return message.waiter

    async def wait_room(self) -> None:
        """Push back: returns when the batch being gathered has room for more."""
        while self._running and self._failed is None and self._open.rows >= self.options.max_commit_rows:
            await asyncio.shield(self._commit_end())

    def wait_started(self, instance_id: str) -> asyncio.Future[None]:
        """Done at the first commit that shows the instance begun."""
        return self._wait(self._start_waiters, instance_id)

    def wait_ended(self, instance_id: str) -> asyncio.Future[None]:
        """Done at the commit that ends the instance."""
        return self._wait(self._end_waiters, instance_id)

    def _wait(self, table: dict[str, list[asyncio.Future[None]]], instance_id: str) -> asyncio.Future[None]:
        self._check_running()
        waiter: asyncio.Future[None] = self._loop.create_future()
        waiters = table.setdefault(instance_id, [])
        waiters.append(waiter)

        def forget(_: asyncio.Future[None]) -> None:
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters and table.get(instance_id) is waiters:
                del table[instance_id]

        waiter.add_done_callback(forget)
        return waiter

    def read(self, instance_id: str) -> InstanceRow | None:
        """The instance as it is on disk; ``updated_at`` is its latest event's time."""
        self._check_running()
        row = self._store.find(instance_id)
        if row is None or row.status in ENDED:
            return row
        last = self._store.last_event(row.key)
        return row._replace(updated_at=max(row.updated_at, last[1])) if last else row

    def count_by_status(self) -> dict[Status, int]:
        """Number of instances on disk by status."""
        self._check_running()
        return {Status(status): count for status, count in self._store.count_by_status().items()}

    # Instances

    def _look_up(self, instance_id: str) -> Instance | None:
        """The instance, from memory or from disk; ended ones too. None where there is none."""
        instance = self._instances.get(instance_id)
        if instance is not None:
            return instance
        row = self._store.find(instance_id)
        if row is None:
            return None
        instance = Instance.from_row(row, self._store.last_event(row.key))
        if instance.status not in ENDED:
            self._instances[instance_id] = instance
            self._touch(instance)
        return instance

    def _touch(self, instance: Instance) -> None:
        """Keep the instance in memory at least until what is gathered now is on disk."""
        self._idle.pop(instance.id, None)
        if instance.last_batch != self._open.number:
            instance.last_batch = self._open.number
            self._open.touched.append(instance)

    def _mark(self, instance: Instance) -> None:
        """Its row is to be written."""
        self._touch(instance)
        if not instance.dirty:
            instance.dirty = True
            self._open.changed.append(instance)

    def _enqueue(self, instance: Instance, message: Message) -> None:
        """Give the instance a message and a place in the queue for a turn."""
        self._touch(instance)
        instance.inbox.append(message)
        if not instance.begun:
            if message.kind != Kind.TERMINATED:
                return
            instance.begun = True
        if not instance.queued:
            instance.queued = True
            self._ready.append(instance)
        self._schedule_step()

    def _enqueue_internal(self, instance_id: str, message: Message) -> None:
        """As :meth:`_enqueue` for a message that was made here: it is on disk with what made it."""
        instance = self._look_up(instance_id)
        if instance is not None and instance.status not in ENDED:
            self._enqueue(instance, message)
            self._open.internal.append((instance, message))

    def _keep(self, instance: Instance, message: Message) -> None:
        """Write the message: no turn has taken it yet."""
        message.stored_id = self._next_message
        self._next_message += 1
        self._open.rows += 1
        self._open.batch.messages.append(
            (
                message.stored_id,
                instance.key,
                message.kind,
                message.task_id,
                message.name,
                message.ref,
                message.data,
                message.execution,
            )
        )

    # Turns

    def _schedule_step(self) -> None:
        if not self._step_scheduled:
            self._step_scheduled = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        """Take turns for a while, then hand over what was gathered if the writer is free."""
        self._step_scheduled = False
        if self._stopping or self._failed is not None:
            return
        self._tick()
        until = time.perf_counter() + _SLICE_S
        try:
            while self._open.rows < self.options.max_commit_rows:
                if self._ready:
                    self._turn(self._ready.popleft())
                elif not self._start_next():
                    break
                if time.perf_counter() > until:
                    self._schedule_step()
                    break
            self._submit()
        except BaseException as error:  # a defect of ours, not of user code: better to stop than to guess
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    def _start_next(self) -> bool:
        """Begin the next pending instance, unless enough is under way."""
        starting = len(self._open.activities) + self._activities.backlog
        if not self._starts or starting >= self.options.max_activity_backlog:
            return False
        instance = self._look_up(self._starts.popleft())
        if instance is not None and instance.status == Status.PENDING and not instance.begun:
            self._begin(instance)
            self._turn(instance)
        return True

    def _begin(self, instance: Instance) -> None:
        self._touch(instance)
        instance.begun = True
        start = Message(Kind.EXECUTION_STARTED, name=instance.name, ref=instance.version, data=instance.input)
        instance.inbox.insert(0, start)

    def _turn(self, instance: Instance) -> None:
        """One turn of one instance: messages in, rows and actions out."""
        instance.queued = False
        if instance.status in ENDED or not instance.begun:
            # It ended while it was queued; by now it may have been created anew, and waits for its start.
            self._touch(instance)
            return
        self._turns += 1
        self._touch(instance)
        most = self.options.max_turn_messages
        messages, instance.inbox = instance.inbox[:most], instance.inbox[most:]
        execution = instance.execution
        if execution is None:
            execution = instance.execution = self._revive(instance)
        turn = execution.turn(self._now, messages)
        transaction, batch = self._open, self._open.batch
        for message in messages:
            if message.stored_id:
                batch.messages_gone.append((message.stored_id,))
            if message.kind == Kind.TIMER_FIRED and message.execution == execution.number:
                self._drop_timer(instance, message.task_id)
            if message.waiter is not None:
                transaction.waiters.append(message.waiter)
        key, seq = instance.key, instance.next_seq
        for event in turn.events:
            batch.history.append((key, seq, *event))
            seq += 1
        transaction.rows += seq - instance.next_seq
        instance.next_seq = seq
        if turn.events:
            instance.last_at = turn.events[-1].at
        for task_id in turn.cancelled_timers:
            self._drop_timer(instance, task_id)
        for action in turn.actions:
            self._act(instance, action)
        if execution.custom_status is not instance.custom_status:
            instance.custom_status = execution.custom_status
            self._mark(instance)
        if turn.completion is not None:
            self._complete(instance, execution, turn, messages)
            return
        status = Status.SUSPENDED if execution.suspended else Status.RUNNING
        if status != instance.status:
            if instance.status == Status.PENDING:
                transaction.started.append(instance)
            instance.status = status
            self._mark(instance)
        if instance.inbox and not instance.queued:
            instance.queued = True
            self._ready.append(instance)

    def _revive(self, instance: Instance) -> Execution:
        """The instance's execution, from its history where it has one."""
        execution = Execution(
            instance_id=instance.id,
            number=instance.execution_number,
            parent_id=instance.parent.instance_id if instance.parent else None,
            version=instance.version,
            functions=self._functions,
            converter=self.converter,
            options=self.options,
            custom_status=instance.custom_status,
        )
        if instance.next_seq > instance.first_seq:
            self._replays += 1
            execution.replay(self._store.history(instance.key, instance.first_seq))
            # Replay sets the status once more; what is on disk is the same text.
            if execution.custom_status == instance.custom_status:
                execution.custom_status = instance.custom_status
        return execution

    def _act(self, instance: Instance, action: Action) -> None:
        if action.kind == Kind.TASK_SCHEDULED:
            call = ActivityCall(
                instance.id,
                instance.key,
                instance.execution_number,
                action.task_id,
                action.name or "",
                action.data,
            )
            self._open.activities.append(call)
        elif action.kind == Kind.CHILD_CREATED:
            self._create_child(instance, action)
        elif action.kind == Kind.TIMER_CREATED:
            self._add_timer(instance, action.task_id, action.due)
        elif action.kind == Kind.EVENT_SENT:
            event = Message(Kind.EVENT_RAISED, name=action.name, data=action.data)
            self._enqueue_internal(action.ref or "", event)

    def _create_child(self, parent: Instance, action: Action) -> None:
        """In the parent's own transaction: the two can't disagree."""
        child_id = action.ref or ""
        link = ParentLink(instance_id=parent.id, execution=parent.execution_number, task_id=action.task_id)
        child = self._look_up(child_id)
        if child is not None and child.status not in ENDED:
            exists = OrchestrationAlreadyExistsError(child_id)
            self._tell_parent(link, Kind.CHILD_FAILED, failures.encode(failures.details_of(exists)))
            return
        if child is None:
            child = Instance(key=self._next_key, id=child_id, name=action.name or "", created_at=self._now)
            self._next_key += 1
        else:
            # Its number goes on, so that nothing meant for the one that ended reaches this one.
            self._restart(child, child.execution_number + 1)
            child.name, child.created_at = action.name or "", self._now
            child.output = child.failure = child.custom_status = child.tags = None
        self._instances[child_id] = child
        child.input, child.version, child.parent = action.data, action.version, link
        self._mark(child)
        self._starts.append(child_id)

    def _restart(self, instance: Instance, execution_number: int) -> None:
        """Make room for another execution of the same instance."""
        instance.execution = None
        instance.execution_number = execution_number
        instance.first_seq = instance.next_seq
        instance.status = Status.PENDING
        instance.begun = False
        self._open.batch.trims.append((instance.key, instance.first_seq))

    def _tell_parent(self, parent: ParentLink, kind: Kind, data: str | None) -> None:
        message = Message(kind, task_id=parent.task_id, data=data, execution=parent.execution)
        self._enqueue_internal(parent.instance_id, message)

    # Ends

    def _complete(
        self, instance: Instance, execution: Execution, turn: Turn, messages: list[Message]
    ) -> None:
        completion = turn.completion
        assert completion is not None
        left = execution.outstanding(Kind.TASK_SCHEDULED)
        if left:
            # Results that came with the end, or stand behind it, are taken by nobody; they came all the same.
            came = {
                m.task_id
                for m in (*messages, *instance.inbox)
                if m.kind in (Kind.TASK_COMPLETED, Kind.TASK_FAILED) and m.execution == execution.number
            }
            self._open.batch.detached += [
                (instance.key, execution.number, action.task_id, action.name or "", action.data)
                for action in left
                if action.task_id not in came
            ]
        for action in execution.outstanding(Kind.TIMER_CREATED):
            self._drop_timer(instance, action.task_id)
        if completion.status == Status.CONTINUED_AS_NEW:
            self._continue(instance, completion)
        else:
            self._end(instance, execution, turn, completion)
        self._mark(instance)

    def _continue(self, instance: Instance, completion: Completion) -> None:
        later = instance.inbox
        self._restart(instance, instance.execution_number + 1)
        instance.input = completion.new_input
        instance.version = completion.new_version or instance.version
        instance.custom_status = None
        instance.inbox = []
        self._begin(instance)
        for message in completion.carried:
            fresh = Message(message.kind, name=message.name, ref=message.ref, data=message.data)
            instance.inbox.append(fresh)
            self._open.internal.append((instance, fresh))
        instance.inbox += later
        if not instance.queued:
            instance.queued = True
            self._ready.append(instance)

    def _end(self, instance: Instance, execution: Execution, turn: Turn, completion: Completion) -> None:
        if instance.status == Status.PENDING:
            self._open.started.append(instance)
            self._drop_timer(instance, 0)
        instance.status = completion.status
        instance.output, instance.failure = completion.output, completion.failure
        instance.execution = None
        for message in instance.inbox:
            if message.stored_id:
                self._open.batch.messages_gone.append((message.stored_id,))
            if message.waiter is not None:
                self._open.waiters.append(message.waiter)
            message.consumed = True
        instance.inbox = []
        self._open.ended.append(instance)
        if completion.status == Status.TERMINATED:
            recursive = any(e.kind == Kind.TERMINATED and e.ref == RECURSIVE for e in turn.events)
            if recursive:
                for child in execution.outstanding(Kind.CHILD_CREATED):
                    self._enqueue_internal(
                        child.ref or "", Message(Kind.TERMINATED, ref=RECURSIVE, data=completion.output)
                    )
        if instance.parent is not None:
            self._report(instance, instance.parent, completion)

    def _report(self, instance: Instance, parent: ParentLink, completion: Completion) -> None:
        if completion.status == Status.COMPLETED:
            self._tell_parent(parent, Kind.CHILD_COMPLETED, completion.output)
            return
        failure = completion.failure
        if failure is None:
            terminated = ChildTerminatedError(f"sub-orchestration {instance.id!r} was terminated")
            failure = failures.encode(failures.details_of(terminated))
        self._tell_parent(parent, Kind.CHILD_FAILED, failure)

    # Activities and timers

    def _on_activity_done(self, call: ActivityCall, kind: Kind, text: str | None) -> None:
        if self._stopping or self._failed is not None:
            return
        try:
            instance = self._look_up(call.instance_id)
        except Exception as error:
            self._fail(error)
            return
        if instance is None or instance.status in ENDED or instance.execution_number != call.execution:
            # Its execution is over: nobody waits, it is only not to run again.
            self._open.batch.detached_gone.append((call.instance_key, call.execution, call.task_id))
            self._schedule_step()
            return
        self._enqueue(instance, Message(kind, task_id=call.task_id, data=text, execution=call.execution))

    def _add_timer(self, instance: Instance, task_id: int, due: int) -> None:
        self._open.batch.add_timer(instance.key, task_id, due)
        self._timers.add(StoredTimer(instance.id, instance.key, task_id, due))
        self._arm()

    def _drop_timer(self, instance: Instance, task_id: int) -> None:
        self._open.batch.drop_timer(instance.key, task_id)
        self._timers.cancel(instance.key, task_id)

    def _arm(self) -> None:
        """See to it that the next due timer, or the next window, is looked at in time."""
        extension = self._timers.horizon - self._window // 2
        due = min(self._timers.next_due() or extension, extension)
        if due == self._armed_for and self._timer_handle is not None:
            return
        if self._timer_handle is not None:
            self._timer_handle.cancel()
        self._armed_for = due
        wait_s = max(0.0, (due - self._clock()) / _MICROSECONDS)
        self._timer_handle = self._loop.call_later(min(wait_s, _LONGEST_SLEEP_S), self._on_timers)

    def _on_timers(self) -> None:
        self._timer_handle = None
        if self._stopping or self._failed is not None:
            return
        now = self._tick()
        try:
            for timer in self._timers.pop_due(now, _TIMERS_AT_ONCE):
                self._fire(timer)
            if now + self._window // 2 >= self._timers.horizon:
                self._extend_timers()
        except Exception as error:  # as in _step
            self._fail(error)
            return
        self._arm()

    def _fire(self, timer: StoredTimer) -> None:
        instance = self._look_up(timer.instance_id)
        if instance is None or instance.status in ENDED:
            self._open.batch.drop_timer(timer.instance_key, timer.task_id)
            self._schedule_step()
        elif timer.task_id == 0:
            self._open.batch.drop_timer(timer.instance_key, 0)
            self._touch(instance)
            self._starts.append(instance.id)
            self._schedule_step()
        else:
            fired = Message(Kind.TIMER_FIRED, task_id=timer.task_id, execution=instance.execution_number)
            self._enqueue(instance, fired)

    def _extend_timers(self) -> None:
        """Bring the timers of the next window into memory: those on disk, as they are about to be."""
        after, until = self._timers.horizon, self._tick() + self._window
        timers = {(t.instance_key, t.task_id): t for t in self._store.timers(after, until)}
        for transaction in (self._committing, self._open):
            if transaction is None:
                continue
            ids = {i.key: i.id for i in transaction.touched}
            for gone in transaction.batch.timers_gone:
                timers.pop(gone, None)
            for (key, task_id), due in transaction.batch.timers.items():
                timers.pop((key, task_id), None)
                if after < due <= until:
                    timers[key, task_id] = StoredTimer(ids[key], key, task_id, due)
        self._timers.extend(until, timers.values())
        self._arm()

    # Commits

    def _tick(self) -> int:
        """The time; it never goes back while the engine runs."""
        self._now = max(self._now, self._clock())
        return self._now

    def _when_committed(self) -> asyncio.Future[None]:
        """Done when what is gathered now is on disk."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._open.waiters.append(waiter)
        self._schedule_step()
        return waiter

    def _commit_end(self) -> asyncio.Future[None]:
        """Done at the next end of a commit, or of the engine. Shared: shield it."""
        if self._commit_ended is None:
            self._commit_ended = self._loop.create_future()
        return self._commit_ended

    def _submit(self) -> None:
        """Hand what was gathered to the writer, if it is free."""
        transaction = self._open
        # After a failure nothing may follow: a batch is missing before it, or half of a turn is in it.
        if self._committing is not None or self._failed is not None or not transaction:
            return
        for instance, message in transaction.internal:
            if not message.consumed and not message.stored_id and instance.status not in ENDED:
                self._keep(instance, message)
        rows = transaction.batch.instances
        for instance in transaction.changed:
            instance.dirty = False
            rows.append(instance.row())
        self._batch_number += 1
        self._open = Transaction(self._batch_number)
        self._committing = transaction
        self._writer.submit(transaction.batch, self._on_committed)

    def _on_committed(self, error: BaseException | None) -> None:
        transaction = self._committing
        assert transaction is not None
        self._committing = None
        self._tell_commit_ended()
        if error is not None:
            self._fail(error)
            for waiter in transaction.waiters:
                _refuse(waiter, self._stopped_error())
            return
        self._commits += 1
        self._rows += transaction.rows
        try:
            self._begin_effects(transaction)
            self._submit()
        except Exception as error_after:  # as in _step
            self._fail(error_after)
            return
        if self._ready or self._starts:
            self._schedule_step()

    def _tell_commit_ended(self) -> None:
        ended, self._commit_ended = self._commit_ended, None
        if ended is not None and not ended.done():
            ended.set_result(None)

    def _begin_effects(self, transaction: Transaction) -> None:
        """What was asked for in the transaction may happen: it is on disk."""
        if self._failed is None:
            for call in transaction.activities:
                self._activities.submit(call)
        for waiter in transaction.waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._start_waiters:
            self._tell(self._start_waiters, transaction.started)
        if self._end_waiters:
            self._tell(self._end_waiters, transaction.ended)
        for instance in transaction.touched:
            self._rest(instance, transaction.number)
        self._evict()

    @staticmethod
    def _tell(table: dict[str, list[asyncio.Future[None]]], instances: list[Instance]) -> None:
        for instance in instances:
            for waiter in table.pop(instance.id, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def _rest(self, instance: Instance, committed: int) -> None:
        """Let go of an instance that has ended, and note one that only waits."""
        if instance.last_batch > committed or instance.inbox or instance.queued:
            return
        if instance.status in ENDED:
            if self._instances.get(instance.id) is instance:
                del self._instances[instance.id]
        else:
            self._idle[instance.id] = instance

    def _evict(self) -> None:
        while len(self._idle) > self.options.max_live_instances:
            _, instance = self._idle.popitem(last=False)
            if instance.execution is not None:
                instance.execution.close()
                instance.execution = None
            del self._instances[instance.id]

    def _stopped_error(self) -> EngineStoppedError:
        stopped = EngineStoppedError(
            "the engine was stopped" if self._failed is None else f"the engine has stopped: {self._failed}"
        )
        stopped.__cause__ = self._failed
        return stopped

    def _fail(self, error: BaseException) -> None:
        """Something that should never happen has: take no more, say so to all who wait."""
        if self._failed is not None:
            return
        self._failed = error
        self._log.critical("the engine has stopped: %s", error, exc_info=error)
        self._activities.begin_no_more()
        self._refuse_all()
        self._tell_commit_ended()
        if not self._broken.done():
            self._broken.set_result(None)

    def _refuse_all(self) -> None:
        waiting = [
            w for table in (self._end_waiters, self._start_waiters) for ws in table.values() for w in ws
        ]
        waiting += self._open.waiters
        waiting += [m.waiter for i in self._instances.values() for m in i.inbox if m.waiter is not None]
        for waiter in waiting:
            _refuse(waiter, self._stopped_error())


def _refuse(waiter: asyncio.Future[None], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)
        # Whoever gave up waiting is no defect: mark the error as seen.
        waiter.exception()
