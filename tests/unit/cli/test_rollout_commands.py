"""`muster rollout …` against the fake service: what the commands ask for, what they write, how they end."""

from __future__ import annotations

import itertools
import json
import os
import re
from typing import Any

import pytest

from provisioning.cli.rollout import choice, watching
from tests.unit.cli.conftest import Muster, Result
from tests.unit.cli.fake_service import FakeService


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at a rollout follow each other without waiting: the fake has no clock."""
    monkeypatch.setattr(watching, "POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr(watching, "LARGE_RUN_POLL_INTERVAL_S", 0.0)


@pytest.fixture
def devices(service: FakeService) -> list[str]:
    """Ten devices that are new."""
    service.rollouts.device_ids = [f"d{number}" for number in range(10)]
    return service.rollouts.device_ids


def rows(result: Result) -> list[list[str]]:
    """The words of each line."""
    assert result.err == ""
    return [line.split() for line in result.out.splitlines()]


def last_body(service: FakeService) -> dict[str, Any]:
    body = service.requests[-1][2]
    assert body is not None
    return body


@pytest.mark.usefixtures("devices")
class TestCreate:
    def test_says_what_was_begun_and_how_to_follow(self, service: FakeService, muster: Muster) -> None:
        result = muster("rollout", "create", "--waves", "20%,rest", "--actor", "ada")
        assert result.out == (
            "rollout-1: 10 devices in 2 waves (2, 8); follow it with: muster rollout watch rollout-1\n"
        )
        assert last_body(service)["actor"] == "ada"
        assert json.loads(muster("rollout", "create", "--json").out)["rollout_id"] == "rollout-2"

    def test_a_later_start_is_said(self, muster: Muster) -> None:
        out = muster("rollout", "create", "--start-at", "2030-01-01T00:00:00").out
        assert "rollout-1: 10 devices, from 2030-01-01 00:00:00 on; follow it" in out

    def test_it_is_said_that_devices_join_later(self, muster: Muster) -> None:
        out = muster("rollout", "create", "--continuous").out
        assert out.startswith("rollout-1: 10 devices, and such as register later; follow it")

    def test_follows_to_a_good_end(self, muster: Muster) -> None:
        result = muster("rollout", "create", "--waves", "2,rest", "--follow")
        assert result.exit_code == 0
        lines = result.out.splitlines()
        assert lines[0] == "rollout-1: 10 devices in 2 waves (2, 8)"
        assert "running  wave 1/2" in lines[1]
        assert any(line.startswith("10 of 10 provisioned in 0:0") for line in lines)

    def test_whoever_has_logged_in_is_the_actor(
        self, service: FakeService, muster: Muster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getlogin", lambda: "grace")
        muster("rollout", "create")
        assert last_body(service)["actor"] == "grace"


def test_without_a_terminal_the_environment_says_who_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise OSError("no terminal")

    monkeypatch.setattr(os, "getlogin", none)
    monkeypatch.setenv("USER", "ci")
    assert choice.login_name() == "ci"
    monkeypatch.delenv("USER")
    monkeypatch.delenv("LOGNAME", raising=False)
    assert choice.login_name() == "cli"


@pytest.mark.usefixtures("devices")
class TestWatch:
    def test_a_device_that_failed_is_no_good_end(self, service: FakeService, muster: Muster) -> None:
        service.rollouts.outcomes = {"d3": "failed"}
        muster("rollout", "create", "--waves", "2,rest")
        result = muster("rollout", "watch")
        assert result.exit_code == 1
        assert "  failed: disk full (such as d3)" in result.out.splitlines()
        assert result.out.splitlines()[-1] == ("next: `muster rollout retry rollout-1` tries 1 device again")

    def test_json_is_a_line_for_each_change(self, muster: Muster) -> None:
        muster("rollout", "create", "--waves", "2,rest", "--in-flight", "1")
        result = muster("rollout", "watch", "--json")
        documents = [json.loads(line) for line in result.out.splitlines()]
        assert [documents[0]["state"], documents[-1]["state"]] == ["running", "completed"]
        seen = [(one["wave"], one["state"], one["counts"]) for one in documents]
        assert all(before != after for before, after in itertools.pairwise(seen))
        assert all(sum(one["counts"].values()) == one["devices"] for one in documents)

    def test_a_gate_is_told_once_with_what_to_do(
        self, service: FakeService, muster: Muster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        muster("rollout", "create", "--waves", "2,rest", "--gate", "approval")
        waits: list[float] = []

        def approve_later(seconds: float) -> None:
            waits.append(seconds)
            rollout = service.rollouts.known["rollout-1"]
            if rollout.state == "awaiting_approval" and len(waits) > 20:
                rollout.act({"action": "approve", "actor": "ada"})

        monkeypatch.setattr(watching, "follow_rollout", _following(approve_later))
        result = muster("rollout", "watch")
        assert result.exit_code == 0
        (told,) = [line for line in result.out.splitlines() if "approve" in line]
        assert told == "  next: `muster rollout approve rollout-1` starts wave 2"

    def test_an_interruption_ends_the_watching_only(
        self, muster: Muster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        muster("rollout", "create")
        monkeypatch.setattr(watching, "follow_rollout", _following(interrupt))
        result = muster("rollout", "watch")
        assert result.exit_code == 130
        assert "rollout-1 goes on, and `muster rollout watch rollout-1` shows it" in result.error_line

    def test_a_rollout_that_there_is_not_is_an_error(self, muster: Muster) -> None:
        result = muster("rollout", "watch", "rollout-9")
        assert result.exit_code == 1
        assert "`muster rollout list` shows all" in result.error_line


def _following(wait: Any) -> Any:
    follow = watching.follow_rollout
    return lambda fetch, view: follow(fetch, view, wait)


@pytest.mark.usefixtures("devices")
class TestShowAndList:
    def test_show_has_waves_counts_reasons_and_the_next_step(
        self, service: FakeService, muster: Muster
    ) -> None:
        service.rollouts.outcomes = {"d1": "timed_out"}
        muster("rollout", "create", "--name", "spring", "--waves", "2,5,rest", "--threshold", "80")
        for _ in range(4):
            service.rollouts.known["rollout-1"].go_on()
        shown = muster("rollout", "show")
        lines = rows(shown)
        assert lines[0] == ["rollout-1", "spring"]
        assert ["state", "paused:", "wave", "1:", "50%", "provisioned,", "not", "80%"] in lines
        assert ["1", "done", "2", "0", "0", "1", "1", "50%"] in lines
        assert ["2", "pending", "5", "5", "0", "0", "0", "-"] in lines
        assert ["by", "state", "pending", "8", "provisioned", "1", "timed", "out", "1"] in lines
        assert ["1", "timed", "out", "d1", "no", "acknowledgement", "within", "1", "s"] in lines
        assert "next: `muster rollout resume rollout-1` goes on" in shown.out
        assert json.loads(muster("rollout", "show", "--json").out)["counts"]["timed_out"] == 1

    def test_the_expected_end_is_shown_while_it_goes_on(self, service: FakeService, muster: Muster) -> None:
        muster("rollout", "create")
        service.rollouts.known["rollout-1"].go_on()
        assert "in 0:09" in muster("rollout", "show").out

    def test_list_has_the_latest_first(self, muster: Muster) -> None:
        assert muster("rollout", "list").out == "no rollouts; start one with `muster rollout create`\n"
        muster("rollout", "create", "--name", "first")
        muster("rollout", "watch")
        muster("rollout", "create", "--waves", "2,rest")
        listed = rows(muster("rollout", "list"))
        assert listed[1] == ["rollout-2", "running", "1/2", "10", "0%", "0", "0", "default"]
        assert listed[2] == ["rollout-1", "completed", "1/1", "10", "100%", "10", "0", "default", "first"]
        assert muster("rollout", "list", "--limit", "1").out.endswith("1 of 2; --limit 0 shows all\n")
        assert json.loads(muster("rollout", "list", "--json").out)["total"] == 2

    def test_what_people_and_devices_say_cannot_drive_the_terminal(
        self, service: FakeService, muster: Muster
    ) -> None:
        service.rollouts.outcomes = {"d0": "failed"}
        service.rollouts.reasons["failed"] = "\x1b[2Jgone"
        muster("rollout", "create", "--name", "a\x1b]0;title\x07b")
        out = "".join(muster("rollout", command).out for command in ("watch", "show", "list", "log"))
        assert "\\x1b[2Jgone" in out
        assert "\x1b" not in out


@pytest.mark.usefixtures("devices")
class TestActions:
    @pytest.mark.parametrize(
        ("argv", "body", "said"),
        [
            (("pause", "--reason", "hm"), {"action": "pause", "reason": "hm"}, "paused; 2 devices in flight"),
            (("next",), {"action": "next"}, "the next wave starts"),
            (("cancel",), {"action": "cancel"}, "cancelled\nnext: 2 devices may finish"),
            (("cancel", "--force"), {"action": "force_cancel"}, "cancelled"),
            (
                ("exclude", "--devices", "d8,d9"),
                {"action": "exclude", "devices": ["d8", "d9"]},
                "2 devices out",
            ),
            (("add", "--devices", "e1"), {"action": "add", "devices": ["e1"]}, "1 device in; 11 devices now"),
            (
                ("pace", "--in-flight", "5", "--per-minute", "none"),
                {"action": "pace", "pace": {"in_flight": 5, "per_minute": None}},
                "the pace is 5 in flight, no limit per minute",
            ),
            (
                ("pace", "--per-minute", "60", "--grow", "2/10", "--max-per-minute", "90"),
                {
                    "action": "pace",
                    "pace": {
                        "per_minute": {
                            "base": 60,
                            "factor": 2.0,
                            "grow_after_notified": 10,
                            "maximum": 90,
                        }
                    },
                },
                "the pace is 60 per minute, growing by 2",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_each_asks_for_its_action(
        self,
        service: FakeService,
        muster: Muster,
        argv: tuple[str, ...],
        body: dict[str, Any],
        said: str,
    ) -> None:
        muster("rollout", "create", "--waves", "2,rest")
        service.rollouts.known["rollout-1"].go_on()
        result = muster("rollout", *argv, "--actor", "ada")
        assert result.exit_code == 0
        assert result.out.startswith(f"rollout-1: {said}")
        assert last_body(service) == {"actor": "ada", **body}

    def test_resume_and_approve_go_on(self, service: FakeService, muster: Muster) -> None:
        muster("rollout", "create", "--waves", "1,rest", "--gate", "approval")
        muster("rollout", "pause")
        assert muster("rollout", "resume").out == "rollout-1: goes on\n"
        for _ in range(3):
            service.rollouts.known["rollout-1"].go_on()
        assert muster("rollout", "approve").out == "rollout-1: approved; the next wave starts\n"

    def test_the_pause_between_waves_can_be_cut_short(self, service: FakeService, muster: Muster) -> None:
        muster("rollout", "create", "--waves", "1,rest", "--pause", "600")
        for _ in range(3):
            service.rollouts.known["rollout-1"].go_on()
        assert "`muster rollout next rollout-1` starts wave 2 now" in muster("rollout", "show").out

    def test_what_changes_nothing_says_so(self, muster: Muster) -> None:
        muster("rollout", "create")
        muster("rollout", "pause", "--actor", "ada")
        assert muster("rollout", "pause", "--actor", "ada").out.startswith(
            "rollout-1: nothing to change; it is paused\n"
        )
        assert json.loads(muster("rollout", "pause", "--actor", "ada", "--json").out)["changed"] is False

    def test_what_cannot_be_is_one_line_of_the_services(self, muster: Muster) -> None:
        muster("rollout", "create")
        result = muster("rollout", "approve")
        assert (result.exit_code, result.error_line) == (1, "muster: rollout-1 waits for no approval.")

    @pytest.mark.parametrize(
        ("argv", "named"),
        [
            (("pace",), "say what to change"),
            (("exclude",), "--devices"),
            (("add", "--devices", ","), "',' names nothing"),
            (("retry", "--states", "provisioned"), "'provisioned' is no end to retry"),
            (("list", "--limit", "-1"), "--limit must be 0"),
            ((), "say what to do"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_usage_errors_are_one_line(self, muster: Muster, argv: tuple[str, ...], named: str) -> None:
        result = muster("rollout", *argv)
        assert result.exit_code == 2
        assert named in result.error_line


@pytest.mark.usefixtures("devices")
class TestWhichRollout:
    def test_none_yet(self, muster: Muster) -> None:
        assert "start one with `muster rollout create`" in muster("rollout", "show").error_line

    def test_the_only_one_that_has_not_ended(self, service: FakeService, muster: Muster) -> None:
        muster("rollout", "create")
        muster("rollout", "create")
        muster("rollout", "watch", "rollout-2")
        assert muster("rollout", "pause").out.startswith("rollout-1: paused")

    def test_several_have_to_be_named(self, muster: Muster) -> None:
        muster("rollout", "create")
        muster("rollout", "create")
        result = muster("rollout", "cancel")
        assert result.exit_code == 2
        assert "2 rollouts have not ended (rollout-2, rollout-1): name the one" in result.error_line

    def test_where_all_have_ended_the_latest_is_looked_at_but_none_is_acted_on(self, muster: Muster) -> None:
        for rollout_id in ("rollout-1", "rollout-2"):
            muster("rollout", "create")
            muster("rollout", "watch", rollout_id)
        assert muster("rollout", "show").out.startswith("rollout-2\n")
        assert "every rollout has ended" in muster("rollout", "retry").error_line


@pytest.mark.usefixtures("devices")
def test_retry_brings_the_rest_home(service: FakeService, muster: Muster) -> None:
    service.rollouts.outcomes = {"d1": "failed", "d2": "timed_out", "d3": "rejected"}
    muster("rollout", "create", "--follow")
    service.rollouts.outcomes = {}
    result = muster("rollout", "retry", "--follow")
    assert result.exit_code == 0
    assert result.out.startswith("rollout-2: 2 devices of rollout-1 again\n")
    muster("rollout", "retry", "rollout-1", "--states", "rejected,timed-out")
    assert last_body(service)["states"] == ["rejected", "timed_out"]
    assert ["retry", "of", "rollout-1"] in rows(muster("rollout", "show"))


@pytest.mark.usefixtures("devices")
def test_log_says_who_did_what(muster: Muster) -> None:
    muster("rollout", "create", "--actor", "ada")
    muster("rollout", "pause", "--actor", "grace", "--reason", "too many reboots")
    entries = rows(muster("rollout", "log"))
    assert entries[1][2:] == ["ada", "created"]
    assert entries[2][2:] == ["grace", "pause", "too", "many", "reboots"]
    assert [one["actor"] for one in json.loads(muster("rollout", "log", "--json").out)["log"]] == [
        "ada",
        "grace",
    ]


@pytest.mark.usefixtures("devices")
class TestDevices:
    def test_lists_devices_with_what_became_of_each(self, service: FakeService, muster: Muster) -> None:
        service.rollouts.outcomes = {"d1": "failed"}
        muster("rollout", "create", "--waves", "2,rest", "--follow")
        result = muster("rollout", "devices", "--limit", "3")
        assert rows(result)[1:] == [
            ["d0", "1", "provisioned", "1", "100%", "1.50", "s"],
            ["d1", "1", "failed", "1", "-", "1.50", "s", "disk", "full"],
            ["d2", "2", "provisioned", "1", "100%", "1.50", "s"],
            ["3", "of", "10;", "--limit", "0", "shows", "all"],
        ]
        failed = json.loads(muster("rollout", "devices", "--state", "failed,timed-out", "--json").out)
        assert (failed["total"], [one["device_id"] for one in failed["devices"]]) == (1, ["d1"])
        assert len(rows(muster("rollout", "devices", "--wave", "2", "--limit", "0"))) == 1 + 8

    def test_says_for_whom_a_device_waits(self, service: FakeService, muster: Muster) -> None:
        muster("rollout", "create", "--overlap", "wait")
        service.rollouts.known["rollout-1"].held["d3"] = "run-9"
        listed = rows(muster("rollout", "devices"))
        assert ["d3", "1", "pending", "-", "-", "-", "waits", "for", "run-9"] in listed
        service.rollouts.known["rollout-1"].state = "waiting"
        assert "next: goes on as the other runs have done with these" in muster("rollout", "show").out
        assert "1 device, until run-9 has done with them" in muster("rollout", "show").out

    def test_shows_one_device(self, muster: Muster) -> None:
        muster("rollout", "create", "--follow")
        assert ["state", "provisioned"] in rows(muster("rollout", "device", "d4"))
        assert json.loads(muster("rollout", "device", "rollout-1", "d4", "--json").out)["wave"] == 1
        assert muster("rollout", "device", "nobody").exit_code != 0

    def test_says_when_a_device_that_waits_is_tried_again(self, service: FakeService, muster: Muster) -> None:
        muster("rollout", "create")
        at = "2030-01-01T00:00:05.000+00:00"
        service.rollouts.of_devices["d3"] = {"retrying_at": at, "retrying_after": "no_ack"}
        out = muster("rollout", "device", "d3").out
        assert re.search(r"next attempt  retrying at \d\d:\d\d:05, after no_ack\n", out)

    def test_refuses_what_is_no_state(self, muster: Muster) -> None:
        muster("rollout", "create")
        result = muster("rollout", "devices", "--state", "broken")
        assert "'broken' is no state; choose from pending, queued" in result.err
