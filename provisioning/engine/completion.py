"""What a turn adds, and how an execution ended."""

from __future__ import annotations

from provisioning.engine.context import Action
from provisioning.engine.records import HistoryEvent, Message, Status


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
