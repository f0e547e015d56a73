"""How the tests drive a service: over its API, as the command line does, with fleets of real devices."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]

WAIT_S = 90.0
POLL_S = 0.05


async def wait_until(what: str, check: Callable[[], Awaitable[bool]], *, timeout_s: float = WAIT_S) -> None:
    """Wait for a condition, or fail by its name."""
    try:
        async with asyncio.timeout(timeout_s):
            while not await check():  # noqa: ASYNC110 (what is waited for is in another process)
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"waited {timeout_s:g} s in vain until {what}") from None


class Api:
    """The service's API, wherever the service is now."""

    def __init__(self, state_dir: Path) -> None:
        self._record = state_dir / "service.json"

    async def get(self, path: str) -> Json:
        """The answer to a GET; fails unless it is 200."""
        status, answer = await self.call("GET", path)
        assert status == 200, answer
        return answer

    async def call(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        """Status and answer of any call."""
        url = json.loads(self._record.read_text())["url"]
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            response = await client.request(method, path, json=body)
            return response.status_code, response.json()

    async def provision(self, **body: Any) -> str:
        """Start a run and return its id."""
        status, answer = await self.call("POST", "/api/provision", body)
        assert status == 202, answer
        return str(answer["run_id"])

    async def wait_registered(self, count: int) -> None:
        """Wait until so many devices are known."""

        async def check() -> bool:
            return bool((await self.get("/api/statistics"))["devices"] >= count)

        await wait_until(f"{count} devices are registered", check)

    async def devices(self, run_id: str) -> list[Json]:
        """All devices of a run, page by page."""
        found: list[Json] = []
        page: Json = {"next": ""}
        while page["next"] is not None:
            after = f"&after={quote(page['next'])}" if page["next"] else ""
            page = await self.get(f"/api/devices?run_id={run_id}&limit=1000{after}")
            found += page["devices"]
        return found

    async def wait_counts(self, run_id: str, what: str, check: Callable[[Json], bool]) -> None:
        """Wait for something about a run's counts."""

        async def asked() -> bool:
            return check((await self.get(f"/api/runs/{run_id}"))["counts"])

        await wait_until(what, asked)

    async def wait_ended(self, run_id: str, *, timeout_s: float = WAIT_S) -> Json:
        """Wait until a run has ended, and return it."""
        run: Json = {}

        async def check() -> bool:
            nonlocal run
            run = await self.get(f"/api/runs/{run_id}")
            return bool(run["status"] != "running")

        await wait_until(f"run {run_id} has ended", check, timeout_s=timeout_s)
        return run


@asynccontextmanager
async def fleet(
    broker_url: str, trust: str | Path, *, count: int, behaviours: str = "healthy=1", seed: int = 7
) -> AsyncIterator[None]:
    """Real devices in a process of their own; ``trust`` is a key, or a file of keys."""
    trusting = "--trust-file" if isinstance(trust, Path) else "--trust"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devices", "--broker", broker_url, "--count", str(count)),
        *(trusting, str(trust), "--behaviours", behaviours, "--seed", str(seed), "--log-level", "error"),
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)


@asynccontextmanager
async def service_process(
    state_dir: Path, broker_url: str, blob: str, container: str, variables: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A service in a process of its own, answering; whoever kills it, it is gone at the end.

    `variables` go into its environment, where it looks which engine it runs on.
    """
    record = state_dir / "service.json"
    record.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.provisioning.service_process"),
        *(str(state_dir), broker_url, blob, container),
        env={**os.environ, **(variables or {})},
    )

    async def up() -> bool:
        assert process.returncode is None, "the service ended by itself"
        return record.exists()

    try:
        await wait_until("the service is up", up)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def instance_counts(state_dir: Path) -> dict[str, int]:
    """How many instances of each orchestration the engine's file holds."""
    with sqlite3.connect(f"file:{state_dir / 'engine.db'}?mode=ro", uri=True) as database:
        return dict(database.execute("SELECT name, count(*) FROM instances GROUP BY name"))
