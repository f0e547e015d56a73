"""When a failed activity or sub-orchestration is tried again."""

from __future__ import annotations

from datetime import timedelta

from durabletask import task

_LONGEST_S = 10 * 365 * 86_400.0
_MICROSECOND = timedelta(microseconds=1)


class Retry:
    """The state of one task's retries. Times are orchestration time, in microseconds.

    The SDK compares ``retry_timeout`` with the wall clock, also in replay, by which a retry that
    succeeded can become a failure later; here the orchestration's own time decides, so a replay
    always takes the way of the first run.
    """

    __slots__ = ("attempt", "policy", "started_at")

    def __init__(self, policy: task.RetryPolicy, *, started_at: int) -> None:
        self.policy = policy
        self.started_at = started_at
        self.attempt = 1

    def next_delay(self, now: int) -> int | None:
        """Microseconds to wait after the failure of the present attempt, or None: no more attempts.

        ``min(first_retry_interval * backoff_coefficient ** (attempt - 1), max_retry_interval)``.
        """
        policy = self.policy
        if self.attempt >= policy.max_number_of_attempts:
            return None
        coefficient = policy.backoff_coefficient or 1.0
        try:
            delay_s = policy.first_retry_interval.total_seconds() * coefficient ** (self.attempt - 1)
        except OverflowError:
            delay_s = _LONGEST_S
        delay_s = min(delay_s, _LONGEST_S)
        if policy.max_retry_interval is not None:
            delay_s = min(delay_s, policy.max_retry_interval.total_seconds())
        delay = round(delay_s * 1_000_000)
        if policy.retry_timeout is not None:
            allowed = policy.retry_timeout // _MICROSECOND
            if now + delay >= self.started_at + allowed:
                return None
        return delay
