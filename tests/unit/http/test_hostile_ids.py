"""Every place of the API and of the command line that takes an id refuses one that reaches too far."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from devices.errors import FleetSpecError
from devices.spec import FleetSpec
from provisioning.cli import main
from provisioning.packages import blob_name_of
from tests.unit.hostile_ids import HOSTILE_IDS, HOSTILE_LABELS
from tests.unit.http.running import in_a_thread

IDS = pytest.mark.parametrize("hostile", HOSTILE_IDS.values(), ids=HOSTILE_IDS)
LABELS = pytest.mark.parametrize("hostile", HOSTILE_LABELS.values(), ids=HOSTILE_LABELS)
GIVEN_IDS = {name: hostile for name, hostile in HOSTILE_IDS.items() if name not in ("NUL", "empty")}
"""What a shell can hand over, and is not another call without it."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with in_a_thread(tmp_path_factory.mktemp("hostile")) as url, httpx.Client(base_url=url) as client:
        yield client
        assert client.get("/api/statistics").json()["devices"] == 0
        assert client.get("/api/rollouts").json() == {"rollouts": []}
        releases = client.get("/api/releases").json()["releases"]
        assert [release["name"] for release in releases] == ["demo-1.0.0"]


def refuses(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def post(api: httpx.Client, path: str, body: Any) -> httpx.Response:
    # As ASCII: JSON can hold half a character, which no other encoding can.
    return api.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})


def form(fields: dict[str, str]) -> Any:
    return {name: (None, value.encode("utf-8", "surrogatepass")) for name, value in fields.items()}


@IDS
def test_a_run_is_not_of_one(api: httpx.Client, hostile: str) -> None:
    refuses(post(api, "/api/provision", {"device_ids": [hostile]}), 422)
    refuses(post(api, "/api/provision", {"device_ids": ["dev-1", hostile]}), 422)
    refuses(post(api, "/api/provision", {"release": hostile}), 404, 422)


@IDS
@pytest.mark.parametrize(
    "plan",
    [
        lambda hostile: {"targets": {"devices": [hostile]}},
        lambda hostile: {"targets": {"exclude": [hostile]}},
        lambda hostile: {"release": hostile},
    ],
    ids=["devices", "exclude", "release"],
)
def test_a_rollout_is_not_of_one(api: httpx.Client, hostile: str, plan: Callable[[str], Any]) -> None:
    refuses(post(api, "/api/rollouts", {"plan": plan(hostile)}), 422)


@IDS
def test_no_release_is_called_so(api: httpx.Client, hostile: str) -> None:
    fields = {"name": hostile, "version": "1", "generated_size_bytes": "9"}
    refuses(api.post("/api/releases", files=form(fields)), 422)


@LABELS
@pytest.mark.parametrize("field", ["version", "model"])
def test_no_release_is_labelled_so(api: httpx.Client, hostile: str, field: str) -> None:
    fields = {"name": "fw", "version": "1", "generated_size_bytes": "9", field: hostile}
    refuses(api.post("/api/releases", files=form(fields)), 422)


@pytest.mark.parametrize("hostile", GIVEN_IDS.values(), ids=GIVEN_IDS)
def test_there_is_nothing_of_such_an_id(api: httpx.Client, hostile: str) -> None:
    for kind in ("devices", "runs", "rollouts", "fleets", "releases"):
        refuses(api.get(f"/api/{kind}/{quote(hostile, safe='').replace('.', '%2E')}"), 404, 422)


@IDS
@pytest.mark.parametrize(
    "group",
    [
        lambda hostile: {"count": 1, "prefix": hostile},
        lambda hostile: {"ids": [hostile]},
        lambda hostile: {"count": 1, "name": hostile},
        lambda hostile: {"count": 1, "behaviours": {hostile: 1.0}},
    ],
    ids=["prefix", "ids", "name", "behaviour"],
)
def test_no_fleet_has_one(hostile: str, group: Callable[[str], Any]) -> None:
    with pytest.raises(FleetSpecError) as refused:
        FleetSpec.from_document({"seed": 1, "groups": [{"name": "g", **group(hostile)}]})
    assert str(refused.value).isprintable()


@LABELS
@pytest.mark.parametrize("key", ["model", "firmware_version", "tag", "tags"])
def test_no_fleet_is_labelled_so(hostile: str, key: str) -> None:
    label = {"tag": {"tags": {hostile: "x"}}, "tags": {"tags": {"x": hostile}}}.get(key, {key: hostile})
    with pytest.raises(FleetSpecError) as refused:
        FleetSpec.from_document({"seed": 1, "groups": [{"name": "g", "count": 1, **label}]})
    assert str(refused.value).isprintable()


@IDS
def test_no_blob_is_called_so(hostile: str) -> None:
    for release, device_id in ((hostile, "dev-1"), ("fw-1", hostile)):
        with pytest.raises(ValueError, match="blob"):
            blob_name_of(release, device_id)


@pytest.mark.parametrize("hostile", GIVEN_IDS.values(), ids=GIVEN_IDS)
def test_no_command_takes_one(
    api: httpx.Client, hostile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = f"--url={api.base_url}"
    commands = [
        ["fleet", "launch", service, "--count=1", f"--prefix={hostile}"],
        ["rollout", "create", service, f"--devices={hostile}"],
        ["release", "add", service, "--generate=9", "--version=1", "--", hostile],
        ["provision", service, "--", hostile],
        ["device", service, "--", hostile],
        ["release", "show", service, "--", hostile],
    ]
    for command in commands:
        code = main(command)
        out, err = capsys.readouterr()
        assert code != 0, command
        assert out == ""
        assert err.startswith("muster: ")
        assert err[:-1].isprintable(), "one line, and no command to the terminal"
