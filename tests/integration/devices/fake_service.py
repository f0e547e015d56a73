"""A stand-in for the provisioning service: real MQTT and HTTP, no engine, every fault at hand.

It answers a registration with a package, an acknowledgement with Activate, and keeps all that devices say.
A test changes what it does by its attributes, and waits for what it has seen by `until`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Self

import aiomqtt
from aiohttp import web

from broker import topics
from broker.connection import BrokerAddress
from broker.errors import ContractError
from broker.messages import (
    Activate,
    ActivationCompleted,
    DownloadCompletedAck,
    Event,
    Package,
    parse_event,
    parse_presence,
    parse_register,
)
from devices.behaviours import Behaviour, Combined, Step
from devices.behaviours.network import Offline
from provisioning.packages import InstallationPackage, Release, build_package
from provisioning.releases.firmware import Firmware
from provisioning.signing import SigningKey

PACKAGE_BYTES = 64 * 1024
RELEASE = "demo-1.0.0"


@dataclass(kw_only=True)
class BlobServer:
    """An HTTP server of packages, with Range, and with faults on request."""

    content: bytes
    """The firmware; under a path that is in ``packages``, that package."""
    packages: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    """Per path, what to do wrong, one per request: ``503``, ``truncate``, ``corrupt``, …"""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    active: dict[str, int] = field(default_factory=dict)
    most_at_once: int = 0
    gate: asyncio.Event | None = None
    """While set and not open, bodies stop half-way."""
    url: str = ""

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Self]:
        """Listen on 127.0.0.1; ``url`` says where."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.requests.append((path, request.headers.get("Range")))
        self.queries.append(request.query_string)
        self.active[path] = self.active.get(path, 0) + 1
        self.most_at_once = max(self.most_at_once, self.active[path])
        try:
            return await self._answer(request, path)
        finally:
            self.active[path] -= 1

    async def _answer(self, request: web.Request, path: str) -> web.StreamResponse:
        fault = self.faults[path].pop(0) if self.faults.get(path) else ""
        if fault.isdigit():
            return web.Response(status=int(fault))
        content = self.packages.get(path.removeprefix("/"), self.content)
        if fault == "corrupt":
            content = content[:-1] + b"?"
        if fault == "short":
            content = content[:-10]
        first = 0
        if (asked := request.headers.get("Range")) is not None and fault != "no-range":
            found = re.fullmatch(r"bytes=(\d+)-", asked)
            assert found is not None
            first = int(found[1])
        response = web.StreamResponse(status=206 if first else 200)
        if first:
            response.headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        body = content[first:]
        response.content_length = len(body)
        await response.prepare(request)
        half = len(body) // 2
        await response.write(body[:half])
        if fault == "truncate":
            assert request.transport is not None
            request.transport.close()
            return response
        if self.gate is not None:
            await self.gate.wait()
        await response.write(body[half:])
        return response


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One event as it came."""

    device_id: str
    event: Event
    payload: bytes


class FakeService:
    """See the module. ``prefix`` picks out this test's devices on a shared broker."""

    def __init__(self, broker_url: str, prefix: str, blobs: BlobServer) -> None:
        self._address = BrokerAddress.parse(broker_url)
        self._prefix = prefix
        self._key = SigningKey.generate()
        self._client: aiomqtt.Client | None = None
        self._reading: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self.blobs = blobs
        self.packages: dict[str, Package] = {}
        self.registrations: list[str] = []
        #: What each registration said of its being fresh.
        self.fresh: list[str | None] = []
        self.presence: dict[str, list[str]] = {}
        #: When each device said itself that it goes offline; None: its will said so.
        self.offline_at: dict[str, datetime | None] = {}
        #: What the contract refuses, as topic and payload.
        self.rubbish: list[tuple[str, bytes]] = []
        self.heard: list[Heard] = []
        self.provisioned: dict[str, str] = {}
        self.answer_registrations = True
        self.answer_acks = True

    @property
    def trust(self) -> str:
        """The public key for the fleet's ``--trust``."""
        return self._key.public_key

    async def __aenter__(self) -> Self:
        self._reading = asyncio.create_task(self._read())
        await self.until(lambda: self._client is not None)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._reading is not None
        # Once is not enough: `asyncio.wait_for`, with which aiomqtt waits, loses a cancellation that comes in
        # the same turn as its result, before Python 3.12.
        while not self._reading.done():
            self._reading.cancel()
            await asyncio.wait([self._reading], timeout=0.2)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until ``condition`` holds; it is asked after each message."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            names = sorted({type(heard.event).__name__ for heard in self.heard})
            message = (
                f"not within {timeout_s} s; {len(self.registrations)} registrations, "
                f"events heard: {names}, provisioned: {len(self.provisioned)}"
            )
            raise AssertionError(message) from None

    def returned(self) -> set[str]:
        """The devices that have come back and remember nothing."""
        fresh = [device_id for device_id, token in zip(self.registrations, self.fresh, strict=True) if token]
        return {device_id for device_id in fresh if fresh.count(device_id) > 1}

    def events(self, device_id: str, kind: type[Event] | None = None) -> list[Event]:
        """What a device has said, in order."""
        return [
            heard.event
            for heard in self.heard
            if heard.device_id == device_id and (kind is None or isinstance(heard.event, kind))
        ]

    def package_for(
        self,
        device_id: str,
        *,
        attempt: int = 1,
        package_id: str = "",
        path: str = "",
        sha256: str = "",
        signature: str = "",
    ) -> Package:
        """A signed package whose URL is the blob server's."""
        built = package_of(device_id, self.blobs.content, self._key)
        self.blobs.packages[path or device_id] = built.content
        return Package(
            instance_id=topics.instance_id_of("run-1", device_id),
            package_id=package_id or f"pkg-{device_id}",
            release=RELEASE,
            attempt=attempt,
            url=f"{self.blobs.url}/{path or device_id}?sig=a%2Fb%3D",
            size_bytes=built.size_bytes,
            sha256=sha256 or built.sha256,
            signature=signature or built.signature,
            key_id=built.key_id,
            expires_at=datetime.now(UTC) + timedelta(minutes=15),
        )

    async def send(self, device_id: str, package: Package) -> None:
        """Publish a package."""
        self.packages[device_id] = package
        await self.publish(topics.package(device_id), package.to_json())

    async def activate(self, device_id: str) -> None:
        """Publish Activate for the device's package."""
        package = self.packages[device_id]
        command = Activate(
            instance_id=package.instance_id,
            package_id=package.package_id,
            release=package.release,
            attempt=package.attempt,
        )
        await self.publish(topics.command(device_id, "Activate"), command.to_json())

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish anything, as soon as the broker is there."""
        while True:
            await self.until(lambda: self._client is not None)
            assert self._client is not None
            with contextlib.suppress(aiomqtt.MqttError):
                await self._client.publish(topic, payload, qos=1)
                return

    async def _read(self) -> None:
        while True:
            try:
                async with aiomqtt.Client(
                    self._address.host,
                    self._address.port,
                    identifier=f"service-{self._prefix}",
                    clean_session=False,
                ) as client:
                    for topic in (topics.ALL_REGISTER, topics.ALL_EVENTS, topics.ALL_PRESENCE):
                        await client.subscribe(topic, qos=1)
                    await self._set_client(client)
                    async for message in client.messages:
                        try:
                            await self._take(topics.parse(message.topic.value), bytes(message.payload))
                        except ContractError:
                            await self._refuse(message.topic.value, bytes(message.payload))
            except aiomqtt.MqttError:
                await self._set_client(None)
                await asyncio.sleep(0.1)

    async def _set_client(self, client: aiomqtt.Client | None) -> None:
        self._client = client
        async with self._changed:
            self._changed.notify_all()

    async def _refuse(self, topic: str, payload: bytes) -> None:
        if f"/{self._prefix}" in topic:
            self.rubbish.append((topic, payload))
            async with self._changed:
                self._changed.notify_all()

    async def _take(self, topic: topics.Topic, payload: bytes) -> None:
        device_id = topic.device_id
        if not device_id.startswith(self._prefix):
            return
        if topic.kind == "presence":
            presence = parse_presence(topic, payload)
            self.presence.setdefault(device_id, []).append(presence.state)
            if presence.state == "offline":
                self.offline_at[device_id] = presence.at
        elif topic.kind == "register":
            fresh = parse_register(topic, payload).fresh
            self.fresh.append(fresh)
            self.registrations.append(device_id)
            if self.answer_registrations and device_id not in self.packages:
                await self.send(device_id, self.package_for(device_id))
        else:
            event = parse_event(topic, payload)
            self.heard.append(Heard(device_id=device_id, event=event, payload=payload))
            if isinstance(event, DownloadCompletedAck) and self.answer_acks:
                await self.activate(device_id)
            elif isinstance(event, ActivationCompleted):
                self.provisioned[device_id] = event.firmware_version
        async with self._changed:
            self._changed.notify_all()


def package_of(
    device_id: str,
    firmware: bytes,
    key: SigningKey,
    *,
    version: str = RELEASE,
    models: tuple[str, ...] = (),
    allow_downgrade: bool = False,
) -> InstallationPackage:
    """A package as the service builds them."""
    release = Release(name=RELEASE, version=version, models=models, firmware=Firmware.of(firmware))
    return build_package(
        release, device_id=device_id, configuration={}, key=key, allow_downgrade=allow_downgrade
    )


def package_content(seed: int = 1, size_bytes: int = PACKAGE_BYTES) -> bytes:
    """Bytes of a firmware; the same for the same seed."""
    return Random(seed).randbytes(size_bytes)


def pausing_at(share: float) -> Combined:
    """A behaviour that interrupts a download there."""

    def complain(behaviour: Behaviour, method: str, error: Exception) -> None:
        raise AssertionError(method) from error

    return Combined([Offline(step=Step.DOWNLOADING, at_fraction=share)], complain)


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for something that no message tells of, such as a fleet's own counters."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (nobody sets an event for it: polling is the way)
            await asyncio.sleep(0.01)
