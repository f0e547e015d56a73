"""What a rollout does next: rule by rule, and exact to the device."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.rollouts.decisions import (
    Cancel,
    End,
    Facts,
    RunWave,
    Wait,
    WaveFacts,
    decide,
    should_abort,
    success_percent,
)
from provisioning.rollouts.plan import RolloutPlan
from provisioning.states import DeviceState

NOW = datetime(2030, 1, 7, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
WAVES = [{"percent": 5}, {"percent": 25}, {"percent": 100}]


def plan_of(**document: Any) -> RolloutPlan:
    return RolloutPlan.from_json({"waves": WAVES, **document})


def wave(
    devices: int, *, pending: int = 0, held: int = 0, at: datetime | None = None, **ended: int
) -> WaveFacts:
    return WaveFacts(
        devices=devices,
        pending=pending,
        held=held,
        ended={DeviceState(state): count for state, count in ended.items()},
        ended_at=at,
    )


def facts_of(*waves: WaveFacts, **changes: Any) -> Facts:
    return Facts(**{"now": NOW, "created_at": NOW - MINUTE, "waves": waves, **changes})


FRESH = (wave(5, pending=5), wave(20, pending=20), wave(75, pending=75))
CANARY_DONE = (wave(5, provisioned=4, failed=1, at=NOW - MINUTE), *FRESH[1:])
LAST_IN_FLIGHT = (wave(5, provisioned=5), wave(20, provisioned=20), wave(75, provisioned=70, failed=4))
ALL_DONE = (wave(5, provisioned=5), wave(20, provisioned=20), wave(75, provisioned=70, failed=5))
THRESHOLD = [{"percent": 5, "success_threshold_percent": 81}, *WAVES[1:]]
APPROVAL = [{"percent": 5, "gate": "approval"}, *WAVES[1:]]
PAUSE = [{"percent": 5, "gate": "pause", "pause_s": 90}, *WAVES[1:]]
ABORT = [{"on": "failed", "threshold_percent": 20, "min_sample": 5, "action": "pause"}]
CANCEL = [ABORT[0] | {"action": "cancel"}]
ONE_OF_90 = [{"success_threshold_percent": 90}]
CONTINUOUS: dict[str, Any] = {"targets": {"continuous": True}}
LATE: dict[str, Any] = {"deadlines": {"rollout_s": 60}}
ENDED: dict[str, Any] = {"schedule": {"end_at": "2030-01-07T12:00:00Z"}}


def open_from(clock: str, *, to: str) -> dict[str, Any]:
    return {"schedule": {"windows": [{"from": clock, "to": to}]}}


def ended_by(at_end: str) -> dict[str, Any]:
    return {"schedule": {**ENDED["schedule"], "at_end": at_end}}


@pytest.mark.parametrize(
    ("document", "waves", "changes", "expected"),
    [
        # What another run has can't be started, and is waited for.
        ({}, (wave(5, pending=5, held=2), *FRESH[1:]), {}, ("run", 1, 3)),
        ({}, (wave(5, pending=2, held=2), *FRESH[1:]), {}, ("running", "overlap")),
        ({}, (wave(5, pending=5, held=5), *FRESH[1:]), {}, ("waiting", "overlap")),
        ({}, (wave(5, pending=1, held=1, provisioned=4), *FRESH[1:]), {"wave": 1}, ("waiting", "overlap")),
        # A continuous rollout ends by its end only.
        (CONTINUOUS, ALL_DONE, {"wave": 3}, ("waiting", "targets")),
        (CONTINUOUS, (wave(0), wave(0), wave(0)), {}, ("waiting", "targets")),
        (CONTINUOUS | ENDED, ALL_DONE, {"wave": 3}, ("completed",)),
        (CONTINUOUS | LATE, ALL_DONE, {"wave": 3, "started_at": NOW - MINUTE}, ("completed",)),
        (CONTINUOUS | LATE, (wave(0), wave(0), wave(0)), {}, ("completed",)),
        # Waves one after the other.
        ({}, FRESH, {}, ("run", 1, 5)),
        ({}, (wave(5, pending=2, failed=1), *FRESH[1:]), {}, ("run", 1, 4)),
        ({}, (wave(5), *FRESH[1:]), {}, ("running", "in_flight")),
        ({}, CANARY_DONE, {}, ("run", 2, 20)),
        ({}, (wave(0), wave(0), wave(3, pending=3)), {}, ("run", 3, 3)),
        ({}, LAST_IN_FLIGHT, {"wave": 3}, ("running", "in_flight")),
        ({}, ALL_DONE, {"wave": 3}, ("completed",)),
        ({}, (wave(0), wave(0), wave(0)), {}, ("completed",)),
        # In flight at once.
        ({"pace": {"in_flight": 3}}, FRESH, {}, ("run", 1, 3)),
        ({"pace": {"in_flight": 3}}, (wave(5, pending=2), *FRESH[1:]), {}, ("running", "in_flight")),
        ({"pace": {"in_flight": 3}}, (wave(5, pending=2, failed=1), *FRESH[1:]), {}, ("run", 1, 3)),
        # Thresholds: 4 of 5 are 80 %.
        ({"waves": THRESHOLD}, CANARY_DONE, {}, ("paused", "threshold")),
        ({"waves": THRESHOLD}, CANARY_DONE, {"approved_waves": frozenset({1})}, ("run", 2, 20)),
        ({"waves": THRESHOLD}, CANARY_DONE, {"approved_waves": frozenset({2})}, ("paused", "threshold")),
        ({"waves": THRESHOLD}, CANARY_DONE, {"skipped_to": 2}, ("run", 2, 20)),
        ({"waves": THRESHOLD}, CANARY_DONE, {"wave": 2}, ("run", 2, 20)),
        ({"waves": THRESHOLD}, (wave(5, provisioned=5), *FRESH[1:]), {}, ("run", 2, 20)),
        ({"waves": THRESHOLD}, (wave(5, provisioned=4, cancelled=1), *FRESH[1:]), {}, ("run", 2, 20)),
        ({"waves": THRESHOLD}, (wave(5, provisioned=4), *FRESH[1:]), {}, ("running", "in_flight")),
        ({"waves": THRESHOLD}, (wave(1, failed=1), wave(0), wave(0)), {}, ("failed",)),
        (
            {"waves": ONE_OF_90},
            (wave(10, provisioned=9, failed=1),),
            {},
            ("completed",),
        ),
        (
            {"waves": ONE_OF_90},
            (wave(10, provisioned=8, failed=2),),
            {},
            ("failed",),
        ),
        # Gates.
        ({"waves": APPROVAL}, CANARY_DONE, {}, ("awaiting_approval", "approval")),
        ({"waves": APPROVAL}, CANARY_DONE, {"approved_waves": frozenset({1})}, ("run", 2, 20)),
        ({"waves": APPROVAL}, CANARY_DONE, {"skipped_to": 2}, ("run", 2, 20)),
        ({"waves": APPROVAL}, FRESH, {}, ("run", 1, 5)),
        ({"waves": APPROVAL}, (wave(0), *FRESH[1:]), {}, ("awaiting_approval", "approval")),
        ({"waves": APPROVAL}, (wave(5, provisioned=5), wave(0), wave(0)), {}, ("completed",)),
        ({"waves": PAUSE}, CANARY_DONE, {}, ("waiting", "gate")),
        ({"waves": PAUSE}, CANARY_DONE, {"now": NOW + 0.5 * MINUTE}, ("run", 2, 20)),
        ({"waves": PAUSE}, CANARY_DONE, {"approved_waves": frozenset({1})}, ("waiting", "gate")),
        ({"waves": PAUSE}, CANARY_DONE, {"skipped_to": 2}, ("run", 2, 20)),
        ({"waves": PAUSE}, (wave(0), *FRESH[1:]), {}, ("run", 2, 20)),
        # The next wave now: what is pending before it goes first, what is in flight is not waited for.
        ({}, (wave(5, pending=1), *FRESH[1:]), {"skipped_to": 2}, ("run", 1, 5)),
        ({}, (wave(5), *FRESH[1:]), {"skipped_to": 2}, ("run", 2, 20)),
        ({"pace": {"in_flight": 7}}, (wave(5), *FRESH[1:]), {"skipped_to": 2}, ("run", 2, 2)),
        ({"pace": {"in_flight": 5}}, (wave(5), *FRESH[1:]), {"skipped_to": 2}, ("running", "in_flight")),
        ({}, (wave(5), wave(20, provisioned=20), FRESH[2]), {"skipped_to": 2}, ("run", 3, 75)),
        # Abort criteria: 1 of 5 is 20 %.
        ({"abort": ABORT}, CANARY_DONE, {}, ("paused", "abort")),
        ({"abort": ABORT}, (wave(5, provisioned=3, failed=1), *FRESH[1:]), {}, ("running", "in_flight")),
        ({"abort": ABORT}, CANARY_DONE, {"forgiven": CANARY_DONE[0].ended}, ("run", 2, 20)),
        ({"abort": CANCEL}, CANARY_DONE, {}, ("cancel", False)),
        (
            {"abort": CANCEL},
            CANARY_DONE,
            {"forgiven": CANARY_DONE[0].ended},
            ("cancel", False),
        ),
        ({"abort": ABORT, "waves": APPROVAL}, CANARY_DONE, {}, ("paused", "abort")),
        # A pause; windows.
        ({}, FRESH, {"paused": "lunch"}, ("paused", "pause")),
        ({"abort": ABORT}, CANARY_DONE, {"paused": "lunch"}, ("paused", "pause")),
        (open_from("13:00", to="14:00"), FRESH, {}, ("waiting", "window")),
        (
            open_from("13:00", to="14:00"),
            FRESH,
            {"paused": "x"},
            ("paused", "pause"),
        ),
        (open_from("11:00", to="12:00"), FRESH, {}, ("waiting", "window")),
        (open_from("12:00", to="12:01"), FRESH, {}, ("run", 1, 5)),
        # The schedule's start and end, the deadline.
        ({"schedule": {"start_at": "2030-01-07T12:00:01Z"}}, FRESH, {}, ("scheduled", "start")),
        ({"schedule": {"start_at": "2030-01-07T12:00:01Z"}}, FRESH, {"paused": "x"}, ("scheduled", "start")),
        ({"schedule": {"start_at": "2030-01-07T12:00:00Z"}}, FRESH, {}, ("run", 1, 5)),
        (ENDED, FRESH, {}, ("completed",)),
        (ENDED, (wave(5), *FRESH[1:]), {"paused": "x"}, ("running", "end")),
        (ENDED, (wave(5), *FRESH[1:]), {"now": NOW - MINUTE}, ("running", "in_flight")),
        (ENDED, ALL_DONE, {"wave": 3}, ("completed",)),
        (ended_by("cancel"), FRESH, {}, ("cancel", False)),
        (ended_by("force_cancel"), FRESH, {}, ("cancel", True)),
        (ended_by("force_cancel"), ALL_DONE, {"wave": 3}, ("completed",)),
        ({"deadlines": {"rollout_s": 60}}, FRESH, {"started_at": NOW - MINUTE}, ("cancel", False)),
        ({"deadlines": {"rollout_s": 61}}, FRESH, {"started_at": NOW - MINUTE}, ("run", 1, 5)),
        ({"deadlines": {"rollout_s": 1}}, FRESH, {}, ("run", 1, 5)),
        ({"deadlines": {"rollout_s": 60}}, ALL_DONE, {"wave": 3, "started_at": NOW - MINUTE}, ("completed",)),
        # Cancelled by an operator: goes before all else.
        ({}, FRESH, {"cancel": "finish"}, ("cancel", False)),
        (ended_by("force_cancel"), FRESH, {"cancel": "finish", "paused": "x"}, ("cancel", False)),
        ({}, (wave(5),), {"cancel": "finish", "cancelled": "finish"}, ("cancelling", "cancel")),
        ({}, (wave(5),), {"cancel": "force", "cancelled": "finish"}, ("cancel", True)),
        ({}, (wave(5),), {"cancel": "force", "cancelled": "force"}, ("cancelling", "cancel")),
        ({}, (wave(5),), {"cancel": "force"}, ("cancel", True)),
        ({}, (wave(5, cancelled=5),), {"cancel": "force", "cancelled": "force"}, ("cancelled",)),
    ],
)
def test_what_is_done(
    document: dict[str, Any], waves: tuple[WaveFacts, ...], changes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    if len(waves) == 1:
        document = {"waves": [{}]} | document
    directive = decide(plan_of(**document), facts_of(*waves, **changes))
    match directive:
        case RunWave():
            assert ("run", directive.number, directive.lanes) == expected
        case Wait():
            assert (directive.state, directive.cause) == expected
        case Cancel():
            assert ("cancel", directive.force) == expected
        case End():
            assert (directive.state,) == expected
    if not isinstance(directive, RunWave):
        assert directive.reason.endswith("."), directive.reason
    if isinstance(directive, Wait):
        assert "`muster rollout " in directive.reason


@pytest.mark.parametrize(
    ("document", "changes", "until"),
    [
        ({}, {}, None),
        ({"schedule": {"windows": [{"from": "11:00", "to": "12:30"}]}}, {}, NOW + 30 * MINUTE),
        ({"schedule": {"windows": [{"from": "12:10", "to": "12:30"}]}}, {}, NOW + 10 * MINUTE),
        ({"schedule": {"start_at": "2030-01-07T12:05:00Z"}}, {}, NOW + 5 * MINUTE),
        ({"schedule": {"end_at": "2030-01-07T12:05:00Z"}}, {"paused": "x"}, NOW + 5 * MINUTE),
        ({"deadlines": {"rollout_s": 120}}, {"paused": "x", "started_at": NOW - MINUTE}, NOW + MINUTE),
        ({"waves": PAUSE}, {"waves": CANARY_DONE}, NOW + 0.5 * MINUTE),
        (
            {"waves": PAUSE, "schedule": {"end_at": "2030-01-07T12:00:10Z"}},
            {"waves": CANARY_DONE},
            NOW + timedelta(seconds=10),
        ),
    ],
)
def test_when_it_is_to_be_asked_again(
    document: dict[str, Any], changes: dict[str, Any], until: datetime | None
) -> None:
    directive = decide(plan_of(**document), facts_of(**{"waves": FRESH, **changes}))
    assert isinstance(directive, Wait | RunWave)
    assert directive.until == until


def test_a_recorded_reason_is_not_said_twice() -> None:
    plan = plan_of(abort=ABORT)
    first = decide(plan, facts_of(*CANARY_DONE))
    assert isinstance(first, Wait)
    again = decide(plan, facts_of(*CANARY_DONE, paused=first.reason))
    assert isinstance(again, Wait)
    assert again.reason == first.reason
    assert first.reason == (
        "Paused: 1 of 5 devices ended as failed, which reaches the 20 % at which this rollout is to pause. "
        "`muster rollout resume` goes on, `muster rollout cancel` gives it up."
    )


def test_facts_that_cannot_be_are_no_facts() -> None:
    with pytest.raises(ValueError, match="add up"):
        wave(5, pending=5, failed=1)
    with pytest.raises(ValueError, match="queued"):
        wave(5, queued=1)
    with pytest.raises(ValueError, match="2 waves"):
        decide(plan_of(), facts_of(*FRESH[:2]))
    with pytest.raises(ValueError, match="when is not said"):
        decide(plan_of(waves=PAUSE), facts_of(wave(5, failed=5), *FRESH[1:]))


def test_the_success_of_a_wave() -> None:
    assert success_percent(wave(5, pending=5)) is None
    assert success_percent(wave(5, cancelled=5)) is None
    assert success_percent(wave(5, provisioned=3, rejected=1, cancelled=1)) == 75


outcomes = st.dictionaries(
    st.sampled_from(["provisioned", "failed", "timed_out", "rejected", "cancelled"]).map(DeviceState),
    st.integers(0, 300),
)


@given(
    outcomes,
    st.sampled_from(["failed", "timed_out", "rejected", "all"]),
    st.integers(1, 1000),
    st.integers(1, 400),
)
def test_it_aborts_exactly_when_the_share_is_reached(
    counts: dict[DeviceState, int], on: str, tenths: int, sample: int
) -> None:
    criterion = {"on": on, "threshold_percent": tenths / 10, "min_sample": sample, "action": "cancel"}
    names = ("failed", "timed_out", "rejected") if on == "all" else (on,)
    bad = sum(counts.get(DeviceState(name), 0) for name in names)
    ended = sum(counts.values()) - counts.get(DeviceState.CANCELLED, 0)
    expected = ended >= sample and bad * 1000 >= tenths * ended
    assert (should_abort(plan_of(abort=[criterion]), counts) is not None) is expected


def test_a_criterion_that_cancels_goes_before_one_that_pauses() -> None:
    plan = plan_of(abort=[*ABORT, ABORT[0] | {"action": "cancel"}])
    abort = should_abort(plan, {DeviceState.FAILED: 5})
    assert abort is not None
    assert abort[0] == "cancel"
