"""Deadlines of one device: of its steps, and of the whole; each turn is compared with a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.provisioning.device_driving import PACKAGE, Course

DEFAULT_HISTORY = (
    *("EXECUTION_STARTED", "TASK_SCHEDULED", "TASK_FAILED", "TIMER_CREATED", "TIMER_FIRED"),
    *("TASK_SCHEDULED", "TASK_COMPLETED", "TASK_SCHEDULED", "TASK_COMPLETED", "TIMER_CREATED"),
    *("TIMER_FIRED", "TASK_SCHEDULED", "TASK_COMPLETED", "TASK_SCHEDULED", "TASK_COMPLETED"),
    *("TIMER_CREATED", "EVENT_RAISED", "TASK_SCHEDULED", "TASK_COMPLETED", "TIMER_CREATED"),
    *("EVENT_RAISED", "TASK_SCHEDULED", "TASK_COMPLETED", "EXECUTION_COMPLETED"),
)
"""Of a device whose package fails to be made once and whose first attempt times out: as it was before there
were deadlines of steps and devices, for orchestrations that were in flight then are replayed."""


def test_without_the_new_options_a_history_is_as_it_ever_was() -> None:
    course = Course({"max_attempts": 2})
    course.failed()
    assert course.fire() == 0.5
    course.to_downloading()
    assert course.fire() == 60
    course.to_downloading()
    course.ack(attempt=1)
    course.done()
    course.event("ActivationCompleted", firmware_version="2")
    assert course.outcome()["state"] == "provisioned"
    assert tuple(course.kinds()) == DEFAULT_HISTORY


def to_packaging(course: Course) -> None:
    pass


def to_a_retry_of_packaging(course: Course) -> None:
    course.failed(after_s=1)


def to_notifying(course: Course) -> None:
    course.done()


def to_downloading(course: Course) -> None:
    course.to_downloading()


def to_telling_again(course: Course) -> None:
    course.to_downloading()
    course.event("DeviceReturned")


def to_a_backoff(course: Course) -> None:
    course.to_downloading()
    course.event("DownloadFailed", reason="http-500")


def to_commanding(course: Course) -> None:
    course.to_downloading()
    course.ack()


def to_activating(course: Course) -> None:
    course.to_activating()


def to_a_backoff_of_the_activation(course: Course) -> None:
    course.to_activating()
    course.event("ActivationFailed", reason="busy")


@pytest.mark.parametrize(
    ("go_there", "step", "attempt"),
    [
        (to_packaging, "packaging", 1),
        (to_a_retry_of_packaging, "packaging", 1),
        (to_notifying, "notifying", 1),
        (to_downloading, "downloading", 1),
        (to_telling_again, "downloading", 1),
        (to_a_backoff, "waiting", 2),
        (to_commanding, "activating", 1),
        (to_activating, "activating", 1),
        (to_a_backoff_of_the_activation, "waiting", 2),
    ],
)
def test_the_devices_deadline_ends_it_in_whatever_step_it_is(
    go_there: Callable[[Course], None], step: str, attempt: int
) -> None:
    delays = {"delay_s": 600}
    course = Course(
        {
            "device_timeout_s": 50,
            "ack_timeout_s": 100,
            "activation_timeout_s": 100,
            "retries": {"download_failed": delays, "activation_failed": delays},
        }
    )
    go_there(course)
    if go_there is to_a_retry_of_packaging:
        assert course.fire() == 0.5
        course.failed()
        assert len(course.timers()) == 2  # between two tries, and the deadline
        (pause,) = [task_id for task_id, (_, due) in course.open.items() if due not in (None, 50)]
        course.open.pop(pause)  # an engine that is late with it
    course.turn(course.driver.fired(1), after_s=50 - course.now_s)
    outcome = course.outcome()
    assert (outcome["state"], course.now_s) == ("timed_out", 50)
    assert outcome["error"] == f"deadline of the device (50 s) passed in {step}, attempt {attempt}"
    assert outcome["steps"][-1]["step"] == step
    assert outcome["steps"][-1]["error"].endswith(outcome["error"])


def test_the_devices_deadline_is_over_all_attempts_and_what_lies_between() -> None:
    course = Course(
        {
            "device_timeout_s": 100,
            "ack_timeout_s": 30,
            "max_attempts": 9,
            "retries": {"no_ack": {"delay_s": 10}},
        }
    )
    for _ in range(2):
        course.to_downloading()
        assert course.fire() == 30
        assert course.fire() == 10
    course.to_downloading()
    assert course.fire() == 20
    outcome = course.outcome()
    assert (outcome["state"], outcome["attempts"], course.now_s) == ("timed_out", 3, 100)
    assert outcome["error"] == "deadline of the device (100 s) passed in downloading, attempt 3"


def test_what_the_history_has_first_counts() -> None:
    """The same turn brings the device's last word and the end of its time."""

    def both(deadline_first: bool) -> Any:
        course = Course({"device_timeout_s": 25})
        course.to_activating()
        messages = [
            course.message("ActivationCompleted", firmware_version="2"),
            course.driver.fired(1),
        ]
        course.turn(*(reversed(messages) if deadline_first else messages), after_s=25)
        return course.outcome()["state"]

    assert both(deadline_first=False) == "provisioned"
    assert both(deadline_first=True) == "timed_out"


