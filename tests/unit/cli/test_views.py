"""Progress and summary: what a person sees, in a pipe and on a terminal."""

from __future__ import annotations

import io

import pytest

from provisioning.cli.documents import Device, Run
from provisioning.cli.progress import PlainView, follow_run, picture, run_view, timing
from provisioning.cli.summary import compare, plain_summary, show_summary
from provisioning.cli.terminal import Terminal, clock, duration, plain_table, time_of_day
from provisioning.cli.views import LiveView


class FakeTty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def a_run(**more: object) -> Run:
    run: Run = {
        "run_id": "run-1",
        "status": "running",
        "devices": 10,
        "counts": {"notified": 4, "provisioned": 5, "failed": 1},
        "elapsed_s": 3.0,
        "devices_per_s": 2.0,
        "eta_s": 2.0,
        "failures": [{"device_id": "d1", "state": "failed", "reason": "disk full", "at": "x"}],
        "percentiles": {
            "device": {"p50_s": 1.0, "p95_s": 2.0, "p99_s": 61.0},
            "steps": {
                "activating": {"p50_s": 0.25, "p95_s": None, "p99_s": None},
                "packaging": {"p50_s": 0.125, "p95_s": 0.25, "p99_s": 0.5},
                "notifying": {"p50_s": None, "p95_s": None, "p99_s": None},
            },
        },
    }
    run.update(more)  # type: ignore[typeddict-item]  # each test gives what it is about
    return run


def test_a_pipe_gets_a_line_every_few_seconds_and_each_failure_once() -> None:
    stream, now = io.StringIO(), [0.0]
    view = PlainView(Terminal(stream), now=lambda: now[0])
    view.update(a_run())
    view.update(a_run())
    assert stream.getvalue().splitlines() == [
        "0:03 of about 0:05  6/10 done  2.0 devices/s  notified 4  provisioned 5  failed 1",
        "  d1 failed: disk full",
    ]
    now[0] = 2.0
    view.update(a_run())
    assert len(stream.getvalue().splitlines()) == 3
    view.update(a_run(status="completed"))
    assert stream.getvalue().splitlines()[-1].startswith("0:03  6/10 done")


def test_the_expected_time_comes_from_the_stages_until_devices_have_ended() -> None:
    early = a_run(devices=100, counts={"downloading": 100}, eta_s=None, elapsed_s=3.0)
    assert timing(early) == "0:03 of about 0:06"
    one_ended = a_run(devices=100, counts={"downloading": 99, "provisioned": 1}, eta_s=297.0, elapsed_s=3.0)
    assert timing(one_ended) == "0:03 of about 0:06"
    many_ended = a_run(devices=100, counts={"notified": 50, "provisioned": 50}, eta_s=7.0, elapsed_s=3.0)
    assert timing(many_ended) == "0:03 of about 0:10"
    assert timing(a_run(counts={"queued": 10}, eta_s=None)) == "0:03"


def test_following_ends_with_the_run_and_waits_in_between() -> None:
    runs = iter([a_run(), a_run(), a_run(status="completed")])
    waits: list[float] = []
    last = follow_run(lambda: next(runs), PlainView(Terminal(io.StringIO())), waits.append)
    assert last["status"] == "completed"
    assert len(waits) == 2


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_picture_fits_the_terminal(width: int) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, record=True)
    counts = dict.fromkeys(("queued", "packaging", "notified", "downloading", "activating"), 10_000)
    console.print(
        picture(a_run(devices=100_000, counts=counts | {"provisioned": 49_998, "timed_out": 2}), note="away")
    )
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "50,000/100,000" in lines[0]
    assert "0:03 of about 0:05" in lines[0]
    assert [word for word in lines[1].split() if word] == [
        "queued",
        "packaging",
        "notified",
        "downloading",
        "downloaded",
        "activating",
        "provisioned",
    ]
    assert lines[2].split()[-1] == "49,998"
    assert "timed out 2" in lines[3]
    assert "d1 failed: disk full" in lines[4]
    assert lines[-1] == "away"


def test_a_terminal_gets_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = FakeTty()
    with run_view(Terminal(stream)) as view:
        assert isinstance(view, LiveView)
        view.update(a_run())
    assert "\x1b[" in stream.getvalue()
    assert "6/10" in stream.getvalue()


def test_no_color_takes_the_colours_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = FakeTty()
    show_summary(plain_summary(a_run(status="completed")), Terminal(stream))
    assert "\x1b[3" not in stream.getvalue()


def test_a_dumb_terminal_counts_as_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not Terminal(FakeTty()).interactive


def device(device_id: str, state: str, error: str | None = None) -> Device:
    return {"device_id": device_id, "state": state, "error": error}


def test_the_summary_sets_outcomes_against_expectations() -> None:
    devices = [device("a", "provisioned"), device("b", "timed_out"), device("c", "failed", "disk full")]
    expected = {"a": "provisioned", "b": "timed_out", "c": "provisioned", "d": "provisioned"}
    summary = compare(a_run(status="completed", devices=3), devices, expected)
    assert not summary.as_expected
    assert [(d.device_id, d.expected, d.actual) for d in summary.differences] == [
        ("c", "provisioned", "failed"),
        ("d", "provisioned", "never registered"),
    ]
    stream = io.StringIO()
    show_summary(summary, Terminal(stream))
    rows = [line.split() for line in stream.getvalue().splitlines()]
    assert ["provisioned", "1", "3"] in rows
    assert ["timed", "out", "1", "1"] in rows
    assert ["c", "provisioned", "failed", "disk", "full"] in rows
    steps = [row[0] for row in rows if row and row[0] in ("packaging", "notifying", "activating", "whole")]
    assert steps == ["packaging", "activating", "whole"], "in the order of the work, without the empty one"


def test_devices_that_time_out_as_they_should_are_a_success() -> None:
    summary = compare(a_run(status="completed"), [device("b", "timed_out")], {"b": "timed_out"})
    assert summary.as_expected


def test_a_strangers_device_is_no_difference() -> None:
    devices = [device("a", "provisioned"), device("own", "failed")]
    assert compare(a_run(status="completed"), devices, {"a": "provisioned"}).as_expected


def test_a_run_that_broke_is_no_success() -> None:
    assert not compare(a_run(status="failed"), [device("a", "provisioned")], {"a": "provisioned"}).as_expected


def test_long_lists_of_differences_are_cut() -> None:
    expected = {f"d{i:02}": "provisioned" for i in range(25)}
    stream = io.StringIO()
    show_summary(compare(a_run(status="completed"), [], expected), Terminal(stream))
    assert "… and 15 more" in stream.getvalue()


def test_times_are_written_for_people() -> None:
    assert [duration(s) for s in (None, 0.0421, 3.214, 125.0, 3723.0)] == [
        "-",
        "42 ms",
        "3.21 s",
        "2:05",
        "1:02:03",
    ]
    assert clock(None) == "-:--"
    assert time_of_day(None) == time_of_day("no time") == "-"


def test_plain_tables_align_and_have_no_trailing_spaces() -> None:
    assert plain_table(["a", "n"], [["xx", "1"], ["y", "22"]], right=(1,)) == ["a    n", "xx   1", "y   22"]
    assert plain_table(["a", "b"], [["x", ""]]) == ["a  b", "x"]
