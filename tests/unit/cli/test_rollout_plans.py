"""The plan that flags and files make, and what is said of one that can't be."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from provisioning.cli.rollout import values
from provisioning.cli.rollout.plan_file import EXAMPLE, key_of
from provisioning.rollouts.plan import RolloutPlan
from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_rollouts import FakeRefusalError
from tests.unit.cli.fake_service import FakeService

PLAN_FILE = """
name = "from the file"
[targets]
models = ["demo-1"]
tags = { site = "lab" }
[[waves]]
count = 1
[[waves]]
percent = 100
[pace]
in_flight = 20
per_minute = 60
[schedule]
start_at = 2030-01-07T20:00:00Z
windows = [{ from = 22:00:00, to = 06:00:00 }]
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN_FILE)
    return path


@pytest.fixture
def planned(service: FakeService, muster: Muster) -> Callable[..., dict[str, Any]]:
    """The plan that the service is asked about with these flags."""
    service.rollouts.device_ids = ["d1", "d2", "d3"]

    def run(*argv: str) -> dict[str, Any]:
        result = muster("rollout", "create", "--dry-run", *argv)
        assert result.exit_code == 0, result.err
        method, path, body = service.requests[-1]
        assert (method, path) == ("POST", "/api/rollouts/plan")
        assert body is not None
        plan: dict[str, Any] = body["plan"]
        return plan

    return run


Planned = Callable[..., dict[str, Any]]


def test_without_flags_the_service_says_everything(planned: Planned) -> None:
    assert planned() == planned("--all-new") == {}


def test_each_flag_has_its_key(planned: Planned) -> None:
    argv = (
        *("--name", "n", "--model", "a,b", "--model", "c", "--tag", "x=1", "--tag", "y=2"),
        *("--firmware-version", "0.9.0", "--states", "timed-out,new", "--percent", "10%", "--exclude", "d3"),
        *("--in-flight", "7", "--per-minute", "60", "--order", "random", "--seed", "4", "--deadline", "60"),
        *("--start-at", "2030-01-01T00:00:00+00:00", "--end-at", "2030-01-02T00:00:00+02:00"),
        *("--at-end", "force-cancel", "--window", "mon-wed 22:00-06:00", "--window", "8:00-24:00"),
        *(
            "--overlap",
            "join",
            "--continuous",
            "--ack-timeout",
            "5",
            "--activation-timeout",
            "6",
            "--attempts",
            "2",
        ),
        *("--abort", "failed=20%/10:cancel", "--abort", "timed-out=5"),
        *("--packaging-timeout", "7", "--notifying-timeout", "8", "--device-timeout", "9"),
        *("--sas-lifetime", "10", "--retry", "no-ack=2,delay=1.5m,factor=2,max=1h,jitter=0.25"),
        *("--retry", "bad_ack,delay=500ms"),
    )
    assert planned(*argv) == {
        "name": "n",
        "targets": {
            "models": ["a", "b", "c"],
            "firmware_versions": ["0.9.0"],
            "tags": {"x": "1", "y": "2"},
            "states": ["timed_out", "new"],
            "percent": 10.0,
            "exclude": ["d3"],
            "continuous": True,
        },
        "pace": {"in_flight": 7, "per_minute": 60, "order": "random", "seed": 4},
        "abort": [
            {"on": "failed", "threshold_percent": 20.0, "min_sample": 10, "action": "cancel"},
            {"on": "timed_out", "threshold_percent": 5.0},
        ],
        "deadlines": {"rollout_s": 60.0},
        "options": {
            "ack_timeout_s": 5.0,
            "activation_timeout_s": 6.0,
            "packaging_timeout_s": 7.0,
            "notifying_timeout_s": 8.0,
            "device_timeout_s": 9.0,
            "sas_lifetime_s": 10.0,
            "max_attempts": 2,
            "retries": {
                "no_ack": {
                    "max_attempts": 2,
                    "delay_s": 90.0,
                    "factor": 2.0,
                    "max_delay_s": 3600.0,
                    "jitter": 0.25,
                },
                "bad_ack": {"delay_s": 0.5},
            },
        },
        "schedule": {
            "start_at": "2030-01-01T00:00:00+00:00",
            "end_at": "2030-01-02T00:00:00+02:00",
            "at_end": "force_cancel",
            "windows": [
                {"days": ["mon", "tue", "wed"], "from": "22:00", "to": "06:00"},
                {"from": "08:00", "to": "00:00"},
            ],
        },
        "overlap": "join",
    }


