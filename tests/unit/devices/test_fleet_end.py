"""The end of a fleet does not wait for a device that a cancellation has passed by."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.connection import BrokerAddress
from devices import fleet
from devices.roster import Roster
from devices.spec import FleetSpec
from devices.verify import Verifier


class DeafDevice:
    """Loses the first cancellation, as `asyncio.wait_for` did before Python 3.12."""

    device_id = "deaf"

    def __init__(self, *_: Any, **__: Any) -> None:
        self.started = asyncio.Event()

    async def run(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    async def say_goodbye(self) -> None:
        return None


async def test_a_lost_cancellation_does_not_hold_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "Device", DeafDevice)
    raw = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    running = fleet.Fleet(
        Roster(FleetSpec.of(count=3, behaviours={"healthy": 1})),
        address=BrokerAddress.parse("mqtt://127.0.0.1:1"),
        verifier=Verifier.from_base64([base64.b64encode(raw).decode()]),
    )
    async with asyncio.timeout(fleet.FleetOptions().stop_timeout_s / 2):
        async with running:
            for device in running.devices.values():
                assert isinstance(device, DeafDevice)
                await device.started.wait()
