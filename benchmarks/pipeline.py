"""The same provisioning without an engine: what the parts alone can do.

It uses the service's own parts (packages, blob storage, broker connection) and the same fleet, in the same
order: build and upload, publish the SAS URL, await the acknowledgement, activate, await the confirmation.
It keeps nothing: state is in futures, messages are acknowledged on arrival, and a crash loses everything.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field

from broker import topics
from broker.connection import BrokerConnection, Delivery
from broker.messages import Activate, Package, instance_id_of, parse_event
from provisioning.packages import PackageStore, Release, SigningKey, build_package
from provisioning.settings import RunOptions, ServiceSettings

_ACK = "DownloadCompletedAck"
_ACTIVATED = "ActivationCompleted"


@dataclass(kw_only=True)
class Pipeline:
    """Devices that have registered, and what is awaited of them."""

    settings: ServiceSettings
    key: SigningKey
    devices: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    awaited: dict[tuple[str, str], asyncio.Future[None]] = field(default_factory=dict)
    seen: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def on_message(self, delivery: Delivery) -> None:
        """Take a device's message; it is acknowledged at once."""
        topic = topics.parse(delivery.topic)
        self.seen[topic.name or topic.kind] += 1
        if topic.kind == "register":
            self.devices.add(topic.device_id)
            self.changed.set()
        elif topic.kind == "event":
            event = parse_event(topic, delivery.payload)
            waiter = self.awaited.get((event.instance_id, topic.name or ""))
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        delivery.ack()

    async def wait_registered(self, count: int) -> None:
        """Wait for so many devices."""
        while len(self.devices) < count:
            self.changed.clear()
            await self.changed.wait()

    async def run(self, connection: BrokerConnection, store: PackageStore) -> float:
        """Provision all registered devices at once; the seconds that it took."""
        release = Release.demo(self.settings.release, self.settings.firmware_size_bytes)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for device_id in sorted(self.devices):
                group.create_task(self._provision(device_id, release, connection, store))
        return time.perf_counter() - began

    async def _provision(
        self, device_id: str, release: Release, connection: BrokerConnection, store: PackageStore
    ) -> None:
        options, timeout_s = RunOptions(), 120.0
        instance_id = instance_id_of("pipeline", device_id)
        loop = asyncio.get_running_loop()
        acknowledged = self.awaited[instance_id, _ACK] = loop.create_future()
        activated = self.awaited[instance_id, _ACTIVATED] = loop.create_future()
        package = build_package(
            release, device_id=device_id, configuration={"release": release.name}, key=self.key
        )
        await store.upload(package)
        access = store.share(package.blob_name, lifetime_s=options.sas_lifetime_s)
        message = Package(
            instance_id=instance_id,
            package_id=package.package_id,
            release=release.name,
            attempt=1,
            url=access.url,
            size_bytes=len(package.content),
            sha256=package.sha256,
            signature=package.signature,
            key_id=self.key.key_id,
            expires_at=access.expires_at,
        )
        await connection.publish(topics.package(device_id), message.to_json(), timeout_s=timeout_s)
        await acknowledged
        command = Activate(
            instance_id=instance_id, package_id=package.package_id, release=release.name, attempt=1
        )
        await connection.publish(
            topics.command(device_id, "Activate"), command.to_json(), timeout_s=timeout_s
        )
        await activated
        del self.awaited[instance_id, _ACK], self.awaited[instance_id, _ACTIVATED]
