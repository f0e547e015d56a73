"""Histories recorded by earlier versions of the engine: this one must still replay them.

Each file of ``histories/`` holds a history as the state file had it, and what became of it. They are
written once, by ``python -m tests.unit.engine.test_histories NAME`` with a name of :data:`RECORDINGS`,
and never changed: a history that no longer replays is an instance that an update would break.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask import task

from provisioning.engine import failures
from provisioning.engine.records import HistoryEvent, Kind, Message, Status
from tests.unit.engine.driving import Ctx, Driver, Steps, Task, asked, failure_of, output_of, snapshot

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


def collects(ctx: Ctx, state: list[Any]) -> Steps:
    """An eternal orchestration: three events in each execution, saved where more came."""
    had: list[Any] = []
    for _ in range(3):
        had.append((yield ctx.wait_for_external_event("e")))  # noqa: PERF401 -- yields
    ctx.set_custom_status(len(state))
    if len(state) < 2:
        ctx.continue_as_new([*state, had], save_events=True)
        return None
    return [*state, had]


def record_carried() -> list[HistoryEvent]:
    """The second execution of one that took its events along, and the keys of those before."""
    driver = Driver(collects, instance_id="eternal")
    driver.start([])
    driver.turn(driver.event("other", "kept", key="k-other"))
    turn = driver.turn(*(driver.event("E", n, key=f"k{n}") for n in range(5)))
    assert turn.completion is not None
    driver.continue_as_new(turn.completion)
    return driver.history


def retries(ctx: Ctx, _: Any) -> Steps:
    """Children and activities that are tried again, side by side."""
    policy = task.RetryPolicy(
        first_retry_interval=timedelta(seconds=5),
        max_number_of_attempts=3,
        backoff_coefficient=2.0,
        max_retry_interval=timedelta(seconds=8),
        retry_timeout=timedelta(minutes=5),
    )
    child: task.Task[Any] = ctx.call_sub_orchestrator("Child", input="in", retry_policy=policy)
    activity: task.Task[Any] = ctx.call_activity("Activity", retry_policy=policy)
    both = yield task.when_all([child, activity])
    return [both, (yield ctx.call_sub_orchestrator("Last"))]


def record_retries() -> list[HistoryEvent]:
    driver = Driver(retries, instance_id="retries")
    driver.start()
    driver.turn(driver.child_failed(1), driver.failed(2))
    driver.turn(driver.fired(3), after_s=5)
    driver.turn(driver.fired(4), driver.child_failed(1, "again"))
    driver.turn(driver.done(2, "a"))
    driver.turn(driver.fired(5), after_s=8)
    return driver.history


def sleeps(ctx: Ctx, _: Any) -> Steps:
    """A timer of three pieces, raced by an event; one that is over, one that is cancelled."""
    long, cancelled = ctx.create_timer(timedelta(days=8)), ctx.create_timer(timedelta(days=4))
    yield ctx.wait_for_external_event("cancel")
    cancelled.cancel()
    winner = yield task.when_any([long, ctx.wait_for_external_event("wake")])
    return [winner is long, ctx.current_utc_datetime.isoformat()]


def record_timer_pieces() -> list[HistoryEvent]:
    driver = Driver(sleeps, instance_id="sleeps")
    driver.start()
    driver.turn(driver.fired(1), driver.fired(2), after_s=3 * 86_400)
    driver.turn(driver.event("cancel"))
    driver.turn(driver.fired(3), after_s=3 * 86_400)
    return driver.history


def despairs(ctx: Ctx, _: Any) -> Steps:
    """Takes failures apart that come from several levels down."""
    seen: list[Any] = []
    calls: list[task.Task[Any]] = [ctx.call_sub_orchestrator("Child"), ctx.call_activity("Activity")]
    for call in calls:
        try:
            yield call
        except task.TaskFailedError as error:
            details: task.FailureDetails | None = error.details
            while details is not None:
                seen.append([details.error_type, details.message, details.properties])
                details = details.inner_failure
    yield ctx.wait_for_external_event("go")
    return seen


def record_deep_failures() -> list[HistoryEvent]:
    leaf = task.FailureDetails("part 7 is broken", "app.PartError", "", properties={"part": 7})
    for level in range(3, 0, -1):
        leaf = task.FailureDetails(f"level {level}", "durabletask.task.TaskFailedError", "", leaf)
    driver = Driver(despairs, instance_id="despairs")
    driver.start()
    text = failures.encode(leaf)
    driver.turn(driver.failed(2, ""), Message(Kind.CHILD_FAILED, task_id=1, data=text, execution=1))
    return driver.history


def record_suspended() -> list[HistoryEvent]:
    """Suspended with a result, a timer and events held back, after an earlier suspension."""
    driver = Driver(provisions, instance_id="run:dev-1")
    driver.start("dev-1")
    driver.turn(driver.suspend(), driver.done(1, "package-1"))
    driver.turn(driver.resume())
    driver.turn(driver.done(2))
    driver.turn(driver.event("noise", 1, key="k1"), driver.suspend())
    driver.turn(driver.fired(3), driver.event("Ack", "late", key="k2"))
    return driver.history


def record_terminated() -> list[HistoryEvent]:
    driver = Driver(provisions, instance_id="run:dev-1")
    driver.start("dev-1")
    driver.turn(driver.done(1, "package-1"), driver.suspend())
    driver.turn(driver.done(2), driver.terminate({"why": ["tired", None]}))
    return driver.history


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Whose history it is, as what instance, and how it is made."""

    orchestrator: Callable[..., Any]
    instance_id: str
    record: Callable[[], list[HistoryEvent]]


