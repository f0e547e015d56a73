"""Whole rollouts on a fake clock: `decide` drives devices with random outcomes, and no rule is broken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
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
from provisioning.rollouts.pace import interval_s
from provisioning.rollouts.plan import RolloutPlan, wave_sizes
from provisioning.rollouts.schedule import open_at
from provisioning.states import DeviceState

BEGIN = datetime(2030, 1, 7, 12, tzinfo=UTC)
MAX_STEPS = 20_000
BAD = (DeviceState.FAILED, DeviceState.TIMED_OUT, DeviceState.REJECTED)


class World:
    """A rollout, its devices, and an operator who lets it go on whenever it waits for one."""

    def __init__(self, plan: RolloutPlan, devices: int, random: Random, *, bad: float) -> None:
        self.plan, self.random, self.bad = plan, random, bad
        self.sizes = wave_sizes(plan, devices)
        self.pending = list(self.sizes)
        self.ended: list[dict[DeviceState, int]] = [{} for _ in self.sizes]
        self.ended_at: list[datetime | None] = [None for _ in self.sizes]
        self.flying: list[tuple[datetime, int, DeviceState]] = []
        self.now = BEGIN
        self.flags: dict[str, Any] = {"wave": 1}
        self.starts: list[datetime] = []
        self.holds: list[str] = []
        # What happens by itself: another run frees a device, or ends it for this one; devices join.
        self.held = [0 for _ in self.sizes]
        self.others: list[tuple[datetime, int, DeviceState | None]] = []

    def hold(self, share: float) -> None:
        """Let another run have some of the devices for a while, of which it ends a part for this rollout."""
        for number, size in enumerate(self.sizes):
            for _ in range(size):
                if self.random.random() < share:
                    self.held[number] += 1
                    free = BEGIN + timedelta(seconds=self.random.randint(1, 5_000))
                    ended = DeviceState.PROVISIONED if self.random.random() < 0.5 else None
                    self.others.append((free, number, ended))
        self.others.sort(key=lambda one: one[0])

    def join_later(self, count: int) -> None:
        """Let so many devices register, each at a time of its own."""
        for _ in range(count):
            self.others.append((BEGIN + timedelta(seconds=self.random.randint(1, 5_000)), -1, None))
        self.others.sort(key=lambda one: one[0])

    def facts(self) -> Facts:
        waves = tuple(
            WaveFacts(devices=size, pending=pending, held=held, ended=ended, ended_at=at)
            for size, pending, held, ended, at in zip(
                self.sizes, self.pending, self.held, self.ended, self.ended_at, strict=True
            )
        )
        return Facts(now=self.now, created_at=BEGIN, waves=waves, **self.flags)

    def run(self) -> End:
        for _ in range(MAX_STEPS):
            facts = self.facts()
            directive = decide(self.plan, facts)
            match directive:
                case End():
                    assert facts.in_flight == 0
                    assert facts.pending + sum(facts.ended.values()) == sum(self.sizes)
                    return directive
                case Cancel():
                    self.cancel(directive)
                case RunWave():
                    self.start(directive, facts)
                case Wait():
                    self.wait(directive, facts)
        raise AssertionError("it has no end")

    def start(self, directive: RunWave, facts: Facts) -> None:
        self.flags["wave"] = max(self.flags["wave"], directive.number)
        self.flags.setdefault("started_at", self.now)
        pace = self.plan.pace
        succeeded = facts.ended[DeviceState.PROVISIONED]
        due = self.now
        if self.starts:
            between_s = interval_s(pace.per_minute, notified=len(self.starts), succeeded=succeeded)
            due = self.starts[-1] + timedelta(seconds=between_s)
        if due > self.now:
            self.advance(due, directive.until)
            return
        self.check_start(directive, facts)
        number = directive.number - 1
        self.pending[number] -= 1
        outcome = self.random.choice(BAD) if self.random.random() < self.bad else DeviceState.PROVISIONED
        ends = self.now + timedelta(seconds=self.random.randint(1, 600))
        self.flying.append((ends, number, outcome))
        self.flying.sort()
        self.starts.append(self.now)

    def check_start(self, directive: RunWave, facts: Facts) -> None:
        """What must be so whenever a device starts, said without `decide`."""
        plan, schedule, number = self.plan, self.plan.schedule, directive.number - 1
        assert open_at(schedule.windows, self.now)
        assert schedule.start_at is None or self.now >= schedule.start_at
        assert schedule.end_at is None or self.now < schedule.end_at
        if plan.deadlines.rollout_s is not None:
            assert (self.now - self.flags["started_at"]).total_seconds() < plan.deadlines.rollout_s
        assert facts.in_flight < plan.pace.in_flight
        assert facts.waves[number].in_flight < directive.lanes
        assert facts.waves[number].available > 0
        assert facts.paused is None
        assert facts.cancel is None
        assert should_abort(plan, facts.ended, forgiven=facts.forgiven) is None
        assert not any(self.pending[:number])
        assert not any(self.held[:number])
        for earlier, (before, planned) in enumerate(
            zip(facts.waves[:number], plan.waves[:number], strict=True), start=1
        ):
            assert before.done
            approved = earlier in facts.approved_waves
            share = success_percent(before)
            assert approved or share is None or share + 1e-9 >= (planned.success_threshold_percent or 0)
            assert approved or planned.gate != "approval"
            if planned.gate == "pause" and before.ended_at is not None:
                assert (self.now - before.ended_at).total_seconds() >= (planned.pause_s or 0)

    def wait(self, directive: Wait, facts: Facts) -> None:
        self.holds.append(directive.cause)
        if directive.cause == "abort":
            self.flags["paused"] = directive.reason
        elif self.flying or self.others or directive.until is not None:
            self.advance(directive.until)
        elif directive.cause == "targets":
            self.flags["cancel"] = "finish"
        elif directive.cause == "pause":
            self.flags |= {"paused": None, "forgiven": facts.ended}
        else:
            assert directive.cause in ("approval", "threshold"), directive
            approved = self.flags.get("approved_waves", frozenset())
            # What waits is the first wave that is done and not approved.
            done = next(n for n in range(1, len(self.sizes)) if self.pending[n] and n not in approved)
            self.flags["approved_waves"] = approved | set(range(1, done + 1))

    def cancel(self, directive: Cancel) -> None:
        how = "force" if directive.force else "finish"
        self.flags |= {"cancel": how, "cancelled": how, "cancel_reason": directive.reason}
        for number, pending in enumerate(self.pending):
            self.end(number, DeviceState.CANCELLED, pending)
        self.pending = [0] * len(self.sizes)
        self.held = [0] * len(self.sizes)
        self.others = []
        if directive.force:
            for _, number, _ in self.flying:
                self.end(number, DeviceState.CANCELLED, 1)
            self.flying = []

    def end(self, number: int, state: DeviceState, count: int) -> None:
        self.ended[number] = {**self.ended[number], state: self.ended[number].get(state, 0) + count}
        self.ended_at[number] = self.now

    def advance(self, *times: datetime | None) -> None:
        """To the next outcome, or the first of the times."""
        outcomes = [one[0] for one in [*self.flying[:1], *self.others[:1]]]
        until = min([time for time in times if time is not None] + outcomes)
        # Outcomes of the same moment come one by one: the abort criteria are judged after each of them.
        assert until > self.now or until in outcomes, "it waits for what has been"
        self.now = max(self.now, until)
        if self.flying and self.flying[0][0] <= self.now:
            _, number, state = self.flying.pop(0)
            self.end(number, state, 1)
        elif self.others and self.others[0][0] <= self.now:
            _, number, ended = self.others.pop(0)
            if number < 0:
                self.sizes[number] += 1
                self.pending[number] += 1
                return
            self.held[number] -= 1
            if ended is not None:
                self.pending[number] -= 1
                self.end(number, ended, 1)


percents = st.lists(st.integers(1, 99), max_size=3, unique=True).map(sorted)


@st.composite
def waves(draw: st.DrawFn, *, gates: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"percent": percent} for percent in draw(percents)]
    if draw(st.booleans()):
        found.insert(0, {"count": draw(st.integers(1, 30))})
    if gates:
        for one in found:
            gate = draw(st.sampled_from(["none", "approval", "pause"]))
            one |= {"gate": gate} | ({"pause_s": draw(st.integers(1, 5_000))} if gate == "pause" else {})
            one["success_threshold_percent"] = draw(st.none() | st.integers(0, 100))
    return [*found, {}]


windows = st.lists(
    st.tuples(st.integers(0, 23), st.integers(1, 23)).map(
        lambda one: {"from": f"{one[0]:02d}:00", "to": f"{(one[0] + one[1]) % 24:02d}:30"}
    ),
    max_size=2,
)
rates = st.none() | st.integers(1, 500)
growing = st.fixed_dictionaries(
    {
        "base": st.integers(1, 10),
        "factor": st.floats(1, 3),
        "grow_after_succeeded": st.integers(1, 20),
        "maximum": st.integers(10, 500),
    }
)
paces = st.fixed_dictionaries({"in_flight": st.integers(1, 40), "per_minute": rates | growing})
criteria = st.lists(
    st.fixed_dictionaries(
        {
            "on": st.sampled_from(["failed", "timed_out", "rejected", "all"]),
            "threshold_percent": st.integers(1, 100),
            "min_sample": st.integers(1, 30),
            "action": st.sampled_from(["pause", "cancel"]),
        }
    ),
    max_size=3,
    unique_by=lambda one: (one["on"], one["action"]),
)
ends = st.tuples(st.integers(1, 40), st.sampled_from(["finish", "cancel", "force_cancel"])).map(
    lambda one: {"end_at": (BEGIN + timedelta(hours=one[0])).isoformat(), "at_end": one[1]}
)
devices = st.integers(0, 80)


@settings(deadline=None, max_examples=150)
@given(
    plan=st.fixed_dictionaries(
        {
            "waves": waves(gates=True),
            "pace": paces,
            "abort": criteria,
            "schedule": st.builds(lambda w, e: {"windows": w, **e}, windows, st.just({}) | ends),
            "deadlines": st.fixed_dictionaries({"rollout_s": st.none() | st.integers(60, 200_000)}),
        }
    ),
    count=devices,
    seed=st.integers(0, 2**32),
    bad=st.floats(0, 1),
)
def test_no_device_starts_that_may_not(plan: dict[str, Any], count: int, seed: int, bad: float) -> None:
    World(RolloutPlan.from_json(plan), count, Random(seed), bad=bad).run()


@settings(deadline=None, max_examples=100)
@given(
    plan=st.fixed_dictionaries(
        {"waves": waves(gates=False), "pace": paces, "schedule": st.builds(lambda w: {"windows": w}, windows)}
    ),
    count=devices,
    seed=st.integers(0, 2**32),
)
def test_what_nothing_holds_up_completes_with_every_device(
    plan: dict[str, Any], count: int, seed: int
) -> None:
    world = World(RolloutPlan.from_json(plan), count, Random(seed), bad=0.3)
    assert world.run().state == "completed"
    assert world.pending == [0] * len(world.sizes)
    assert set(world.holds) <= {"in_flight", "window"}
    assert len(world.starts) == count


@settings(deadline=None, max_examples=150)
@given(
    plan=st.fixed_dictionaries(
        {
            "waves": waves(gates=True),
            "pace": paces,
            "abort": criteria,
            "targets": st.fixed_dictionaries({"continuous": st.booleans()}),
            "schedule": st.just({}) | ends,
        }
    ),
    count=devices,
    joiners=st.integers(0, 20),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_no_device_starts_while_another_run_has_it_and_those_that_join_are_not_forgotten(
    plan: dict[str, Any], count: int, joiners: int, share: float, seed: int
) -> None:
    read = RolloutPlan.from_json(plan)
    world = World(read, count, Random(seed), bad=0.2)
    world.hold(share)
    if read.targets.continuous:
        world.join_later(joiners)
    end = world.run()
    # Whatever it waited for has come, or the rollout was ended before that.
    assert end.state != "completed" or not world.others or read.schedule.end_at is not None


def test_an_abort_stops_at_the_very_device() -> None:
    """One at a time, all bad: the tenth outcome reaches the sample, and the eleventh device never starts."""
    plan = RolloutPlan.from_json(
        {
            "pace": {"in_flight": 1},
            "abort": [{"on": "all", "threshold_percent": 20, "min_sample": 10, "action": "cancel"}],
        }
    )
    world = World(plan, 100, Random(1), bad=1.0)
    assert world.run().state == "cancelled"
    assert len(world.starts) == 10


@pytest.mark.parametrize(("per_minute", "seconds"), [(60, 99), (30, 198)])
def test_a_pace_is_kept_to_the_second(per_minute: int, seconds: int) -> None:
    plan = RolloutPlan.from_json({"pace": {"per_minute": per_minute, "in_flight": 1_000}})
    world = World(plan, 100, Random(1), bad=0.0)
    world.run()
    assert (world.starts[-1] - world.starts[0]).total_seconds() == pytest.approx(seconds, abs=0.01)


def test_an_exponential_pace_doubles_after_each_ten() -> None:
    rate = {"base": 6, "factor": 2, "grow_after_notified": 10, "maximum": 24}
    plan = RolloutPlan.from_json({"pace": {"per_minute": rate, "in_flight": 1_000}})
    world = World(plan, 41, Random(1), bad=0.0)
    world.run()
    gaps = [(b - a).total_seconds() for a, b in zip(world.starts, world.starts[1:], strict=False)]
    assert gaps == pytest.approx([10.0] * 9 + [5.0] * 10 + [2.5] * 21)
