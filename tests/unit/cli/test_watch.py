"""`muster watch` without a terminal: what it follows, and the lines that it writes."""

from __future__ import annotations

import json

import pytest

from provisioning.cli import watch_devices
from provisioning.cli.choosing import latest, named, under_way
from provisioning.cli.client import ServiceClient
from provisioning.cli.errors import CliError
from provisioning.cli.followed import Followed
from provisioning.cli.rollout import watching
from tests.unit.cli.conftest import Muster
from tests.unit.cli.fake_service import FakeService


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr(watch_devices, "DEVICES_EVERY_S", 0.0)


def start_rollout(service: FakeService, *device_ids: str) -> None:
    service.rollouts.device_ids = list(device_ids)
    service.rollouts.route("POST", [], {"plan": {}, "actor": "ada"})


def test_what_began_last_and_goes_on_is_under_way(service: FakeService, muster: Muster) -> None:
    client = ServiceClient(service.url)
    assert under_way(client) is None
    assert latest(client) is None
    muster("fleet", "launch", "--count", "2")
    start_rollout(service, "d1")
    assert under_way(client) == Followed(kind="rollout", id="rollout-1")
    muster("provision")
    service.runs["run-1"]["started_at"] = "2027-01-01T00:00:00.000+00:00"
    assert under_way(client) == Followed(kind="run", id="run-1")
    service.runs["run-1"]["status"] = "completed"
    assert under_way(client) == Followed(kind="rollout", id="rollout-1")
    service.rollouts.known["rollout-1"].state = "completed"
    assert under_way(client) is None
    assert latest(client) == Followed(kind="run", id="run-1")


def test_a_rollout_is_not_taken_for_the_run_that_it_is_on_record_as(service: FakeService) -> None:
    start_rollout(service, "d1")
    service.runs["rollout-1"] = {"run_id": "rollout-1", "status": "running", "started_at": "2099"}
    assert under_way(ServiceClient(service.url)) == Followed(kind="rollout", id="rollout-1")


def test_an_id_is_that_of_a_rollout_a_run_or_a_fleet(service: FakeService, muster: Muster) -> None:
    client = ServiceClient(service.url)
    muster("fleet", "launch", "--count", "2")
    muster("provision")
    start_rollout(service, "d1")
    for name, kind in (("rollout-1", "rollout"), ("run-1", "run"), ("fleet-1", "fleet")):
        assert named(client, name).kind == kind
    with pytest.raises(CliError, match="no rollout, run or fleet 'x'"):
        named(client, "x")
    with pytest.raises(CliError, match="no rollout or run 'fleet-1'"):
        named(client, "fleet-1", fleets=False)


def test_watch_follows_the_rollout_under_way(service: FakeService, muster: Muster) -> None:
    start_rollout(service, "a", "b")
    result = muster("watch")
    assert result.exit_code == 0
    assert "2 of 2 provisioned" in result.out
    assert muster("watch", "rollout-1", "--json").out.count('"rollout_id"') == 1


def test_a_script_that_watches_after_the_end_ends_too(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "2")
    muster("provision")
    assert muster("watch").exit_code == 0
    assert "2 of 2 provisioned" in muster("watch").out, "and not the fleet, which goes on for ever"


def test_watch_devices_writes_a_line_for_each_change(service: FakeService, muster: Muster) -> None:
    service.rollouts.outcomes = {"b": "failed"}
    start_rollout(service, "a", "b", "c")
    result = muster("watch", "devices")
    assert result.exit_code == 1
    lines = result.out.splitlines()
    assert lines[:4] == ["a  notified", "b  notified", "c  notified", "3 in flight, 0 not ok"]
    assert lines.count("b  failed  disk full") == 1
    assert lines[-1] == "0 in flight, 1 not ok"


def test_watch_devices_json_has_the_devices(service: FakeService, muster: Muster) -> None:
    start_rollout(service, "a", "b")
    documents = [json.loads(line) for line in muster("watch", "--devices", "--json").out.splitlines()]
    assert [one["device_id"] for one in documents[0]["in_flight"]] == ["a", "b"]
    assert documents[-1] == {"in_flight": [], "missed": [], "in_flight_total": 0, "missed_total": 0}


def test_the_devices_are_those_of_a_rollout_or_run(service: FakeService, muster: Muster) -> None:
    muster("fleet", "launch", "--count", "2")
    result = muster("watch", "fleet-1", "--devices")
    assert result.exit_code == 2
    assert "`muster watch fleet-1`" in result.error_line
