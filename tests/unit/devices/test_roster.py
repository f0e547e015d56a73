"""A fleet's roster: the same for the same seed, exact shares, shards that partition, changes that last."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.topics import is_device_id
from devices.arguments import FleetArguments, parse, to_argv
from devices.behaviours import BUILT_IN
from devices.errors import FleetSpecError
from devices.roster import (
    MAX_CHANGES,
    Change,
    DevicePlan,
    Roster,
    Selection,
    parse_shard,
    part_of,
    plan,
    record,
)
from devices.spec import FleetSpec, Group, RampSpec, parse_behaviours

WEIGHTS = st.dictionaries(st.sampled_from(tuple(BUILT_IN)), st.floats(0.01, 100), min_size=1)
ALL = Selection()


def two_groups(count: int = 100) -> FleetSpec:
    return FleetSpec(
        groups=(
            Group(name="line", count=count, prefix="line", behaviours={"healthy": 3, "slow": 1}),
            Group(name="field", count=count, prefix="field", behaviours={"healthy": 1}),
        )
    )


def now(roster: Roster) -> dict[str, tuple[str, bool, bool]]:
    """How each device is."""
    return {
        device_id: (entry.behaviour, entry.running, entry.online)
        for device_id, entry in roster.entries.items()
    }


@given(st.integers(1, 300), st.integers(0, 2**63 - 1), WEIGHTS)
def test_the_same_seed_gives_the_same_fleet(count: int, seed: int, weights: dict[str, float]) -> None:
    first = list(plan(FleetSpec.of(count=count, seed=seed, behaviours=weights)))
    # Neither the order in which weights are given nor an earlier plan has a say.
    again = list(plan(FleetSpec.of(count=count, seed=seed, behaviours=dict(reversed(weights.items())))))
    assert first == again
    assert len({device.device_id for device in first}) == count


def test_another_seed_gives_another_fleet_of_the_same_make_up() -> None:
    one, other = (list(plan(FleetSpec.of(count=200, seed=seed))) for seed in (1, 2))
    assert one != other
    assert [device.device_id for device in one] == [device.device_id for device in other]
    assert Counter(device.behaviour for device in one) == Counter(device.behaviour for device in other)


def test_a_group_is_the_same_whatever_is_beside_it() -> None:
    spec = two_groups()
    alone = FleetSpec(groups=spec.groups[1:])
    assert list(plan(alone)) == [device for device in plan(spec) if device.group == "field"]


@given(st.integers(1, 300), st.integers(1, 9), WEIGHTS)
def test_shards_partition_the_fleet(count: int, shards: int, weights: dict[str, float]) -> None:
    spec = FleetSpec.of(count=count, seed=7, behaviours=weights)
    parts = [list(plan(spec, (k, shards))) for k in range(1, shards + 1)]
    together = [device for part in parts for device in part]
    assert len(together) == count
    assert sorted(together, key=lambda device: int(device.device_id[4:])) == list(plan(spec))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 5))
def test_the_processes_of_a_hosts_shard_partition_it(count: int, hosts: int, processes: int) -> None:
    spec = FleetSpec.of(count=count, behaviours={"healthy": 1})
    for host in range(1, hosts + 1):
        parts = [list(plan(spec, part_of((host, hosts), p, processes))) for p in range(1, processes + 1)]
        together = sorted(device.device_id for part in parts for device in part)
        assert together == [device.device_id for device in plan(spec, (host, hosts))]


@given(st.integers(1, 500), WEIGHTS)
def test_shares_are_exact_to_within_one_device(count: int, weights: dict[str, float]) -> None:
    found = Counter(device.behaviour for device in plan(FleetSpec.of(count=count, behaviours=weights)))
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(found[name] - count * weight / total) < 1 + 1e-6


def test_the_default_fleet_ends_provisioned() -> None:
    roster = Roster(FleetSpec.of(count=200))
    entries = roster.entries.values()
    assert Counter(entry.behaviour for entry in entries) == {"healthy": 180, "slow": 10, "offline": 10}
    assert {roster.expected_outcome(entry, max_attempts=1) for entry in entries} == {"provisioned"}


def test_ids_are_device_ids_that_sort_and_fit_the_largest_fleet() -> None:
    devices = list(plan(FleetSpec.of(count=100_000, prefix="p" * 50, behaviours={"healthy": 1})))
    assert devices[0].device_id == "p" * 50 + "-00001"
    assert devices[-1].device_id == "p" * 50 + "-100000"
    assert all(is_device_id(device.device_id) for device in (devices[0], devices[-1]))


def test_a_plan_is_plain_data() -> None:
    (device,) = plan(FleetSpec.of(count=1, behaviours={"healthy": 1}))
    assert device == DevicePlan(device_id="dev-00001", group="devices", behaviour="healthy", seed=device.seed)


def test_shards_are_read_from_text() -> None:
    assert parse_shard("2/4") == (2, 4)
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/99999"):
        with pytest.raises(FleetSpecError):
            parse_shard(text)
    with pytest.raises(FleetSpecError):
        plan(FleetSpec.of(count=1), (3, 2))


# -- changes ----------------------------------------------------------------------------------------


def test_a_share_is_always_the_same_devices_and_part_of_a_larger_one() -> None:
    roster = Roster(two_groups(500))
    tenth, half = (
        {entry.plan.device_id for entry in roster.select(Selection(share=share))} for share in (0.1, 0.5)
    )
    assert 60 <= len(tenth) <= 140
    assert tenth < half
    shard = Roster(two_groups(500), shard=(2, 3))
    of_shard = {entry.plan.device_id for entry in shard.select(Selection(share=0.1))}
    assert of_shard == tenth & shard.entries.keys()


@pytest.mark.parametrize(("share", "count"), [(0.1, 5), (0.3, 15), (0.001, 1), (1, 50)])
def test_a_share_that_was_made_exact_is_so_many_devices(share: float, count: int) -> None:
    spec = two_groups(50)
    roster = Roster(spec)
    which = roster.exact(Selection(group="field", share=share))
    selected = {entry.plan.device_id for entry in roster.select(which)}
    assert len(selected) == count
    shards = [Roster(spec, shard=(k, 3)) for k in (1, 2, 3)]
    assert {entry.plan.device_id for shard in shards for entry in shard.select(which)} == selected
    larger = roster.select(roster.exact(Selection(group="field", share=min(1, 2 * share))))
    assert selected <= {entry.plan.device_id for entry in larger}


def test_what_is_so_already_is_known() -> None:
    roster = Roster(two_groups(4))
    field, line = Selection(group="field"), Selection(group="line")
    assert all(roster.is_so(Change.from_document({"do": do})) for do in ("start", "online"))
    others = ("stop", "kill", "offline", "storm")
    assert not any(roster.is_so(Change.from_document({"do": do})) for do in others)
    assert roster.is_so(Change(do="behave", which=field, behaviour="healthy"))
    assert not roster.is_so(Change(do="behave", behaviour="healthy"))
    roster.apply(Change(do="stop", which=field))
    assert roster.is_so(Change(do="kill", which=field))
    assert roster.is_so(Change(do="start", which=line))
    assert not roster.is_so(Change(do="start"))
    assert not roster.is_so(Change(do="start", which=Selection(behaviour="flaky")))


def test_a_share_of_nothing_is_nothing() -> None:
    roster = Roster(two_groups(100))
    assert roster.select(roster.exact(Selection(group="field", behaviour="flaky", share=0.5))) == []


def test_selections_narrow_each_other_down() -> None:
    roster = Roster(two_groups())
    slow = roster.select(Selection(group="line", behaviour="slow"))
    assert len(slow) == 25
    assert roster.select(Selection(group="field", behaviour="slow")) == []
    assert roster.select(Selection(devices=("field-00001", "nobody", "line-00001"), group="field")) == [
        roster.entries["field-00001"]
    ]
    with pytest.raises(FleetSpecError, match="there is no group 'linse'; use one of: line, field"):
        roster.select(Selection(group="linse"))


def test_changes_are_made_in_order() -> None:
    roster = Roster(two_groups())
    line = Selection(group="line")
    assert len(roster.apply(Change(do="stop", which=line))) == 100
    roster.apply(Change(do="start", which=Selection(devices=("line-00007",))))
    roster.apply(Change(do="offline", which=Selection(devices=("field-00001", "field-00002"))))
    roster.apply(Change(do="online", which=Selection(devices=("field-00002",))))
    roster.apply(Change(do="behave", which=Selection(group="field"), behaviour="flaky+slow"))
    assert sum(entry.running for entry in roster.entries.values()) == 101
    assert [e.plan.device_id for e in roster.entries.values() if not e.online] == ["field-00001"]
    assert {e.behaviour for e in roster.select(Selection(group="field"))} == {"flaky+slow"}


def test_a_group_that_joins_continues_the_shards() -> None:
    spec = two_groups(5)
    more = Change(do="add", group=Group(name="more", count=7, prefix="more", behaviours={"healthy": 1}))
    parts = [Roster(spec, [more], shard=(k, 3)) for k in (1, 2, 3)]
    assert sorted(i for part in parts for i in part.entries) == sorted(Roster(spec, [more]).entries)
    assert sum(len(part.entries) for part in parts) == 17
    with pytest.raises(FleetSpecError, match=r"groups\[2\].prefix: line-00001 is in groups\[0\] too"):
        Roster(spec).apply(Change(do="add", group=Group(name="again", count=1, prefix="line")))


def test_how_a_device_should_end_follows_from_how_it_is_now() -> None:
    roster = Roster(FleetSpec.of(count=3, behaviours={"healthy": 1}))
    one, two, three = roster.entries.values()
    roster.apply(Change(do="kill", which=Selection(devices=(one.plan.device_id,))), at=7.0)
    roster.apply(Change(do="behave", which=Selection(devices=(two.plan.device_id,)), behaviour="rejects"))
    outcomes = [roster.expected_outcome(entry, max_attempts=3) for entry in (one, two, three)]
    assert outcomes == ["timed_out", "rejected", "provisioned"]
    roster.apply(Change(do="start"), at=8.0)
    roster.apply(Change(do="storm"), at=9.0)
    assert roster.expected_outcome(one, max_attempts=3) == "provisioned"
    # Who compares that with a run knows by the time whether the run is older.
    assert [entry.changed_at for entry in (one, two, three)] == [8.0, 8.0, 8.0]


DEVICES = st.sampled_from([("a-00001",), ("a-00002", "a-00003")])
SELECTIONS = st.builds(
    Selection,
    group=st.sampled_from([None, "a", "b"]),
    devices=st.none() | DEVICES,
    behaviour=st.sampled_from([None, None, "slow", "healthy"]),
    share=st.sampled_from([None, 0.5]),
)
CHANGES = st.lists(
    st.builds(
        Change, do=st.sampled_from(["stop", "kill", "start", "offline", "online", "storm"]), which=SELECTIONS
    )
    | st.builds(
        Change,
        do=st.just("behave"),
        which=SELECTIONS,
        behaviour=st.sampled_from(["slow", "healthy", "flaky"]),
    ),
    max_size=12,
)


@given(CHANGES)
def test_what_is_kept_of_the_changes_leads_to_the_same_fleet(changes: list[Change]) -> None:
    spec = FleetSpec(
        groups=(
            Group(name="a", count=6, prefix="a", behaviours={"healthy": 1, "slow": 1}),
            Group(name="b", count=6, prefix="b", behaviours={"healthy": 1, "slow": 1}),
        )
    )
    kept: tuple[Change, ...] = ()
    for change in changes:
        kept = record(kept, change)
    assert now(Roster(spec, kept)) == now(Roster(spec, changes))


def test_a_script_that_switches_to_and_fro_does_not_make_the_record_longer() -> None:
    kept: tuple[Change, ...] = ()
    for _ in range(MAX_CHANGES):
        for do in ("stop", "start", "offline", "online"):
            kept = record(kept, Change(do=do, which=Selection(group="a")))
    assert [change.do for change in kept] == ["start", "online"]
    assert record(kept, Change(do="storm")) == kept
    assert record(kept, Change(do="offline", for_s=5)) == kept


@given(CHANGES)
def test_a_change_is_read_back_as_it_was_written(changes: list[Change]) -> None:
    assert [Change.from_document(change.to_document()) for change in changes] == changes


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({}, "do"),
        ({"do": "explode"}, "do"),
        ({"do": "stop", "whom": {}}, "whom"),
        ({"do": "stop", "which": {"groop": "a"}}, "which.groop"),
        ({"do": "stop", "which": {"share": 2}}, "which.share"),
        ({"do": "stop", "which": {"share": "all"}}, "which.share"),
        ({"do": "stop", "which": {"devices": "dev-1"}}, "which.devices"),
        ({"do": "stop", "which": 3}, "which"),
        ({"do": "stop", "behaviour": "slow"}, "behaviour"),
        ({"do": "behave"}, "behaviour"),
        ({"do": "add"}, "group"),
        ({"do": "add", "group": {"count": 0}}, "group.count"),
        ({"do": "offline", "for_s": -1}, "for_s"),
        ({"do": "stop", "for_s": 1}, "for_s"),
        ({"do": "storm", "spread_s": "1"}, "spread_s"),
    ],
)
def test_a_change_that_cannot_be_is_refused_by_its_key(document: dict[str, Any], key: str) -> None:
    with pytest.raises(FleetSpecError) as caught:
        Change.from_document(document)
    assert caught.value.key == key


def test_a_change_that_does_not_fit_changes_nothing() -> None:
    roster = Roster(two_groups(3))
    before = now(roster)
    with pytest.raises(FleetSpecError, match="unknown behaviour 'slwo'"):
        roster.apply(Change(do="behave", which=ALL, behaviour="slwo"))
    assert now(roster) == before


# -- the process's command line ---------------------------------------------------------------------


def test_a_fleet_process_reads_back_what_its_parent_wrote() -> None:
    arguments = FleetArguments(
        fleet=Path("/state/fleets/fleet-1.fleet"),
        broker_url="mqtt://127.0.0.1:1883",
        trust=("AAAA", "BBBB"),
        shard=(2, 3),
        group_key_file=Path("/state/group.key"),
        ca_file=Path("/state/ca/ca.pem"),
        certificates=Path("/state/fleets/certificates"),
        stats_file=Path("/state/stats"),
        control_file=Path("/state/control"),
        owned=True,
        held=True,
    )
    assert parse(to_argv(arguments)) == arguments


def test_a_fleet_of_one_group_is_given_by_flags() -> None:
    given = parse(
        [
            *("--broker=mqtt://x", "--trust=A", "--count=12", "--seed=9", "--behaviours=healthy=1"),
            *("--tag=site=a=b", "--prefix=x", "--connects-per-s=33.5"),
        ]
    )
    assert given.read().spec == FleetSpec.of(
        count=12,
        seed=9,
        behaviours={"healthy": 1.0},
        tags={"site": "a=b"},
        prefix="x",
        ramp=RampSpec(devices_per_s=33.5),
    )
    with pytest.raises(FleetSpecError, match="count: it is missing"):
        parse(["--broker=mqtt://x", "--trust=A"])


def test_planning_loads_nothing_heavy() -> None:
    script = (
        "import sys, devices.roster, devices.arguments;"
        "print({'pydantic', 'aiohttp', 'aiomqtt', 'cryptography', 'asyncio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_behaviours_are_read_from_text() -> None:
    assert parse_behaviours("healthy=0.9, slow=0.1") == {"healthy": 0.9, "slow": 0.1}
    assert parse_behaviours("offline") == {"offline": 1.0}
    assert parse_behaviours("slow(bandwidth_bytes_per_s=9)+lossy(loss=0,jitter_s=1)=2,healthy=1") == {
        "slow(bandwidth_bytes_per_s=9)+lossy(loss=0,jitter_s=1)": 2.0,
        "healthy": 1.0,
    }
    assert parse_behaviours("all").keys() == BUILT_IN.keys()
    weights = parse_behaviours("healthy=0.5,all=0.5")
    assert weights["healthy"] > 0.5
    assert sum(weights.values()) == pytest.approx(1)
    for text in (
        "healthy=x",
        "healthy=1,healthy=1",
        "",
        "=1",
        "helthy",
        "slow(",
        "slow()",
        "slow(x=1)",
        "lossy(loss=7)",
    ):
        with pytest.raises(FleetSpecError):
            parse_behaviours(text)
