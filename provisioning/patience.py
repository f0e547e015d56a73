"""Activities that are tried again for a while, by orchestration time."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import Any

from durabletask import task
from durabletask.task import OrchestrationContext, TaskFailedError

Flow = Generator[task.Task[Any], Any, Any]
Json = dict[str, Any]

_FIRST_RETRY = timedelta(seconds=0.5)
_LONGEST_RETRY = timedelta(seconds=5)
_MAX_RETRIES = 900


def call_patiently(ctx: OrchestrationContext, activity: str, request: Json, *, tolerance_s: float) -> Flow:
    """The result of an activity, tried again for `tolerance_s` seconds: after 0.5, 1, 2, 4, 5, 5 … s.

    Raises TaskFailedError, of the last try. Where it would be very many tries they are further apart, for
    the history's sake. By orchestration time, which the SDK's RetryPolicy is not: its worker compares
    `retry_timeout` with the wall clock, in replay too, so that on a remote engine a try that succeeded is
    taken back as soon as the time has run out.
    """
    began = ctx.current_utc_datetime
    delay = _FIRST_RETRY
    longest = max(_LONGEST_RETRY, timedelta(seconds=tolerance_s / _MAX_RETRIES))
    while True:
        try:
            return (yield ctx.call_activity(activity, input=request))
        except TaskFailedError:
            if ctx.current_utc_datetime - began >= timedelta(seconds=tolerance_s):
                raise
        yield ctx.create_timer(delay)
        delay = min(delay * 2, longest)
