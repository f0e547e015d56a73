"""Retries by kind of failure: how many, after how long, and what may come in between."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.errors import OptionError, SettingsError
from provisioning.orchestrations import _options
from provisioning.retries import KINDS, MAX_DELAY_S, Retries, RetryPolicy
from provisioning.settings import RunOptions
from tests.unit.provisioning.device_driving import Course, Json


def no_ack(course: Course, attempt: int) -> None:
    course.to_downloading()
    course.fire()


def download_failed(course: Course, attempt: int) -> None:
    course.to_downloading()
    course.event("DownloadFailed", attempt=attempt, reason="http-500")


def bad_ack(course: Course, attempt: int) -> None:
    course.to_downloading()
    course.ack(attempt=attempt, sha256="b" * 64)


def rejected(course: Course, attempt: int) -> None:
    course.to_downloading()
    course.event("PackageRejected", attempt=attempt, reason="battery-low")


def package_lost(course: Course, attempt: int) -> None:
    course.to_activating(attempt=attempt)
    course.event("ActivationFailed", attempt=attempt, reason="package-not-present")


def activation_failed(course: Course, attempt: int) -> None:
    if attempt == 1:
        course.to_downloading()
        course.ack()
    course.done()
    course.event("ActivationFailed", attempt=attempt, reason="busy")


def activation_timeout(course: Course, attempt: int) -> None:
    if attempt == 1:
        course.to_downloading()
        course.ack()
    course.done()
    course.fire()


FAILURES: dict[str, tuple[Callable[[Course, int], None], str]] = {
    "no_ack": (no_ack, "timed_out"),
    "download_failed": (download_failed, "failed"),
    "bad_ack": (bad_ack, "failed"),
    "rejected": (rejected, "rejected"),
    "package_lost": (package_lost, "failed"),
    "activation_failed": (activation_failed, "failed"),
    "activation_timeout": (activation_timeout, "timed_out"),
}


def test_all_kinds_are_tested() -> None:
    assert tuple(FAILURES) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_unless_told_otherwise_all_but_rejections_are_tried_as_often_and_at_once(kind: str) -> None:
    fail, state = FAILURES[kind]
    course = Course({"max_attempts": 3})
    attempts = 1 if kind == "rejected" else 3
    for attempt in range(1, attempts + 1):
        assert course.now_s <= (attempt - 1) * 60  # nothing is waited for but answers
        fail(course, attempt)
    outcome = course.outcome()
    assert outcome["state"] == state
    assert "waiting" not in {step["step"] for step in outcome["steps"]}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_own_number_of_attempts_and_delays(kind: str) -> None:
    fail, state = FAILURES[kind]
    policy = {"max_attempts": 4, "delay_s": 5, "factor": 3, "max_delay_s": 40}
    course = Course({"max_attempts": 9, "retries": {kind: policy}})
    for attempt, delay_s in ((1, 5), (2, 15), (3, 40)):
        fail(course, attempt)
        status = course.status()
        assert (status["step"], status["attempt"], status["retrying_after"]) == ("waiting", attempt + 1, kind)
        at = course.now_s
        assert course.fire() == delay_s
        assert course.now_s == at + delay_s
        assert status["retrying_at"] == course.status()["since"]
        assert "retrying_at" not in course.status()
    fail(course, 4)
    outcome = course.outcome()
    assert outcome["state"] == state
    waits = [step for step in outcome["steps"] if step["step"] == "waiting"]
    assert [(step["attempt"], step["retrying_after"]) for step in waits] == [(2, kind), (3, kind), (4, kind)]
    assert outcome["attempts"] == (1 if kind.startswith("activation") else 4)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_attempts_of_one_kind_leave_the_others_as_they_are(kind: str) -> None:
    fail, state = FAILURES[kind]
    options: Json = {"max_attempts": 3, "retries": {kind: {"max_attempts": 1}}}
    course = Course(options)
    fail(course, 1)
    assert course.outcome()["state"] == state
    other = no_ack if kind == "download_failed" else download_failed
    course = Course(options)
    for attempt in (1, 2, 3):
        other(course, attempt)
    assert course.outcome()["attempts"] == 3


def test_the_number_of_attempts_bounds_failures_of_all_kinds_together() -> None:
    limits = {kind: {"max_attempts": 2} for kind in ("no_ack", "download_failed", "bad_ack")}
    course = Course({"max_attempts": 3, "retries": limits})
    no_ack(course, 1)
    download_failed(course, 2)
    bad_ack(course, 3)
    outcome = course.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("failed", 3)


def test_the_delay_grows_by_failures_of_its_own_kind() -> None:
    policy = {"delay_s": 5, "factor": 2}
    course = Course({"max_attempts": 9, "retries": {"no_ack": policy, "download_failed": policy}})
    for attempt, (fail, delay_s) in enumerate(
        ((no_ack, 5), (download_failed, 5), (no_ack, 10), (download_failed, 10)), start=1
    ):
        fail(course, attempt)
        assert course.fire() == delay_s


def waiting(**more: object) -> Course:
    """A device that has not answered in time and is to be tried again an hour later."""
    course = Course({"retries": {"no_ack": {"delay_s": 3600}}, **more})
    no_ack(course, 1)
    assert course.status()["step"] == "waiting"
    return course


def test_a_cancellation_ends_a_wait_at_once() -> None:
    course = waiting()
    course.turn(course.driver.event("CancelProvisioning", {"reason": "by ada"}), after_s=7)
    outcome = course.outcome()
    assert (outcome["state"], outcome["error"], course.now_s) == ("cancelled", "by ada", 67)


def test_a_cancellation_ends_a_wait_for_an_activation_too() -> None:
    course = Course({"retries": {"activation_failed": {"delay_s": 3600}}})
    activation_failed(course, 1)
    course.turn(course.driver.event("CancelProvisioning", {}), after_s=7)
    assert course.outcome()["state"] == "cancelled"


def test_a_late_acknowledgement_ends_a_wait_and_counts() -> None:
    course = waiting()
    course.ack(attempt=1, after_s=7)
    assert course.running()[1] == "ActivateDevice"
    assert course.timers() == []
    course.done()
    course.event("ActivationCompleted")
    outcome = course.outcome()
    assert (outcome["state"], outcome["attempts"], course.now_s) == ("provisioned", 1, 67)
    assert course.calls.count("SendPackageUrlToDevice") == 1


def test_a_package_that_is_lost_after_a_late_acknowledgement_is_sent_as_the_next_attempt() -> None:
    course = waiting()
    course.ack(attempt=1)
    course.done()
    course.event("ActivationFailed", reason="package-not-present")
    # What it said of the first attempt must not be taken for the second.
    course.to_downloading()
    assert course.requests[-1]["attempt"] == 2
    course.ack(attempt=1)
    assert course.status()["step"] == "downloading"
    course.ack(attempt=2)
    course.done()
    assert course.requests[-1]["activation_attempt"] == 2
    course.event("ActivationCompleted", attempt=2)
    assert course.outcome()["attempts"] == 2


@pytest.mark.parametrize("again", [1, 2])
def test_what_else_comes_in_between_does_no_harm(again: int) -> None:
    course = waiting(max_attempts=2)
    due = course.timers()
    for _ in range(again):
        course.turn(course.driver.event("DeviceReturned"))
        course.event("DownloadFailed", attempt=1, reason="http-500")
        course.ack(attempt=1, sha256="b" * 64)
        course.ack(attempt=1, package_id="other")
    assert course.timers() == due
    assert course.calls.count("SendPackageUrlToDevice") == 1
    course.fire()
    # Nothing of it is left for the next attempt.
    course.to_downloading()
    assert course.calls.count("SendPackageUrlToDevice") == 2
    assert course.status()["step"] == "downloading"
    course.fire()
    outcome = course.outcome()
    assert (outcome["state"], outcome["attempts"]) == ("timed_out", 2)
    remarks = next(step["error"] for step in outcome["steps"] if step["step"] == "waiting")
    for remark in ("download failed: http-500", "bbbb", "another package, other"):
        assert remark in remarks


def test_a_rejection_that_comes_late_is_final_unless_rejections_are_tried_again() -> None:
    course = waiting()
    course.event("PackageRejected", attempt=1, reason="wrong-model", after_s=7)
    assert course.outcome()["state"] == "rejected"
    course = Course(
        {"retries": {"no_ack": {"delay_s": 60}, "rejected": {"max_attempts": 2}}, "max_attempts": 3}
    )
    no_ack(course, 1)
    course.event("PackageRejected", attempt=1, reason="battery-low")
    assert course.status()["step"] == "waiting"
    course.fire()
    course.to_downloading()
    course.event("PackageRejected", attempt=1, reason="battery-low")  # said once more: of the attempt before
    assert course.status()["step"] == "downloading"
    course.event("PackageRejected", attempt=2, reason="battery-low")
    rejected(course, 3)
    assert course.outcome()["state"] == "rejected"


def test_a_late_confirmation_ends_a_wait_for_the_next_activation() -> None:
    course = Course({"retries": {"activation_timeout": {"delay_s": 3600}}})
    activation_timeout(course, 1)
    course.turn(course.driver.event("DeviceReturned"))
    course.event("ActivationFailed", reason="busy")
    course.event("ActivationCompleted", package_id="other")
    assert course.status()["step"] == "waiting"
    course.event("ActivationCompleted", attempt=1, firmware_version="2")
    outcome = course.outcome()
    assert (outcome["state"], outcome["firmware_version"]) == ("provisioned", "2")
    assert course.calls.count("ActivateDevice") == 1


def test_jitter_parts_the_devices_and_is_the_same_each_time() -> None:
    def delay(device_id: str) -> float:
        course = Course({"retries": {"no_ack": {"delay_s": 100, "jitter": 0.5}}}, device_id=device_id)
        no_ack(course, 1)
        return course.fire()

    delays = [delay(f"dev-{number}") for number in range(20)]
    assert delays == [delay(f"dev-{number}") for number in range(20)]
    assert len(set(delays)) == 20
    assert 50 <= min(delays) < 65 < 85 < max(delays) <= 100


@given(
    st.floats(0.1, MAX_DELAY_S),
    st.floats(1, 100),
    st.one_of(st.none(), st.floats(0.1, MAX_DELAY_S)),
    st.floats(0, 1),
    st.text(max_size=20),
)
def test_delays_grow_by_the_factor_up_to_their_bound(
    delay_s: float, factor: float, most_s: float | None, jitter: float, salt: str
) -> None:
    most_s = None if most_s is None else max(most_s, delay_s)
    steady = RetryPolicy(delay_s=delay_s, factor=factor, max_delay_s=most_s)
    delays = [steady.delay_after(failures, salt) for failures in range(1, 101)]
    assert delays[0] == delay_s
    assert delays == sorted(delays)
    assert max(delays) <= (MAX_DELAY_S if most_s is None else most_s)
    for before, after in itertools.pairwise(delays):
        assert after == pytest.approx(min(before * factor, most_s or MAX_DELAY_S))
    jittered = RetryPolicy(delay_s=delay_s, factor=factor, max_delay_s=most_s, jitter=jitter)
    for failures, whole in enumerate(delays, start=1):
        assert whole * (1 - jitter) * 0.999 <= jittered.delay_after(failures, salt) <= whole
        assert jittered.delay_after(failures, salt) == jittered.delay_after(failures, salt)


@pytest.mark.parametrize(
    ("retries", "message"),
    [
        ([], "The option retries: [] is no table; give a table for each kind of failure"),
        ({"noack": {}}, "The option retries.noack: there is no such kind of failure; did you mean 'no_ack'?"),
        (
            {"slow": {}},
            "The option retries.slow: there is no such kind of failure; use no_ack, download_failed",
        ),
        ({"no_ack": 3}, "The option retries.no_ack: 3 is no table; give one, as in {max_attempts = 3"),
        (
            {"no_ack": {"delay": 3}},
            "The option retries.no_ack.delay: there is no such key; did you mean 'delay_s'?",
        ),
        (
            {"no_ack": {"max_attempts": 0}},
            "retries.no_ack.max_attempts: 0 can't be used; give a whole number from 1",
        ),
        ({"no_ack": {"max_attempts": True}}, "retries.no_ack.max_attempts: True can't be used"),
        ({"no_ack": {"max_attempts": 2.0}}, "retries.no_ack.max_attempts: 2.0 can't be used"),
        (
            {"no_ack": {"delay_s": -1}},
            "retries.no_ack.delay_s: -1 can't be used; give seconds from 0 to 604,800",
        ),
        ({"no_ack": {"delay_s": "5"}}, "retries.no_ack.delay_s: '5' can't be used"),
        ({"no_ack": {"delay_s": float("nan")}}, "retries.no_ack.delay_s: nan can't be used"),
        ({"no_ack": {"delay_s": None}}, "retries.no_ack.delay_s: null can't be used"),
        (
            {"no_ack": {"delay_s": 1, "factor": 0.5}},
            "retries.no_ack.factor: 0.5 can't be used; give a number from 1",
        ),
        (
            {"no_ack": {"delay_s": 1, "jitter": 2}},
            "retries.no_ack.jitter: 2 can't be used; give a share from 0 to 1",
        ),
        (
            {"no_ack": {"factor": 2}},
            "retries.no_ack.factor: there is no delay that it says more of; give delay_s",
        ),
        (
            {"no_ack": {"delay_s": 9, "max_delay_s": 5}},
            "max_delay_s: 5 is less than delay_s; give at least 9",
        ),
        (
            {"rejected": {"delay_s": 9}},
            "retries.rejected.delay_s: max_attempts is 1, so nothing is tried after it;",
        ),
        (
            {"no_ack": {"max_attempts": 5}},
            "5 is more than the option max_attempts, 3, which bounds all; raise that",
        ),
    ],
)
def test_what_can_not_be_is_told_by_key_with_a_remedy(retries: object, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        RunOptions.from_json({"retries": retries})
    assert message in str(caught.value)
    assert caught.value.key.startswith("retries")
    assert isinstance(caught.value, SettingsError)


def test_options_say_no_more_than_what_differs() -> None:
    """They are in the input of each device's orchestration; older ones, without them, are read as ever."""
    plain = RunOptions().to_json()
    assert set(plain) == {*("ack_timeout_s", "activation_timeout_s", "max_attempts", "outage_tolerance_s")}
    given: Json = {
        "max_attempts": 5,
        "device_timeout_s": 60.0,
        "retries": {
            "no_ack": {"max_attempts": 4, "delay_s": 5},
            "bad_ack": {},
            "rejected": {"max_attempts": 1},
        },
    }
    options = RunOptions.from_json(given)
    written = options.to_json()
    assert written == {
        **plain,
        "max_attempts": 5,
        "device_timeout_s": 60.0,
        "retries": {"no_ack": {"max_attempts": 4, "delay_s": 5}},
    }
    assert RunOptions.from_json(json.loads(json.dumps(written))) == options
    assert options.attempts_by_kind() == {"no_ack": 4, "rejected": 1}
    assert hash(options) == hash(RunOptions.from_json(written))
    assert Retries.from_json(options.retries) is options.retries


def test_the_options_of_a_run_are_read_once_for_all_its_devices() -> None:
    given: Json = {"max_attempts": 5, "retries": {"no_ack": {"delay_s": 5}}}
    assert _options(json.loads(json.dumps(given))) is _options(json.loads(json.dumps(given)))
    other: Json = {"max_attempts": 5, "retries": {"no_ack": {"delay_s": 6}}}
    assert _options(other).retries.no_ack.delay_s == 6
    assert _options(None) == _options({}) == RunOptions()
