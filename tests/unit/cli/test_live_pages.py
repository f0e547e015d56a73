"""The pages of the full screen: what they show, and that they fit."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisioning.cli.client import ServiceClient
from provisioning.cli.documents import Rollout, Run
from provisioning.cli.followed import PAGES, Followed, Page
from provisioning.cli.live import devices_page, marks
from provisioning.cli.live.looks import MAP_DEVICES, Look, Looker, Member, Members
from provisioning.cli.live.paint import line, shares, wrapped
from provisioning.cli.live.poller import Poller
from provisioning.cli.live.watching import Picture
from tests.unit.cli.fake_service import FakeService
from tests.unit.cli.test_fleet_views import a_fleet
from tests.unit.cli.test_rollout_views import ROLLOUT_ID, a_rollout, a_wave, counts_of
from tests.unit.cli.test_views import a_run

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
HOSTILE = "\x1b[31mred\x1b[0m\u202e 設備設備設備 " + "x" * 300
SIZES = [
    (40, 24),
    (40, 12),
    (60, 20),
    (80, 24),
    (100, 30),
    (139, 40),
    (140, 50),
    (200, 50),
    (20, 7),
    (300, 90),
]


def members(count: int) -> Members:
    found = [
        Member(
            device_id=f"dev-{number:05d}" if number else "d" * 64,
            state="downloading" if number % 2 else "notified",
            wave=2,
            attempt=2,
            progress=0.45 if number % 2 else None,
            error=HOSTILE,
            online=True,
            model=HOSTILE,
            firmware_version="1.0.0",
        )
        for number in range(count)
    ]
    return Members(
        in_flight=found,
        in_flight_total=5_000,
        missed=[Member(device_id="dev-99999", state="failed", error="disk full")],
        missed_total=1_000,
    )


def a_look(rollout: Rollout | None = None, **more: object) -> Look:
    fleet = a_fleet(40, error=HOSTILE, restarts=2)
    given: dict[str, object] = {
        "rollout": a_rollout() if rollout is None else rollout,
        "members": members(60),
        "fleet": fleet,
        "fleets": [fleet, *(a_fleet(1, fleet_id=f"fleet-{number}") for number in range(20))],
        "failures": [{"device_id": "dev-9", "state": "failed", "reason": HOSTILE, "at": None}],
        **more,
    }
    return Look(**given)  # type: ignore[arg-type]  # each test gives what it is about


def drawn(look: Look | None, size: tuple[int, int], page: Page = "progress", **more: object) -> list[str]:
    given = {"kind": "rollout", "id": ROLLOUT_ID, "colours": True, "note": "", **more}
    followed = Followed(kind=given["kind"], id=str(given["id"]))  # type: ignore[arg-type]  # one of the kinds
    picture = Picture(followed, page, colours=bool(given["colours"]), keys=True)
    lines = picture.lines(look, str(given["note"]), size, NOW)
    assert all(one.cell_len <= size[0] for one in lines), [one.plain for one in lines]
    assert len(lines) <= size[1]
    assert all(one.plain.isprintable() for one in lines)
    return [one.plain for one in lines]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_wider_than_the_screen_whatever_devices_say(size: tuple[int, int], page: Page) -> None:
    waves = [a_wave(number, "running", provisioned=9_999, failed=1) for number in range(1, 31)]
    reasons = [{"reason": HOSTILE, "state": "timed_out", "count": 9, "example": "d" * 64}] * 20
    paused = a_rollout(state="paused", reason=HOSTILE, waves=waves, wave=15, reasons=reasons, name=HOSTILE)
    for look in (None, a_look(), a_look(paused), a_look(members=Members(), fleet=None, fleets=[])):
        for note in ("", "the service is away; looking for it again for 60 s"):
            drawn(look, size, page, note=note)
            drawn(look, size, page, colours=False)


def test_80_columns_show_state_bar_waves_map_devices_failures_and_keys() -> None:
    lines = drawn(a_look(), (80, 40))
    text = "\n".join(lines)
    assert lines[0].startswith(f"{ROLLOUT_ID}  spring")
    assert lines[0].endswith(" rollout  devices  fleet ")
    assert "running" in lines[2]
    assert "wave 2/3  25,000/100,000 ended  250.0 devices/s  1:40  end at " in lines[3]
    assert lines[4].endswith(" 25%")
    assert "█ ok 24,000  ▓ not ok 1,000  ▒ in flight 5,000  ░ to start 70,000" in text
    assert any(one.startswith("wave 1  ██") and one.endswith("95% ok") for one in lines)
    assert "provisioned 24,000" in text
    assert "in flight  5,000" in text
    assert any(one.startswith("dev-00001  ") and " 45%" in one and "attempt 2" in one for one in lines)
    assert "900 failed: disk full (dev-00003)" in text
    assert lines[-1].startswith("q quit")


def test_40_columns_have_short_words_and_the_same_figures() -> None:
    lines = drawn(a_look(), (40, 40))
    text = "\n".join(lines)
    assert "25,000/100,000 ended" in text
    assert "250.0/s" in text
    assert "▒ in flight 5,000" in text
    assert any(one.startswith("w2  ") and "running" in one for one in lines)
    assert "900 failed: disk full" in text


def test_200_columns_put_devices_beside_the_waves() -> None:
    lines = drawn(a_look(), (200, 50))
    assert any(one.startswith("wave 1  ") and "in flight  5,000" in one for one in lines)
    assert lines[0].rstrip().endswith("fleet")
    assert "connected" in lines[0]


def test_what_waits_for_somebody_says_so_even_where_there_is_little_room() -> None:
    look = a_look(a_rollout(state="awaiting_approval", wave=1))
    for size in ((40, 14), (80, 14), (200, 14)):
        text = " ".join(" ".join(drawn(look, size)).split())
        assert f"muster rollout approve {ROLLOUT_ID}" in text.replace("` ", "`")


def test_a_map_of_few_devices_has_a_cell_for_each_in_the_order_of_ids() -> None:
    states = ["provisioned", "failed", "downloading", "pending"]
    rollout = a_rollout(devices=4, counts=counts_of(provisioned=1, failed=1, downloading=1, pending=1))
    lines = drawn(a_look(rollout, members=Members(states=states)), (80, 40), colours=False)
    assert lines[lines.index("each device, by id") + 1] == "■Fd·"
    assert any("F failed 1" in one and "d downloading 1" in one for one in lines)


def test_two_devices_share_a_character_where_they_would_not_fit_otherwise() -> None:
    states = ["provisioned"] * 10 + ["failed"] * 10
    (row,) = marks.cells(states, 10, 1, colours=True)
    assert row.plain == "▀" * 10
    assert str(row.spans[0].style) == "green on red"
    assert [one.plain for one in marks.cells(states, 10, 2, colours=False)] == ["■" * 10, "F" * 10]


def test_a_map_of_many_devices_is_in_proportion_and_hides_nothing() -> None:
    counts = counts_of(provisioned=99_998, failed=1, pending=1)
    sampled = marks.sampled(counts, 200)
    assert [len(sampled), sampled.count("failed"), sampled.count("pending")] == [200, 1, 1]
    rollout = a_rollout(counts=counts)
    assert any("■ stands for 312 devices" in one for one in drawn(a_look(rollout), (80, 60)))


def test_of_many_waves_those_around_the_current_one_are_drawn() -> None:
    waves = [a_wave(number, "pending", pending=10) for number in range(1, 31)]
    for wave, first, last in ((1, 1, 8), (15, 12, 19), (30, 23, 30)):
        lines = drawn(a_look(a_rollout(waves=waves, wave=wave)), (80, 60))
        shown = [one.split()[1] for one in lines if one.startswith("wave ") and "░" in one]
        assert [shown[0], shown[-1]] == [str(first), str(last)]
        assert "… and 22 more waves" in lines


def test_a_run_is_shown_as_a_rollout_is_with_its_times() -> None:
    run: Run = a_run()
    lines = drawn(Look(run=run, failures=run["failures"]), (80, 30), kind="run", id="run-1")
    text = "\n".join(lines)
    assert " run  devices  fleet " in lines[0]
    assert "6/10 ended  2.0 devices/s  0:03  end at " in text
    assert "d1 failed: disk full" in text
    assert "a device takes  p50 1.00 s  p95 2.00 s  p99 1:01" in text


def test_the_devices_page_scrolls_and_says_where_it_is() -> None:
    look = a_look()
    lines, top = devices_page.page(look, 80, 23, 10)
    assert top == 10
    assert "5,000 in flight, 1,000 not ok  11–30 of 61  (of 6,000 the first)" in lines[0].plain
    assert lines[3].plain.startswith("dev-00010")
    lines, top = devices_page.page(look, 80, 23, 10**9)
    assert top == 41
    assert lines[-1].plain.startswith("dev-99999")


def test_keys_change_the_page_scroll_and_end() -> None:
    picture = Picture(Followed(kind="rollout", id="r"), "progress", colours=True, keys=True)
    for key, page in (("tab", "devices"), ("tab", "fleet"), ("tab", "progress"), ("left", "fleet")):
        assert picture.press(key, 24)
        assert picture.page == page
    for key, page in (("d", "devices"), ("f", "fleet"), ("r", "progress"), ("D", "devices")):
        assert picture.press(key, 24)
        assert picture.page == page
    picture.press("page down", 24)
    picture.press("up", 24)
    assert picture.top == 17
    picture.press("home", 24)
    picture.press("up", 24)
    assert picture.top == 0
    assert picture.press("x", 24), "other keys do nothing"
    assert not picture.press("q", 24)
    fleet = Picture(Followed(kind="fleet", id="f"), "fleet", colours=True, keys=True)
    fleet.press("r", 24)
    assert fleet.page == "fleet", "there is no rollout to be shown"


@pytest.mark.parametrize(
    ("amounts", "width", "expected"),
    [
        ([0, 0], 10, [0, 0]),
        ([50, 50], 10, [5, 5]),
        ([9_998, 1, 0, 1], 10, [8, 1, 0, 1]),
        ([1, 1, 1, 1, 996], 10, [1, 1, 1, 1, 6]),
        ([1, 1, 1], 2, [0, 1, 1]),
    ],
)
def test_bars_add_up_and_hide_nothing(amounts: list[int], width: int, expected: list[int]) -> None:
    assert shares(amounts, width) == expected


def test_long_sentences_are_broken_between_words_and_cut_at_the_end() -> None:
    found = [one.plain for one in wrapped("one two three four five", 9, most=2)]
    assert found == ["one two", "  three …"]
    assert line("a\x1bb").plain == "a\\x1bb"


def test_a_look_at_a_hundred_thousand_devices_asks_for_a_page_of_them(service: FakeService) -> None:
    service.rollouts.device_ids = [f"d{number:05d}" for number in range(MAP_DEVICES + 1)]
    service.rollouts.route("POST", [], {"plan": {"pace": {"in_flight": 500}}, "actor": "ada"})
    looker = Looker(Followed(kind="rollout", id="rollout-1"), now=lambda: 0.0)
    client = ServiceClient(service.url)
    look = looker.look(client, "progress")
    assert look.members.in_flight_total == 500
    assert len(look.members.in_flight) == 200
    assert look.members.states is None
    assert len(service.requests) == 4
    looker.look(client, "progress")
    assert len(service.requests) == 5, "devices and fleets are looked at less often"


def test_the_expected_end_goes_by_what_ended_lately_and_not_by_what_was_waited(service: FakeService) -> None:
    service.rollouts.device_ids = [f"d{number:02d}" for number in range(20)]
    service.rollouts.per_look = 2
    service.rollouts.route("POST", [], {"plan": {}, "actor": "ada"})
    now = [0.0]
    looker = Looker(Followed(kind="rollout", id="rollout-1"), now=lambda: now[0])
    client = ServiceClient(service.url)
    looker.look(client, "progress")
    now[0] = 4.0
    look = looker.look(client, "progress")
    assert look.recent_per_s == 0.5
    recent = a_look(a_rollout(elapsed_s=10_000.0, devices_per_s=2.5, eta_s=30_000.0), recent_per_s=250.0)
    text = "\n".join(drawn(recent, (80, 30)))
    assert "250.0 devices/s" in text
    assert ", in 5:00" in text
    for _ in range(100):
        now[0] += 1.0
        look = looker.look(client, "fleet")
    assert look.recent_per_s == 0.0, "nothing has ended for a while"


def test_few_devices_are_looked_at_one_by_one(service: FakeService) -> None:
    service.rollouts.device_ids = ["a", "b", "c"]
    service.rollouts.outcomes = {"a": "failed"}
    service.rollouts.route("POST", [], {"plan": {}, "actor": "ada"})
    looker = Looker(Followed(kind="rollout", id="rollout-1"), now=lambda: 0.0)
    client = ServiceClient(service.url)
    client.rollout("rollout-1")
    look = looker.look(client, "devices")
    assert look.members.states == ["failed", "notified", "notified"]
    assert [one.device_id for one in look.members.missed] == ["a"]
    assert [failure["device_id"] for failure in look.failures] == ["a"]


def test_devices_of_no_run_are_looked_at_by_state(service: FakeService) -> None:
    service.add_device("a", "downloading", progress=0.5)
    service.add_device("b", "failed", error="disk full")
    service.add_device("c")
    look = Looker(Followed(kind="all"), now=lambda: 0.0).look(ServiceClient(service.url), "devices")
    assert [one.device_id for one in look.members.in_flight] == ["a"]
    assert [one.error for one in look.members.missed] == ["disk full"]


def test_the_poller_says_that_the_service_is_away_and_that_it_is_back(state_dir: Path) -> None:
    first = FakeService(state_dir)
    with first:
        first.rollouts.device_ids = ["d1", "d2", "d3"]
        first.rollouts.per_look = 0
        first.rollouts.route("POST", [], {"plan": {}, "actor": "ada"})
        args = argparse.Namespace(url=None, state_dir=state_dir)
        followed = Followed(kind="rollout", id="rollout-1")
        poller = Poller(args, Looker(followed), "progress")
        poller.__enter__()
        wait_for(poller, lambda look, note: look is not None)
    try:
        wait_for(poller, lambda look, note: "the service is away" in note)
        second = FakeService(state_dir)
        second.rollouts = first.rollouts
        with second:
            wait_for(poller, lambda look, note: note == "")
    finally:
        poller.__exit__(None, None, None)


def wait_for(poller: Poller, there: object) -> None:
    import select

    while True:
        look, note = poller.latest()
        if there(look, note):  # type: ignore[operator]  # a function of both
            return
        select.select([poller], [], [])
