"""Parts of the launcher: deaths, metrics, limits, records, ids of groups that join, the group key."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devices.errors import FleetStartError
from devices.spec import FleetSpec, Group
from devices.statistics import merge
from provisioning.cli import fleet_limits, supervisor
from provisioning.cli.fleet import foreground
from provisioning.cli.fleet_groups import completed, next_number
from provisioning.cli.fleet_limits import check_machine, processes_for
from provisioning.cli.fleet_metrics import prometheus
from provisioning.cli.fleet_processes import FleetProcesses
from provisioning.cli.fleet_records import FleetBook, FleetEntry, Member
from provisioning.cli.fleet_statistics import FleetStatistics
from provisioning.cli.supervisor import BACKOFF_S, MAX_DEATHS, WITHIN_S, Deaths, Part, Supervisor

# -- deaths -------------------------------------------------------------------------------------------------


def test_a_process_that_dies_waits_longer_each_time_and_then_stays_down() -> None:
    deaths, part = Deaths(), ("fleet-1", 2)
    waits = [deaths.died(part, float(number)) for number in range(MAX_DEATHS)]
    assert waits == [BACKOFF_S, BACKOFF_S * 2, BACKOFF_S * 4, BACKOFF_S * 8, None]
    assert deaths.given_up == {part}
    assert deaths.died(("fleet-1", 1), 4.0) == BACKOFF_S, "each by itself"


def test_deaths_that_are_long_past_do_not_count() -> None:
    deaths, part = Deaths(), ("fleet-1", 1)
    for number in range(20):
        assert deaths.died(part, number * WITHIN_S / (MAX_DEATHS - 2)) is not None


def test_a_fleet_that_is_started_by_hand_gets_another_chance() -> None:
    deaths = Deaths()
    for fleet_id in ("fleet-1", "fleet-2"):
        for _ in range(MAX_DEATHS):
            deaths.died((fleet_id, 1), 0.0)
    deaths.forget("fleet-1")
    assert deaths.given_up == {("fleet-2", 1)}
    assert deaths.died(("fleet-1", 1), 0.0) == BACKOFF_S


async def test_a_process_whose_start_takes_longer_than_it_may_stays_down_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, starts = 0.0, 0

    async def restart(_: Part) -> None:
        nonlocal now_s, starts
        starts += 1
        now_s += 20.0
        raise TimeoutError("it did not start within 20 s")

    monkeypatch.setattr(supervisor, "BACKOFF_S", 0.001)
    monkeypatch.setattr(supervisor, "WATCH_INTERVAL_S", 0.001)
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now_s))
    watched = Supervisor(dead=lambda: [("fleet-1", 1)], restart=restart)
    watched.start()
    try:
        async with asyncio.timeout(5):
            while not watched.given_up("fleet-1"):  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.01)
    finally:
        await watched.close()
    assert starts == MAX_DEATHS - 1


# -- metrics ------------------------------------------------------------------------------------------------


def test_metrics_are_well_formed() -> None:
    latency = {"count": 3, "sum_s": 0.75, "buckets": {"0": 1, "73": 1, "150": 1}}
    statistics = merge(
        [
            {
                "connects": 12,
                "connects_per_s": 1.5,
                "latencies": {"ack": latency},
                "groups": {'say "hi"\\\n': {"devices": 3, "connected": 2}},
            }
        ]
    )
    text = prometheus([({"fleet_id": "fleet-1", "restarts": 2}, statistics)])
    lines = text.splitlines()
    assert text.endswith("\n")
    assert "# TYPE muster_fleet_connects_total counter" in lines
    assert 'muster_fleet_connects_total{fleet="fleet-1"} 12' in lines
    assert 'muster_fleet_connects_per_second{fleet="fleet-1"} 1.5' in lines
    assert r'muster_fleet_connected{fleet="fleet-1",group="say \"hi\"\\\n"} 2' in lines
    assert 'muster_fleet_restarts_total{fleet="fleet-1"} 2' in lines
    assert "# TYPE muster_fleet_ack_seconds histogram" in lines
    buckets = [line for line in lines if line.startswith("muster_fleet_ack_seconds_bucket")]
    counts = [int(line.rpartition(" ")[2]) for line in buckets]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert 2 in counts
    assert buckets[-1] == 'muster_fleet_ack_seconds_bucket{fleet="fleet-1",le="+Inf"} 3'
    assert 'muster_fleet_ack_seconds_sum{fleet="fleet-1"} 0.75' in lines
    assert 'muster_fleet_ack_seconds_count{fleet="fleet-1"} 3' in lines
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    assert named == helped
    samples = {line.split("{")[0] for line in lines if not line.startswith("#")}
    ends = ("_bucket", "_sum", "_count")
    assert {name for name in samples if name not in named and not name.endswith(ends)} == set()


def test_the_buckets_are_the_same_whatever_was_counted() -> None:
    def bounds(statistics: dict[str, Any]) -> list[str]:
        text = prometheus([({"fleet_id": "f"}, statistics)])
        return [line.rpartition(" ")[0] for line in text.splitlines() if "_bucket" in line]

    counted = merge([{"latencies": {"ack": {"count": 1, "sum_s": 1, "buckets": {"99": 1}}}}])
    assert bounds(merge([])) == bounds(counted)


# -- limits -------------------------------------------------------------------------------------------------


@pytest.fixture
def hard_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 4_096))


@pytest.mark.usefixtures("hard_limit")
def test_a_share_that_fits_no_process_is_refused() -> None:
    with pytest.raises(FleetStartError, match=r"7,128 open files.*limit is 4,096.*--processes"):
        check_machine(devices=5_000, processes=1, devices_in_all=5_000, broker_files=None)
    check_machine(devices=5_000, processes=3, devices_in_all=5_000, broker_files=None)
    assert processes_for(5_000) == 3
    assert processes_for(100) == 1


@pytest.mark.usefixtures("hard_limit")
def test_what_the_local_broker_can_take_counts_over_all_fleets() -> None:
    check_machine(devices=100, processes=1, devices_in_all=4_000, broker_files=4_096)
    with pytest.raises(FleetStartError, match=r"the broker would need 4,164 open files.*4,096.*ulimit -Hn"):
        check_machine(devices=100, processes=1, devices_in_all=4_100, broker_files=4_096)


def test_local_ports_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "range"
    path.write_text("32768\t33767\n")
    monkeypatch.setattr(fleet_limits, "PORT_RANGE", path)
    check_machine(devices=10, processes=1, devices_in_all=1_000, broker_files=None)
    with pytest.raises(
        FleetStartError, match=r"1,001 devices.*there are 1,000.*ip_local_port_range.*--shard"
    ):
        check_machine(devices=10, processes=1, devices_in_all=1_001, broker_files=None)
    path.unlink()
    check_machine(devices=10, processes=1, devices_in_all=10**6, broker_files=None)


# -- records ------------------------------------------------------------------------------------------------

OLD_RECORD = {
    "format": 1,
    "fleet_id": "fleet-3",
    "request": {
        "count": 4,
        "seed": 9,
        "behaviours": {"slow": 1.0},
        "model": "demo-1",
        "firmware_version": "0.9.0",
        "tags": {"site": "lab"},
        "processes": None,
        "prefix": "lab",
    },
    "processes": 2,
    "broker_url": "mqtt://127.0.0.1:1883",
    "trust": "key",
    "started_at": "2026-01-01T00:00:00+00:00",
    "members": [{"shard": 1, "pid": os.getpid(), "created_at": 1.0}],
}


def an_entry(**more: Any) -> FleetEntry:
    given: dict[str, Any] = {
        "fleet_id": "fleet-1",
        "request": {"spec": {"groups": [{"count": 2}]}, "processes": 2, "shard": None},
        "processes": 2,
        "broker_url": "mqtt://user:hunter2@broker",
        "trust_file": "/state/trusted.keys",
        "started_at": "2026-01-01T00:00:00+00:00",
        **more,
    }
    return FleetEntry(**given)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    book = FleetBook(tmp_path)
    entry = an_entry(
        members=(Member(part=2, pid=1, created_at=2.0),),
        changes=({"change": {"do": "stop", "which": {}}, "at": 3.0},),
        number=4,
        restarts=5,
    )
    book.write(entry)
    assert book.entries() == [entry]
    assert "hunter2" not in repr(entry)
    assert book.next_id() == "fleet-2"


def test_a_fleet_that_was_given_a_key_is_given_the_file_of_keys(tmp_path: Path) -> None:
    book = FleetBook(tmp_path)
    book.write(an_entry())
    path = tmp_path / "fleets" / "fleet-1.json"
    record = json.loads(path.read_text())
    del record["trust_file"]
    path.write_text(json.dumps({**record, "trust": "a key"}))
    # No file of a service's: it starts the processes anew.
    assert book.entries() == [an_entry(trust_file="")]


def test_a_record_of_an_earlier_version_is_the_same_fleet(tmp_path: Path) -> None:
    book = FleetBook(tmp_path)
    book.directory.mkdir()
    (book.directory / "fleet-3.json").write_text(json.dumps(OLD_RECORD))
    (entry,) = book.entries()
    spec = FleetSpec.from_document(entry.request["spec"])
    assert list(spec.device_ids()) == ["lab-00001", "lab-00002", "lab-00003", "lab-00004"]
    assert (spec.seed, spec.groups[0].behaviours, spec.groups[0].tags) == (9, {"slow": 1.0}, {"site": "lab"})
    assert entry.members == (Member(part=1, pid=os.getpid(), created_at=1.0),)
    assert entry.broker_url == "", "so that its processes, which know nothing of changes, are started anew"


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 2, "fleet_id": "x"}'])
def test_what_cannot_be_read_is_passed_over_and_named(tmp_path: Path, text: str) -> None:
    book = FleetBook(tmp_path)
    book.write(an_entry())
    (book.directory / "fleet-7.json").write_text(text)
    assert [entry.fleet_id for entry in book.entries()] == ["fleet-1"]
    assert [path.name for path in book.unreadable()] == ["fleet-7.json"]
    assert book.next_id() == "fleet-8"


def test_all_files_of_a_fleet_are_private_and_go_with_it(tmp_path: Path) -> None:
    book = FleetBook(tmp_path)
    entry = an_entry()
    book.write(entry)
    book.write_inputs(entry)
    book.write_private(book.past_path("fleet-1"), "{}")
    book.write_private(book.statistics_path("fleet-1", 2), "{}")
    book.write_private(book.statistics_path("fleet-12", 2), "{}")
    assert {stat.S_IMODE(path.stat().st_mode) for path in book.directory.iterdir()} == {0o600}
    book.remove("fleet-1")
    assert [path.name for path in book.directory.iterdir()] == ["fleet-12-2.stats"]


def test_counters_of_processes_that_are_gone_stay(tmp_path: Path) -> None:
    book, entry = FleetBook(tmp_path), an_entry()
    statistics = FleetStatistics(book)

    def counts(part: int, **document: Any) -> None:
        book.write_private(book.statistics_path("fleet-1", part), json.dumps(document))

    def seen(*living: int) -> tuple[int, int]:
        merged = statistics.of(entry, living=living, devices={"devices": 2})
        assert merged["groups"]["devices"]["devices"] == merged["devices"] == 2
        return merged["connects"], merged["connected"]

    counts(1, connects=10, connected=1, groups={"devices": {"devices": 1, "connected": 1}})
    counts(2, connects=20, connected=1, groups={"devices": {"devices": 1, "connected": 1}})
    assert seen(1, 2) == (30, 2)
    assert seen(1) == (30, 1), "what is gone is not connected, and has counted"
    statistics.retire(entry, 2)
    assert seen(1) == (30, 1)
    counts(2, connects=5, connected=1)
    assert seen(1, 2) == (35, 2)
    statistics.retire(entry, 2)
    statistics.retire(entry, 2)
    assert seen(1) == (35, 1)


def test_what_a_process_has_counted_counts_once_whenever_the_service_is_killed(tmp_path: Path) -> None:
    book, entry = FleetBook(tmp_path), an_entry()
    last = json.dumps({"connects": 10, "uptime_s": 1.5})
    book.write_private(book.statistics_path("fleet-1", 2), last)
    FleetStatistics(book).retire(entry, 2)
    # Killed before the file was gone.
    book.write_private(book.statistics_path("fleet-1", 2), last)
    statistics = FleetStatistics(book)
    assert statistics.of(entry, living=(), devices={})["connects"] == 10
    statistics.retire(entry, 2)
    assert statistics.of(entry, living=(), devices={})["connects"] == 10
    assert not book.statistics_path("fleet-1", 2).exists()


def test_a_password_is_on_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = FleetBook(tmp_path)
    book.directory.mkdir()
    processes = FleetProcesses(book)
    commands: list[list[str]] = []

    class Child:
        pid = os.getpid()

        def __init__(self, argv: list[str], **_: Any) -> None:
            commands.append(argv)

        def poll(self) -> None:
            return None

    monkeypatch.setattr("provisioning.cli.fleet_processes.subprocess.Popen", Child)
    for url, keyed in (("mqtt://user:hunter2@broker", False), ("mqtt://broker", True)):
        entry = an_entry(broker_url=url, group_key_file="/keys/group.key")
        book.write_inputs(entry)
        processes.spawn(entry, 1)
        assert "hunter2" not in " ".join(commands[-1])
        assert any("group-key-file" in word for word in commands[-1]) == keyed
        assert book.broker_path("fleet-1").read_text() == url + "\n"


# -- groups that join ---------------------------------------------------------------------------------------


def test_ids_of_a_group_that_joins_go_on() -> None:
    specs = {
        "fleet-1": FleetSpec.of(count=20, prefix="lab"),
        "fleet-2": FleetSpec(
            groups=(
                Group(name="a", count=2, prefix="lab", first=100),
                Group(name="b", count=2, ids=("lab-7", "other")),
            )
        ),
    }
    added = completed({"do": "add", "group": {"count": 5}}, "fleet-1", specs)["group"]
    assert added == {"count": 5, "name": "group-2", "prefix": "lab", "first": 102}
    own = {"count": 5, "name": "x", "prefix": "new"}
    assert completed({"do": "add", "group": own}, "fleet-1", specs)["group"] == {**own, "first": 1}
    named = {"ids": ["one"], "name": "y"}
    assert completed({"do": "add", "group": named}, "fleet-1", specs)["group"] == named
    assert completed({"do": "storm"}, "fleet-1", specs) == {"do": "storm"}
    assert next_number(specs["fleet-2"].groups[1:], "lab") == 8


# -- metrics of a fleet in the foreground -------------------------------------------------------------------


async def test_whoever_asks_for_no_metrics_does_not_hold_up_the_end() -> None:
    class Launcher:
        async def metrics(self) -> str:
            return "muster_up 1\n"

    async with asyncio.timeout(5):
        async with foreground._metrics(cast("Any", Launcher()), 0) as url:
            port = int(url.partition("127.0.0.1:")[2].partition("/")[0])
            idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert (await reader.read()).endswith(b"\r\n\r\nmuster_up 1\n")
        assert await idle.read() == b""
    for open_writer in (idle_writer, writer):
        open_writer.close()
