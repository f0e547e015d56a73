"""Activities that are tried again for a while, by orchestration time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import Any

from durabletask import task
from durabletask.task import OrchestrationContext, TaskFailedError

Flow = Generator[task.Task[Any], Any, Any]
Json = dict[str, Any]

_FIRST_RETRY = timedelta(seconds=0.5)
_LONGEST_RETRY = timedelta(seconds=5)
_MAX_RETRIES = 900


class OutOfTimeError(Exception):
    """One of the timers (or other tasks) is there first that a call was raced with.

    ``failure`` is that of the call's last try, if any.
    """

    def __init__(self, failure: str | None) -> None:
        super().__init__(failure)
        self.failure = failure


def call_patiently(
    ctx: OrchestrationContext,
    activity: str,
    request: Json,
    *,
    tolerance_s: float,
    timers: Sequence[task.Task[Any]] = (),
) -> Flow:
    """The result of an activity, tried again for `tolerance_s` seconds: after 0.5, 1, 2, 4, 5, 5 … s.

    Raises TaskFailedError, of the last try. Where it would be very many tries they are further apart, for
    the history's sake. By orchestration time, which the SDK's RetryPolicy is not: its worker compares
    `retry_timeout` with the wall clock, in replay too, so that on a remote engine a try that succeeded is
    taken back as soon as the time has run out.

    As soon as one of the `timers` has fired it is OutOfTimeError, also while a try is running: that goes on,
    and nobody waits for it. Of a try and a timer the one counts that the history has first.
    """
    began = ctx.current_utc_datetime
    delay = _FIRST_RETRY
    longest = max(_LONGEST_RETRY, timedelta(seconds=tolerance_s / _MAX_RETRIES))
    failure: str | None = None
    while True:
        if any(timer.is_complete for timer in timers):
            raise OutOfTimeError(failure)
        running: task.CompletableTask[Any] = ctx.call_activity(activity, input=request)
        try:
            if not timers:
                return (yield running)
            yield task.when_any([running, *timers])
            if not running.is_complete:
                raise OutOfTimeError(failure)
            return running.get_result()
        except TaskFailedError as error:
            if ctx.current_utc_datetime - began >= timedelta(seconds=tolerance_s):
                raise
            failure = error.details.message
        pause = ctx.create_timer(delay)
        if not timers:
            yield pause
        else:
            yield task.when_any([pause, *timers])
            if not pause.is_complete:
                pause.cancel()
                raise OutOfTimeError(failure)
        delay = min(delay * 2, longest)
