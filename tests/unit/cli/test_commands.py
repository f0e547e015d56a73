"""The client commands against the fake service: what they ask for and what they write."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_service import FakeService

FLEET_COMMANDS = (
    *("launch", "list", "show", "watch", "stats", "add", "kill", "start", "offline", "online", "behave"),
    *("storm", "stop", "check", "plan", "behaviours", "example", "run"),
)

ROLLOUT_COMMANDS = (
    *("create", "example", "list", "show", "watch", "pause", "resume", "approve", "next", "cancel"),
    *("exclude", "add", "pace", "retry", "log"),
)


def test_fleet_launch_asks_for_the_fleet_and_names_the_next_step(
    service: FakeService, muster: Muster
) -> None:
    result = muster(
        "fleet", "launch", "--count", "3", "--seed", "7", "--behaviours", "healthy=3,slow", "--tag", "a=b"
    )
    assert result.exit_code == 0
    assert result.out == "fleet-1: 3 devices launched (seed 7); next: muster provision\n"
    method, path, body = service.requests[-1]
    assert (method, path) == ("POST", "/api/fleets")
    assert body is not None
    (group,) = body["spec"]["groups"]
    assert body["spec"]["seed"] == 7
    assert group["count"] == 3
    assert group["behaviours"] == {"healthy": 3.0, "slow": 1.0}
    assert group["tags"] == {"a": "b"}


@pytest.mark.parametrize(
    ("command", "pending", "said"),
    [
        ("revoke", False, "all URLs are revoked; those to come have the policy muster-1-2\n"),
        ("show", False, "URLs have the policy muster-1-2\n"),
        (
            "revoke",
            True,
            "blob storage does not answer: URLs get the policy muster-1-2 as soon as it does\n",
        ),
    ],
)
def test_sas_revokes_and_says_whether_storage_knows(
    service: FakeService, muster: Muster, command: str, pending: bool, said: str
) -> None:
    service.sas["pending"] = pending
    result = muster("sas", command)
    assert (result.exit_code, result.out) == (int(pending), said)
    asked = ("POST", "/api/sas/revoke") if command == "revoke" else ("GET", "/api/sas")
    assert service.requests[-1][:2] == asked
    assert json.loads(muster("sas", command, "--json").out) == service.sas


def test_provision_starts_a_run_over_all_new_devices(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "2")
    result = muster("provision", "--ack-timeout", "5", "--attempts", "2")
    assert result.out == "run-1: provisioning 2 devices; follow it with: muster watch\n"
    assert (
        "POST",
        "/api/provision",
        {"device_ids": None, "options": {"ack_timeout_s": 5.0, "max_attempts": 2}},
    ) in service.requests


def test_provision_takes_deadlines_and_retries(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "2")
    muster("provision", "--device-timeout", "60", "--attempts", "4", "--retry", "no_ack=4,delay=5s,factor=2")
    options = {
        "device_timeout_s": 60.0,
        "max_attempts": 4,
        "retries": {"no_ack": {"max_attempts": 4, "delay_s": 5.0, "factor": 2.0}},
    }
    assert ("POST", "/api/provision", {"device_ids": None, "options": options}) in service.requests
    assert "is no kind of failure" in muster("provision", "--retry", "x=1").error_line
    assert "--retry no_ack=5,delay=5s,factor=2,max=60s" in muster("provision", "--help").out


def test_provision_follows_to_the_end_and_fails_where_a_device_did(
    service: FakeService, muster: Muster
) -> None:
    muster("fleet", "launch", "--count", "3")
    service.outcomes["dev-00002"] = "timed_out"
    result = muster("provision", "dev-00001", "dev-00002", "--follow")
    assert result.exit_code == 1
    assert result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == "run-1: provisioning 2 devices"
    assert lines[1] == "0:02 of about 0:05  1/2 done  0.5 devices/s  queued 1  provisioned 1"
    assert "  dev-00002 timed out: no acknowledgement within 1 s" in lines
    assert "1 of 2 provisioned in 0:02, 1.0 devices/s" in lines
    assert ["timed", "out", "1"] in [line.split() for line in lines]


def test_watch_shows_the_newest_run(service: FakeService, muster: Muster) -> None:
    assert "there was no run yet" in muster("watch").error_line
    muster("fleet", "launch", "--count", "2")
    muster("provision", "dev-00001")
    muster("provision", "dev-00002")
    result = muster("watch")
    assert result.exit_code == 0
    assert service.requests[-1][1] == "/api/runs/run-2"
    assert "1 of 1 provisioned" in result.out


def test_watch_json_writes_a_line_for_each_change(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "2")
    muster("provision")
    documents = [json.loads(line) for line in muster("watch", "--json").out.splitlines()]
    assert [document["counts"].get("provisioned") for document in documents] == [1, 2, 2]
    assert documents[-1]["status"] == "completed"


def test_devices_lists_filters_and_pages(service: FakeService, muster: Muster) -> None:
    service.page_limit = 2
    for index in range(5):
        service.add_device(f"d{index}", "timed_out" if index == 3 else "provisioned", attempt=1, progress=1.0)
    rows = [line.split() for line in muster("devices").out.splitlines()]
    assert [row[0] for row in rows] == ["device", "d0", "d1", "d2", "d3", "d4"]
    assert rows[1][1:5] == ["provisioned", "yes", "1", "100%"]
    assert muster("devices", "--state", "timed-out", "--json").out.count('"device_id"') == 1
    limited = muster("devices", "--limit", "2").out.splitlines()
    assert limited[-1] == "2 of 5; --limit 0 shows all"
    assert len(limited) == 4


def test_devices_says_which_states_there_are(service: FakeService, muster: Muster) -> None:
    result = muster("devices", "--state", "lost")
    assert result.exit_code == 2
    assert "'lost' is no state" in result.error_line
    assert "timed_out" in result.error_line


def test_device_shows_its_steps_with_times_attempts_and_errors(service: FakeService, muster: Muster) -> None:
    service.add_device(
        "d1",
        "downloading",
        attempt=2,
        progress=0.5,
        tags={"site": "lab"},
        package={"id": "p1", "size_bytes": 65536, "sha256": "ab" * 32, "url": "http://x/?sig=***"},
        steps=[
            {
                "step": "downloading",
                "attempt": 1,
                "started_at": "2026-01-02T03:04:05.000+00:00",
                "ended_at": "2026-01-02T03:04:06.500+00:00",
                "error": "no acknowledgement",
            },
            {
                "step": "downloading",
                "attempt": 2,
                "started_at": "2026-01-02T03:04:07.000+00:00",
                "ended_at": None,
                "error": None,
            },
        ],
    )
    out = muster("device", "d1").out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["d1"]
    assert ["state", "downloading"] in rows
    assert ["progress", "50%"] in rows
    assert ["tags", "site=lab"] in rows
    first, second = rows[-2:]
    assert first[:2] == ["downloading", "1"]
    assert first[-4:] == ["1.50", "s", "no", "acknowledgement"]
    assert second[1] == "2"
    assert second[-1] == "running"
    assert "sig=" not in out


def test_device_says_when_it_is_tried_again(service: FakeService, muster: Muster) -> None:
    at = "2026-01-02T03:04:07.000+00:00"
    service.add_device(
        "d1",
        state="notified",
        retrying_at=at,
        retrying_after="no_ack",
        steps=[
            {
                "step": "waiting",
                "attempt": 2,
                "started_at": "2026-01-02T03:04:05.000+00:00",
                "ended_at": None,
                "error": None,
                "retrying_at": at,
                "retrying_after": "no_ack",
            }
        ],
    )
    shown = [line.split("  ") for line in muster("device", "d1").out.splitlines()]
    local = datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")
    assert ["", "next attempt", f"retrying at {local}, after no_ack"] in shown


def test_what_devices_say_cannot_drive_the_terminal(service: FakeService, muster: Muster) -> None:
    service.add_device("d1", "failed", error="\x1b[2Jgone\nnext", model="a\x1b]0;title\x07b")
    for argv in (("devices",), ("device", "d1")):
        out = muster(*argv).out
        assert "\x1b" not in out
        assert "\\x1b[2Jgone\\nnext" in out


def test_a_pipe_gets_no_escape_codes(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "2")
    out = muster("provision", "--follow").out + muster("devices").out + muster("fleet", "list").out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("demo",),
        ("up",),
        ("down",),
        ("fleet",),
        *(("fleet", command) for command in FLEET_COMMANDS),
        ("rollout",),
        *(("rollout", command) for command in ROLLOUT_COMMANDS),
        ("provision",),
        ("devices",),
        ("device",),
        ("watch",),
        ("report",),
    ],
)
def test_each_command_has_help_with_examples(muster: Muster, argv: tuple[str, ...]) -> None:
    result = muster(*argv, "--help")
    assert result.exit_code == 0
    assert ("examples:" if argv else "the three jobs:") in result.out
    if argv:
        assert f"  muster {' '.join(argv)}" in result.out


@pytest.mark.parametrize(
    "argv",
    [
        ("rollout", "create", "--devices", ""),
        ("rollout", "create", "--model", " , "),
        ("rollout", "cancel", ""),
        ("rollout", "device", "rollout-1", ""),
        ("release", "show", ""),
        ("release", "remove", ""),
        ("device", ""),
    ],
)
def test_an_unset_variable_of_a_shell_is_neither_all_nor_another_command(
    service: FakeService, muster: Muster, argv: tuple[str, ...]
) -> None:
    result = muster(*argv)
    assert result.exit_code == 2
    assert "names nothing: give" in result.error_line
    assert [method for method, *_ in service.requests if method != "GET"] == []
