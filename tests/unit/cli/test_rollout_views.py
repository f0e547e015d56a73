"""A rollout as it goes: the picture on a terminal, the lines in a pipe, and a service that is away."""

from __future__ import annotations

import argparse
import datetime
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioning.cli.documents import Rollout, Wave
from provisioning.cli.rollout.showing import show_rollout
from provisioning.cli.rollout.watching import PlainView, follow_rollout
from provisioning.cli.rollout.words import (
    expected_end,
    further_steps,
    next_steps,
    state_line,
    succeeded,
    windows_of,
)
from provisioning.cli.terminal import Terminal
from provisioning.cli.views import Fetcher
from tests.unit.cli.fake_rollouts import STATES
from tests.unit.cli.fake_service import FakeService

NOW = datetime.datetime(2030, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)
ROLLOUT_ID = "rollout-20300101-120000-3f2a"


def counts_of(**given: int) -> dict[str, int]:
    return {state: given.get(state, 0) for state in STATES}


def a_wave(number: int, state: str, **given: int) -> Wave:
    counts = counts_of(**given)
    return {
        "number": number,
        "devices": sum(counts.values()),
        "state": state,
        "counts": counts,
        "success_percent": 95.0 if given.get("provisioned") else None,
    }


def a_rollout(**more: object) -> Rollout:
    rollout: Rollout = {
        "rollout_id": ROLLOUT_ID,
        "name": "spring",
        "state": "running",
        "reason": None,
        "wave": 2,
        "devices": 100_000,
        "counts": counts_of(pending=70_000, downloading=5_000, provisioned=24_000, failed=900, timed_out=100),
        "waves": [
            a_wave(1, "done", provisioned=950, failed=50),
            a_wave(2, "running", downloading=5_000, pending=20_000, provisioned=23_050, failed=850),
            a_wave(3, "pending", pending=50_000),
        ],
        "in_flight": 5_000,
        "elapsed_s": 100.0,
        "devices_per_s": 250.0,
        "eta_s": 300.0,
        "reasons": [{"reason": "disk full", "state": "failed", "count": 900, "example": "dev-00003"}],
        "created_at": "2030-01-01T11:58:20+00:00",
        "started_at": "2030-01-01T11:58:20+00:00",
        "ended_at": None,
        "retry_of": None,
        "plan": {},
    }
    rollout.update(more)  # type: ignore[typeddict-item]  # each test gives what it is about
    return rollout


def test_a_pipe_gets_a_line_at_each_new_state_and_every_few_seconds() -> None:
    stream, now = io.StringIO(), [0.0]
    view = PlainView(Terminal(stream), now=lambda: now[0])
    view.update(a_rollout())
    view.update(a_rollout())
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("1:40  running  wave 2/3  25,000/100,000 ended  250.0 devices/s  end at ")
    assert lines[0].endswith(
        "pending 70,000  downloading 5,000  provisioned 24,000  failed 900  timed out 100"
    )
    assert lines[1:] == ["  failed: disk full (such as dev-00003)"]
    paused = a_rollout(state="paused", reason="wave 2: 80% provisioned, not 90%")
    view.update(paused)
    lines = stream.getvalue().splitlines()[2:]
    assert lines[0].startswith("1:40  paused  wave 2/3")
    assert lines[1] == "  paused: wave 2: 80% provisioned, not 90%"
    assert lines[2].startswith(f"  next: `muster rollout resume {ROLLOUT_ID}` goes on")
    now[0] = 100.0
    view.update({**paused, "elapsed_s": 200.0})
    assert len(stream.getvalue().splitlines()) == 6, "nothing new while it stands still"
    now[0] = 101.0
    view.update(a_rollout())
    now[0] = 103.0
    view.update(a_rollout())
    assert len(stream.getvalue().splitlines()) == 8
    view.update(a_rollout(reason="4,999 devices in flight, the most at once."))
    assert len(stream.getvalue().splitlines()) == 8, "figures in a reason are no news"


def test_show_fits_80_columns_of_a_terminal() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80, highlight=False, record=True)
    states = ("done", "awaiting_approval", "pending")
    waves = [
        a_wave(number, state, pending=40_000, downloading=5_000, provisioned=20_000, failed=30_000)
        for number, state in enumerate(states, start=1)
    ]
    show_rollout(a_rollout(waves=waves), Terminal(console=console))
    table = [line for line in console.export_text().splitlines() if line.startswith("  ")]
    assert any(line.split()[-1:] == ["95%"] and "awaiting approval" in line for line in table)
    assert any(line.split()[-1:] == ["success"] for line in table)
    assert all(len(line) <= 80 for line in table if not line.startswith(("  by state", "  devices")))


