"""Anyone's device can join: the example in shell is provisioned like any other."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from broker.local import LocalBroker
from broker.messages import DownloadCompletedAck, DownloadFailed
from tests.conftest import missing
from tests.integration.devices.fake_service import RELEASE, BlobServer, FakeService, package_content

SCRIPT = Path(__file__).parents[3] / "examples" / "shell-device.sh"
TOOLS = ("mosquitto_sub", "mosquitto_pub", "curl")


def test_the_example_fits_on_a_screen() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 25
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.real
async def test_a_shell_script_is_provisioned_like_any_device(any_broker: LocalBroker, unique: str) -> None:
    for tool in TOOLS:
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed (Debian: apt-get install mosquitto-clients curl)")
    async with (
        BlobServer(content=package_content()).serve() as blobs,
        FakeService(any_broker.url, unique, blobs) as service,
    ):
        blobs.faults[f"/{unique}"] = ["403"]
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", str(SCRIPT), unique, any_broker.host, str(any_broker.port), start_new_session=True
        )
        try:
            await service.until(lambda: bool(service.events(unique, DownloadFailed)))
            await service.send(unique, service.package_for(unique, attempt=2))
            await service.until(lambda: service.provisioned.get(unique) == RELEASE)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            await process.wait()
        (ack,) = service.events(unique, DownloadCompletedAck)
        assert ack.attempt == 2
        assert service.registrations == [unique]
