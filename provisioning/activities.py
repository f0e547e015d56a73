"""The activities: what the orchestrations do to the world. Each may run twice, and twice is as once.

| activity | why a second run does no harm |
|---|---|
| GetNewDeviceIds | a run claims its devices in one transaction, and only once |
| CreateInstallationPackage | a package is the same bytes every time; the blob is written over with itself |
| SendPackageUrlToDevice | a device that has the package acknowledges again, and one ack is enough |
| ActivateDevice | a device that runs the package confirms again |
| RecordOutcome | the first record of an outcome stays |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

from durabletask.task import ActivityContext

from broker import messages, topics
from broker.masking import masked

from . import orchestrations
from .errors import ProvisioningError
from .package_store import PackageStore
from .packages import (
    InstallationPackage,
    Release,
    blob_name_of,
    build_package,
)
from .registry import DeviceRecord, Outcome, Registry
from .releases.records import ReleaseRecord
from .settings import MAX_RUN_DEVICES, RunOptions
from .signing import KeyRing
from .states import DeviceState

Json = dict[str, Any]


class Publisher(Protocol):
    """Where messages to devices go: `broker.connection.BrokerConnection`."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float) -> None:
        """Return at the broker's acknowledgement, or raise."""
        ...


class Catalogue(Protocol):
    """Where releases are by their names: `releases.store.Releases`."""

    def find(self, name: str) -> ReleaseRecord | None:
        """One that is not the default, or None."""
        ...

    async def load(self, record: ReleaseRecord) -> Release:
        """With its firmware."""
        ...


class Activities:
    """The activities with what they need; their names are those of `orchestrations`."""

    def __init__(
        self,
        *,
        registry: Registry,
        store: PackageStore,
        publisher: Publisher,
        release: Release,
        keys: KeyRing,
        publish_timeout_s: float,
        releases: Catalogue | None = None,
        on_claim: Callable[[str], None] = lambda run_id: None,
        is_revoked: Callable[[str], bool] = lambda device_id: False,
    ) -> None:
        self._registry = registry
        self._store = store
        self._publisher = publisher
        self._release = release
        self._releases = releases
        self._keys = keys
        self._publish_timeout_s = publish_timeout_s
        self._on_claim = on_claim
        self._is_revoked = is_revoked

    def named(self) -> dict[str, Callable[[ActivityContext, Json], Any]]:
        """The activities by name, to be registered with an engine or a worker."""
        return {
            orchestrations.GET_NEW_DEVICE_IDS: self.get_new_device_ids,
            orchestrations.CREATE_INSTALLATION_PACKAGE: self.create_installation_package,
            orchestrations.SEND_PACKAGE_URL_TO_DEVICE: self.send_package_url_to_device,
            orchestrations.ACTIVATE_DEVICE: self.activate_device,
            orchestrations.RECORD_OUTCOME: self.record_outcome,
        }

    async def get_new_device_ids(self, _ctx: ActivityContext, request: Json) -> list[str]:
        """Claim devices for the run; the same list each time."""
        device_ids = await self._registry.claim(
            request["run_id"],
            request["device_ids"],
            options=request["options"],
            limit=MAX_RUN_DEVICES,
            release=request.get("release"),
        )
        self._on_claim(request["run_id"])
        return device_ids

    async def create_installation_package(self, _ctx: ActivityContext, request: Json) -> Json:
        """Build and store the device's package: all there is to say of it but its URL, which is a secret.

        Where the device was revoked, or the release is not for it: `{"rejected": reason}`, and there is no
        package.
        """
        device_id = request["device_id"]
        self._note(request, DeviceState.PACKAGING)
        device = self._registry.look_up(device_id)
        if device is None:
            raise ProvisioningError(f"The device {device_id} is not in the registry.")
        if self._is_revoked(device_id):
            return {"rejected": "the device was revoked"}
        name = request.get("release")
        allow_downgrade: bool = request.get("allow_downgrade", False)
        if name is None:
            name = self._release.name
            package = build_package(
                self._release,
                device_id=device_id,
                configuration={"model": device.model, "tags": device.tags},
                key=self._keys.current,
                allow_downgrade=allow_downgrade,
            )
            await self._store.upload(package)
        else:
            chosen = None if self._releases is None else self._releases.find(name)
            if chosen is None:
                return {"rejected": f"there is no release {name} any more"}
            if (why := chosen.misfit(device.model, device.tags)) is not None:
                return {"rejected": why}
            package = await self._store.upload_made(
                blob_name_of(name, device_id), lambda: self._make(chosen, device, allow_downgrade)
            )
        return {
            "package_id": package.package_id,
            "release": name,
            "size_bytes": package.size_bytes,
            "sha256": package.sha256,
            "signature": package.signature,
            "key_id": package.key_id,
        }

    async def _make(
        self, chosen: ReleaseRecord, device: DeviceRecord, allow_downgrade: bool
    ) -> InstallationPackage:
        """The package with a release from the catalogue."""
        assert self._releases is not None
        return build_package(
            await self._releases.load(chosen),
            device_id=device.device_id,
            configuration=chosen.configure(device_id=device.device_id, model=device.model, tags=device.tags),
            key=self._keys.current,
            allow_downgrade=allow_downgrade,
        )

    async def send_package_url_to_device(self, _ctx: ActivityContext, request: Json) -> None:
        """Tell the device its package, by a fresh SAS URL; returns when the broker has the message."""
        package, waited_s = request["package"], request.get("ack_timeout_s")
        lifetime_s = request.get("sas_lifetime_s")
        if lifetime_s is None:  # recorded by an earlier version, with a URL of that time in the package
            defaults = RunOptions()
            lifetime_s = defaults.url_lifetime_s(waited_s or defaults.ack_timeout_s)
        access = await self._store.share(
            blob_name_of(package["release"], request["device_id"]), lifetime_s=lifetime_s
        )
        message = messages.Package.model_validate_json(
            json.dumps(
                {
                    **package,
                    "url": access.url,
                    "expires_at": access.expires_at.isoformat(),
                    "instance_id": request["instance_id"],
                    "attempt": request["attempt"],
                    "ack_timeout_s": waited_s,
                }
            )
        )
        await self._publish(topics.package(request["device_id"]), message.to_json())
        self._note(request, DeviceState.NOTIFIED)

    async def activate_device(self, _ctx: ActivityContext, request: Json) -> None:
        """Tell the device to run the package it has; returns when the broker has the message."""
        self._note(request, DeviceState.ACTIVATING)
        message = messages.Activate(
            instance_id=request["instance_id"],
            package_id=request["package_id"],
            release=request["release"],
            attempt=request["activation_attempt"],
        )
        await self._publish(topics.command(request["device_id"], "Activate"), message.to_json())

    async def record_outcome(self, _ctx: ActivityContext, request: Json) -> None:
        """Put a device's outcome on disk."""
        await self._registry.record_outcome(
            Outcome(
                run_id=request["run_id"],
                device_id=request["device_id"],
                state=DeviceState(request["state"]),
                attempts=request["attempts"],
                error=None if request["error"] is None else masked(request["error"]),
                ended_at=datetime.fromisoformat(request["ended_at"]).timestamp(),
                device_s=request["device_s"],
                steps_s=request["steps_s"],
                firmware_version=request["firmware_version"],
            )
        )

    async def _publish(self, topic: str, payload: bytes) -> None:
        await self._publisher.publish(topic, payload, timeout_s=self._publish_timeout_s)

    def _note(self, request: Json, state: DeviceState) -> None:
        self._registry.progress(request["run_id"], request["device_id"], state, attempt=request["attempt"])
