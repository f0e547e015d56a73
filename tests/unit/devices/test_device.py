"""What a device makes of messages, by itself: its link only notes what it is told, blobs are real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import aiohttp

from broker import topics
from broker.connection import BrokerAddress
from broker.messages import Activate, ActivationCompleted, Event, Package, parse_event
from devices.behaviours import Behaviour, Catalogue, Combined, Controls, Step
from devices.behaviours.downloads import OutOfStorage, Truncated
from devices.behaviours.network import Lossy, Offline
from devices.credentials import Credentials
from devices.device import Device
from devices.dice import Dice
from devices.link import Outgoing
from devices.pacing import Ramp
from devices.roster import DevicePlan
from devices.spec import Group, RampSpec
from devices.statistics import Counters, Latencies
from devices.surroundings import Surroundings
from devices.verify import Verifier
from provisioning.packages import InstallationPackage
from provisioning.signing import SigningKey
from tests.integration.devices.fake_service import BlobServer, eventually, package_content, package_of

DEVICE_ID = "dev-00001"
KEY = SigningKey.generate()


@dataclass
class NotedLink:
    """A link that is always there and notes what the device says."""

    said: list[Event] = field(default_factory=list)
    connected: bool = True
    registered: bool = True

    def answer(self, outgoing: Outgoing) -> None:
        self.said.append(parse_event(topics.parse(outgoing.topic), outgoing.payload))

    tell = repeat = answer

    def forget_unanswered(self) -> None:
        return None

    def leave(self, seconds: float) -> None:
        return None

    def answers(self) -> list[tuple[str, int]]:
        """The durable events: kind and attempt."""
        kinds = [(type(event).__name__, event.attempt) for event in self.said]
        return [kind for kind in kinds if kind[0] not in ("DownloadStarted", "DownloadProgress")]


def never(behaviour: Behaviour, method: str, error: Exception) -> None:
    raise AssertionError(method) from error


class World:
    """A device, and what the service would send it."""

    def __init__(self, http: aiohttp.ClientSession, blobs: BlobServer, combined: Combined) -> None:
        loop = asyncio.get_running_loop()
        self.blobs = blobs
        self.counters = Counters()
        around = Surroundings(
            address=BrokerAddress.parse("mqtt://127.0.0.1:1"),
            http=http,
            verifier=Verifier.from_base64([KEY.public_key]),
            distrustful=Verifier.distrustful(),
            counters=self.counters,
            latencies=Latencies(),
            ramp=Ramp(RampSpec(), loop.time),
            true_clock=loop.time,
            complain=never,
            credentials=Credentials(),
        )
        plan = DevicePlan(device_id=DEVICE_ID, group="devices", behaviour="", seed=1)
        self.device = Device(plan, Group(count=1), combined, around)
        self.link = NotedLink()
        self.device.link = cast("Any", self.link)

    def send(self, built: InstallationPackage | None = None, *, attempt: int = 1, run: str = "run-1") -> None:
        """A package message; without ``built``, of what the service would build."""
        built = built or package_of(DEVICE_ID, self.blobs.content, KEY, version="demo-1")
        self.blobs.packages.setdefault(DEVICE_ID, built.content)
        package = Package(
            instance_id=topics.instance_id_of(run, DEVICE_ID),
            package_id="package",
            release="demo-1",
            attempt=attempt,
            url=f"{self.blobs.url}/{DEVICE_ID}?sig=s",
            size_bytes=built.size_bytes,
            sha256=built.sha256,
            signature=built.signature,
            key_id=built.key_id,
            expires_at=datetime.now(UTC) + timedelta(minutes=15),
        )
        self.device._arrive(topics.package(DEVICE_ID), package.to_json())

    def activate(self, *, run: str = "run-1") -> None:
        command = Activate(
            instance_id=topics.instance_id_of(run, DEVICE_ID),
            package_id="package",
            release="demo-1",
            attempt=1,
        )
        self.device._arrive(topics.command(DEVICE_ID, "Activate"), command.to_json())

    def versions(self) -> list[str]:
        """What it said that it runs, after each activation."""
        return [event.firmware_version for event in self.link.said if isinstance(event, ActivationCompleted)]

    async def until(self, condition: Callable[[], bool]) -> None:
        await eventually(condition, timeout_s=5)

    async def answers(self, *expected: tuple[str, int]) -> None:
        await eventually(lambda: self.link.answers() == list(expected), timeout_s=5)


@asynccontextmanager
async def world(*behaviours: Behaviour, size_bytes: int = 64 * 1024) -> AsyncIterator[World]:
    content = package_content(size_bytes=size_bytes)
    async with BlobServer(content=content).serve() as blobs, aiohttp.ClientSession() as http:
        made = World(http, blobs, Combined(behaviours, never))
        try:
            yield made
        finally:
            made.device._stop_work()
            made.device._stop_lives()


def named(text: str) -> tuple[Behaviour, ...]:
    return Catalogue().make(text, Dice(1), never).behaviours


async def test_what_strikes_in_the_first_attempts_does_so_in_each_run_anew() -> None:
    async with world(*named("corrupt")) as made:
        made.send()
        await made.answers(("DownloadFailed", 1))
        made.send(attempt=2)
        first_run = (("DownloadFailed", 1), ("DownloadCompletedAck", 2))
        await made.answers(*first_run)
        # The package of the next run is the same, byte for byte.
        made.send(run="run-2")
        await made.answers(*first_run, ("DownloadFailed", 1))


class Waiting(Behaviour):
    """Waits when a package comes until it is let go on."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()

    async def at(self, step: Step, device: Controls) -> None:
        if step is Step.NOTIFIED:
            await self.goes_on.wait()


async def test_a_step_is_about_its_own_attempt_whatever_comes_while_it_waits() -> None:
    waiting = Waiting()
    async with world(waiting, OutOfStorage(attempts=1)) as made:
        made.send(attempt=2)
        await asyncio.sleep(0)
        # As after each reconnect.
        made.device._on_registered()
        await asyncio.sleep(0)
        waiting.goes_on.set()
        await made.answers(("DownloadCompletedAck", 2))


async def test_what_was_sent_before_the_device_behaves_otherwise_arrives() -> None:
    async with world(Lossy(latency_s=30, jitter_s=0, loss=0)) as made:
        made.send()
        made.device.behave(Combined([Lossy(latency_s=0, jitter_s=0, loss=0)], never))
        await made.answers(("DownloadCompletedAck", 1))


async def test_a_small_package_comes_to_each_share_that_it_passes_in_one_piece() -> None:
    async with world(
        Offline(step="downloading", for_s=0.01, at_fraction=0.3),
        Truncated(at_fraction=0.5),
        size_bytes=800,
    ) as made:
        made.send()
        await made.answers(("DownloadFailed", 1))


async def test_a_device_that_answers_nothing_does_not_before_it_has_registered_either() -> None:
    async with world(*named("never-answers")) as made:
        made.device._start_lives()
        await asyncio.sleep(0)
        # In the breath of the CONNACK.
        made.send()
        assert made.counters.ignored == 1
        assert made.link.said == []