RECORDINGS: dict[str, Recording] = {
    "format-1-good": Recording(orchestrator=provisions, instance_id="run:dev-1", record=record_good),
    "format-1-non-deterministic": Recording(
        orchestrator=provisions, instance_id="run:dev-1", record=record_non_deterministic
    ),
    "format-1-carried": Recording(orchestrator=collects, instance_id="eternal", record=record_carried),
    "format-1-retries": Recording(orchestrator=retries, instance_id="retries", record=record_retries),
    "format-1-timer-pieces": Recording(orchestrator=sleeps, instance_id="sleeps", record=record_timer_pieces),
    "format-1-deep-failures": Recording(
        orchestrator=despairs, instance_id="despairs", record=record_deep_failures
    ),
    "format-1-suspended": Recording(
        orchestrator=provisions, instance_id="run:dev-1", record=record_suspended
    ),
    "format-1-terminated": Recording(
        orchestrator=provisions, instance_id="run:dev-1", record=record_terminated
    ),
}


def load(name: str) -> list[HistoryEvent]:
    rows: list[Any] = json.loads((HISTORIES / f"{name}.json").read_text())["history"]
    return [HistoryEvent(*row) for row in rows]


def driver_of(name: str) -> Driver:
    """A driver that goes on from the recording."""
    recording = RECORDINGS[name]
    driver = Driver(recording.orchestrator, instance_id=recording.instance_id)
    driver.history = load(name)
    driver.now = driver.history[-1].at
    driver.reload()
    return driver


def test_a_good_history_replays_and_goes_on() -> None:
    """S-ID-5, S-EVT-8: a history of the first format: ids are deterministic, for good."""
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
    """S-FAIL-10: a non-deterministic one among them."""
    driver = driver_of("format-1-non-deterministic")
    failure = failure_of(driver.turn(driver.done(2)))
    assert failure.error_type == "durabletask.task.NonDeterminismError"
    assert "call_activity('Send') as step 1" in failure.message
    assert "call_activity('CreatePackage') as step 1" in failure.message


def test_an_execution_with_what_came_along_replays() -> None:
    """S-CAN-4, S-EVT-8: events and keys that continue_as_new took along."""
    driver = driver_of("format-1-carried")
    assert driver.turn(driver.event("e", "again", key="k0")).events == []
    turn = driver.turn(driver.event("e", 5, key="k5"))
    assert turn.completion is not None
    assert turn.completion.new_input == "[[0, 1, 2], [3, 4, 5]]"
    assert [m.data for m in turn.completion.carried] == ['["k0", "k1", "k2", "k3", "k4", "k5"]', '"kept"']


def test_retries_of_children_and_activities_replay() -> None:
    """S-RTY-2, S-RTY-5: the attempts, their timers and their ids."""
    driver = driver_of("format-1-retries")
    (waiting,) = driver.execution.outstanding(Kind.CHILD_CREATED)
    assert (waiting.task_id, waiting.ref) == (1, "retries:0001")
    last = driver.turn(driver.child_done(1, "c"))
    assert [(a.task_id, a.ref) for a in last.actions] == [(6, "retries:0006")]
    assert output_of(driver.turn(driver.child_done(6, "l"))) == [["c", "a"], "l"]


def test_a_timer_of_several_pieces_replays() -> None:
    """S-TMR-3: two pieces have fired, the third is armed; the other timer was cancelled in its second."""
    driver = driver_of("format-1-timer-pieces")
    assert [a.task_id for a in driver.execution.outstanding(Kind.TIMER_CREATED)] == [5]
    assert output_of(driver.turn(driver.fired(5), after_s=2 * 86_400))[0] is True


def test_failures_from_several_levels_down_replay() -> None:
    """S-FAIL-1, S-FAIL-4, S-FAIL-9: types, messages and properties as they were kept."""
    driver = driver_of("format-1-deep-failures")
    levels = [["durabletask.task.TaskFailedError", f"level {n}", None] for n in (1, 2, 3)]
    leaf = ["app.PartError", "part 7 is broken", {"part": 7}]
    assert output_of(driver.turn(driver.event("go"))) == [*levels, leaf, ["builtins.ValueError", "", None]]


def test_a_suspension_replays_with_what_it_holds() -> None:
    """S-LIFE-3: a timer and an event are held; the resume delivers them, in their order."""
    driver = driver_of("format-1-suspended")
    assert driver.execution.suspended
    assert driver.execution.outstanding(Kind.TIMER_CREATED) == []
    resumed = driver.turn(driver.resume())
    # The timer fired, so another attempt began and took an id for its timer; then came the event.
    assert asked(resumed) == [("EVENT_SENT", 5, "Acked"), ("CHILD_CREATED", 6, "Activate")]


def test_a_terminated_history_is_told_as_it_ended() -> None:
    """S-LIFE-5: a result that came with the termination, and was held, changes nothing."""
    history = load("format-1-terminated")
    assert (history[-1].name, history[-1].data) == ("TERMINATED", '{"why": ["tired", null]}')
    driver = driver_of("format-1-terminated")
    assert driver.execution.completion is not None
    assert driver.execution.completion.status == Status.TERMINATED
    assert driver.execution.outstanding(Kind.TASK_SCHEDULED) == []


@pytest.mark.parametrize("name", RECORDINGS)
def test_this_version_records_the_same(name: str) -> None:
    """What is on disk stays as it is until the format's number changes."""
    assert [tuple(e) for e in RECORDINGS[name].record()] == [tuple(e) for e in load(name)]


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
        ("EXECUTION_REWOUND", 18),
    ]


if __name__ == "__main__":
    chosen = sys.argv[1]
    rows = ",\n    ".join(json.dumps(list(event)) for event in RECORDINGS[chosen].record())
    text = f'{{\n  "format": 1,\n  "history": [\n    {rows}\n  ]\n}}\n'
    (HISTORIES / f"{chosen}.json").write_text(text)
