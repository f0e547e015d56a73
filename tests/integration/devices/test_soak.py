"""Half an hour of a fleet's life, at sixty times its speed: in the end it holds what it did before."""

from __future__ import annotations

import asyncio
import json
import sys
from statistics import median
from typing import Any

import pytest

from broker import topics
from broker.local import LocalBroker
from broker.messages import (
    ActivationCompleted,
    DownloadCompletedAck,
    DownloadFailed,
    parse_event,
    parse_register,
)
from devices.spec import FleetSpec
from tests.integration.devices.fake_service import BlobServer, FakeService, package_content

pytestmark = pytest.mark.real

SIMULATED_S = 30 * 60
SPEED = 60.0
# Those that go on for ever: a device that has hung for good has nothing more to show.
BEHAVIOURS = ("healthy", "slow", "lossy", "flaky", "offline", "sleepy", "reboot", "corrupt", "duplicate-ack")
COUNT = 5 * len(BEHAVIOURS)


class EndlessService(FakeService):
    """Provisions each device again as soon as it is done, and remembers nothing that it has heard."""

    def __init__(self, broker_url: str, prefix: str, blobs: BlobServer) -> None:
        super().__init__(broker_url, prefix, blobs)
        self.rounds: dict[str, int] = {}

    async def next_package(self, device_id: str, *, attempt: int = 1) -> None:
        number = self.rounds.setdefault(device_id, 1)
        package = self.package_for(device_id, attempt=attempt, package_id=f"pkg-{number}")
        instance_id = topics.instance_id_of(f"run-{number}", device_id)
        await self.send(device_id, package.model_copy(update={"instance_id": instance_id}))

    async def _take(self, topic: topics.Topic, payload: bytes) -> None:
        device_id = topic.device_id
        if not device_id.startswith(self._prefix):
            return
        if topic.kind == "register":
            if parse_register(topic, payload).fresh is not None:
                await self.next_package(device_id)
            return
        event = parse_event(topic, payload) if topic.kind == "event" else None
        match event:
            case DownloadCompletedAck() if event.package_id == self.packages[device_id].package_id:
                await self.activate(device_id)
            case DownloadFailed():
                await self.next_package(device_id, attempt=event.attempt + 1)
            case ActivationCompleted() if event.package_id == self.packages[device_id].package_id:
                self.rounds[device_id] += 1
                await self.next_package(device_id)
        self.blobs.requests.clear()
        self.blobs.queries.clear()


async def test_a_fleet_holds_no_more_after_half_an_hour_than_after_a_third_of_it(
    any_broker: LocalBroker, unique: str
) -> None:
    spec = FleetSpec.of(count=COUNT, prefix=unique, speed=SPEED, behaviours=dict.fromkeys(BEHAVIOURS, 1.0))
    samples: list[dict[str, Any]] = []
    async with (
        BlobServer(content=package_content()).serve() as blobs,
        EndlessService(any_broker.url, unique, blobs) as service,
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.devices.soak"),
            *(any_broker.url, service.trust, json.dumps(spec.to_document())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1024 * 1024,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while not samples or samples[-1]["counted"]["uptime_s"] * SPEED < SIMULATED_S:
                line = await process.stdout.readline()
                assert line, "the fleet ended by itself"
                samples.append(json.loads(line))
        finally:
            process.stdin.close()
            await process.wait()

    counted = samples[-1]["counted"]
    # Much has happened: each device was provisioned many times, and things went wrong all the time.
    assert counted["activations"] > 5 * COUNT
    assert counted["reconnects"] > COUNT
    assert counted["reboots"] == 5
    assert counted["hash_failures"] > 5
    assert counted["crashed"] == 0
    third = len(samples) // 3
    early, late = samples[third : 2 * third], samples[2 * third :]
    # A task that is kept for each late answer, say, is two thousand objects here.
    for held, allowance in (("tasks", 10), ("objects", 800), ("rss_bytes", 1.5 * 1024 * 1024)):
        before, after = (median(sample[held] for sample in part) for part in (early, late))
        assert after <= before + allowance, f"{held}: {before:,} and then {after:,}"
