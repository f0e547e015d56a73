"""The same provisioning without an engine, in two ways, on the same parts and the same fleet.

`Engineless` is the service with its engine taken out: a coroutine per device calls the same activities and
awaits the same events, which the same bridge brings; the registry is kept, so people can look. What the
orchestration knows is in memory, and a crash loses it: no history, no durable timers, no retries.

`Bare` has no registry and no bridge either: build and upload, publish the SAS URL, await the acknowledgement,
activate, await the confirmation. Messages are acknowledged on arrival, nothing is checked, nothing is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from durabletask.task import ActivityContext

from broker import topics
from broker.connection import BrokerConnection, Delivery
from broker.messages import Activate, Package, instance_id_of, parse_event
from provisioning.activities import Activities
from provisioning.bridge import Bridge
from provisioning.package_store import PackageStore
from provisioning.packages import Release, build_package
from provisioning.registry import STEPS, Registry
from provisioning.settings import RunOptions
from provisioning.signing import SigningKey

_ACK = "DownloadCompletedAck"
_ACTIVATED = "ActivationCompleted"


@dataclass(kw_only=True)
class Bare:
    """Devices that have registered, and what is awaited of them."""

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

    async def run(
        self, connection: BrokerConnection, store: PackageStore, release: Release, key: SigningKey
    ) -> float:
        """Provision all registered devices at once; the seconds that it took."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for device_id in sorted(self.devices):
                group.create_task(self._provision(device_id, connection, store, release, key))
        return time.perf_counter() - began

    async def _provision(
        self,
        device_id: str,
        connection: BrokerConnection,
        store: PackageStore,
        release: Release,
        key: SigningKey,
    ) -> None:
        options, timeout_s = RunOptions(), 120.0
        instance_id = instance_id_of("bare", device_id)
        loop = asyncio.get_running_loop()
        acknowledged = self.awaited[instance_id, _ACK] = loop.create_future()
        activated = self.awaited[instance_id, _ACTIVATED] = loop.create_future()
        package = build_package(
            release, device_id=device_id, configuration={"release": release.name}, key=key
        )
        await store.upload(package)
        access = await store.share(
            package.blob_name, lifetime_s=options.url_lifetime_s(options.ack_timeout_s)
        )
        message = Package(
            instance_id=instance_id,
            package_id=package.package_id,
            release=release.name,
            attempt=1,
            url=access.url,
            size_bytes=package.size_bytes,
            sha256=package.sha256,
            signature=package.signature,
            key_id=key.key_id,
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


class Events:
    """A sink for the bridge: who awaits an event of an instance hears it, durable it is not."""

    def __init__(self) -> None:
        self._awaited: dict[tuple[str, str], asyncio.Future[Any]] = {}

    def expect(self, instance_id: str, event_name: str) -> asyncio.Future[Any]:
        """Done when the event comes; to be asked for before what causes it."""
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._awaited[instance_id, event_name] = waiter
        return waiter

    async def raise_orchestration_event(
        self,
        instance_id: str,
        event_name: str,
        *,
        data: Any | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        waiter = self._awaited.pop((instance_id, event_name), None)
        if waiter is not None and not waiter.done():
            waiter.set_result(data)


class Engineless:
    """The service's registry, bridge and activities, and a coroutine per device instead of an engine."""

    run_id = "engineless"

    def __init__(self, registry: Registry, options: RunOptions) -> None:
        self._registry = registry
        self._options = options
        self._events = Events()
        self.bridge = Bridge(registry=registry, sink=self._events)

    async def wait_registered(self, count: int) -> None:
        """Wait for so many devices."""
        while await self._registry.count_devices() < count:  # noqa: ASYNC110 (a database tells nobody)
            await asyncio.sleep(0.05)

    async def run(self, activities: Activities) -> float:
        """Provision all new devices at once; the seconds that it took."""
        began = time.perf_counter()
        request = {"run_id": self.run_id, "device_ids": None, "options": self._options.to_json()}
        device_ids = await activities.get_new_device_ids(ActivityContext(self.run_id, 1), request)
        async with asyncio.TaskGroup() as group:
            for device_id in device_ids:
                group.create_task(self._provision(device_id, activities))
        return time.perf_counter() - began

    async def _provision(self, device_id: str, activities: Activities) -> None:
        instance_id = instance_id_of(self.run_id, device_id)
        ctx = ActivityContext(instance_id, 1)
        times = [datetime.now(UTC)]
        request = {"run_id": self.run_id, "device_id": device_id, "instance_id": instance_id, "attempt": 1}
        acknowledged = self._events.expect(instance_id, _ACK)
        activated = self._events.expect(instance_id, _ACTIVATED)
        package = await activities.create_installation_package(ctx, request)
        times.append(datetime.now(UTC))
        await activities.send_package_url_to_device(ctx, {**request, "package": package})
        times.append(datetime.now(UTC))
        ack = await acknowledged
        assert (ack["package_id"], ack["sha256"]) == (package["package_id"], package["sha256"])
        times.append(datetime.now(UTC))
        command = {"package_id": package["package_id"], "release": package["release"]}
        await activities.activate_device(ctx, {**request, **command, "activation_attempt": 1})
        confirmation = await activated
        times.append(datetime.now(UTC))
        await activities.record_outcome(
            ctx,
            {
                "run_id": self.run_id,
                "device_id": device_id,
                "state": "provisioned",
                "attempts": 1,
                "error": None,
                "firmware_version": confirmation["firmware_version"],
                "ended_at": times[-1].isoformat(),
                "device_s": (times[-1] - times[0]).total_seconds(),
                "steps_s": {
                    step: (ended - began).total_seconds()
                    for step, began, ended in zip(STEPS, times[:-1], times[1:], strict=True)
                },
            },
        )
