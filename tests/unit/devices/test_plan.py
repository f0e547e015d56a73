"""A fleet's plan: the same for the same seed, exact shares, shards that partition, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.topics import is_device_id
from devices.arguments import FleetArguments, parse, to_argv
from devices.behaviours import NAMES, behaviour
from devices.plan import (
    DEFAULT_BEHAVIOURS,
    DevicePlan,
    FleetSpec,
    FleetSpecError,
    parse_behaviours,
    parse_shard,
    plan,
)

WEIGHTS = st.dictionaries(st.sampled_from(NAMES), st.floats(0.01, 100), min_size=1)


@given(st.integers(1, 300), st.integers(0, 2**63 - 1), WEIGHTS)
def test_the_same_seed_gives_the_same_fleet(count: int, seed: int, weights: dict[str, float]) -> None:
    first = list(plan(FleetSpec(count=count, seed=seed, behaviours=weights)))
    # Neither the order in which weights are given nor an earlier plan has a say.
    again = list(plan(FleetSpec(count=count, seed=seed, behaviours=dict(reversed(weights.items())))))
    assert first == again
    assert len({device.device_id for device in first}) == count


def test_another_seed_gives_another_fleet_of_the_same_make_up() -> None:
    one, other = (list(plan(FleetSpec(count=200, seed=seed))) for seed in (1, 2))
    assert one != other
    assert [device.device_id for device in one] == [device.device_id for device in other]
    assert Counter(device.behaviour for device in one) == Counter(device.behaviour for device in other)


@given(st.integers(1, 300), st.integers(1, 9), WEIGHTS)
def test_shards_partition_the_fleet(count: int, shards: int, weights: dict[str, float]) -> None:
    spec = FleetSpec(count=count, seed=7, behaviours=weights)
    parts = [list(plan(spec, (k, shards))) for k in range(1, shards + 1)]
    together = [device for part in parts for device in part]
    assert len(together) == count
    assert sorted(together, key=lambda device: int(device.device_id[4:])) == list(plan(spec))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 500), WEIGHTS)
def test_shares_are_exact_to_within_one_device(count: int, weights: dict[str, float]) -> None:
    found = Counter(device.behaviour for device in plan(FleetSpec(count=count, behaviours=weights)))
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(found[name] - count * weight / total) < 1 + 1e-6


def test_the_default_fleet_ends_provisioned() -> None:
    devices = list(plan(FleetSpec(count=200)))
    assert Counter(device.behaviour for device in devices) == {"healthy": 180, "slow": 10, "offline": 10}
    assert {device.expected_outcome for device in devices} == {"provisioned"}
    assert set(DEFAULT_BEHAVIOURS) <= set(NAMES)


def test_ids_are_device_ids_that_sort_and_fit_the_largest_fleet() -> None:
    devices = list(plan(FleetSpec(count=100_000, prefix="p" * 50)))
    assert devices[0].device_id == "p" * 50 + "-00001"
    assert devices[-1].device_id == "p" * 50 + "-100000"
    assert all(is_device_id(device.device_id) for device in (devices[0], devices[-1]))


def test_a_silent_device_is_expected_to_time_out_whatever_else_it_is() -> None:
    spec = FleetSpec(count=3, behaviours={"never-answers": 1, "slow+never-answers": 1, "slow+offline": 1})
    assert {device.behaviour: device.expected_outcome for device in plan(spec)} == {
        "never-answers": "timed_out",
        "slow+never-answers": "timed_out",
        "slow+offline": "provisioned",
    }


def test_behaviours_are_seeded_and_combine() -> None:
    assert behaviour("offline", 5) == behaviour("offline", 5)
    assert len({behaviour("offline", seed) for seed in range(20)}) > 10
    both = behaviour("slow+offline", 5)
    assert both.bandwidth_bytes_per_s is not None
    assert both.outage is not None


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("count", {"count": 0}),
        ("count", {"count": 100_001}),
        ("count", {"count": True}),
        ("count", {"count": 1.5}),
        ("seed", {"seed": -1}),
        ("behaviours", {"behaviours": {}}),
        ("behaviours", {"behaviours": {"helthy": 1}}),
        ("behaviours", {"behaviours": {"slow+slow": 1}}),
        ("behaviours", {"behaviours": {"healthy": -1}}),
        ("behaviours", {"behaviours": {"healthy": float("nan")}}),
        ("behaviours", {"behaviours": {"healthy": 0}}),
        ("model", {"model": ""}),
        ("firmware_version", {"firmware_version": "x" * 201}),
        ("prefix", {"prefix": ""}),
        ("prefix", {"prefix": "a/b"}),
        ("prefix", {"prefix": "-a"}),
        ("prefix", {"prefix": "x" * 51}),
        ("tags", {"tags": {"": "x"}}),
        ("tags", {"tags": {str(number): "" for number in range(65)}}),
    ],
)
def test_a_fleet_that_cannot_be_is_refused_by_key_with_a_remedy(key: str, change: dict[str, Any]) -> None:
    with pytest.raises(FleetSpecError) as caught:
        FleetSpec(**({"count": 1} | change))
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")
    assert caught.value.remedy in str(caught.value)


def test_an_unknown_behaviour_is_told_the_known_ones() -> None:
    with pytest.raises(FleetSpecError, match=r"'helthy'.*healthy, slow, offline, never-answers"):
        parse_behaviours("helthy=1")


def test_behaviours_and_shards_are_read_from_text() -> None:
    assert parse_behaviours("healthy=0.9, slow=0.1") == {"healthy": 0.9, "slow": 0.1}
    assert parse_behaviours("offline") == {"offline": 1.0}
    assert parse_shard("2/4") == (2, 4)
    for text in ("healthy=x", "healthy=1,healthy=1", "", "=1"):
        with pytest.raises(FleetSpecError):
            parse_behaviours(text)
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/9999"):
        with pytest.raises(FleetSpecError):
            parse_shard(text)


def test_a_bad_shard_is_refused_before_the_first_device_is_asked_for() -> None:
    with pytest.raises(FleetSpecError):
        plan(FleetSpec(count=1), (3, 2))


def test_a_fleet_process_reads_back_what_its_parent_wrote() -> None:
    arguments = FleetArguments(
        spec=FleetSpec(
            count=12,
            seed=9,
            behaviours={"healthy": 1 / 3, "slow+offline": 2e-7},
            tags={"site": "a=b"},
            prefix="x",
        ),
        broker_url="mqtt://127.0.0.1:1883",
        trust=("AAAA",),
        shard=(2, 3),
        connects_per_s=33.5,
    )
    assert parse(to_argv(arguments)) == arguments


def test_a_plan_is_plain_data() -> None:
    (device,) = plan(FleetSpec(count=1, behaviours={"healthy": 1}))
    assert device == DevicePlan(
        device_id="dev-00001", behaviour="healthy", seed=device.seed, expected_outcome="provisioned"
    )


def test_planning_loads_nothing_heavy() -> None:
    script = (
        "import sys, devices.plan, devices.arguments;"
        "print({'pydantic', 'aiohttp', 'aiomqtt', 'cryptography', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
