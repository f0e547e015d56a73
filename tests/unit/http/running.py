"""A service of its own for tests of its HTTP API, without broker and blob storage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provisioning.service import Service
from provisioning.settings import ServiceSettings
from tests.conftest import free_port
from tests.unit.provisioning.fleet_doubles import Launcher


def settings(state_dir: Path, **changes: Any) -> ServiceSettings:
    """Nobody is at the addresses: the service starts all the same."""
    return ServiceSettings(
        **{
            "state_dir": state_dir,
            "broker_url": f"mqtt://127.0.0.1:{free_port()}",
            "blob_connection_string": "DefaultEndpointsProtocol=http;AccountName=a;"
            f"AccountKey=c2VjcmV0LWtleQ==;BlobEndpoint=http://127.0.0.1:{free_port()}/a",
            "api_port": 0,
            "publish_timeout_s": 0.2,
            **changes,
        }
    )


@contextmanager
def in_a_thread(state_dir: Path) -> Iterator[str]:
    """The URL of a service on a loop of its own, for tests that block."""
    url: list[str] = []
    trouble: list[BaseException] = []
    started, stop = threading.Event(), threading.Event()

    async def run() -> None:
        async with Service(settings(state_dir), Launcher()) as service:
            url.append(service.url)
            started.set()
            await asyncio.to_thread(stop.wait)

    def body() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            trouble.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=body, name="service")
    thread.start()
    started.wait()
    try:
        if trouble:
            raise trouble[0]
        yield url[0]
    finally:
        stop.set()
        thread.join()
    if trouble:
        raise trouble[0]
