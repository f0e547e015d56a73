"""Tasks as Durable Functions orchestrators know them, made of the SDK's."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any

from durabletask import task


class TaskState(enum.Enum):
    """Where a task is. Failed is completed too."""

    RUNNING = 0
    SUCCEEDED = 1
    FAILED = 2


class Task(task.WhenAnyTask[Any]):
    """A task with the face that Durable Functions has, for one of the SDK's that does the work.

    It is a composite of that one: so the engine knows it as a task, it may be part of other composites,
    and who wins a race is the very object that the orchestrator has in hand.
    """

    def __init__(self, *tasks: task.Task[Any]) -> None:
        super().__init__(list(tasks))

    @property
    def ended_by(self) -> task.Task[Any]:
        """The task that completed this one. Raises ValueError before that."""
        return super().get_result()

    @property
    def exception(self) -> Exception | None:
        """Why it has failed, else None."""
        return _failure_of(self.ended_by) if self.is_complete else None

    # What the engines and the SDK's composites ask

    @property
    def is_failed(self) -> bool:
        return self.exception is not None

    def get_exception(self) -> Any:
        exception = self.exception
        if exception is None:
            raise ValueError("The task has not failed.")
        return exception

    def get_result(self) -> Any:
        exception = self.exception
        if exception is not None:
            raise exception
        return self.ended_by.get_result()

    # What orchestrators ask

    @property
    def state(self) -> TaskState:
        if not self.is_complete:
            return TaskState.RUNNING
        return TaskState.FAILED if self.is_failed else TaskState.SUCCEEDED

    @property
    def is_completed(self) -> bool:
        """Whether it has ended, as failed too."""
        return self.is_complete

    @property
    def is_faulted(self) -> bool:
        return self.is_failed

    @property
    def result(self) -> Any:
        """The result; the exception of a failed task; None while it runs. Never raises."""
        if not self.is_complete:
            return None
        exception = self.exception
        return self.get_result() if exception is None else exception


class TimerTask(Task):
    """A timer, which can be cancelled while it runs."""

    def __init__(self, timer: task.TimerTask) -> None:
        self._timer = timer
        super().__init__(timer)

    @property
    def is_cancelled(self) -> bool:
        return self._timer.is_cancelled

    def cancel(self) -> None:
        """Give the timer up. Raises ValueError once it has fired."""
        if not self._timer.cancel() and not self._timer.is_cancelled:
            raise ValueError("Cannot cancel a completed task.")


class AllTask(Task):
    """Ends with the last of its tasks, or with the first that fails: so it is in Durable Functions."""

    def __init__(self, tasks: list[task.Task[Any]]) -> None:
        # The SDK tells a composite of each task once, of those that are complete at once.
        self._open = len({id(each) for each in tasks})
        self._all = tasks
        if not tasks:
            nothing = task.CompletableTask[None]()
            nothing.complete(None)
            super().__init__(nothing)
        else:
            super().__init__(*tasks)

    def on_child_completed(self, task: task.Task[Any]) -> None:
        self._open -= 1
        if self._open <= 0 or _failure_of(task) is not None:
            super().on_child_completed(task)

    def get_result(self) -> Any:
        super().get_result()  # raises where there is none
        return [each.get_result() for each in self._all]


class AnyTask(Task):
    """Ends with the first of its tasks that ends, well or not, and gives that task."""

    @property
    def exception(self) -> None:
        return None

    def get_result(self) -> task.Task[Any]:
        return self.ended_by


class Relay(task.CompositeTask[Any]):
    """Hands on what a task brings. Nobody waits for the relay itself."""

    def __init__(self, source: task.Task[Any], hand_on: Callable[[Any], None]) -> None:
        self._hand_on = hand_on
        super().__init__([source])

    def on_child_completed(self, task: task.Task[Any]) -> None:
        self._hand_on(task.get_result())


def _failure_of(ended: task.Task[Any]) -> Exception | None:
    if ended.is_failed:
        return ended.get_exception()
    if isinstance(ended, task.CancellableTask) and ended.is_cancelled:
        return task.TaskCancelledError("The task was cancelled.")
    return None


def tasks_of(method: str, given: Iterable[Any]) -> list[task.Task[Any]]:
    """What ``method`` was given, as a list. Raises TypeError where something in it is no task."""
    tasks = list(given)
    for each in tasks:
        if not isinstance(each, task.Task):
            raise TypeError(f"{method} takes a list of tasks, not of {type(each).__name__!r}")
    return tasks
