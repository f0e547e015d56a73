"""Which engine a service runs on: what it says of it, what it does without it, and when it may change."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from durabletask.client import OrchestrationState, OrchestrationStatus

from provisioning.errors import EngineAwayError, SettingsError
from provisioning.registry import Registry
from provisioning.runs import Runs
from provisioning.service import Service
from provisioning.settings import EngineSettings, ServiceSettings
from tests.backend import Backend
from tests.conftest import free_port

EMBEDDED = EngineSettings()


def remote(port: int = 1, task_hub: str | None = None) -> EngineSettings:
    return EngineSettings(kind="durabletask", host="127.0.0.1", port=port, task_hub=task_hub)


def settings(state_dir: Path, engine: EngineSettings) -> ServiceSettings:
    return ServiceSettings(
        state_dir=state_dir,
        broker_url=f"mqtt://127.0.0.1:{free_port()}",
        blob_connection_string="DefaultEndpointsProtocol=http;AccountName=a;AccountKey=c2VjcmV0LWtleQ==;"
        f"BlobEndpoint=http://127.0.0.1:{free_port()}/a",
        engine=engine,
        api_port=0,
        upload_timeout_s=0.1,
    )


async def registered(service: Service, *device_ids: str) -> None:
    for device_id in device_ids:
        service._registry.register(device_id, model="m", firmware_version="1", tags={})
    await service._registry.flush()


async def test_the_service_says_which_engine_it_runs_on(tmp_path: Path) -> None:
    async with (
        Service(settings(tmp_path, EMBEDDED)) as service,
        httpx.AsyncClient(base_url=service.url) as api,
    ):
        engine = (await api.get("/api/health")).json()["engine"]
        assert (engine["kind"], engine["connected"], engine["unsupported"]) == ("embedded", True, [])
        assert "commits" in (await api.get("/api/statistics")).json()["engine"]


async def test_it_starts_without_its_backend_says_so_and_works_when_it_comes(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Service(settings(tmp_path, remote(backend.port))) as service,
        httpx.AsyncClient(base_url=service.url, timeout=60) as api,
    ):
        await registered(service, "d1")
        with monkeypatch.context() as impatient:
            impatient.setattr("provisioning.durable_task.START_PATIENCE_S", 0.0)
            refused = await api.post("/api/provision", json={})
        assert (refused.status_code, refused.json()["title"]) == (503, "Unavailable")
        assert f"{backend.endpoint} does not answer" in refused.json()["detail"]
        health = (await api.get("/api/health")).json()
        assert health["status"] == "degraded"
        assert (health["engine"]["kind"], health["engine"]["connected"]) == ("durabletask", False)
        assert health["engine"]["endpoint"] == backend.endpoint
        assert health["engine"]["unsupported"]
        backend.start()
        while not (await api.get("/api/health")).json()["engine"]["connected"]:  # noqa: ASYNC110 (over HTTP)
            await asyncio.sleep(0.01)
        started = await api.post("/api/provision", json={"options": {"outage_tolerance_s": 0}})
        assert (started.status_code, started.json()["devices"]) == (202, 1)
        run: dict[str, Any] = {"status": "running"}
        while run["status"] == "running":
            run = (await api.get(f"/api/runs/{started.json()['run_id']}")).json()
            await asyncio.sleep(0.01)
        assert (run["status"], run["counts"]["failed"]) == ("completed", 1)
        device = (await api.get("/api/devices/d1")).json()
        assert "Blob storage at http://127.0.0.1" in device["outcome"]["error"]
        # What the engine alone knows is asked for in vain while it is away; what the registry knows is not.
        backend.stop()
        gone = await api.get("/api/devices/d1")
        assert (gone.status_code, gone.json()["title"]) == (503, "Engine away")
        assert (await api.get("/api/devices")).json()["total"] == 1


async def run_under_way(state_dir: Path, engine: EngineSettings) -> None:
    async with Service(settings(state_dir, engine)) as service:
        await registered(service, "d1")
        await service._registry.claim("run-1", None, options={}, limit=1)
        # As a killed process leaves it.
        await service._runs.close()


@pytest.mark.parametrize(
    ("first", "second", "back"),
    [
        (EMBEDDED, remote(), "MUSTER_ENGINE=embedded"),
        (remote(), EMBEDDED, "MUSTER_ENGINE=durabletask"),
        (
            remote(task_hub="a"),
            remote(task_hub="b"),
            "MUSTER_ENGINE=durabletask MUSTER_ENGINE_TASKHUB=a",
        ),
    ],
    ids=["to a backend", "from a backend", "to another task hub"],
)
async def test_runs_under_way_are_not_left_behind_on_another_engine(
    tmp_path: Path, first: EngineSettings, second: EngineSettings, back: str
) -> None:
    if first.kind == "embedded":
        # The embedded engine closes at once what it knows nothing of.
        async with Service(settings(tmp_path, first)):
            pass
        async with Registry(tmp_path / "registry.db") as registry:
            registry.register("d1", model="m", firmware_version="1", tags={})
            await registry.flush()
            await registry.claim("run-1", None, options={}, limit=1)
    else:
        await run_under_way(tmp_path, first)
    with pytest.raises(SettingsError, match=rf"run-1 is under way .*\({back}\)"):
        async with Service(settings(tmp_path, second)):
            pass


async def test_without_runs_under_way_the_engine_may_change(tmp_path: Path) -> None:
    for engine in (EMBEDDED, remote(), remote(task_hub="hub"), EMBEDDED):
        async with Service(settings(tmp_path, engine)):
            pass


async def test_a_backend_that_has_moved_is_the_same(tmp_path: Path) -> None:
    await run_under_way(tmp_path, remote(port=1))
    async with Service(settings(tmp_path, remote(port=2))) as service:
        assert await service._registry.open_runs() == ["run-1"]


class AwayClient:
    """A client whose backend is away for its first calls, in mid-wait too."""

    def __init__(self) -> None:
        self.asked = 0
        self.waits = 0

    async def get_orchestration_state(
        self, instance_id: str, *, fetch_payloads: bool = True
    ) -> OrchestrationState:
        self.asked += 1
        if self.asked == 1:
            raise EngineAwayError("the backend", "gone")
        return _state(OrchestrationStatus.COMPLETED if self.waits == 2 else OrchestrationStatus.RUNNING)

    async def wait_for_orchestration_completion(
        self, instance_id: str, *, fetch_payloads: bool = True, timeout: float = 60
    ) -> OrchestrationState:
        self.waits += 1
        if self.waits == 1:
            raise EngineAwayError("the backend", "gone")
        raise TimeoutError


def _state(status: OrchestrationStatus) -> OrchestrationState:
    state: Any = OrchestrationState
    return state("run-1", "ProvisionNewDevices", status, None, None, None, None, None, None)  # type: ignore[no-any-return]


async def test_a_run_is_watched_to_its_end_over_outages_of_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.runs._AWAY_INTERVAL_S", 0.0)
    async with Registry(tmp_path / "registry.db") as registry:
        registry.register("d1", model="m", firmware_version="1", tags={})
        await registry.flush()
        await registry.claim("run-1", None, options={}, limit=1)
        client: Any = AwayClient()
        releases: Any = None  # this run brings the default one
        runs = Runs(registry=registry, client=client, releases=releases)
        await runs.open()
        await asyncio.wait(list(runs._watchers.values()))
        run = await registry.run("run-1")
        await runs.close()
    assert run is not None
    assert run.status == "completed"


@pytest.mark.parametrize(
    "module", ["provisioning.durable_task", "azure.identity", "durabletask.azuremanaged"]
)
def test_the_embedded_engine_loads_nothing_of_the_others(module: str, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, provisioning.service as service, provisioning.settings as settings;"
        f"service.create_engine(settings.EngineSettings(), pathlib.Path({str(tmp_path)!r}));"
        f"sys.exit({module!r} in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
