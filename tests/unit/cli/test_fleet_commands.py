"""`muster fleet …` against the fake service: what the commands ask for and what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from provisioning.cli.fleet import launch, watching
from tests.unit.cli.conftest import Muster, Result
from tests.unit.cli.fake_service import FakeService

FLEET_FILE = """
seed = 5
[[groups]]
name = "lab"
count = 2
prefix = "lab"
[[groups]]
name = "field"
count = 3
prefix = "field"
behaviours = { slow = 1 }
"""


@pytest.fixture
def fleet(service: FakeService, muster: Muster) -> str:
    """One fleet of three devices."""
    muster("fleet", "launch", "--count", "3")
    return "fleet-1"


def last_change(service: FakeService) -> dict[str, Any]:
    """The body of the last request, which must be a change of the first fleet."""
    method, path, body = service.requests[-1]
    assert (method, path) == ("POST", "/api/fleets/fleet-1/changes")
    assert body is not None
    return body


def rows(result: Result) -> list[list[str]]:
    """The words of each line."""
    assert result.exit_code == 0, result.err
    return [line.split() for line in result.out.splitlines()]


def test_a_fleet_file_is_launched_and_flags_for_the_whole_fleet_go_before_it(
    service: FakeService, muster: Muster, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET_FILE)
    argv = ("--file", str(path), "--seed", "9", "--connects-per-s", "50", "--speed", "10")
    result = muster("fleet", "launch", *argv, "--processes", "4", "--shard", "1/2")
    assert result.out == "fleet-1: 5 devices in 2 groups launched (seed 9); next: muster provision\n"
    _, _, body = service.requests[-1]
    assert body is not None
    assert (body["processes"], body["shard"]) == (4, "1/2")
    spec = body["spec"]
    assert (spec["seed"], spec["speed"], spec["ramp"]["devices_per_s"]) == (9, 10.0, 50.0)
    assert [group["name"] for group in spec["groups"]] == ["lab", "field"]


def test_a_launch_waits_until_all_devices_have_registered(
    service: FakeService, muster: Muster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "POLL_INTERVAL_S", 0.0)
    service.unregistered = 3
    result = muster("fleet", "launch", "--count", "3", "--wait")
    assert result.out.splitlines() == [
        "fleet-1: 3 devices launched (seed 1); they register",
        "fleet-1: all have registered; next: muster provision",
    ]
    assert service.unregistered == 0


def test_a_run_that_begins_before_all_devices_have_registered_says_so(
    service: FakeService, muster: Muster, fleet: str
) -> None:
    service.unregistered = 2
    told = "1 device of fleet-1 had not registered yet"
    assert told in muster("provision").out
    assert told not in muster("provision").out


def test_a_flag_that_cannot_be_is_told_by_its_name(muster: Muster) -> None:
    result = muster("fleet", "plan", "--count", "3", "--prefix", "a b")
    assert "muster: --prefix: 'a b' can't begin a device id" in result.error_line
    result = muster("fleet", "plan", "--count", "3", "--behaviours", "slow(")
    assert "argument --behaviours: 'slow(' lacks a parenthesis" in result.error_line


def test_a_plan_has_the_order_of_the_file_and_its_stages(muster: Muster, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        """
ramp = { devices_per_s = 50, stages = [{ devices_per_s = 5, for_s = 2 }] }
[[groups]]
count = 9
behaviours = { slow = 0.2, healthy = 0.5, flaky = 0.3 }
"""
    )
    result = muster("fleet", "plan", "--file", str(path))
    assert "connecting at 5/s for 2 s, then at 50/s" in result.out
    assert [row[-1] for row in rows(result)[2:]] == ["slow", "healthy", "flaky"]


def test_a_fleet_file_that_cannot_be_is_told_by_line_and_key(
    service: FakeService, muster: Muster, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET_FILE.replace("count = 3", "count = 0"))
    result = muster("fleet", "launch", "--file", str(path))
    assert result.exit_code == 2
    assert f"{path}, line 9: groups[1].count" in result.error_line
    assert service.requests == []


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("launch",), "--count --file"),
        (("launch", "--count", "1", "--file", "x"), "not allowed with"),
        (("launch", "--file", "x.toml", "--prefix", "lab"), "prefix is the groups' in x.toml"),
        (("launch", "--count", "1", "--processes", "65"), "1 to 64 processes"),
        (("launch", "--count", "1", "--speed", "0"), "speed: 0.0 is out of range"),
        (("launch", "--count", "1", "--tag", "x"), "'x' is no tag"),
        (("kill", "--share", "0"), "'0' is no share"),
        (("kill", "--share", "120%"), "'120%' is no share"),
        (("offline", "--for", "0"), "'0' is no number of seconds"),
        (("storm", "--spread", "-1"), "is no number of seconds"),
        (("behave",), "BEHAVIOUR"),
        (("plan", "--count", "1", "--attempts", "0"), "--attempts 0"),
        (("plan", "--count", "1", "--shard", "3/2"), "3/2 can't be"),
        (("stats", "--json", "--prometheus"), "--prometheus"),
        (("run", "--count", "1", "--trust", "x"), "say where the broker is"),
        (("run", "--count", "1", "--trust", "x", "--broker", "http://x"), "mqtt://host:port"),
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_line(muster: Muster, argv: tuple[str, ...], named: str) -> None:
    result = muster("fleet", *argv)
    assert result.exit_code == 2
    assert named in result.error_line


def test_list_shows_each_fleet_in_a_line(service: FakeService, muster: Muster, fleet: str) -> None:
    service.fleets[0] |= {"connected": 2, "restarts": 1, "running": False}
    muster("fleet", "launch", "--count", "1", "--prefix", "lab", "--behaviours", "slow")
    service.fleets[1] |= {"running": False, "error": "1 of 1 processes ended"}
    listed = rows(muster("fleet", "list"))
    assert listed[0] == ["fleet", "devices", "connected", "seed", "state", "processes", "restarts", "groups"]
    assert listed[1][:7] == ["fleet-1", "3", "2", "1", "restarting", "1", "1"]
    assert listed[2] == ["fleet-2", "1", "0", "1", "not", "running", "1", "0", "slow", "1"]
    assert listed[3] == ["fleet-2:", "1", "of", "1", "processes", "ended"]
    assert json.loads(muster("fleet", "list", "--json").out)["fleets"][0]["fleet_id"] == "fleet-1"


def test_a_change_of_nobody_is_told(service: FakeService, muster: Muster, fleet: str) -> None:
    service.fleets[0]["devices"] = 0
    result = muster("fleet", "kill", "--behaviour", "rejects")
    assert result.out == "fleet-1: no device is like that; nothing has changed\n"


def test_a_long_list_of_behaviours_is_cut(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "44", "--behaviours", "all=0.9,healthy=0.1")
    line = muster("fleet", "list").out.splitlines()[1]
    assert "slow 0.0391, lossy 0.0391" in line
    assert line.endswith(" more")


def test_a_long_list_of_behaviours_in_equal_parts_is_said_so(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "44", "--behaviours", "all")
    assert muster("fleet", "list").out.splitlines()[1].endswith("23 behaviours in equal parts")


def test_without_fleets_the_way_to_one_is_told(service: FakeService, muster: Muster) -> None:
    assert muster("fleet", "list").out.startswith("no fleets; start one with `muster fleet launch")
    result = muster("fleet", "show")
    assert result.exit_code == 1
    assert "muster fleet launch" in result.error_line


def test_a_fleet_may_be_left_out_where_there_is_one(service: FakeService, muster: Muster, fleet: str) -> None:
    assert muster("fleet", "kill").exit_code == 0
    assert last_change(service) == {"do": "kill", "which": {}}
    muster("fleet", "launch", "--count", "1", "--prefix", "lab")
    for command in ("show", "kill", "check", "stats", "watch", "stop"):
        result = muster("fleet", command)
        assert result.exit_code == 2
        assert "there are 2 fleets (fleet-1, fleet-2)" in result.error_line


def test_show_has_groups_and_numbers(service: FakeService, muster: Muster, fleet: str) -> None:
    shown = rows(muster("fleet", "show"))
    assert shown[0][:3] == ["fleet-1:", "3", "devices,"]
    assert ["devices", "3", "0", "3", "0", "0", "0"] in shown
    assert ["connections", "12", "made,", "0", "of", "them", "again,", "0", "failed"] in shown
    document = json.loads(muster("fleet", "show", fleet, "--json").out)
    assert document["statistics"]["connects"] == 12


def test_show_lists_each_device(service: FakeService, muster: Muster, fleet: str) -> None:
    shown = rows(muster("fleet", "show", "--devices"))
    assert shown[1] == ["dev-00001", "devices", "yes", "no", "timed", "out", "healthy"]
    assert len(json.loads(muster("fleet", "show", "--devices", "--json").out)["devices"]) == 3


def test_stats_has_every_counter_and_latency(service: FakeService, muster: Muster, fleet: str) -> None:
    shown = rows(muster("fleet", "stats"))
    assert ["messages", "in", "3"] in shown
    assert ["ack", "1", "105", "ms", "105", "ms", "105", "ms"] in shown
    assert json.loads(muster("fleet", "stats", "--json").out)["bytes_in"] == 4_000


@pytest.mark.parametrize(
    ("argv", "change", "words"),
    [
        (("start",), {"do": "start"}, "3 devices running"),
        (("kill", "--share", "25%"), {"do": "kill", "which": {"share": 0.25}}, "3 devices killed"),
        (
            ("offline", "--group", "field", "--for", "30"),
            {"do": "offline", "which": {"group": "field"}, "for_s": 30.0},
            "offline for 30 s",
        ),
        (("offline", "fleet-1"), {"do": "offline"}, "offline until `muster fleet online`"),
        (
            ("online", "--devices", "a,b", "--devices", "c"),
            {"do": "online", "which": {"devices": ["a", "b", "c"]}},
            "3 devices online",
        ),
        (
            ("behave", "slow+flaky", "fleet-1", "--behaviour", "healthy"),
            {"do": "behave", "which": {"behaviour": "healthy"}, "behaviour": "slow+flaky"},
            "3 devices now slow+flaky",
        ),
        (("storm", "--spread", "2"), {"do": "storm", "spread_s": 2.0}, "connecting again within 2 s"),
        (("stop", "--group", "field"), {"do": "stop", "which": {"group": "field"}}, "3 devices stopped"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_changes_are_told_to_the_service(
    service: FakeService, muster: Muster, fleet: str, argv: tuple[str, ...], change: Any, words: str
) -> None:
    result = muster("fleet", *argv)
    assert last_change(service) == {"which": {}, **change}
    assert result.out.startswith("fleet-1: ")
    assert words in result.out
    assert json.loads(muster("fleet", *argv, "--json").out)["affected"] == 3


def test_processes_that_did_not_answer_are_told(service: FakeService, muster: Muster, fleet: str) -> None:
    service.missed = 1
    assert (
        "1 of 2 processes did not answer and is started again with the change" in muster("fleet", "kill").out
    )
    assert "know nothing of it; try again" in muster("fleet", "storm").out


def test_add_leaves_ids_to_the_service(service: FakeService, muster: Muster, fleet: str) -> None:
    result = muster("fleet", "add", "--count", "2")
    assert last_change(service) == {"do": "add", "group": {"count": 2}}
    assert "joined as group group-2, from dev-00004; next: muster provision" in result.out


def test_add_takes_from_another_group_what_is_not_given(
    service: FakeService, muster: Muster, fleet: str
) -> None:
    service.fleets[0]["groups"][0] |= {"model": "demo-2", "tags": {"site": "lab"}}
    muster("fleet", "add", "--count", "2", "--like", "devices", "--behaviours", "corrupt", "--name", "bad")
    group = last_change(service)["group"]
    assert (group["count"], group["name"], group["behaviours"]) == (2, "bad", {"corrupt": 1.0})
    assert (group["model"], group["tags"], group["prefix"]) == ("demo-2", {"site": "lab"}, "dev")
    result = muster("fleet", "add", "--count", "2", "--like", "ghost")
    assert "fleet-1 has no group 'ghost': use one of devices" in result.error_line


def test_stop_says_what_the_fleet_came_to(service: FakeService, muster: Muster, fleet: str) -> None:
    result = muster("fleet", "stop", "--all")
    assert result.out.splitlines()[0] == "stopped: fleet-1, 3 devices"
    assert "12 made" in result.out
    assert "3 in (4.0 kB)" in result.out
    assert muster("fleet", "stop", "--all").out == "no fleet to stop\n"
    muster("fleet", "launch", "--count", "3")
    stopped = json.loads(muster("fleet", "stop", "fleet-1", "--json").out)
    assert stopped["stopped"] == ["fleet-1"]
    assert stopped["fleets"][0]["statistics"]["connects"] == 12


def test_stop_takes_fleets_or_all(service: FakeService, muster: Muster, fleet: str) -> None:
    result = muster("fleet", "stop", fleet, "--all")
    assert result.exit_code == 2
    assert "--all" in result.error_line
    assert len(service.fleets) == 1


def test_check_lists_differences_and_fails(service: FakeService, muster: Muster, fleet: str) -> None:
    assert muster("fleet", "check").out == "fleet-1: 3 of 3 devices ended as expected\n"
    service.differences = [
        {
            "device_id": "dev-00002",
            "group": "devices",
            "behaviour": "healthy",
            "expected": "provisioned",
            "actual": "timed_out",
            "error": "no acknowledgement",
        }
    ]
    result = muster("fleet", "check")
    assert result.exit_code == 1
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0][-3:] == ["1", "did", "not"]
    assert lines[-1][:6] == ["dev-00002", "devices", "healthy", "provisioned", "timed", "out"]
    assert muster("fleet", "check", "--json").exit_code == 1


def test_watch_ends_when_the_fleet_is_stopped(
    service: FakeService, muster: Muster, fleet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLL_INTERVAL_S", 0.0)
    service.fleet_looks = 4
    result = muster("fleet", "watch")
    assert result.exit_code == 0
    first, last = result.out.splitlines()
    assert "0/3 connected" in first
    assert "in 3 (4.0 kB)" in first
    assert last == "fleet-1 was stopped"
    muster("fleet", "launch", "--count", "3")
    service.fleet_looks = 4
    lines = muster("fleet", "watch", "--json").out.splitlines()
    assert [json.loads(line)["fleet_id"] for line in lines] == ["fleet-1"] * 3


def test_an_unknown_fleet_is_named(service: FakeService, muster: Muster) -> None:
    for command in ("show", "watch", "kill", "check", "stats", "stop"):
        result = muster("fleet", command, "ghost")
        assert result.exit_code == 1
        assert "Unknown fleet: ghost" in result.error_line


def test_plan_says_which_devices_there_would_be(muster: Muster) -> None:
    argv = ("fleet", "plan", "--count", "10", "--behaviours", "healthy=8,never-answers=2")
    shown = rows(muster(*argv))
    assert shown[0][:2] == ["10", "devices,"]
    assert ["devices", "8", "provisioned", "healthy"] in shown
    assert ["devices", "2", "timed", "out", "never-answers"] in shown
    assert len(rows(muster(*argv, "--devices"))) == 11
    assert len(rows(muster(*argv, "--devices", "--shard", "1/2"))) == 6
    document = json.loads(muster(*argv, "--devices", "--json").out)
    assert document["devices"] == len(document["each"]) == 10


def test_what_is_expected_depends_on_the_attempts(muster: Muster) -> None:
    argv = ("fleet", "plan", "--count", "1", "--behaviours", "corrupt", "--json")
    assert json.loads(muster(*argv).out)["plan"][0]["expected"] == "provisioned"
    assert json.loads(muster(*argv, "--attempts", "1").out)["plan"][0]["expected"] == "failed"


def test_behaviours_lists_all_with_their_outcomes(muster: Muster) -> None:
    shown = {row[0]: row for row in rows(muster("fleet", "behaviours"))}
    assert shown["healthy"][1] == "provisioned"
    assert shown["never-answers"][1:3] == ["timed", "out"]
    assert "(every_s=8)" in shown["flaky"]
    behaviours = json.loads(muster("fleet", "behaviours", "--json").out)["behaviours"]
    assert {"name", "summary", "parameters", "expected"} == set(behaviours[0])
    assert len(behaviours) == len(shown) - 1


def test_the_example_can_be_launched(service: FakeService, muster: Muster, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(muster("fleet", "example").out)
    assert "202 devices in 3 groups" in muster("fleet", "launch", "--file", str(path)).out


def test_every_behaviour_by_one_word(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "44", "--behaviours", "all")
    _, _, body = service.requests[-1]
    assert body is not None
    behaviours = body["spec"]["groups"][0]["behaviours"]
    assert len(behaviours) > 20
    assert len(set(behaviours.values())) == 1
