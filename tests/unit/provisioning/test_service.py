"""The service without its neighbours: it starts, says what is missing, and refuses what it can't do."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from provisioning.cli.client import ServiceClient
from provisioning.cli.errors import ApiError
from provisioning.cli.release.upload import FirmwareFile, Upload
from provisioning.errors import (
    PortBusyError,
    ProvisioningError,
    SettingsError,
    StateBusyError,
    StateError,
    StateVersionError,
)
from provisioning.service import Service
from provisioning.settings import ServiceSettings
from tests.conftest import free_port
from tests.unit.provisioning.fleet_doubles import Launcher

ACCOUNT_KEY = "c2VjcmV0LWtleQ=="


def _settings(state_dir: Path, **changes: object) -> ServiceSettings:
    return ServiceSettings(
        **{  # type: ignore[arg-type]
            "state_dir": state_dir,
            # Nobody there: the service has to start all the same.
            "broker_url": f"mqtt://user:hunter2@127.0.0.1:{free_port()}",
            "blob_connection_string": f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey={ACCOUNT_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{free_port()}/a",
            "api_port": 0,
            **changes,
        }
    )


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with Service(_settings(tmp_path / "state"), Launcher()) as running:
        yield running


@pytest.fixture
async def api(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url) as client:
        yield client


async def test_it_starts_without_broker_and_storage_and_says_so(api: httpx.AsyncClient) -> None:
    health = (await api.get("/api/health")).json()
    assert health["status"] == "degraded"
    assert (health["broker"]["connected"], health["blob"]["reachable"]) == (False, False)
    assert len(health["trust"]["public_key"]) == 44


async def test_keys_are_made_and_retired(api: httpx.AsyncClient) -> None:
    (first,) = (await api.get("/api/keys")).json()["keys"]
    refused = await api.delete(f"/api/keys/{first['key_id']}")
    assert (refused.status_code, refused.json()["title"]) == (409, "Key refused")
    made = await api.post("/api/keys")
    assert (made.status_code, made.json()["state"]) == (201, "signs")
    retired = await api.delete(f"/api/keys/{first['key_id']}")
    assert (retired.status_code, retired.json()["state"]) == (200, "retired")
    trust = (await api.get("/api/health")).json()["trust"]
    assert (trust["key_id"], trust["public_key"]) == (made.json()["key_id"], made.json()["public_key"])
    assert [key["state"] for key in trust["keys"]] == ["retired", "signs"]


async def test_no_answer_holds_a_secret(api: httpx.AsyncClient, service: Service) -> None:
    texts = [
        (await api.get(path)).text
        for path in ("/api/health", "/api/keys", "/api/statistics", "/openapi.json")
    ]
    texts += [repr(service.settings), (service.settings.state_dir / "service.json").read_text()]
    assert not any(ACCOUNT_KEY in text or "hunter2" in text or "PRIVATE KEY" in text for text in texts)


async def test_the_state_is_private_and_the_record_goes_with_the_service(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    async with Service(_settings(state_dir)) as service:
        record = json.loads((state_dir / "service.json").read_text())
        assert record["url"] == service.url
        assert _modes(state_dir) == {0o600, 0o700}
        assert [path.name for path in state_dir.iterdir() if path.is_dir()] == ["releases"]
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert not (state_dir / "service.json").exists()
    assert json.loads((state_dir / "muster.json").read_text())["format"] == 1


def _modes(directory: Path) -> set[int]:
    # A lock holds nothing.
    return {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir() if ".lock" not in file.name}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/api/devices/ghost", None, 404, "Unknown device: ghost"),
        ("GET", "/api/runs/ghost", None, 404, "Unknown run: ghost"),
        ("GET", "/api/devices?run_id=ghost", None, 404, "Unknown run: ghost"),
        ("GET", "/api/devices?state=happy", None, 422, "state"),
        ("GET", "/api/devices?limit=0", None, 422, "limit"),
        ("GET", "/api/nothing", None, 404, "listed at /docs"),
        ("POST", "/api/provision", {}, 409, "muster fleet launch"),
        ("POST", "/api/provision", {"device_ids": ["a", "b"]}, 404, "a, b"),
        ("POST", "/api/provision", {"device_ids": ["a/b"]}, 422, "a/b"),
        ("POST", "/api/provision", {"device_ids": []}, 422, "device_ids"),
        ("POST", "/api/provision", {"options": {"speed": 9}}, 422, "Unknown option: speed"),
        ("POST", "/api/provision", {"options": {"max_attempts": 0}}, 422, "max_attempts"),
        ("POST", "/api/provision", {"release": "fw-9"}, 404, "no release 'fw-9': `muster release list`"),
        ("POST", "/api/provision", {"release": 7}, 422, "release"),
        ("DELETE", "/api/keys/ghost", None, 404, "no signing key 'ghost'"),
        ("POST", "/api/releases", {"name": "x"}, 422, "body: it is no multipart/form-data"),
        ("GET", "/api/releases/ghost", None, 404, "no release 'ghost'"),
        ("DELETE", "/api/releases/ghost", None, 404, "no release 'ghost'"),
        ("DELETE", "/api/releases/demo-1.0.0", None, 409, "comes with the service"),
        (
            "POST",
            "/api/provision",
            {"options": {"retries": {"no_ack": {"delay": 5}}}},
            422,
            "The option retries.no_ack.delay: there is no such key; did you mean 'delay_s'?",
        ),
        ("POST", "/api/fleets", {"count": 3}, 422, "count"),
        ("POST", "/api/fleets", {"spec": 3}, 422, "spec"),
        ("POST", "/api/fleets", {"spec": {}}, 422, "groups: there is none"),
        ("POST", "/api/fleets", {"spec": {}, "processes": 65}, 422, "processes"),
        ("GET", "/api/fleets/ghost", None, 404, "Unknown fleet: ghost"),
        ("DELETE", "/api/fleets/ghost", None, 404, "Unknown fleet: ghost"),
        ("POST", "/api/fleets/ghost/changes", {"do": "stop"}, 404, "Unknown fleet: ghost"),
        ("GET", "/api/fleets/ghost/devices", None, 404, "Unknown fleet: ghost"),
        ("GET", "/api/fleets/ghost/check", None, 404, "Unknown fleet: ghost"),
    ],
)
async def test_a_bad_request_is_told_what_is_wrong(
    api: httpx.AsyncClient, method: str, path: str, body: object, status: int, words: str
) -> None:
    response = await api.request(method, path, json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert words in problem["detail"]


@pytest.mark.parametrize(
    ("headers", "status"), [({"host": "evil.example"}, 401), ({"origin": "https://evil.example"}, 403)]
)
async def test_pages_from_elsewhere_can_not_drive_the_service(
    api: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    response = await api.get("/api/health", headers=headers)
    assert response.status_code == status


async def test_a_firmware_goes_from_the_command_line_s_client_to_the_disk(
    service: Service, tmp_path: Path
) -> None:
    client = ServiceClient(service.url)
    path = tmp_path / "firmware"

    def upload(size_bytes: int) -> Upload:
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return Upload(
            [("name", "fw-2"), ("version", "2")], FirmwareFile(file=path.open("rb"), size_bytes=size_bytes)
        )

    created, release = await asyncio.to_thread(client.add_release, upload(5_000_000))
    assert (created, release["firmware"]["size_bytes"]) == (True, 5_000_000)
    (kept,) = (service.settings.state_dir / "releases").iterdir()
    assert kept.stat().st_size == 5_000_000
    # Refused while it is still being sent: by its length, or by the first byte that is too many.
    for size_bytes in (200 * 1024**2, 64 * 1024**2 + 1):
        with pytest.raises(ApiError, match=r"67,108,864 bytes") as caught:
            await asyncio.to_thread(client.add_release, upload(size_bytes))
        assert caught.value.status == 413
    assert [one.name for one in (service.settings.state_dir / "releases").iterdir()] == [kept.name]


SPEC = {
    "seed": 5,
    "groups": [
        {
            "name": "lab",
            "count": 3,
            "model": "m",
            "firmware_version": "1",
            "behaviours": {"healthy": 1.0},
            "prefix": "dev",
        }
    ],
}


async def test_fleets_are_the_launchers(api: httpx.AsyncClient) -> None:
    launched = await api.post("/api/fleets", json={"spec": SPEC})
    assert launched.status_code == 201
    fleet = launched.json()
    assert (fleet["fleet_id"], fleet["devices"], fleet["seed"]) == ("fleet-1", 3, 5)
    assert (await api.get("/api/fleets")).json() == {"fleets": [fleet]}
    shown = (await api.get("/api/fleets/fleet-1")).json()
    assert shown == {**fleet, "statistics": {"connected": 3}}
    changed = await api.post("/api/fleets/fleet-1/changes", json={"do": "storm"})
    assert changed.json() == {"affected": 2, "do": "storm"}
    assert (await api.delete("/api/fleets/fleet-1")).json() == fleet
    assert (await api.get("/api/fleets")).json() == {"fleets": []}


async def test_devices_of_a_fleet_come_in_pages(api: httpx.AsyncClient) -> None:
    await api.post("/api/fleets", json={"spec": SPEC})
    first = (await api.get("/api/fleets/fleet-1/devices?limit=2")).json()
    assert [device["device_id"] for device in first["devices"]] == ["dev-0", "dev-1"]
    assert (first["next"], first["total"]) == ("dev-1", 3)
    assert first["devices"][0] == {
        "device_id": "dev-0",
        "group": "lab",
        "behaviour": "healthy",
        "running": True,
        "online": True,
        "expected": "provisioned",
    }
    rest = (await api.get("/api/fleets/fleet-1/devices?limit=2&after=dev-1")).json()
    assert [device["device_id"] for device in rest["devices"]] == ["dev-2"]
    assert rest["next"] is None
    assert (await api.get("/api/fleets/fleet-1/devices?group=none")).json()["total"] == 0


async def test_devices_that_no_run_has_had_are_waited_for(api: httpx.AsyncClient) -> None:
    await api.post("/api/fleets", json={"spec": SPEC})
    checked = (await api.get("/api/fleets/fleet-1/check")).json()
    assert (checked["devices"], checked["not_provisioned_yet"], checked["different"]) == (3, 3, 0)


async def test_metrics_are_in_prometheus_text_format(api: httpx.AsyncClient) -> None:
    answer = await api.get("/metrics?fleet_id=fleet-1")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text == "# fleet-1\n"


async def test_without_a_launcher_there_are_no_fleets(tmp_path: Path) -> None:
    async with (
        Service(_settings(tmp_path / "state")) as service,
        httpx.AsyncClient(base_url=service.url) as api,
    ):
        assert (await api.get("/api/fleets")).json() == {"fleets": []}
        assert (await api.post("/api/fleets", json={"spec": SPEC})).status_code == 503
        assert "muster_fleet" not in (await api.get("/metrics")).text


async def test_a_second_service_on_the_state_is_refused_by_the_first_ones_process(tmp_path: Path) -> None:
    settings = _settings(tmp_path / "state")
    async with Service(settings) as first:
        with pytest.raises(StateBusyError, match=r"process \d+.*muster down"):
            async with Service(settings):
                pass
        async with httpx.AsyncClient(base_url=first.url) as api:
            assert (await api.get("/api/health")).status_code == 200
    async with Service(settings):
        pass


async def test_a_port_in_use_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortBusyError, match=str(port)):
            async with Service(_settings(tmp_path / "state", api_port=port)):
                pass
    async with Service(_settings(tmp_path / "state", api_port=port)) as service:
        assert service.url.endswith(str(port))


@pytest.mark.parametrize("name", ["registry.db", "engine.db"])
async def test_a_state_file_that_is_no_database_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not a database " * 100)
    with pytest.raises(StateVersionError, match=name):
        async with Service(_settings(tmp_path)):
            pass


@pytest.mark.parametrize("name", ["registry.db", "engine.db"])
async def test_a_state_file_that_can_not_be_opened_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir()
    with pytest.raises(StateError, match=rf"{name} can't be opened.*choose another"):
        async with Service(_settings(tmp_path)):
            pass
    path.rmdir()
    path.symlink_to(tmp_path / "missing" / name)
    with pytest.raises(StateError, match=rf"{name} can't be opened.*choose another"):
        async with Service(_settings(tmp_path)):
            pass
    path.unlink()
    async with Service(_settings(tmp_path)):
        pass


@pytest.mark.parametrize("marker", ['{"format": 99}', "nonsense", "[]"])
async def test_a_state_directory_of_a_newer_version_is_refused(tmp_path: Path, marker: str) -> None:
    (tmp_path / "muster.json").write_text(marker)
    with pytest.raises(StateVersionError, match="state directory"):
        async with Service(_settings(tmp_path)):
            pass


async def test_a_state_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        async with Service(_settings(tmp_path / "file" / "state")):
            pass


async def test_a_bad_connection_string_ends_the_start_cleanly(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="MUSTER_BLOB"):
        async with Service(_settings(tmp_path, blob_connection_string="nonsense")):
            pass
    async with Service(_settings(tmp_path)):
        pass


async def test_it_closes_when_asked_and_fails_when_its_registry_is_broken(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = asyncio.create_task(service.wait_closed())
    service.close()
    await asyncio.wait_for(closing, 10)

    async with Service(_settings(tmp_path / "other")) as other:
        waiting = asyncio.create_task(other.wait_closed())

        def broken(_work: object) -> None:
            raise ValueError("a defect")

        monkeypatch.setattr(other._registry, "_transact", broken)
        other._registry.register("d1", model="m", firmware_version="1", tags={})
        with pytest.raises(ProvisioningError, match="a defect"):
            await asyncio.wait_for(waiting, 10)
        monkeypatch.undo()


def test_the_service_does_not_load_the_devices() -> None:
    code = "import sys, provisioning.service; sys.exit('devices' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def _registered(service: Service, *device_ids: str) -> None:
    for device_id in device_ids:
        service._registry.register(device_id, model="m", firmware_version="1", tags={})
    await service._registry.flush()


async def _ended(api: httpx.AsyncClient, run_id: str) -> dict[str, object]:
    async with asyncio.timeout(30):
        while (run := (await api.get(f"/api/runs/{run_id}")).json())["status"] == "running":  # noqa: ASYNC110 (over HTTP)
            await asyncio.sleep(0.01)
    return dict(run)


async def test_a_run_that_is_terminated_cancels_its_devices(api: httpx.AsyncClient, service: Service) -> None:
    await _registered(service, "d1", "d2")
    started = await api.post("/api/provision", json={})
    assert (started.status_code, started.json()["devices"]) == (202, 2)
    run_id = started.json()["run_id"]
    # In flight: neither they nor, for want of new ones, anyone else can be provisioned.
    busy = await api.post("/api/provision", json={"device_ids": ["d1"]})
    assert (busy.status_code, busy.json()["title"]) == (409, "Device in flight")
    assert (await api.post("/api/provision", json={})).json()["title"] == "No new devices"
    await cast(Any, service._client).terminate_orchestration(run_id)
    run = await _ended(api, run_id)
    assert run["status"] == "terminated"
    assert (await api.get("/api/devices/d1")).json()["state"] == "cancelled"
    again = await api.post("/api/provision", json={"device_ids": ["d1"]})
    assert again.status_code == 202


async def test_two_calls_at_once_start_one_run(api: httpx.AsyncClient, service: Service) -> None:
    await _registered(service, "d1", "d2")
    answers = await asyncio.gather(*(api.post("/api/provision", json={}) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409, 409]
    assert len((await api.get("/api/runs")).json()["runs"]) == 1


async def test_a_call_that_is_under_way_when_the_service_stops_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("provisioning.service._LAST_CALLS_S", 0)
    asked = asyncio.Event()

    async def never_answer(*_args: object, **_kwargs: object) -> str:
        asked.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with httpx.AsyncClient() as client:
        async with Service(_settings(tmp_path)) as service:
            await _registered(service, "d1")
            monkeypatch.setattr(service._client, "schedule_new_orchestration", never_answer)
            call = asyncio.create_task(client.post(f"{service.url}/api/provision", json={}))
            await asked.wait()
        answer = await call
    assert (answer.status_code, answer.json()["title"]) == (503, "Stopping")
    assert "muster up" in answer.json()["detail"]
    assert "Traceback" not in caplog.text


async def test_a_device_whose_package_can_not_be_stored_fails_by_the_runs_option_and_says_why(
    api: httpx.AsyncClient, service: Service, tmp_path: Path
) -> None:
    async with (
        Service(_settings(tmp_path / "impatient", upload_timeout_s=0.05)) as impatient,
        httpx.AsyncClient(base_url=impatient.url) as client,
    ):
        await _registered(impatient, "d1")
        started = await client.post("/api/provision", json={"options": {"outage_tolerance_s": 0}})
        run = await _ended(client, started.json()["run_id"])
        device = (await client.get("/api/devices/d1")).json()
    assert run["status"] == "completed"
    assert device["state"] == "failed"
    assert "Blob storage at http://127.0.0.1" in device["error"]
    assert device["steps"][0]["error"] == device["error"] == device["outcome"]["error"]


async def test_a_run_whose_orchestration_is_gone_is_closed_at_the_next_start(tmp_path: Path) -> None:
    async with Service(_settings(tmp_path)) as service:
        await _registered(service, "d1")
        await service._registry.claim("run-lost", None, options={}, limit=1)
    async with Service(_settings(tmp_path)) as service, httpx.AsyncClient(base_url=service.url) as api:
        run = await _ended(api, "run-lost")
        assert run["status"] == "failed"
        device = (await api.get("/api/devices/d1")).json()
        assert (device["state"], device["error"]) == ("failed", "the run's orchestration is gone")


async def test_a_run_goes_on_after_a_clean_stop(tmp_path: Path) -> None:
    async with Service(_settings(tmp_path)) as service, httpx.AsyncClient(base_url=service.url) as api:
        await _registered(service, "d1")
        run_id = (await api.post("/api/provision", json={})).json()["run_id"]
    async with Service(_settings(tmp_path)) as service, httpx.AsyncClient(base_url=service.url) as api:
        run = (await api.get(f"/api/runs/{run_id}")).json()
        assert (run["status"], run["devices"]) == ("running", 1)
        assert (await api.get("/api/devices/d1")).json()["state"] in ("queued", "packaging")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"packaging_timeout_s": 0.7}, "deadline of packaging (0.7 s) passed"),
        ({"device_timeout_s": 0.7}, "deadline of the device (0.7 s) passed in packaging, attempt 1"),
    ],
)
async def test_a_device_whose_package_can_not_be_stored_ends_by_its_deadline(
    api: httpx.AsyncClient, service: Service, options: dict[str, float], error: str
) -> None:
    await _registered(service, "d1")
    started = await api.post("/api/provision", json={"options": options})
    await _ended(api, started.json()["run_id"])
    device = (await api.get("/api/devices/d1")).json()
    assert (device["state"], device["retrying_at"]) == ("timed_out", None)
    assert device["error"] == error


async def test_answers_on_a_connection_that_is_kept_wait_for_no_acknowledgement(service: Service) -> None:
    """Without TCP_NODELAY each answer, which is two packets, takes 40 ms more."""
    async with httpx.AsyncClient(base_url=service.url) as client:
        await client.get("/api/health")
        (connection,) = service._server.server_state.connections
        found = connection.transport.get_extra_info("socket")
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
