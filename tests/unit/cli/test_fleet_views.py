"""A fleet as it goes: in a pipe, and on a terminal."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest

from devices.statistics import merge
from provisioning.cli.documents import Fleet
from provisioning.cli.fleet.watching import PlainFleetView, fleet_view
from provisioning.cli.live.fleet_page import block
from provisioning.cli.rates import Rates
from provisioning.cli.terminal import Terminal, counted, data_size
from provisioning.cli.views import LiveView
from tests.unit.cli.test_views import FakeTty


def a_fleet(groups: int = 1, **more: object) -> Fleet:
    names = [f"group-{number}" for number in range(1, groups + 1)]
    statistics = merge(
        [
            {
                "connected": 99_000,
                "connects_per_s": 480.0,
                "connects": 100_000,
                "reconnects": 1_000,
                "messages_in": 200_000,
                "messages_out": 400_000,
                "bytes_in": 123_456_789,
                "bytes_out": 1_234,
                "downloads_completed": 99_000,
                "hash_failures": 7,
                "latencies": {"ack": {"count": 1, "sum_s": 0.1, "buckets": {"73": 1}}},
                "groups": {name: {"devices": 100_000, "connected": 99_000} for name in names},
            }
        ]
    )
    fleet: Fleet = {
        "fleet_id": "fleet-12",
        "devices": 100_000,
        "running": True,
        "restarts": 0,
        "started_at": None,
        "error": None,
        "groups": [{"name": name, "count": 100_000} for name in names],
        "statistics": statistics,
    }
    fleet.update(more)  # type: ignore[typeddict-item]  # each test gives what it is about
    return fleet


def test_a_pipe_gets_a_line_every_few_seconds() -> None:
    stream, now = io.StringIO(), [0.0]
    view = PlainFleetView(Terminal(stream), now=lambda: now[0])
    view.update(a_fleet())
    view.update(a_fleet())
    (line,) = stream.getvalue().splitlines()
    assert "99,000/100,000 connected  480.0 connects/s  1,000 reconnects" in line
    assert "in 200,000 (123 MB)  out 400,000 (1.2 kB)  downloads 99,000  wrong hash 7" in line
    assert "ack p50 105 ms" in line
    now[0] = 2.0
    view.update(a_fleet(restarts=2, error="process 1 stays down"))
    assert stream.getvalue().splitlines()[1].endswith("restarts 2")
    assert stream.getvalue().splitlines()[2] == "process 1 stays down"


@pytest.mark.parametrize("groups", [1, 3, 40])
def test_the_live_picture_fits_the_terminal(groups: int) -> None:
    started_at = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    fleet = a_fleet(groups, restarts=2, running=False, started_at=started_at)
    rates = Rates()
    rates.update(fleet["statistics"])
    lines = [line.plain for line in block(fleet, rates.update(fleet["statistics"]), 80, note="away")]
    text = "\n".join(lines)
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) <= 24
    assert "99,000/100,000 connected" in lines[0]
    assert "restarting" in lines[0]
    assert "2 processes died and started again" in text
    assert lines[-1] == "away"
    assert ("group-3" in text) == (groups > 1)


def test_rates_are_those_since_the_last_look() -> None:
    now = [0.0]
    rates = Rates(now=lambda: now[0])
    assert rates.update({"messages_in": 100})["messages_in"] == 0
    now[0] = 2.0
    assert rates.update({"messages_in": 150})["messages_in"] == 25.0
    now[0] = 3.0
    assert rates.update({"messages_in": 20})["messages_in"] == 0, "never backwards"


def test_a_terminal_gets_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = FakeTty()
    with fleet_view(Terminal(stream)) as view:
        assert isinstance(view, LiveView)
        view.update(a_fleet())
        view.note("away")
    assert "\x1b[" in stream.getvalue()
    assert "away" in stream.getvalue()


def test_sizes_and_numbers_are_written_for_people() -> None:
    assert [data_size(size) for size in (0, 512, 1_234, 99_960, 34_000_000, 5e12)] == [
        "0 B",
        "512 B",
        "1.2 kB",
        "100 kB",
        "34.0 MB",
        "5000 GB",
    ]
    assert counted(1, "process", "processes") == "1 process"
    assert counted(1_200, "device") == "1,200 devices"


def test_a_remark_does_not_change_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = FakeTty()
    with fleet_view(Terminal(stream)) as view:
        view.update(a_fleet())
        drawn = len(stream.getvalue())
        view.note("")
        assert len(stream.getvalue()) == drawn, "nothing to draw anew"
        view.note("away")
    assert "msgs in" in stream.getvalue()
