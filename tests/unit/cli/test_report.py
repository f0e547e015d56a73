"""`muster report`: what the page, the table and the JSON say, and where they are written."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

from provisioning.cli.documents import RolloutDevice
from provisioning.cli.report.command import file_name
from provisioning.cli.report.figures import MAX_REASONS, OTHER_REASONS, Figures, nice
from provisioning.cli.report.subject import plan_in_words
from provisioning.cli.report.table import COLUMNS, text
from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_service import FakeService
from tests.unit.cli.test_rollout_views import a_rollout

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)> & \"'\x1b[31m"
SECRET = "GET http://127.0.0.1/p.zip?sp=r&sig=abc%2Fd%3D&se=1 failed"


@pytest.fixture
def ended(service: FakeService) -> FakeService:
    """A service with a rollout of ten devices that has ended, two of them failed and one timed out."""
    service.rollouts.device_ids = [f"d{number}" for number in range(10)]
    service.rollouts.outcomes = {"d1": "failed", "d2": "failed", "d3": "timed_out"}
    service.rollouts.per_look = 10
    plan = {"name": "spring", "waves": [{"percent": 20.0}, {"percent": 100.0}]}
    service.rollouts.route("POST", [], {"plan": plan, "actor": "ada"})
    rollout = service.rollouts.known["rollout-1"]
    while rollout.state == "running":
        rollout.go_on()
    return service


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(muster: Muster, *argv: str) -> Page:
    result = muster("report", *argv, "--out", "-")
    assert result.exit_code == 0, result.err
    return Page(result.out)


def test_the_page_has_what_the_rollout_came_to(ended: FakeService, muster: Muster) -> None:
    page = page_of(muster)
    for said in (
        "spring completed",
        "rollout-1 , a rollout",
        "10 devices 7 provisioned, 70.0% 3 ended otherwise, 30.0%",
        "By state: provisioned 7, failed 2, timed out 1.",
        "3 of 10 devices ended otherwise than provisioned, by reason:",
        "2 failed disk full d1, d2",
        "1 timed out no acknowledgement within 1 s d3",
        "Time from start to end of 7 devices that were provisioned: p50 1.50 s",
        "waves 20%; 100%",
        "created",
        "Made by Muster",
        "muster report rollout-1 --out -",
    ):
        assert said in page.text, said
    assert "under way" not in page.text
    titles = re.findall(r"(?:Waves|Throughput|Where the time goes|Slowest devices|Attempts|Log)", page.text)
    assert len(set(titles)) == 6


def test_the_page_needs_nothing_else_and_runs_nothing(ended: FakeService, muster: Muster) -> None:
    page = page_of(muster)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    loaded = [attrs for _, attrs in page.tags if {"src", "href", "onload", "onerror"} & set(attrs)]
    assert loaded == []
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "url(" not in "".join(page.texts)


def test_what_devices_say_is_text_on_the_page_and_masked(ended: FakeService, muster: Muster) -> None:
    ended.rollouts.reasons = {"failed": HOSTILE, "timed_out": SECRET}
    ended.rollouts.known["rollout-1"].note(HOSTILE, HOSTILE, SECRET)
    ended.rollouts.known["rollout-1"].plan["name"] = HOSTILE
    source = muster("report", "--out", "-").out
    assert "<script" not in source
    assert "<img" not in source
    assert "\x1b" not in source
    assert "abc%2Fd" not in source
    page = Page(source)
    assert "</td><script>alert(1)</script>" in page.text
    assert "sig=***" in page.text
    for argv in (("--csv", "-"), ("--json",)):
        assert "abc%2Fd" not in muster("report", *argv).out


def test_a_rollout_under_way_says_so(service: FakeService, muster: Muster) -> None:
    service.rollouts.device_ids = ["a", "b", "c"]
    service.rollouts.route("POST", [], {"plan": {}, "actor": "ada"})
    page = page_of(muster, "rollout-1")
    assert "This rollout is under way: the figures are those of" in page.text
    assert "notified" in page.text
    assert "since the start" in page.text


def test_a_run_has_a_report_too(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "2")
    muster("provision")
    service.outcomes = {"dev-00002": "failed"}
    muster("watch")
    page = page_of(muster, "run-1")
    assert "run-1 , a run" in page.text
    assert "2 devices 1 provisioned, 50.0%" in page.text
    assert "Waves" not in page.text


def test_the_table_can_be_read_back(ended: FakeService, muster: Muster, tmp_path: Path) -> None:
    target = tmp_path / "devices.csv"
    ended.rollouts.reasons["failed"] = 'said "no",\r\nand more; ünïcode'
    result = muster("report", "--csv", str(target))
    assert result.out == f"rollout-1: 7 of 10 provisioned, 3 ended otherwise; written: {target}\n"
    raw = target.read_bytes()
    assert raw.count(b"\r\n") == 1 + 10 + 2, "lines end as RFC 4180 says"
    with target.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [row["device_id"] for row in rows] == [f"d{number}" for number in range(10)]
    assert [row["state"] for row in rows].count("provisioned") == 7
    assert rows[1]["error"] == 'said "no",\r\nand more; ünïcode'
    assert rows[0]["device_s"] == "1.5"
    assert rows[0]["packaging_s"] == "0.5"
    assert rows[0]["notifying_s"] == ""
    assert rows[0]["wave"] == "1"
    assert not (tmp_path / "rollout-1.html").exists(), "only what was asked for"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula_to_a_spreadsheet(ended: FakeService, muster: Muster, start: str) -> None:
    ended.rollouts.reasons["failed"] = f"{start}cmd|' /C calc'!A0"
    rows = list(csv.DictReader(io.StringIO(muster("report", "--csv", "-").out, newline="")))
    assert rows[1]["error"].startswith(f"'{start}")
    assert text("1-2=3") == "1-2=3"


def test_the_json_adds_up(ended: FakeService, muster: Muster) -> None:
    found = json.loads(muster("report", "--json").out)
    assert found["devices"] == sum(found["counts"].values()) == 10
    waves = [sum(wave["counts"].values()) for wave in found["waves"]]
    assert waves == [2, 8]
    assert sum(group["count"] for group in found["failures"]) == found["devices"] - found["provisioned"]
    assert found["failures"][0] == {
        "state": "failed",
        "reason": "disk full",
        "count": 2,
        "examples": ["d1", "d2"],
    }
    assert found["percentiles"]["device"] == {"p50_s": 1.5, "p95_s": 1.5, "p99_s": 1.5}
    assert found["rollout"]["rollout_id"] == found["id"] == "rollout-1"


def test_files_are_not_overwritten_unless_it_is_forced(
    ended: FakeService, muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert muster("report").out.endswith("written: rollout-1.html\n")
    first = Path("rollout-1.html").read_text("utf-8")
    Path("rollout-1.html").write_text("mine")
    refused = muster("report")
    assert refused.exit_code == 2
    assert "rollout-1.html exists: --force overwrites it" in refused.error_line
    assert Path("rollout-1.html").read_text() == "mine"
    assert muster("report", "--force").exit_code == 0
    assert len(Path("rollout-1.html").read_text("utf-8")) == len(first)
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == ["rollout-1.html"]
    assert stat.S_IMODE(Path("rollout-1.html").stat().st_mode) & 0o600 == 0o600


def test_nothing_takes_the_place_of_a_device_or_a_pipe(
    ended: FakeService, muster: Muster, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    written: list[str] = []
    reader = threading.Thread(target=lambda: written.append(pipe.read_text("utf-8")))
    reader.start()
    assert muster("report", "--json", "--csv", str(pipe), "--force").exit_code == 0
    reader.join()
    assert written[0].startswith("device_id")
    assert pipe.is_fifo()


def test_after_an_error_there_is_no_half_file(
    ended: FakeService, muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("provisioning.cli.report.table.DeviceTable.add", broken)
    target = tmp_path / "devices.csv"
    result = muster("report", "--csv", str(target))
    assert result.exit_code == 1
    assert f"can't write {target}: no space left on device" in result.error_line
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("argv", "said", "exit_code"),
    [
        (("--out", "-", "--csv", "-"), "only one of --out -, --csv - and --json", 2),
        (("--json", "--csv", "-"), "only one of --out -, --csv - and --json", 2),
        (("--out", "/nowhere/at/all.html"), "/nowhere/at is no directory", 2),
        (("--out", "/"), "/ is a directory", 2),
        (("--out", "x", "--csv", "x"), "are the same file", 2),
        (("rollout-9",), "there is no rollout or run 'rollout-9'", 1),
    ],
)
def test_mistakes_are_told_in_a_line(
    ended: FakeService, muster: Muster, argv: tuple[str, ...], said: str, exit_code: int
) -> None:
    result = muster("report", *argv)
    assert result.exit_code == exit_code
    assert said in result.error_line


def test_where_nothing_was_run_there_is_nothing_to_report(service: FakeService, muster: Muster) -> None:
    assert "there was no run yet" in muster("report").error_line


def a_device(number: int, state: str = "provisioned", **more: object) -> RolloutDevice:
    device: RolloutDevice = {
        "device_id": f"d{number:06d}",
        "wave": 1,
        "state": state,
        "attempts": 1,
        "error": None,
        "model": "m",
        "ended_at": f"2030-01-01T12:{number // 60 % 60:02d}:{number % 60:02d}+00:00",
        "device_s": float(number),
        "steps_s": {"packaging": number / 2, "downloading": number / 2},
    }
    device.update(more)  # type: ignore[typeddict-item]  # each test gives what it is about
    return device


def test_percentiles_histogram_and_throughput_are_of_all_devices() -> None:
    figures = Figures()
    for number in range(1, 101):
        figures.add(a_device(number))
    figures.add(a_device(101, "failed", device_s=1_000.0))
    figures.add(a_device(102, "downloading", ended_at=None, device_s=None))
    assert figures.percentiles() == {50: 50.0, 95: 95.0, 99: 99.0}
    assert figures.percentiles("packaging")[50] == 25.0
    assert figures.percentiles("notifying") == {}
    assert sum(one.count for one in figures.latencies(40)) == 100
    ended = figures.throughput(60)
    assert [sum(one.count for one in ended), sum(one.missed for one in ended)] == [100, 1]
    assert figures.ended == 101
    assert figures.in_flight == 1
    assert [one.device_id for one in figures.slowest()][:2] == ["d000101", "d000100"]
    assert figures.mean_steps() == {"packaging": 25.25, "downloading": 25.25}
    assert figures.mean_device_s == 50.5


def test_a_few_slow_devices_do_not_flatten_the_others() -> None:
    figures = Figures()
    for number in range(1_000):
        figures.add(a_device(number, device_s=1.0 if number else 10_000.0))
    buckets = figures.latencies(40)
    assert buckets[-1].end <= 2.5
    assert buckets[-1].count == 1
    assert sum(one.count for one in buckets) == 1_000


def test_reasons_are_bounded_whatever_devices_say() -> None:
    figures = Figures()
    for number in range(MAX_REASONS + 50):
        figures.add(a_device(number, "failed", error=f"reason {number}", model=f"model {number}"))
    groups = figures.groups()
    assert sum(one.count for one in groups) == MAX_REASONS + 50
    assert groups[0].reason == OTHER_REASONS
    assert groups[0].count == 50
    assert len(groups[0].examples) == 3
    assert len(figures.models) == MAX_REASONS


def test_axes_end_at_round_numbers() -> None:
    assert [nice(value) for value in (0.0, 1.0, 1.1, 3.0, 99.0)] == [0.001, 1.0, 2.0, 5.0, 100.0]


def test_a_plan_is_told_in_words() -> None:
    plan = {
        "targets": {"models": ["a", "b"], "tags": {"site": "lab"}, "percent": 10.0, "continuous": True},
        "waves": [{"percent": 5.0, "gate": "approval", "success_threshold_percent": 95.0}, {"count": 100}],
        "pace": {"in_flight": 40, "per_minute": 60.0, "order": "random"},
        "abort": [{"on": "failed", "threshold_percent": 20.0, "min_sample": 10, "action": "pause"}],
        "deadlines": {"rollout_s": 3600},
        "options": {"ack_timeout_s": 20.0, "max_attempts": 2},
        "overlap": "wait",
    }
    assert dict(plan_in_words(a_rollout(plan=plan, release="r-1"))) == {
        "release": "r-1",
        "devices": "model a or b, site=lab; 10% of them; those that register later join",
        "waves": "5% (goes on from 95% provisioned), then an approval; 100",
        "pace": "at most 40 in flight, 60 a minute, in random order",
        "stops when": "20% failed, from 10 devices on: pause",
        "deadline": "1:00:00 for the whole rollout",
        "deadlines": "acknowledgement 20 s",
        "attempts": "2 attempts",
        "devices of others": "wait",
    }


def test_ids_become_names_of_files() -> None:
    assert file_name("rollout-1") == "rollout-1"
    assert file_name("a/../b c") == "a_.._b_c"
    assert file_name(".x") == "_.x"
    assert len(file_name("x" * 300)) == 100