def test_each_wave_has_the_threshold_and_all_but_the_last_the_gate(planned: Planned) -> None:
    more = {"success_threshold_percent": 95.0, "gate": "pause", "pause_s": 60.0}
    assert planned("--waves", "5%,1,rest", "--threshold", "95", "--pause", "60")["waves"] == [
        {"percent": 5.0, **more},
        {"count": 1, **more},
        {"percent": 100.0, "success_threshold_percent": 95.0},
    ]
    assert planned("--threshold", "90%")["waves"] == [{"percent": 100.0, "success_threshold_percent": 90.0}]


def test_a_rate_grows_from_its_base(planned: Planned) -> None:
    grown = planned("--per-minute", "60", "--grow", "2/1000:succeeded", "--max-per-minute", "900")
    assert grown["pace"]["per_minute"] == {
        "base": 60,
        "factor": 2.0,
        "grow_after_succeeded": 1000,
        "maximum": 900,
    }
    assert planned("--per-minute", "none")["pace"] == {"per_minute": None}


def test_a_file_is_taken_as_it_is_and_flags_go_before_it(planned: Planned, plan_file: Path) -> None:
    plan = planned("--file", str(plan_file))
    assert plan["schedule"] == {
        "start_at": "2030-01-07T20:00:00+00:00",
        "windows": [{"from": "22:00", "to": "06:00"}],
    }
    assert plan["targets"] == {"models": ["demo-1"], "tags": {"site": "lab"}}
    argv = ("--name", "mine", "--percent", "50", "--gate", "approval", "--in-flight", "5")
    grow = ("--grow", "2/10", "--max-per-minute", "90")
    changed = planned("--file", str(plan_file), *argv, *grow)
    assert changed["name"] == "mine"
    assert changed["targets"] == {**plan["targets"], "percent": 50.0}
    assert changed["waves"] == [{"count": 1, "gate": "approval"}, {"percent": 100}]
    assert changed["pace"] == {
        "in_flight": 5,
        "per_minute": {"base": 60, "factor": 2.0, "grow_after_notified": 10, "maximum": 90},
    }
    assert changed["schedule"] == plan["schedule"]


def test_the_retries_of_a_kind_go_before_those_that_the_file_has_of_it(
    planned: Planned, muster: Muster, service: FakeService, plan_file: Path
) -> None:
    plan_file.write_text(
        "[options]\nmax_attempts = 4\n[options.retries.no_ack]\ndelay_s = 5\n"
        "[options.retries.bad_ack]\ndelay_s = 6\n"
    )
    argv = ("--file", str(plan_file), "--retry", "no_ack=2", "--ack-timeout", "9")
    assert planned(*argv)["options"] == {
        "max_attempts": 4,
        "ack_timeout_s": 9.0,
        "retries": {"no_ack": {"max_attempts": 2}, "bad_ack": {"delay_s": 6}},
    }
    for kind, place in (("no_ack", "--retry"), ("bad_ack", f"{plan_file}, line 6")):
        detail = f"options.retries.{kind}.delay_s: 9 can't be used; give less"
        service.rollouts.refusal = FakeRefusalError(422, detail)
        assert muster("rollout", "create", *argv).error_line == f"muster: {place}: {detail}"


def test_whom_the_flags_choose_are_not_whom_the_file_does(planned: Planned, plan_file: Path) -> None:
    plan_file.write_text('[targets]\ndevices = ["d9"]\n')
    argv = ("--file", str(plan_file))
    assert planned(*argv, "--devices", "d1,d2")["targets"] == {"devices": ["d1", "d2"]}
    assert planned(*argv, "--all-new")["targets"] == {"devices": None}
    plan_file.write_text('[targets]\nmodels = ["demo-1"]\nexclude = ["d3"]\n')
    assert planned(*argv, "--devices", "d1")["targets"] == {
        "models": None,
        "exclude": ["d3"],
        "devices": ["d1"],
    }


def test_the_services_own_rules_take_what_the_flags_and_the_example_make(planned: Planned) -> None:
    argv = ("--waves", "5%,25%,rest", "--threshold", "95", "--pause", "60", "--abort", "all=50%")
    pace = ("--per-minute", "60", "--grow", "2/1000:succeeded", "--max-per-minute", "900")
    when = ("--start-at", "2030-01-01T22:00", "--window", "sat-mon 8:00-24:00")
    for flags in ((*argv, *pace, *when), ("--file", str(EXAMPLE), "--devices", "d1")):
        RolloutPlan.from_json(planned(*flags))


