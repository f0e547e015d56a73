"""The transition table."""

from __future__ import annotations

import pytest

from provisioning.states import FINAL, TRANSITIONS, WORKING, DeviceState, may_follow, mermaid, transition_rows


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(DeviceState)
    reached = {DeviceState.NEW}
    while more := {after for before in reached for after in TRANSITIONS[before]} - reached:
        reached |= more
    assert reached == set(DeviceState)


def test_within_an_attempt_there_is_no_way_back() -> None:
    for place, before in enumerate(WORKING):
        assert not any(may_follow(before, after) for after in WORKING[: place + 1])
        assert all(may_follow(before, after) for after in (*WORKING[place + 1 :], *FINAL))


@pytest.mark.parametrize("before", WORKING)
def test_a_later_attempt_leads_back_to_packaging_but_not_to_queued(before: DeviceState) -> None:
    assert may_follow(before, DeviceState.PACKAGING, later_attempt=True)
    assert not may_follow(before, DeviceState.QUEUED, later_attempt=True)


@pytest.mark.parametrize("end", sorted(FINAL))
def test_only_a_new_run_follows_an_end(end: DeviceState) -> None:
    assert [after for after in DeviceState if may_follow(end, after, later_attempt=True)] == [
        DeviceState.QUEUED
    ]


def test_the_rows_and_the_picture_come_from_the_table() -> None:
    rows = transition_rows()
    assert ("new", "queued", 0) in rows
    assert ("downloaded", "packaging", 1) in rows
    assert ("downloaded", "packaging", 0) not in rows
    picture = mermaid()
    assert all(state in picture for state in DeviceState)
    assert "activating --> provisioned" in picture
