"""Histories recorded by earlier versions of the engine: this one must still replay them.

Each file of ``histories/`` holds a history as the state file had it, and what became of it. They are
written once, by ``python -m tests.unit.engine.test_histories NAME`` with a name of :data:`RECORDINGS`,
and never changed: a history that no longer replays is an instance that an update would break.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task

from provisioning.engine.records import HistoryEvent, Kind
from tests.unit.engine.driving import Ctx, Driver, Steps, Task, failure_of, output_of, snapshot

HISTORIES = Path(__file__).parent / "histories"


def provisions(ctx: Ctx, device: str) -> Steps:
    """The shape of provisioning one device: activities, a race of event and timer, retries, a child."""
    ctx.set_custom_status({"step": "packaging"})
    package = yield ctx.call_activity("CreatePackage", input=device)
    retry = task.RetryPolicy(first_retry_interval=timedelta(seconds=2), max_number_of_attempts=3)
    yield ctx.call_activity("Send", input=package, retry_policy=retry)
    ctx.set_custom_status({"step": "waiting"})
    for _attempt in range(3):
        ack, timer = ctx.wait_for_external_event("Ack"), ctx.create_timer(timedelta(seconds=60))
        winner = yield task.when_any([ack, timer])
        if winner is ack:
            timer.cancel()
            break
        ack.cancel()
    ctx.send_event("registry", "Acked", data=device)
    child: Task = ctx.call_sub_orchestrator("Activate", input=device)
    activated = yield child
    return [package, activated, ctx.new_uuid()]


def record_good() -> list[HistoryEvent]:
    driver = Driver(provisions, instance_id="run:dev-1")
    driver.start("dev-1")
    driver.turn(driver.done(1, "package-1"))
    driver.turn(driver.failed(2, "no route"))
    driver.turn(driver.suspend(), driver.fired(3))
    driver.turn(driver.resume())
    driver.turn(driver.done(2))
    driver.turn(driver.event("ack", {"late": False}, key="k1"), driver.event("noise", 1))
    return driver.history


def record_non_deterministic() -> list[HistoryEvent]:
    """By an earlier version of the code, which sent first and packaged then."""

    def earlier(ctx: Ctx, device: str) -> Steps:
        yield ctx.call_activity("Send", input=device)
        yield ctx.call_activity("CreatePackage", input=device)

    driver = Driver(earlier, instance_id="run:dev-1")
    driver.start("dev-1")
    driver.turn(driver.done(1))
    return driver.history


RECORDINGS: dict[str, Callable[[], list[HistoryEvent]]] = {
    "format-1-good": record_good,
    "format-1-non-deterministic": record_non_deterministic,
}


def load(name: str) -> list[HistoryEvent]:
    rows: list[Any] = json.loads((HISTORIES / f"{name}.json").read_text())["history"]
    return [HistoryEvent(*row) for row in rows]


def driver_of(name: str) -> Driver:
    driver = Driver(provisions, instance_id="run:dev-1")
    driver.history = load(name)
    driver.now = driver.history[-1].at
    driver.reload()
    return driver


def test_a_good_history_replays_and_goes_on() -> None:
    """STYLE 23: recorded histories are fixtures. SEMANTICS Identity: ids are deterministic, for good."""
    driver = driver_of("format-1-good")
    state = snapshot(driver.execution)
    assert list(state["pending"]) == [6]
    assert state["custom_status"] == '{"step": "waiting"}'
    assert [e.name for e in state["events"]["buffered"]] == ["noise"]
    assert state["events"]["keys"] == ["k1"]
    package, activated, made_up = output_of(driver.turn(driver.child_done(6, "yes")))
    assert (package, activated) == ("package-1", "yes")
    assert made_up == "78f77533-7368-56c2-b34f-2b4e39106d75"


def test_a_non_deterministic_history_is_found_out() -> None:
    """STYLE 23, SEMANTICS Failures: a non-deterministic one among them."""
    driver = driver_of("format-1-non-deterministic")
    failure = failure_of(driver.turn(driver.done(2)))
    assert failure.error_type == "durabletask.task.NonDeterminismError"
    assert "call_activity('Send') as step 1" in failure.message
    assert "call_activity('CreatePackage') as step 1" in failure.message


@pytest.mark.parametrize("name", RECORDINGS)
def test_this_version_records_the_same(name: str) -> None:
    """What is on disk stays as it is until the format's number changes."""
    assert [tuple(e) for e in RECORDINGS[name]()] == [tuple(e) for e in load(name)]


def test_kinds_keep_their_numbers() -> None:
    """records.Kind: the numbers are on disk: never reuse one."""
    assert [(k.name, k.value) for k in Kind] == [
        ("EXECUTION_STARTED", 1),
        ("TASK_SCHEDULED", 2),
        ("TASK_COMPLETED", 3),
        ("TASK_FAILED", 4),
        ("CHILD_CREATED", 5),
        ("CHILD_COMPLETED", 6),
        ("CHILD_FAILED", 7),
        ("TIMER_CREATED", 8),
        ("TIMER_FIRED", 9),
        ("EVENT_RAISED", 10),
        ("EVENT_SENT", 11),
        ("SUSPENDED", 12),
        ("RESUMED", 13),
        ("TERMINATED", 14),
        ("EXECUTION_COMPLETED", 15),
        ("EVENT_KEYS", 17),
    ]


if __name__ == "__main__":
    chosen = sys.argv[1]
    rows = ",\n    ".join(json.dumps(list(event)) for event in RECORDINGS[chosen]())
    text = f'{{\n  "format": 1,\n  "history": [\n    {rows}\n  ]\n}}\n'
    (HISTORIES / f"{chosen}.json").write_text(text)