def test_a_step_is_not_begun_once_the_devices_time_is_up() -> None:
    """The activity comes to its end in the turn of the deadline, whose timer is behind it, or even later."""
    for with_timer in (True, False):
        course = Course({"device_timeout_s": 25})
        done = course.driver.done(course.running()[0], PACKAGE)
        course.turn(done, *([course.driver.fired(1)] if with_timer else []), after_s=25)
        assert course.calls == ["CreateInstallationPackage", "RecordOutcome"]
        assert course.outcome()["error"] == "deadline of the device (25 s) passed in packaging, attempt 1"


def test_an_activity_that_ends_later_changes_nothing() -> None:
    course = Course({"device_timeout_s": 5})
    running = course.running()[0]
    course.fire()
    course.turn(course.driver.done(running, PACKAGE), after_s=1)
    assert course.calls == ["CreateInstallationPackage", "RecordOutcome"]
    assert course.outcome()["state"] == "timed_out"


def test_a_device_that_ends_in_time_leaves_no_deadline_behind() -> None:
    course = Course({"device_timeout_s": 5})
    course.to_activating()
    course.event("ActivationCompleted")
    assert course.outcome()["state"] == "provisioned"


@pytest.mark.parametrize(
    ("option", "what", "before"),
    [("packaging_timeout_s", "packaging", 0), ("notifying_timeout_s", "notifying", 1)],
)
@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "fails"])
def test_a_step_has_a_deadline_for_all_its_tries(option: str, what: str, before: int, hangs: bool) -> None:
    # Neither more nor less patient than it says, whatever outage the run would bear otherwise.
    for tolerance_s in (0.0, 600.0):
        course = Course({option: 3.0, "outage_tolerance_s": tolerance_s})
        for _ in range(before):
            course.done()
        if hangs:
            assert course.fire() == 3
        else:
            tries = len(course.calls)
            for delay_s in (0.5, 1.0):
                course.failed()
                assert course.fire() == delay_s
            course.failed()
            assert course.fire() == 1.5
            assert course.calls[tries - 1 : -1] == [course.calls[tries - 1]] * 3
        outcome = course.outcome()
        assert (outcome["state"], outcome["attempts"], course.now_s) == ("timed_out", 1, 3)
        because = "" if hangs else ": the wire is cut"
        assert outcome["error"] == f"deadline of {what} (3 s) passed{because}"


def test_a_try_that_fails_when_the_steps_time_is_up_is_the_last() -> None:
    course = Course({"packaging_timeout_s": 3.0})
    course.failed(after_s=3)  # before the timer, in the same moment
    outcome = course.outcome()
    assert (outcome["state"], outcome["error"]) == (
        "timed_out",
        "deadline of packaging (3 s) passed: the wire is cut",
    )


def test_a_step_that_is_done_in_time_goes_on_without_its_deadline() -> None:
    course = Course({"packaging_timeout_s": 3.0, "notifying_timeout_s": 4.0})
    course.failed(after_s=1)
    course.fire()
    course.done()
    assert course.timers() == [course.now_s + 4]
    course.done()
    assert course.timers() == [course.now_s + 60]
    course.event("DeviceReturned", after_s=1)
    assert course.timers()[0] == course.now_s + 4  # each time that it is told
    course.done()
    course.ack()
    course.done()
    course.event("ActivationCompleted")
    assert course.outcome()["state"] == "provisioned"


def test_a_device_has_one_more_timer_only_where_it_has_a_deadline() -> None:
    assert Course({}).timers() == []
    assert Course({"device_timeout_s": 9}).timers() == [9]


def test_an_outage_that_is_too_long_leaves_the_timer_of_the_answer_as_it_ever_did() -> None:
    """It fires in the turn that ends the device; histories that were recorded so must fit."""
    course = Course({"outage_tolerance_s": 0.0})
    course.to_downloading()
    course.event("DeviceReturned")
    sending = course.running()[0]
    course.turn(course.driver.failed(sending), course.next_timer(), after_s=60)
    assert course.kinds()[-3:] == ["TASK_FAILED", "TIMER_FIRED", "TASK_SCHEDULED"]
    assert course.outcome()["state"] == "failed"


DURING_AN_ACTIVITY = [to_packaging, to_a_retry_of_packaging, to_notifying, to_telling_again, to_commanding]


@pytest.mark.parametrize("go_there", DURING_AN_ACTIVITY)
@pytest.mark.parametrize("options", [{}, {"device_timeout_s": 100, "packaging_timeout_s": 50}])
def test_a_cancellation_does_not_wait_for_the_activity_that_runs(
    go_there: Callable[[Course], None], options: dict[str, Any]
) -> None:
    course = Course(options, cancels_activities=True)
    go_there(course)
    calls = len(course.calls)
    course.event("CancelProvisioning", reason="the rollout was cancelled", after_s=1)
    # Above all it is sent nothing after it was told to forget all that.
    assert course.calls[calls:] == ["RecordOutcome"]
    outcome = course.outcome()
    assert (outcome["state"], outcome["error"]) == ("cancelled", "the rollout was cancelled")
    assert outcome["steps"][-1]["error"] == "the rollout was cancelled"


@pytest.mark.parametrize("go_there", DURING_AN_ACTIVITY)
def test_a_device_that_began_before_that_is_replayed_as_it_was(go_there: Callable[[Course], None]) -> None:
    course = Course()
    go_there(course)
    calls = len(course.calls)
    course.event("CancelProvisioning", after_s=1)
    assert course.calls[calls:] == []


def test_a_cancellation_while_a_device_is_waited_for_is_as_before() -> None:
    course = Course(cancels_activities=True)
    course.to_downloading()
    course.event("CancelProvisioning", reason="enough")
    assert (course.outcome()["state"], course.calls.count("SendPackageUrlToDevice")) == ("cancelled", 1)
