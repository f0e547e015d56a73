"""Events over HTTP, of a service that runs: as browsers read them, and as some don't."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from provisioning.events import stream
from provisioning.service import Service
from provisioning.states import DeviceState
from tests.unit.events.watching import Event, read
from tests.unit.http.running import settings
from tests.unit.provisioning.fleet_doubles import Launcher


class Fleets(Launcher):
    """Those that were launched."""

    async def list(self) -> Any:
        return list(self.fleets.values())

    async def metrics(self, fleet_id: str | None = None) -> str:
        return ""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with Service(settings(tmp_path), Fleets()) as running:
        yield running


@pytest.fixture
async def api(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        yield client


class Source:
    """A connection that reads events, as a browser's EventSource does."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._chunks = response.aiter_bytes()
        self._rest = b""

    async def next(self) -> Event:
        while not (found := read(self._rest.partition(b"\n\n")[0])):
            if b"\n\n" in self._rest:
                self._rest = self._rest.partition(b"\n\n")[2]
            else:
                self._rest += await anext(self._chunks)
        self._rest = self._rest.partition(b"\n\n")[2]
        return found[0]

    async def until(self, name: str) -> Event:
        while (event := await self.next()).name != name:
            pass
        return event

    async def ended(self) -> bool:
        async for chunk in self._chunks:
            assert chunk
        return True


class Opened:
    """``async with`` a stream of events."""

    def __init__(self, api: httpx.AsyncClient, query: str = "", **headers: str) -> None:
        self._stream = api.stream("GET", f"/api/events{query}", headers=headers)

    async def __aenter__(self) -> Source:
        response = await self._stream.__aenter__()
        assert response.status_code == 200
        return Source(response)

    async def __aexit__(self, *error: Any) -> None:
        await self._stream.__aexit__(*error)


async def test_a_stream_has_all_that_happens(service: Service, api: httpx.AsyncClient) -> None:
    async with Opened(api) as source:
        assert source.response.headers["content-type"].startswith("text/event-stream")
        assert source.response.headers["cache-control"] == "no-store"
        hello = await source.next()
        assert (hello.name, set(hello.data)) == ("hello", {"service", "version"})
        await register(service, "d1", "d2")
        assert [row[0] for row in (await source.until("devices")).data["devices"]] == ["d1", "d2"]
        fleet = {"spec": {"seed": 1, "groups": [GROUP]}}
        launched = (await api.post("/api/fleets", json=fleet)).json()
        assert (await source.until("fleet")).data == launched
        created = (await api.post("/api/rollouts", json=plan("d1"))).json()
        rollout = (await source.until("rollout")).data
        short = (await api.get("/api/rollouts")).json()["rollouts"][0]
        assert set(short) | {"in_flight", "devices_per_s", "eta_s", "elapsed_s"} == set(rollout)
        assert (rollout["rollout_id"], rollout["waves"][0]["devices"]) == (created["rollout_id"], 1)
        run_id = (await api.post("/api/provision", json={"device_ids": ["d2"]})).json()["run_id"]
        run = (await source.until("run")).data
        whole = (await api.get(f"/api/runs/{run_id}")).json()
        assert (run["run_id"], set(run)) == (run_id, set(whole) - {"percentiles"})


GROUP = {
    "name": "lab",
    "count": 2,
    "model": "m",
    "firmware_version": "1",
    "behaviours": {"healthy": 1.0},
    "prefix": "dev-",
}


def plan(*devices: str) -> dict[str, Any]:
    return {"plan": {"name": "spring", "targets": {"devices": list(devices)}}}


async def register(service: Service, *device_ids: str) -> None:
    for device_id in device_ids:
        service._registry.register(device_id, model="m", firmware_version="1", tags={})
    await service._registry.flush()


@pytest.mark.parametrize("by", ["header", "query"])
async def test_a_stream_that_broke_goes_on_where_it_was(
    service: Service, api: httpx.AsyncClient, by: str
) -> None:
    async with Opened(api, "?topics=devices") as source:
        hello = await source.next()
    await register(service, "d1")
    there = (
        Opened(api, "?topics=devices", **{"Last-Event-ID": hello.event_id})
        if by == "header"
        else Opened(api, f"?topics=devices&last_event_id={hello.event_id}")
    )
    async with there as source:
        assert [(await source.next()).name for _ in range(2)] == ["hello", "devices"]


