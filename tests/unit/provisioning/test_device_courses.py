"""Whatever comes, in whatever order: a device ends within its bounds, and each turn is as its replay."""

from __future__ import annotations

import random

from provisioning.engine.records import Message
from provisioning.retries import KINDS
from provisioning.settings import RunOptions
from tests.unit.provisioning.device_driving import GOOD, PACKAGE, Course, Json

SEEDS = 300
FINAL = {"provisioned", "failed", "timed_out", "rejected", "cancelled"}
EVENTS = (
    *("DownloadCompletedAck", "DownloadCompletedAck", "DownloadFailed", "PackageRejected", "DeviceReturned"),
    *("DeviceReturned", "ActivationCompleted", "ActivationFailed", "ActivationFailed", "CancelProvisioning"),
)


def options_of(dice: random.Random) -> Json:
    """Options that are bound to be reached."""
    options: Json = {
        "max_attempts": dice.randint(1, 5),
        "ack_timeout_s": dice.choice([5, 60]),
        "outage_tolerance_s": dice.choice([0, 3, 300]),
    }
    for name in ("packaging_timeout_s", "notifying_timeout_s", "device_timeout_s"):
        if dice.random() < 0.4:
            options[name] = dice.choice([2, 10, 100])
    retries: Json = {}
    for kind in dice.sample(KINDS, dice.randint(0, len(KINDS))):
        retries[kind] = {"max_attempts": dice.randint(1, options["max_attempts"])}
        if retries[kind]["max_attempts"] > 1 and dice.random() < 0.7:
            retries[kind] |= {"delay_s": dice.choice([1, 30]), "factor": dice.choice([1, 2]), "jitter": 0.5}
    return {**options, "retries": retries}


def message_of(dice: random.Random, course: Course, taken: set[int]) -> Message:
    """An answer to what is open, or something that the device or an operator says."""
    asked = [task_id for task_id in course.open if task_id not in taken]
    if not asked or dice.random() < 0.4:
        data = {**GOOD, "attempt": dice.randint(1, 3), "reason": dice.choice(["x", "package-not-present"])}
        if dice.random() < 0.2:
            data["sha256"] = "b" * 64
        return course.driver.event(dice.choice(EVENTS), data)
    activities = [task_id for task_id in asked if course.open[task_id][1] is None]
    if not activities or dice.random() < 0.4:
        due = [task_id for task_id in asked if (course.open[task_id][1] or 1e9) <= course.now_s]
        if not due:
            return course.driver.event("DeviceReturned")
        taken.add(due[0])
        return course.driver.fired(due[0])
    task_id = dice.choice(activities)
    taken.add(task_id)
    name = course.open[task_id][0]
    if name != "RecordOutcome" and dice.random() < 0.2:
        return course.driver.failed(task_id)
    return course.driver.done(task_id, PACKAGE if name == "CreateInstallationPackage" else None)


def test_a_device_ends_within_its_bounds_whatever_comes() -> None:
    reached: set[str] = set()
    for seed in range(SEEDS):
        dice = random.Random(seed)
        given = options_of(dice)
        options = RunOptions.from_json(given)
        course = Course(given)
        for _ in range(2_000):
            if course.ended is not None:
                break
            # What is left over of raced activities comes late, or never.
            if not course.timers() or dice.random() < 0.6:
                taken: set[int] = set()
                messages = [message_of(dice, course, taken) for _ in range(dice.choice([1, 1, 2, 3]))]
                course.turn(*messages, after_s=dice.choice([0, 0.5, 2]))
            else:
                course.turn(course.next_timer(), after_s=max(0.0, course.timers()[0] - course.now_s))
        assert course.ended is not None, seed
        outcome = course.outcome_of_the_end()
        assert outcome["state"] in FINAL, seed
        assert 1 <= outcome["attempts"] <= options.max_attempts, seed
        sent = [request["attempt"] for request in course.requests if "package" in request]
        assert sent == sorted(sent), seed
        for kind in KINDS:
            waits = [step for step in outcome["steps"] if step.get("retrying_after") == kind]
            if not kind.startswith("activation"):
                assert len(waits) < max(options.attempts(kind), 1), (seed, kind)
        reached |= {outcome["state"], *(step["step"] for step in outcome["steps"])}
        reached.add(str(outcome["error"]).partition(" (")[0])
    assert reached > FINAL | {"waiting"}
    assert reached > {"deadline of the device", "deadline of packaging", "deadline of notifying"}