def test_following_ends_with_the_rollout_and_looks_rarely_while_it_stands() -> None:
    looks = iter([a_rollout(devices=10), a_rollout(devices=10, state="paused"), a_rollout(state="cancelled")])
    waits: list[float] = []
    last = follow_rollout(lambda: next(looks), PlainView(Terminal(io.StringIO())), waits.append)
    assert last["state"] == "cancelled"
    assert waits == [0.25, 1.0]


def test_watching_outlasts_a_service_that_comes_back_elsewhere(state_dir: Path) -> None:
    with FakeService(state_dir) as first:
        first.rollouts.device_ids = ["d1"]
        first.rollouts.route("POST", [], {"plan": {}, "actor": "ada"})
        known = first.rollouts.known
        stream = io.StringIO()
        args = argparse.Namespace(url=None, state_dir=state_dir)
        services: list[FakeService] = []

        def come_back(_seconds: float) -> None:
            service = FakeService(state_dir)
            service.rollouts.known = known
            services.append(service.__enter__())

        view = PlainView(Terminal(stream))
        fetch = Fetcher(args, lambda service: service.rollout("rollout-1"), view, wait=come_back)
        assert fetch()["state"] == "running"
    try:
        assert fetch()["rollout_id"] == "rollout-1"
    finally:
        for service in services:
            service.__exit__(None, None, None)
    assert "the service is away; looking for it again for 60 s" in stream.getvalue()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"state": "awaiting_approval", "wave": 1}, "`muster rollout approve {id}` starts wave 2"),
        ({"state": "scheduled", "wave": 0}, "has not started yet; `muster rollout cancel {id}`"),
        (
            {
                "state": "waiting",
                "plan": {"schedule": {"windows": [{"days": ["mon"], "from": "22:00", "to": "06:00"}]}},
            },
            "(mon 22:00-06:00 UTC)",
        ),
        (
            {"state": "cancelling"},
            "5,000 devices may finish; `muster rollout cancel {id} --force` stops them",
        ),
        ({"state": "completed"}, "`muster rollout retry {id}` tries 1,000 devices again"),
    ],
)
def test_each_state_says_what_can_be_done(more: dict[str, object], said: str) -> None:
    assert said.format(id=ROLLOUT_ID) in "; ".join(next_steps(a_rollout(**more)))


def test_nothing_needs_to_be_done_while_it_goes_on_or_after_a_good_end() -> None:
    good = a_rollout(state="completed", devices=3, counts=counts_of(provisioned=3))
    assert succeeded(good)
    assert not succeeded(a_rollout(state="completed"))
    assert not succeeded({**good, "state": "cancelled"})
    assert next_steps(good) == next_steps(a_rollout()) == []
    assert windows_of(good) == "none"


def test_a_reason_is_said_once_and_its_commands_are_for_this_rollout() -> None:
    assert state_line(a_rollout(state="paused", reason="Paused: by ada, hm.")) == "Paused: by ada, hm."
    told = a_rollout(
        state="cancelling",
        reason="Cancelled by ada. 2 devices may finish; `muster rollout cancel --force` tells them to stop.",
    )
    assert state_line(told).endswith(f"`muster rollout cancel {ROLLOUT_ID} --force` tells them to stop.")
    assert further_steps(told) == []
    assert further_steps({**told, "reason": "Cancelled by ada."}) == next_steps(told) != []
    create = "The deadline passed; `muster rollout create` takes up again what it did not reach."
    assert state_line(a_rollout(state="cancelled", reason=create)) == f"cancelled: {create}"
    assert state_line(a_rollout(state="paused", reason="20% failed")) == "paused: 20% failed"


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ({}, lambda text: text is not None and text.endswith(", in 5:00")),
        ({"eta_s": 100_000.0}, lambda text: text is not None and text.startswith("2030-01-0")),
        ({"eta_s": None}, lambda text: text is None),
        ({"state": "paused"}, lambda text: text is None),
        ({"state": "completed"}, lambda text: text is None),
    ],
)
def test_the_expected_end_is_told_where_it_is_known(
    more: dict[str, object], end: Callable[[str | None], bool]
) -> None:
    assert end(expected_end(a_rollout(**more), NOW))
