"""Rollout plans: read, refused by key with a remedy, read back; which devices come in which wave."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.errors import PlanError, SettingsError
from provisioning.rollouts.plan import GrowingRate, RolloutPlan, in_percent, ordered, wave_sizes
from provisioning.states import DeviceState

GROWING = {"base": 10, "factor": 2, "grow_after_notified": 5, "maximum": 100}


def windows(**changes: Any) -> dict[str, Any]:
    return {"schedule": {"windows": [{"from": "22:00", "to": "06:00", **changes}]}}


@pytest.mark.parametrize(
    ("key", "document"),
    [
        ("wavs", {"wavs": []}),
        ("name", {"name": ""}),
        ("name", {"name": "x" * 201}),
        ("name", {"name": 7}),
        ("overlap", {"overlap": "joins"}),
        ("targets", {"targets": []}),
        ("targets.devices", {"targets": {"devices": []}}),
        ("targets.devices", {"targets": {"devices": "dev-1"}}),
        ("targets.devices", {"targets": {"devices": ["a", "b", "a"]}}),
        ("targets.devices[1]", {"targets": {"devices": ["a", "a b"]}}),
        ("targets.devices[0]", {"targets": {"devices": ["x" * 65]}}),
        ("targets.models", {"targets": {"models": []}}),
        ("targets.models", {"targets": {"devices": ["a"], "models": ["m"]}}),
        ("targets.failed_in", {"targets": {"devices": ["a"], "failed_in": "rollout-1"}}),
        ("targets.failed_in", {"targets": {"failed_in": "a/b"}}),
        ("targets.failed_states", {"targets": {"failed_states": ["failed"]}}),
        ("targets.failed_states", {"targets": {"failed_in": "r", "failed_states": ["provisioned"]}}),
        ("targets.states", {"targets": {"states": ["queued"]}}),
        ("targets.states[0]", {"targets": {"states": ["nwe"]}}),
        ("targets.tags", {"targets": {"tags": {"": "x"}}}),
        ("targets.tags.site", {"targets": {"tags": {"site": 1}}}),
        ("targets.tags", {"targets": {"tags": {str(number): "" for number in range(65)}}}),
        ("targets.percent", {"targets": {"percent": 0}}),
        ("targets.percent", {"targets": {"percent": 100.1}}),
        ("targets.percent", {"targets": {"percent": float("nan")}}),
        ("targets.percent", {"targets": {"percent": True}}),
        ("targets.percent", {"targets": {"percent": None}}),
        ("waves", {"waves": []}),
        ("waves", {"waves": {"percent": 5}}),
        ("waves", {"waves": [{"count": 1}] * 101}),
        ("waves[0]", {"waves": [5, {}]}),
        ("waves[0]", {"waves": [{}, {}]}),
        ("waves[0].percent", {"waves": [{"percent": "5"}, {}]}),
        ("waves[0].percent", {"waves": [{"percent": 100}, {}]}),
        ("waves[0].percent", {"waves": [{"percent": 5}]}),
        ("waves[1].percent", {"waves": [{"percent": 5}, {"percent": 5}, {}]}),
        ("waves[2].percent", {"waves": [{"percent": 25}, {"count": 1}, {"percent": 5}, {}]}),
        ("waves[0].count", {"waves": [{"percent": 5, "count": 5}, {}]}),
        ("waves[0].count", {"waves": [{"count": 0}, {}]}),
        ("waves[0].count", {"waves": [{"count": 1.5}, {}]}),
        ("waves[1].count", {"waves": [{"count": 1}, {"count": 1}]}),
        ("waves[0].pause_s", {"waves": [{"count": 1, "gate": "pause"}, {}]}),
        ("waves[0].pause_s", {"waves": [{"count": 1, "pause_s": 5}, {}]}),
        ("waves[0].pause_s", {"waves": [{"count": 1, "gate": "pause", "pause_s": -1}, {}]}),
        ("waves[0].gate", {"waves": [{"count": 1, "gate": "aproval"}, {}]}),
        ("waves[1].gate", {"waves": [{"count": 1}, {"gate": "approval"}]}),
        ("waves[0].success_threshold_percent", {"waves": [{"success_threshold_percent": 101}]}),
        ("pace", {"pace": 5}),
        ("pace.in_flight", {"pace": {"in_flight": 0}}),
        ("pace.in_flight", {"pace": {"in_flight": 5_001}}),
        ("pace.order", {"pace": {"order": "seed"}}),
        ("pace.seed", {"pace": {"seed": 2**63}}),
        ("pace.per_minute", {"pace": {"per_minute": 0}}),
        ("pace.per_minute", {"pace": {"per_minute": "fast"}}),
        ("pace.per_minute.factor", {"pace": {"per_minute": GROWING | {"factor": 0.5}}}),
        ("pace.per_minute.bsae", {"pace": {"per_minute": {"bsae": 1}}}),
        ("pace.per_minute.maximum", {"pace": {"per_minute": GROWING | {"maximum": 9}}}),
        (
            "pace.per_minute.grow_after_notified",
            {"pace": {"per_minute": GROWING | {"grow_after_succeeded": 5}}},
        ),
        (
            "pace.per_minute.grow_after_notified",
            {"pace": {"per_minute": {"base": 1, "factor": 2, "maximum": 9}}},
        ),
        ("abort[0].on", {"abort": [{"threshold_percent": 5}]}),
        ("abort[0].threshold_percent", {"abort": [{"on": "all", "threshold_percent": 0}]}),
        ("abort[1].on", {"abort": [{"on": "all", "threshold_percent": 5}] * 2}),
        ("deadlines.rollout_s", {"deadlines": {"rollout_s": 0}}),
        ("deadlines.device_s", {"deadlines": {"device_s": 60}}),
        ("deadlines.ack_timeout_s", {"deadlines": {"ack_timeout_s": 60}}),
        ("retries", {"retries": {"no_ack": {"delay_s": 5}}}),
        ("options.retries", {"options": {"retries": 3}}),
        ("options.retries.no_ak", {"options": {"retries": {"no_ak": {}}}}),
        ("options.retries.no_ack.delay", {"options": {"retries": {"no_ack": {"delay": 5}}}}),
        ("options.retries.no_ack.delay_s", {"options": {"retries": {"no_ack": {"delay_s": -5}}}}),
        ("options.retries.no_ack.max_attempts", {"options": {"retries": {"no_ack": {"max_attempts": 4}}}}),
        ("options.device_timeout_s", {"options": {"device_timeout_s": 0}}),
        ("options", {"options": []}),
        ("options.max_attempts", {"options": {"max_attempts": 1.5}}),
        ("options.ack_timeout", {"options": {"ack_timeout": 5}}),
        ("schedule.start_at", {"schedule": {"start_at": "2030-01-01T00:00:00"}}),
        ("schedule.start_at", {"schedule": {"start_at": "2030-01-01"}}),
        ("schedule.start_at", {"schedule": {"start_at": 1_900_000_000}}),
        ("schedule.start_at", {"schedule": {"start_at": "1900000000"}}),
        ("schedule.start_at", {"schedule": {"start_at": "0001-01-01T00:00:00+14:00"}}),
        ("schedule.at_end", {"schedule": {"at_end": "cancel"}}),
        (
            "schedule.end_at",
            {"schedule": {"start_at": "2030-01-01T02:00:00+02:00", "end_at": "2030-01-01T00:00:00Z"}},
        ),
        ("schedule.windows[0].to", windows(to="22:00")),
        ("schedule.windows[0].to", windows(to="24:00")),
        ("schedule.windows[0].to", windows(to="6:00")),
        ("schedule.windows[0].days", windows(days=[])),
        ("schedule.windows[0].days[0]", windows(days=["monday"])),
        ("schedule.windows[0].opens", windows(opens="22:00")),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_key_with_a_remedy(key: str, document: dict[str, Any]) -> None:
    with pytest.raises(PlanError) as caught:
        RolloutPlan.from_json(document)
    assert caught.value.key == key
    assert str(caught.value) == f"{key}: {caught.value.problem}; {caught.value.remedy}"
    assert len(caught.value.remedy) > 5


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"wavs": []}, "wavs: there is no such key; did you mean 'waves'?"),
        ({"waves": [{"cuont": 5}, {}]}, "waves[0].cuont: there is no such key; did you mean 'count'?"),
        (
            {"pace": {"xyz": 5}},
            "pace.xyz: there is no such key; use in_flight, per_minute, order, seed",
        ),
        (
            {"pace": {"in_flight": 9_000}},
            "pace.in_flight: 9000 is out of range; give a whole number from 1 to 1,000",
        ),
        (
            {"options": {"max_attempts": 0}},
            "options.max_attempts: 0 can't be used; the option max_attempts must be between 1 and 100, not 0",
        ),
        (
            {"deadlines": {"packaging_s": 5}},
            "deadlines.packaging_s: deadlines of devices are options; write options.packaging_timeout_s",
        ),
        (
            {"options": {"max_attempts": 2, "retries": {"no_ack": {"max_attempts": 4}}}},
            (
                "options.retries.no_ack.max_attempts: 4 is more than the option max_attempts, 2, which bounds"
                " all; raise that one (--attempts 4), or give at most 2 here"
            ),
        ),
        (
            {"deadlines": {"rollout_s": 0}},
            "deadlines.rollout_s: 0 is out of range; give seconds, above 0 and at most 31,622,400",
        ),
    ],
)
def test_what_the_errors_say(document: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RolloutPlan.from_json(document)
    assert str(caught.value) == message


@pytest.mark.parametrize("document", [None, [], "plan", {"name": {1, 2}}, {"name": "\ud800"}])
def test_what_is_no_document_is_a_plan_error_too(document: object) -> None:
    with pytest.raises(PlanError):
        RolloutPlan.from_json(document)


def test_a_typing_error_is_told_before_the_key_that_it_left_out() -> None:
    with pytest.raises(PlanError, match=r"^abort\[0\]\.threshold: .*'threshold_percent'"):
        RolloutPlan.from_json({"abort": [{"on": "all", "threshold": 5}]})


FULL = """
name = "Spring"
overlap = "skip"
[targets]
models = ["m1"]
tags = { site = "north" }
percent = 50
exclude = ["bench-1"]
[[waves]]
percent = 5
gate = "approval"
[[waves]]
count = 10
gate = "pause"
pause_s = 60
success_threshold_percent = 90
[[waves]]
[pace]
in_flight = 10
order = "random"
per_minute = { base = 10, factor = 1.5, grow_after_succeeded = 20, maximum = 600 }
[[abort]]
on = "all"
threshold_percent = 20
min_sample = 10
action = "cancel"
[deadlines]
rollout_s = 3600
[options]
max_attempts = 5
packaging_timeout_s = 60
notifying_timeout_s = 30
device_timeout_s = 1800
[options.retries.no_ack]
max_attempts = 4
delay_s = 10
factor = 2
max_delay_s = 120
jitter = 0.3
[schedule]
start_at = 2030-01-01T02:00:00+02:00
end_at = 2030-01-02T00:00:00Z
at_end = "cancel"
[[schedule.windows]]
days = ["mon", "fri"]
from = 22:00:00
to = "06:00"
"""


def test_a_file_with_every_key_is_read_and_read_back() -> None:
    plan = RolloutPlan.from_json(tomllib.loads(FULL))
    document = json.loads(json.dumps(plan.to_json()))
    assert RolloutPlan.from_json(document) == plan
    assert document["schedule"]["start_at"] == "2030-01-01T00:00:00Z"
    assert document["schedule"]["windows"] == [{"days": ["mon", "fri"], "from": "22:00", "to": "06:00"}]
    assert isinstance(plan.pace.per_minute, GrowingRate)
    assert plan.options.max_attempts == 5
    assert (plan.options.device_timeout_s, plan.options.retries.no_ack.max_delay_s) == (1800, 120)
    assert document["options"]["retries"] == {
        "no_ack": {"max_attempts": 4, "delay_s": 10, "factor": 2, "max_delay_s": 120, "jitter": 0.3}
    }


def test_an_empty_plan_is_one_wave_of_all_new_devices() -> None:
    plan = RolloutPlan.from_json({})
    assert RolloutPlan.from_json(plan.to_json()) == plan
    assert wave_sizes(plan, 7) == [7]
    assert plan.targets.qualifying_states == (DeviceState.NEW,)


@pytest.mark.parametrize("targets", [{"devices": ["a"]}, {"failed_in": "rollout-1"}])
def test_devices_that_are_named_may_have_been_provisioned_before(targets: dict[str, Any]) -> None:
    states = RolloutPlan.from_json({"targets": targets}).targets.qualifying_states
    assert set(states) == {"new", "provisioned", "failed", "timed_out", "rejected", "cancelled"}


@pytest.mark.parametrize(
    ("waves", "devices", "sizes"),
    [
        ([{"percent": 5}, {"percent": 25}, {"percent": 100}], 500, [25, 100, 375]),
        ([{"percent": 5}, {"percent": 25}, {}], 3, [1, 0, 2]),
        ([{"percent": 5}, {"percent": 25}, {}], 0, [0, 0, 0]),
        ([{"count": 10}, {"count": 20}, {}], 25, [10, 15, 0]),
        ([{"count": 10}, {"percent": 50}, {}], 100, [10, 40, 50]),
        ([{"count": 60}, {"percent": 50}, {}], 100, [60, 0, 40]),
        ([{"percent": 0.1}, {}], 1_000, [1, 999]),
        ([{"percent": 1.1}, {}], 1_000, [11, 989]),  # 1.1 as a float is a little more: that would be 12
    ],
)
def test_the_sizes_of_waves(waves: list[dict[str, Any]], devices: int, sizes: list[int]) -> None:
    assert wave_sizes(RolloutPlan.from_json({"waves": waves}), devices) == sizes


@given(
    st.lists(st.floats(0.01, 99.99), max_size=6, unique=True),
    st.lists(st.integers(1, 500), max_size=3),
    st.integers(0, 2_000),
)
def test_waves_add_up_and_reach_their_percentages(
    percents: list[float], counts: list[int], devices: int
) -> None:
    waves = [{"percent": percent} for percent in sorted(percents)] + [{"count": count} for count in counts]
    sizes = wave_sizes(RolloutPlan.from_json({"waves": [*waves, {}]}), devices)
    assert sum(sizes) == devices
    assert min(sizes) >= 0
    for number, percent in enumerate(sorted(percents), start=1):
        assert sum(sizes[:number]) - 1 < percent * devices / 100 + 1e-9
        assert sum(sizes[:number]) >= percent * devices / 100 - 1e-9


@given(st.text("abc-0123", min_size=1, max_size=20), st.floats(0.001, 100), st.floats(0.001, 100))
def test_a_smaller_percentage_is_part_of_a_larger(device_id: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert in_percent(device_id, 100)
    assert not in_percent(device_id, small) or in_percent(device_id, large)


def test_a_percentage_is_about_so_many_and_the_same_on_every_machine() -> None:
    ids = [f"dev-{number:05d}" for number in range(10_000)]
    assert 400 < sum(in_percent(device_id, 5) for device_id in ids) < 600
    assert [device_id for device_id in ids[:100] if in_percent(device_id, 2)] == [
        f"dev-{number:05d}" for number in (25, 33, 51, 71, 73, 90)
    ]


def test_the_order_of_devices_is_by_id_or_by_seed() -> None:
    ids = [f"dev-{number}" for number in range(100)]
    by_id = RolloutPlan.from_json({})
    one, two = (RolloutPlan.from_json({"pace": {"order": "random", "seed": seed}}) for seed in (1, 2**63 - 1))
    assert ordered(by_id, reversed(ids)) == sorted(ids)
    shuffled = ordered(one, ids)
    assert shuffled == ordered(one, reversed(ids)) != sorted(ids)
    assert sorted(shuffled) == sorted(ids)
    assert shuffled != ordered(two, ids)
    # Who else is there does not change who comes first.
    assert ordered(one, ids[:50]) == [device_id for device_id in shuffled if device_id in set(ids[:50])]
