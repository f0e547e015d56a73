"""A service without its neighbours, and devices in every state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from provisioning.registry import Outcome, Registry
from provisioning.service import Service
from provisioning.states import DeviceState
from tests.unit.http.running import settings
from tests.unit.provisioning.fleet_doubles import Launcher

SECRET = "https://x/p.zip?sv=1&sig=c2VjcmV0&se=2"
"""Part of an error."""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with Service(settings(tmp_path), Launcher()) as running:
        yield running


@pytest.fixture
def registry(service: Service) -> Registry:
    return service._registry


@pytest.fixture
async def api(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        yield client


async def end(
    registry: Registry,
    run_id: str,
    device_id: str,
    state: DeviceState = DeviceState.PROVISIONED,
    *,
    error: str | None = None,
    ended_at: float = 100.0,
    device_s: float | None = 1.0,
) -> None:
    """A device's end in a run."""
    await registry.record_outcome(
        Outcome(
            run_id=run_id,
            device_id=device_id,
            state=state,
            attempts=2,
            error=error,
            ended_at=ended_at,
            device_s=device_s,
            steps_s={},
        )
    )


@pytest.fixture
async def devices(registry: Registry) -> list[str]:
    """d0 to d9: even ones of model a, odd ones of b; d0 to d5 in the run r1, of which four have ended."""
    ids = [f"d{number}" for number in range(10)]
    for number, device_id in enumerate(ids):
        tags = {"site": "oslo" if number < 3 else "rome", "row": str(number % 2)}
        registry.register(device_id, model="ab"[number % 2], firmware_version="1", tags=tags)
    for device_id in ids[8:]:
        registry.presence(device_id, online=False)
    await registry.claim("r1", ids[:6], options={}, limit=10)
    for number in range(5):
        registry.progress("r1", ids[number], DeviceState.PACKAGING, attempt=number + 1)
    await registry.flush()
    await end(registry, "r1", "d0")
    await end(registry, "r1", "d1", DeviceState.FAILED, error=f"no answer from {SECRET}", ended_at=101)
    await end(registry, "r1", "d2", DeviceState.TIMED_OUT, error="late", ended_at=102)
    await end(registry, "r1", "d3", DeviceState.TIMED_OUT, error="late", ended_at=103)
    return ids
