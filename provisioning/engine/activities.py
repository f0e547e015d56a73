"""Runs activities: coroutines on the loop, plain functions in threads, both bounded."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from durabletask import task
from durabletask.serialization import DataConverter
from durabletask.worker import ActivityNotRegisteredError

from provisioning.engine import failures
from provisioning.engine.context import check_size
from provisioning.engine.functions import Function, Functions
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import ActivityCall, Kind
from provisioning.engine.threads import Pool

Done = Callable[[ActivityCall, Kind, str | None], None]
"""Told of each activity's end: the call, TASK_COMPLETED with the result or TASK_FAILED with the failure."""

_TURNS_BEFORE_YIELD = 32
"""Activities that one task runs in a row, where they never wait, before others get the loop."""

_NEW_EVERY = 8
"""One place in so many goes to an execution that has just begun."""

_here = threading.local()


class _Waiting:
    """Activities that wait for a place: what was begun goes before what is new.

    First come, first served would take a large fan-out through its steps in lockstep: the first step
    of every instance, then the second of every instance, and none done before all are nearly done. So
    what follows in an execution goes before what others begin with, in order of arrival each; one place
    in ``_NEW_EVERY`` is for new executions whatever else waits, lest they starve.
    """

    def __init__(self) -> None:
        self._first: deque[tuple[ActivityCall, Function]] = deque()
        self._later: deque[tuple[ActivityCall, Function]] = deque()
        self._taken = 0

    def __len__(self) -> int:
        return len(self._first) + len(self._later)

    def put(self, call: ActivityCall, function: Function) -> None:
        queue = self._first if call.new else self._later
        queue.append((call, function))

    def take(self) -> tuple[ActivityCall, Function]:
        """The next to run; there must be one."""
        self._taken += 1
        new_first = self._first and (not self._later or self._taken % _NEW_EVERY == 0)
        return (self._first if new_first else self._later).popleft()

    def clear(self) -> list[ActivityCall]:
        """Returns those that waited."""
        left = [call for queue in (self._later, self._first) for call, _ in queue]
        self._first.clear()
        self._later.clear()
        return left


class ActivityRunner:
    """The activities of one offer, plain functions in ``pool``. All methods are the loop's."""

    def __init__(
        self,
        functions: Functions,
        converter: DataConverter,
        options: EngineOptions,
        pool: Pool,
        done: Done,
        properties_of: failures.PropertiesOf = failures.no_properties,
    ) -> None:
        self._functions = functions
        self._converter = converter
        self._options = options
        self._pool = pool
        self._done = done
        self._properties_of = properties_of
        self._waiting_async = _Waiting()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Workers that will look at the queue again; a task is in ``_tasks`` a little longer than that.
        self._workers = 0
        self._running_async = 0
        self._unfinished_plain: set[ActivityCall] = set()
        #: What was left or cut off at the end.
        self._left: list[ActivityCall] = []
        self._loop = asyncio.get_running_loop()
        self._stopping = False

    @property
    def backlog(self) -> int:
        """Activities that wait for a place or run."""
        return len(self._waiting_async) + self._running_async + len(self._unfinished_plain)

    @property
    def crowded(self) -> bool:
        """Whether activities wait for a place: one more would wait too."""
        return bool(self._waiting_async) or len(self._unfinished_plain) > self._options.max_sync_activities

    def submit(self, call: ActivityCall) -> None:
        """Run an activity; its end is told to ``done``, on the loop, never within this call."""
        if self._stopping:
            return
        function = self._functions.activities.get(call.name)
        if function is None:
            missing = ActivityNotRegisteredError(f"Activity function named '{call.name}' was not registered!")
            self._loop.call_soon(self._done, call, Kind.TASK_FAILED, self._failure(missing))
        elif function.is_async:
            self._waiting_async.put(call, function)
            if self._workers < self._options.max_async_activities:
                self._workers += 1
                worker = self._loop.create_task(self._run_waiting(), name="activities")
                self._tasks.add(worker)
                worker.add_done_callback(self._tasks.discard)
        else:
            self._unfinished_plain.add(call)
            self._pool.run(partial(self._run_plain, call, function), partial(self._on_plain_end, call))

    def begin_no_more(self) -> None:
        """Leave what has not begun; what has begun goes on to its end."""
        self._stopping = True
        self._left += self._waiting_async.clear()
        self._pool.clear()

    async def stop(self, *, abandon_threads: bool = False) -> list[ActivityCall]:
        """Start no more, cancel coroutines, wait for plain functions unless they are to be abandoned.

        Returns what was left or cut off: it is to run again.
        """
        self.begin_no_more()
        for worker in list(self._tasks):
            worker.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if not abandon_threads:
            await self._pool.stop()
        return [*self._left, *self._unfinished_plain]

    # Coroutines

    async def _run_waiting(self) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        in_a_row = 0
        try:
            while self._waiting_async:
                call, function = self._waiting_async.take()
                self._running_async += 1
                try:
                    kind, text = await self._run(call, function)
                except asyncio.CancelledError:
                    self._left.append(call)
                    raise
                finally:
                    self._running_async -= 1
                if worker.cancelling() and not self._stopping:
                    await self._shed_cancellation(worker)
                self._done(call, kind, text)
                if self._stopping:
                    return
                in_a_row += 1
                if in_a_row % _TURNS_BEFORE_YIELD == 0:
                    await asyncio.sleep(0)
        finally:
            self._workers -= 1

    @staticmethod
    async def _shed_cancellation(worker: asyncio.Task[None]) -> None:
        """Take a cancellation that an activity asked for, lest it hit the next one at its first wait."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        while worker.cancelling():
            worker.uncancel()

    async def _run(self, call: ActivityCall, function: Function) -> tuple[Kind, str | None]:
        try:
            value = self._converter.deserialize(call.input, function.input_type)
            result = await function.call(task.ActivityContext(call.instance_id, call.task_id), value)
            return Kind.TASK_COMPLETED, self._encode(call, result)
        except asyncio.CancelledError as error:
            if self._stopping:
                raise
            # User code cancelled itself: that ends this activity, not the worker that carries others.
            return Kind.TASK_FAILED, self._failure(error)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return Kind.TASK_FAILED, self._failure(error)

    # Plain functions

    def _run_plain(self, call: ActivityCall, function: Function) -> tuple[Kind, str | None]:
        _here.functions = self._functions
        try:
            value = self._converter.deserialize(call.input, function.input_type)
            result = function.call(task.ActivityContext(call.instance_id, call.task_id), value)
            return Kind.TASK_COMPLETED, self._encode(call, result)
        except BaseException as error:  # whatever ends user code is that activity's end alone
            return Kind.TASK_FAILED, self._failure(error)
        finally:
            _here.functions = None

    def _on_plain_end(self, call: ActivityCall, end: tuple[Kind, str | None]) -> None:
        self._unfinished_plain.discard(call)
        self._done(call, *end)

    def _encode(self, call: ActivityCall, result: Any) -> str | None:
        text = self._converter.serialize(result)
        return check_size(f"the result of activity {call.name!r}", text, self._options.max_payload_bytes)

    def _failure(self, error: BaseException) -> str:
        return failures.encode(failures.details_of(error, self._properties_of))


def functions_of_caller() -> Functions | None:
    """Those to which the plain activity belongs that is the caller; None where it is none."""
    found: Functions | None = getattr(_here, "functions", None)
    return found
