"""Behaviours by themselves: what they cost, how they combine, what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import pytest

from broker.messages import MAX_DETAIL_CHARS, DownloadCompletedAck, Event
from devices.behaviours import (
    BUILT_IN,
    HEALTHY,
    NO_LIMITS,
    Behaviour,
    Catalogue,
    Combined,
    Controls,
    Failure,
    FailureKind,
    Outcome,
    Refusal,
    Sending,
    Spoils,
    Step,
)
from devices.behaviours.answers import LateAck, LostAck
from devices.behaviours.base import outcome_of
from devices.behaviours.network import Lossy, Slow
from devices.dice import Dice, device_seed, share_of
from devices.errors import FleetSpecError
from devices.statistics import COUNTERS, GAUGES, Counters, Histogram, Latencies, document, merge
from provisioning.retries import KINDS
from provisioning.settings import RunOptions


def never(behaviour: Behaviour, method: str, error: Exception) -> None:
    raise AssertionError(method) from error


@pytest.mark.parametrize(
    ("name", "once", "three_times"),
    [
        ("healthy", "provisioned", "provisioned"),
        ("slow", "provisioned", "provisioned"),
        ("lossy", "provisioned", "provisioned"),
        ("flaky", "provisioned", "provisioned"),
        ("offline", "provisioned", "provisioned"),
        ("sleepy", "provisioned", "provisioned"),
        ("reboot", "provisioned", "provisioned"),
        ("reboot-afresh", "provisioned", "provisioned"),
        ("corrupt", "failed", "provisioned"),
        ("truncated", "failed", "provisioned"),
        ("out-of-storage", "failed", "failed"),
        ("bad-signature", "failed", "failed"),
        ("expired-url", "failed", "provisioned"),
        ("rejects", "rejected", "rejected"),
        ("never-answers", "timed_out", "timed_out"),
        ("hangs", "timed_out", "timed_out"),
        ("duplicate-ack", "provisioned", "provisioned"),
        ("late-ack", "timed_out", "provisioned"),
        ("lost-ack", "timed_out", "provisioned"),
        ("wrong-ack", "timed_out", "provisioned"),
        ("malformed", "provisioned", "provisioned"),
        ("impostor", "provisioned", "provisioned"),
        ("clock-skew", "provisioned", "provisioned"),
        ("corrupt+lost-ack", "failed", "provisioned"),
        ("slow+rejects+never-answers", "timed_out", "timed_out"),
        # Which comes first in an attempt does not depend on the order of the names.
        ("expired-url+rejects", "rejected", "rejected"),
        ("expired-url+hangs(after=notified)", "timed_out", "timed_out"),
        ("hangs(after=downloading)+expired-url", "failed", "timed_out"),
        ("hangs(after=downloaded)+bad-signature", "failed", "failed"),
        ("corrupt+hangs(after=downloading)", "timed_out", "timed_out"),
        ("truncated(at_fraction=0.9)+hangs(after=downloading)", "timed_out", "timed_out"),
        ("hangs(after=downloading)+truncated(at_fraction=0.1)", "failed", "timed_out"),
    ],
)
def test_each_says_how_the_provisioning_should_end(name: str, once: Outcome, three_times: Outcome) -> None:
    for seed in range(5):
        assert Catalogue().expected_outcome(name, seed, max_attempts=1) == once
        assert Catalogue().expected_outcome(name, seed, max_attempts=3) == three_times


def test_all_built_in_behaviours_are_told_above() -> None:
    (marker,) = (
        mark
        for mark in test_each_says_how_the_provisioning_should_end.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    )
    assert {row[0] for row in marker.args[1]} >= BUILT_IN.keys()


@pytest.mark.parametrize(
    ("costs", "max_attempts", "outcome"),
    [
        # The first two attempts fail one way, the third another: that is what the service sees last.
        ([("failed", Step.NOTIFIED, 2), ("timed_out", Step.DOWNLOADED, 0)], 2, "failed"),
        ([("failed", Step.NOTIFIED, 2), ("timed_out", Step.DOWNLOADED, 0)], 3, "timed_out"),
        # What strikes first in an attempt hides what would strike later.
        ([("timed_out", Step.DOWNLOADED, 0), ("failed", Step.NOTIFIED, 0)], 3, "failed"),
        ([("failed", Step.NOTIFIED, 1), ("rejected", Step.DOWNLOADED, 0)], 5, "rejected"),
        # Activations are tried as often as downloads, by themselves.
        ([("failed", Step.NOTIFIED, 1), ("failed", Step.ACTIVATING, 1)], 2, "provisioned"),
        ([("timed_out", Step.ACTIVATING, 0)], 3, "timed_out"),
    ],
)
def test_the_last_attempt_decides(
    costs: list[tuple[Outcome, Step, int]], max_attempts: int, outcome: Outcome
) -> None:
    spoils = [Spoils(outcome=what, step=step, attempts=attempts) for what, step, attempts in costs]
    assert outcome_of(spoils, max_attempts=max_attempts) == outcome


@pytest.mark.parametrize(
    ("name", "limits", "outcome"),
    [
        ("lost-ack", {}, "provisioned"),
        ("lost-ack", {"no_ack": 1}, "timed_out"),
        ("late-ack", {"no_ack": 1}, "timed_out"),
        ("lost-ack", {"download_failed": 1}, "provisioned"),
        ("corrupt", {"download_failed": 1}, "failed"),
        ("corrupt", {"bad_ack": 1}, "provisioned"),
        ("lost_twice", {"no_ack": 2}, "timed_out"),
        ("lost_twice", {"no_ack": 3}, "provisioned"),
        ("rejects", {"rejected": 1}, "rejected"),
        ("rejects", {}, "rejected"),
        ("hangs(after=activating)", {"activation_timeout": 1}, "timed_out"),
        # A failure of each kind is one of its own kind only.
        ("corrupt+lost-ack(attempts=2)", {"no_ack": 1}, "timed_out"),
        ("corrupt+lost-ack(attempts=2)", {"no_ack": 2}, "provisioned"),
    ],
)
def test_a_kind_of_failure_may_be_tried_less_often(
    name: str, limits: dict[str, int], outcome: Outcome
) -> None:
    name = name.replace("lost_twice", "lost-ack(attempts=2)")
    assert Catalogue().expected_outcome(name, 1, max_attempts=4, limits=limits) == outcome


def test_rejections_may_be_tried_again() -> None:
    costs = [Spoils(outcome="rejected", step=Step.NOTIFIED, attempts=1)]
    assert outcome_of(costs, max_attempts=3) == "rejected"
    assert outcome_of(costs, max_attempts=3, limits={"rejected": 2}) == "provisioned"


def test_a_behaviour_may_say_what_kind_of_failure_it_costs() -> None:
    costs = [Spoils(outcome="failed", step=Step.DOWNLOADED, attempts=1, kind="bad_ack")]
    assert outcome_of(costs, max_attempts=3, limits={"bad_ack": 1}) == "failed"
    assert outcome_of(costs, max_attempts=3, limits={"download_failed": 1}) == "provisioned"


def test_the_kinds_are_the_services() -> None:
    assert get_args(FailureKind) == KINDS
    assert RunOptions().attempts_by_kind() == NO_LIMITS


def test_combined_behaviours_add_up() -> None:
    combined = Combined(
        [Slow(bandwidth_bytes_per_s=500), Slow(bandwidth_bytes_per_s=300), Lossy(loss=0.0, jitter_s=0.0)],
        never,
    )
    assert combined.rate_bytes_per_s == 300
    assert combined.delay_s("in", Dice(1)) == pytest.approx(0.2)
    assert combined.delay_s("chunk", Dice(1)) == 0
    assert combined.delays
    assert not combined.interferes


def test_parameters_may_follow_a_name() -> None:
    combined = Catalogue().make(
        "reboot(keep_download=false,boot_s=3)+hangs(after=activating)", Dice(1), never
    )
    reboot, hangs = combined.behaviours
    assert "keep_download=False, boot_s=3.0" in repr(reboot)
    assert "after='activating'" in repr(hangs)
    for name, words in (
        ("hangs(after=x)", r"behaviours.after: after must be one of"),
        (
            "hangs(before=notified)",
            "behaviours.before: there is no such parameter",
        ),
        ("reboot(keep_download=maybe)", r"behaviours.keep_download: 'maybe' is no true or false"),
        ("slow(bandwidth_bytes_per_s=1.5)", r"'1.5' is no whole number"),
        ("slwo(x=1)", r"unknown behaviour 'slwo'; did you mean 'slow'"),
    ):
        with pytest.raises(FleetSpecError, match=words):
            Catalogue().check(name, key="behaviours")


def test_healthy_devices_share_one_that_has_no_say_in_anything() -> None:
    assert Catalogue().make("healthy", Dice(1), never) is HEALTHY
    says = (HEALTHY.interferes, HEALTHY.delays, HEALTHY.damages, HEALTHY.answers)
    assert not any(says)


def test_what_is_drawn_for_a_device_follows_from_its_seed() -> None:
    def drawn(seed: int) -> list[str]:
        return [
            repr(behaviour)
            for behaviour in Catalogue()
            .make("+".join(["slow", "offline", "hangs"]), Dice(seed), never)
            .behaviours
        ]

    assert drawn(7) == drawn(7)
    assert len({tuple(drawn(seed)) for seed in range(20)}) == 20


ACK = DownloadCompletedAck(
    instance_id="run-1:dev-00001", package_id="p", attempt=1, size_bytes=1, sha256="0" * 64
)


@dataclass(kw_only=True)
class Broken(Behaviour):
    """Fails at everything."""

    def costs(self) -> Spoils | None:
        raise ZeroDivisionError

    def pauses(self) -> Sequence[float]:
        raise ZeroDivisionError

    def rate_bytes_per_s(self) -> float | None:
        raise ZeroDivisionError

    def clock_skew_s(self) -> float:
        raise ZeroDivisionError

    def trusts(self) -> bool:
        raise ZeroDivisionError

    async def at(self, step: Step, device: Controls) -> None:
        raise ZeroDivisionError

    def outgoing(self, event: Event, device: Controls) -> Iterable[Sending]:
        raise ZeroDivisionError

    def received(self, chunk: bytes, offset: int, package: object) -> bytes:
        return chunk * 2

    def delay_s(self, way: object, dice: Dice) -> float:
        raise ZeroDivisionError

    def url(self, package: object) -> str:
        raise ZeroDivisionError


async def test_a_behaviour_that_fails_is_told_of_and_passed_over() -> None:
    told: list[str] = []
    combined = Combined([Broken(), LostAck()], lambda behaviour, method, error: told.append(method))
    device: Controls = None  # type: ignore[assignment]  # nobody asks it
    package = ACK  # has a url as little
    await combined.at(Step.NOTIFIED, device)
    assert combined.outgoing(ACK, device) == []
    assert combined.received(b"abc", 0, package) == b"abc"  # type: ignore[arg-type]
    assert combined.delay_s("in", Dice(1)) == 0
    assert told == ["rate_bytes_per_s", "clock_skew_s", "trusts", "at", "outgoing", "received", "delay_s"]
    assert (combined.rate_bytes_per_s, combined.clock_skew_s, combined.trusts) == (None, 0, True)
    told.clear()
    assert combined.pauses() == []
    assert combined.expected_outcome(max_attempts=1) == "timed_out"
    assert told == ["pauses", "costs"]


def test_what_cannot_be_said_to_the_service_is_no_reason() -> None:
    with pytest.raises(ValueError, match=r"^reason must be lower-case words"):
        Failure("Not to my taste")
    with pytest.raises(FleetSpecError, match="reason must be lower-case words"):
        Catalogue().check("rejects(reason=Wrong Model)", key="behaviours")
    assert len(Refusal("wrong-model", "x" * 5_000).detail) == MAX_DETAIL_CHARS


def test_an_ack_is_late_once_whatever_else_is_spoilt() -> None:
    with pytest.raises(FleetSpecError, match="no such parameter"):
        Catalogue().check("late-ack(attempts=2)", key="behaviours")
    assert Catalogue().expected_outcome("late-ack+corrupt", 1, max_attempts=2) == "provisioned"


class Watch:
    """Controls of which only the times are asked."""

    package = None

    def true_s(self, seconds: float) -> float:
        return seconds * 10


def test_an_acknowledgement_is_late_by_the_services_clock_though_the_fleets_is_fast() -> None:
    (sending,) = LateAck(late_by_s=2).outgoing(ACK, Watch())  # type: ignore[arg-type]
    assert sending.after_s == 620
    (sending,) = LateAck(late_by_s=2).outgoing(ACK.model_copy(update={"attempt": 2}), Watch())  # type: ignore[arg-type]
    assert sending.after_s == 0


# -- dice -------------------------------------------------------------------------------------------


def test_dice_are_fair_and_the_same_for_the_same_seed() -> None:
    dice = Dice(device_seed(1, "dev-00001"))
    numbers = [dice.number("x") for _ in range(4_000)]
    assert numbers == [Dice(device_seed(1, "dev-00001")).number("x"), *numbers[1:]]
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.03)
    assert {dice.whole("w", 1, 3) for _ in range(100)} == {1, 2, 3}
    assert 700 < sum(dice.chance("c", 0.2) for _ in range(4_000)) < 900


def test_choices_about_one_thing_do_not_depend_on_those_about_another() -> None:
    one, other = Dice(5), Dice(5)
    one.number("jitter")
    assert one.number("offline for") == other.number("offline for")


def test_each_throw_is_traced() -> None:
    seen: list[tuple[str, str, int, float]] = []
    dice = Dice(5, device_id="dev-1", trace=lambda *throw: seen.append(throw))
    dice.number("a")
    dice.number("b")
    dice.number("a")
    assert [(device, what, nth) for device, what, nth, _ in seen] == [
        ("dev-1", "a", 0),
        ("dev-1", "b", 0),
        ("dev-1", "a", 1),
    ]


def test_shares_of_devices_are_even() -> None:
    inside = sum(share_of(device_seed(1, f"dev-{number}")) < 0.25 for number in range(4_000))
    assert 900 < inside < 1_100


# -- statistics -------------------------------------------------------------------------------------


def test_percentiles_are_exact_to_a_tenth_and_add_up_over_processes() -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for milliseconds in range(1, 1_001):
        (one if milliseconds % 2 else other).observe(milliseconds / 1000)
        both.observe(milliseconds / 1000)
    one.add(other.to_document())
    assert one.to_document() == both.to_document()
    for percent in (1, 50, 95, 99, 100):
        exact = percent / 100
        assert exact * 0.999 <= (both.percentile(percent) or 0) <= exact * 1.101
    assert Histogram().percentile(50) is None
    assert both.cumulative()[-1][1] == both.count == 1000


def test_documents_of_processes_add_up() -> None:
    def process(connects: int, connected: int, ack_s: float) -> dict[str, object]:
        latencies = Latencies()
        latencies.ack.observe(ack_s)
        group = dict.fromkeys(GAUGES, 0) | {"devices": 10, "connected": connected}
        return document(Counters(connects=connects), latencies, {"line": group}, uptime_s=float(connects))

    merged = merge([process(3, 7, 0.1), process(4, 8, 0.2)])
    assert (merged["connects"], merged["connected"], merged["devices"]) == (7, 15, 20)
    assert merged["groups"]["line"]["connected"] == 15
    assert merged["latencies"]["ack"]["count"] == 2
    assert merged["uptime_s"] == 4.0
    empty = merge([])
    assert {empty[name] for name in (*COUNTERS, *GAUGES)} == {0}
    assert empty["latencies"]["ack"]["p50_s"] is None
