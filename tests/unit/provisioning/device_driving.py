"""One device's orchestration on the engine's pure core, with a clock that is moved by hand.

After each turn the driver compares the live run with a replay of its history.
"""

from __future__ import annotations

import json
from typing import Any

from provisioning.engine.completion import Turn
from provisioning.engine.records import Kind, Message
from provisioning.orchestrations import DeviceProvisioningOrchestration
from tests.unit.engine.driving import SECOND, START, Driver, output_of

Json = dict[str, Any]
GOOD = {"package_id": "pkg-1", "size_bytes": 100, "sha256": "a" * 64}
PACKAGE = {**GOOD, "release": "demo-1.0.0", "url": "http://127.0.0.1/p?sig=top-secret"}
ANSWERS: Json = {"CreateInstallationPackage": PACKAGE}


class Course:
    """A device's way; what its orchestration has asked for and not got yet is in `open`."""

    def __init__(self, options: Json | None = None, *, device_id: str = "dev-1", **more: Any) -> None:
        """``more`` goes into the input."""
        self.driver = Driver(DeviceProvisioningOrchestration, instance_id=f"run-1:{device_id}")
        self.open: dict[int, tuple[str, float | None]] = {}
        """By task id: the activity's name, or "timer" and when it is due, in seconds from the start."""
        self.calls: list[str] = []
        self.requests: list[Json] = []
        self.ended: Turn | None = None
        start = Message(
            Kind.EXECUTION_STARTED,
            name="main",
            data=json.dumps({"device_id": device_id, "options": options or {}, **more}),
        )
        self.driver.now -= SECOND  # the first turn is at zero
        self.turn(start, after_s=1.0)

    @property
    def now_s(self) -> float:
        return (self.driver.now - START) / SECOND

    def turn(self, *messages: Message, after_s: float = 0.0) -> None:
        """One turn, so much later than the last one."""
        turn = self.driver.turn(*messages, after_s=after_s)
        for message in messages:
            self.open.pop(message.task_id, None)
        for task_id in turn.cancelled_timers:
            self.open.pop(task_id, None)
        for action in turn.actions:
            if action.kind == Kind.TIMER_CREATED:
                assert action.due is not None
                self.open[action.task_id] = ("timer", (action.due - START) / SECOND)
            else:
                assert action.name is not None
                self.open[action.task_id] = (action.name, None)
                self.calls.append(action.name)
                self.requests.append(json.loads(action.data or "null"))
        if turn.completion is not None:
            self.ended = turn

    def running(self) -> tuple[int, str]:
        """The activity that runs: the latest."""
        return [(task_id, name) for task_id, (name, due) in self.open.items() if due is None][-1]

    def done(self, *, after_s: float = 0.0) -> None:
        """The activity that runs succeeds."""
        task_id, name = self.running()
        self.turn(self.driver.done(task_id, ANSWERS.get(name)), after_s=after_s)

    def failed(self, *, after_s: float = 0.0) -> None:
        """The activity that runs fails."""
        self.turn(self.driver.failed(self.running()[0], "the wire is cut"), after_s=after_s)

    def timers(self) -> list[float]:
        """When timers are due, in seconds from the start."""
        return sorted(due for _, due in self.open.values() if due is not None)

    def next_timer(self) -> Message:
        """What the timer says that is due first."""
        task_id = min((due, task_id) for task_id, (_, due) in self.open.items() if due is not None)[1]
        return self.driver.fired(task_id)

    def fire(self) -> float:
        """The time of the next timer comes; returns for how long that took."""
        message = self.next_timer()
        after_s = self.timers()[0] - self.now_s
        self.turn(message, after_s=after_s)
        return after_s

    def event(self, name: str, *, after_s: float = 0.0, attempt: int = 1, **data: Any) -> None:
        self.turn(self.message(name, attempt=attempt, **data), after_s=after_s)

    def message(self, name: str, *, attempt: int = 1, **data: Any) -> Message:
        return self.driver.event(name, {"package_id": "pkg-1", "attempt": attempt, **data})

    def ack(self, *, attempt: int = 1, after_s: float = 0.0, **data: Any) -> None:
        self.event("DownloadCompletedAck", attempt=attempt, after_s=after_s, **{**GOOD, **data})

    def to_downloading(self) -> None:
        """Packaged, and the device notified."""
        self.done()
        self.done()

    def to_activating(self, *, attempt: int = 1) -> None:
        """Downloaded, and the command to activate given."""
        self.to_downloading()
        self.ack(attempt=attempt)
        self.done()

    def status(self) -> Json:
        """The custom status."""
        found: Json = json.loads(self.driver.execution.custom_status or "null")
        return found

    def outcome_of_the_end(self) -> Json:
        """The outcome of an orchestration that has ended."""
        assert self.ended is not None, "the orchestration has not ended"
        outcome: Json = output_of(self.ended)
        return outcome

    def outcome(self) -> Json:
        """The outcome, which is recorded first; nothing may be left that somebody waits for."""
        assert self.running()[1] == "RecordOutcome"
        request = self.requests[-1]
        self.turn(self.driver.done(self.running()[0]))
        outcome = self.outcome_of_the_end()
        assert self.timers() == [], "timers were left behind"
        assert request["state"] == outcome["state"]
        return outcome

    def kinds(self) -> list[str]:
        """The history, by kind."""
        return [Kind(event.kind).name for event in self.driver.history]