async def test_after_a_restart_of_the_service_all_is_to_be_fetched_anew(tmp_path: Path) -> None:
    last = ""
    for life in range(2):
        async with (
            Service(settings(tmp_path), Fleets()) as service,
            httpx.AsyncClient(base_url=service.url) as api,
            Opened(api, "?topics=devices", **({"Last-Event-ID": last} if last else {})) as source,
        ):
            last = (await source.next()).event_id
            if life == 1:
                assert (await source.next()).name == "reset"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?topics=devices,weather", 422),
        ("?topics=", 422),
        ("?topics=DEVICES", 422),
        ("?rollout=ghost", 404),
        (f"?last_event_id={'x' * 101}", 422),
    ],
)
async def test_what_makes_no_sense_is_refused(api: httpx.AsyncClient, query: str, status: int) -> None:
    answer = await api.get(f"/api/events{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_a_reader_of_one_rollout_hears_of_that_alone(service: Service, api: httpx.AsyncClient) -> None:
    await register(service, "d1", "d2")
    first = (await api.post("/api/rollouts", json=plan("d1"))).json()["rollout_id"]
    async with Opened(api, f"?topics=rollouts,devices&rollout={first}") as source:
        second = (await api.post("/api/rollouts", json=plan("d2"))).json()["rollout_id"]
        assert second != first
        await api.post(f"/api/rollouts/{first}/actions", json={"action": "pause"})
        while (event := await source.until("rollout")).data["state"] != "paused":
            assert event.data["rollout_id"] == first
        assert event.data["rollout_id"] == first


async def test_there_is_a_limit_to_readers(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.events._hub, "_max_readers", 1)
    async with Opened(api) as source:
        await source.next()
        answer = await api.get("/api/events")
        assert (answer.status_code, answer.json()["title"]) == (503, "Too many readers")
    while service.events.statistics().readers:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.001)
    async with Opened(api) as source:
        assert (await source.next()).name == "hello"


def deaf(service: Service) -> socket.socket:
    """A connection that asks for events and reads none."""
    there = urlsplit(service.url)
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    found.connect((there.hostname, there.port))
    found.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return found


async def fill(service: Service, until: Any) -> None:
    """Events that are too many for any buffer on the way."""
    number = 0
    while not until():
        number += 1
        service.events._hub.publish("fleets", "fleet", {"n": number, "text": "x" * 200_000})
        await asyncio.sleep(0)


async def test_who_does_not_read_is_cut_off_and_others_go_on(
    service: Service, api: httpx.AsyncClient
) -> None:
    connection = deaf(service)
    statistics = service.events.statistics
    while not statistics().readers:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.001)
    await fill(service, lambda: statistics().dropped)
    while service._server.server_state.connections:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.001)
    assert statistics().kept_bytes <= 4 * 1024 * 1024
    with connection, contextlib.suppress(ConnectionResetError):
        received = b""
        while chunk := connection.recv(1 << 20):
            received = chunk
        assert not received.endswith(b"0\r\n\r\n"), "cut off, and not ended"
    async with Opened(api, "?topics=devices") as source:
        assert (await source.next()).name == "hello"


async def test_who_takes_nothing_for_long_is_cut_off_though_little_happens(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream.EventStream, "stall_s", 0.01)
    with deaf(service):
        statistics = service.events.statistics
        while not statistics().readers:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
        (reader,) = service.events._hub._readers
        await fill(service, lambda: reader.sending or statistics().dropped)
        while not statistics().dropped:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)


async def test_streams_end_with_the_service_and_it_waits_for_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        async with Service(settings(tmp_path), Fleets()) as service:
            client.base_url = httpx.URL(service.url)
            opened = Opened(client)
            source = await opened.__aenter__()
            await source.next()
            connection = deaf(service)
            while service.events.statistics().readers < 2:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.001)
            readers = list(service.events._hub._readers)
            ended = asyncio.create_task(source.ended())
            await fill(service, lambda: any(reader.sending for reader in readers))
        assert await ended, "the last chunk came, and the connection was not cut"
        await opened.__aexit__(None, None, None)
        connection.close()
    assert "timeout graceful shutdown exceeded" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info and record.name.startswith("uvicorn")]


async def test_no_event_has_a_secret_in_it(service: Service, api: httpx.AsyncClient) -> None:
    await register(service, "d1")
    await service._registry.claim("r1", None, options={}, limit=1)
    async with Opened(api) as source:
        reason = "no answer from https://x/p.zip?sv=1&sig=c2VjcmV0&se=2"
        await service._registry.end_run("r1", status="failed", left_over=DeviceState.FAILED, reason=reason)
        events = [await source.until(name) for name in ("devices", "run")]
        assert "c2VjcmV0" not in json.dumps([event.data for event in events])
        assert "sig=***" in json.dumps(events[0].data)