def test_a_plan_may_be_json(planned: Planned, muster: Muster, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(muster("rollout", "example", "--json").out)
    assert planned("--file", str(path))["waves"][0]["gate"] == "approval"


def test_the_example_is_a_plan_of_the_contract(planned: Planned, muster: Muster, tmp_path: Path) -> None:
    assert muster("rollout", "example").out == EXAMPLE.read_text()
    assert set(planned("--file", str(EXAMPLE))) == {
        *("name", "targets", "waves", "pace", "abort", "deadlines", "options", "schedule")
    }


@pytest.mark.parametrize(
    ("detail", "place"),
    [
        ("waves[1].percent: 101 is too much; give at most 100", ", line 9: waves[1].percent: 101"),
        ("plan.waves.0.count: 0 is too few; give 1", ", line 7: plan.waves.0.count: 0"),
        ("targets.tags.site: must be text; write so", ", line 5: targets.tags.site"),
        ("pace.seed: required", ", line 10: pace.seed"),
        ("schedule.windows[0].from: no time", ", line 15: schedule.windows[0].from"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_by_line_and_key(
    service: FakeService, muster: Muster, plan_file: Path, detail: str, place: str
) -> None:
    service.rollouts.refusal = FakeRefusalError(422, detail)
    result = muster("rollout", "create", "--file", str(plan_file))
    assert result.exit_code == 2
    assert result.error_line.startswith(f"muster: {plan_file}{place}")


def test_what_is_wrong_of_a_flag_is_told_by_the_flag(
    service: FakeService, muster: Muster, plan_file: Path
) -> None:
    service.rollouts.refusal = FakeRefusalError(422, "pace.in_flight: 6000 is too many; give at most 5000")
    result = muster("rollout", "create", "--file", str(plan_file), "--in-flight", "6000")
    assert result.error_line == "muster: --in-flight: pace.in_flight: 6000 is too many; give at most 5000"
    service.rollouts.refusal = FakeRefusalError(409, "d1 is in flight in run-1; use --overlap skip")
    result = muster("rollout", "create", "--file", str(plan_file))
    assert (result.exit_code, result.error_line) == (
        1,
        "muster: d1 is in flight in run-1; use --overlap skip",
    )


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("plan.toml", "name = ", "plan.toml: it is no TOML: Invalid value (at end of document)"),
        ("plan.json", '{"name":\n "x",}', "plan.json, line 2: it is no JSON"),
        ("plan.json", '{"name":' + "[" * 50_000, "plan.json: it is nested too deeply"),
        ("plan.json", "[]", "it is no plan; `muster rollout example --json"),
        ("plan.toml", "targets = 5", "targets must be a table of keys, not 5"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    service: FakeService, muster: Muster, tmp_path: Path, name: str, text: str, named: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    result = muster("rollout", "create", "--file", str(path), "--percent", "5")
    assert result.exit_code == 2
    assert named in result.error_line
    assert service.requests == []


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--waves", "5%,25%"), "'5%,25%' leaves devices out: end it with 100% or rest"),
        (("--waves", "5%,x"), "'x' in '5%,x' is no wave"),
        (("--waves", "0,rest"), "'0' in '0,rest' is no wave"),
        (("--gate", "approval"), "--gate and --pause are between waves: give several"),
        (("--per-minute", "60", "--grow", "2/10"), "--grow needs --max-per-minute N"),
        (("--waves", "5%,rest", "--threshold", "101"), "no percentage from 0 to 100"),
        (("--waves", "5%,rest", "--gate", "pause"), "--gate pause needs --pause SECONDS"),
        (("--waves", "5%,rest", "--gate", "approval", "--pause", "5"), "not for approval"),
        (("--percent", "0"), "'0' is no percentage above 0"),
        (("--grow", "2/10"), "need --per-minute N"),
        (("--per-minute", "60", "--max-per-minute", "90"), "needs --grow FACTOR/AFTER"),
        (("--grow", "2"), "'2' is no growth: write FACTOR/AFTER"),
        (("--per-minute", "0"), "no number of devices a minute"),
        (("--in-flight", "0"), "no whole number from 1 on"),
        (("--abort", "failed"), "write OUTCOME=PERCENT/SAMPLE:ACTION"),
        (("--abort", "failed=5:stop"), "'stop' in 'failed=5:stop' is no action"),
        (("--window", "22-6"), "is no window"),
        (("--window", "mon-foo 22:00-06:00"), "'mon-foo' in 'mon-foo 22:00-06:00' is no day"),
        (("--window", "25:00-06:00"), "'25:00' in '25:00-06:00' is no time of day"),
        (("--start-at", "soon"), "'soon' is no time"),
        (("--tag", "x"), "'x' is no tag"),
        (("--retry", "slow=3"), "'slow' in 'slow=3' is no kind of failure: use no_ack, download_failed"),
        (("--retry", "no_ack"), "'no_ack' says nothing of no_ack: write KIND=N,delay=TIME"),
        (("--retry", "no_ack=0"), "'0' in 'no_ack=0' is no number of attempts from 1 on"),
        (("--retry", "no_ack=3,wait=5s"), "'wait=5s' in 'no_ack=3,wait=5s' can't be read"),
        (("--retry", "no_ack=3,delay=1s,delay=2s"), "'delay=2s' in"),
        (("--retry", "no_ack=3,delay=5y"), "'5y' in 'no_ack=3,delay=5y' is no time: write one such as 5s"),
        (("--retry", "no_ack=3,delay=5,factor=x"), "is no number: write KIND=N"),
        (("--retry", "no_ack=3", "--retry", "no-ack=2"), "--retry no_ack is given twice"),
        (("--device-timeout", "0"), "'0' is no number of seconds above 0"),
        (("--all-new", "--devices", "d1"), "not allowed with"),
        (("--file", "missing.toml"), "`muster rollout example > plan.toml` makes one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage_errors_are_one_line(
    service: FakeService, muster: Muster, argv: tuple[str, ...], named: str
) -> None:
    result = muster("rollout", "create", *argv)
    assert result.exit_code == 2
    assert named in result.error_line
    assert service.requests == []


def test_a_dry_run_shows_the_waves_and_starts_nothing(service: FakeService, muster: Muster) -> None:
    service.rollouts.device_ids = [f"d{number}" for number in range(40)]
    argv = ("--waves", "5%,25%,100%", "--threshold", "90", "--gate", "approval", "--dry-run")
    lines = muster("rollout", "create", *argv).out.splitlines()
    assert lines[0] == "40 devices in 3 waves; nothing was started: leave out --dry-run for that"
    assert re.split("  +", lines[2].strip()) == ["1", "2", "2", "5%", "90% provisioned, approval"]
    assert lines[4].split() == ["3", "30", "40", "100%", "90%", "provisioned"]
    assert json.loads(muster("rollout", "create", *argv, "--json").out)["waves"] == [2, 8, 30]
    assert service.rollouts.known == {}


def test_a_dry_run_says_what_holds_for_each_device(service: FakeService, muster: Muster) -> None:
    service.rollouts.device_ids = ["d1"]
    argv = (
        "--device-timeout",
        "1800",
        "--attempts",
        "5",
        "--ack-timeout",
        "10",
        "--dry-run",
        "--allow-downgrade",
    )
    retries = ("--retry", "no_ack=4,delay=5s,factor=2,max=5m,jitter=0.3", "--retry", "rejected=2")
    lines = muster("rollout", "create", *argv, *retries).out.splitlines()
    assert lines[1:4] == [
        "  deadlines: acknowledgement 10 s, device in all 30:00",
        (
            "  attempts: 5 attempts; no_ack 4, after 5 s, each time 2 times as long, at most 5:00,"
            " up to 30% earlier; rejected 2"
        ),
        "  versions: older ones than devices run, too",
    ]


def test_show_says_what_holds_for_each_device(service: FakeService, muster: Muster) -> None:
    service.rollouts.device_ids = ["d1"]
    muster("rollout", "create", "--attempts", "5", "--retry", "no_ack,delay=5s", "--packaging-timeout", "9")
    shown = [re.split("  +", line.strip()) for line in muster("rollout", "show").out.splitlines()]
    assert ["deadlines", "packaging 9 s"] in shown
    assert ["attempts", "5 attempts; no_ack after 5 s"] in shown


def test_days_may_go_round_the_end_of_the_week() -> None:
    assert values.window("sat-mon,wed 10:00-12:00")["days"] == ["mon", "wed", "sat", "sun"]


def test_a_time_without_a_zone_is_this_machines() -> None:
    given = datetime.fromisoformat(values.moment("2030-01-01T22:00"))
    assert given.tzinfo is not None
    assert given == datetime(2030, 1, 1, 22).astimezone()
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        values.moment("22 o'clock")


def test_only_a_key_is_taken_for_one() -> None:
    assert key_of("plan.waves[0].percent: no") == "waves[0].percent"
    assert key_of("No new device waits: launch some") is None
    assert key_of("waves") is None
