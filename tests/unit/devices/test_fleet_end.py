"""The end of a fleet does not wait for a device that a cancellation has passed by."""

from __future__ import annotations

import asyncio
import base64
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.connection import BrokerAddress
from devices import fleet
from devices.roster import Change, Roster
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


class SlowToLeave:
    """Says goodbye until it is told to be done; counts those of its id that are there at once."""

    device_id = "slow"
    online = 0
    most = 0
    leave: asyncio.Event

    def __init__(self, *_: Any, **__: Any) -> None:
        self.link = SimpleNamespace(leave=lambda _: None)

    async def run(self) -> None:
        cls = SlowToLeave
        cls.online += 1
        cls.most = max(cls.most, cls.online)
        try:
            await asyncio.Event().wait()
        finally:
            cls.online -= 1

    async def say_goodbye(self) -> None:
        await self.leave.wait()


async def test_a_device_is_never_there_twice_however_often_it_is_switched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "Device", SlowToLeave)
    SlowToLeave.leave = asyncio.Event()
    async with asyncio.timeout(5), a_fleet(1) as running:
        for do in ("stop", "start", "kill", "start"):
            await asyncio.sleep(0.01)
            running.apply(Change(do=cast("Any", do)))
        await asyncio.sleep(0.05)
        assert (SlowToLeave.online, SlowToLeave.most) == (1, 1)
        SlowToLeave.leave.set()
        await asyncio.sleep(0.05)
        assert (SlowToLeave.online, SlowToLeave.most) == (1, 1)


def a_fleet(count: int) -> fleet.Fleet:
    raw = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return fleet.Fleet(
        Roster(FleetSpec.of(count=count, behaviours={"healthy": 1})),
        address=BrokerAddress.parse("mqtt://127.0.0.1:1"),
        verifier=Verifier.from_base64([base64.b64encode(raw).decode()]),
    )


async def test_a_lost_cancellation_does_not_hold_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "Device", DeafDevice)
    running = a_fleet(3)
    async with asyncio.timeout(fleet.FleetOptions().stop_timeout_s / 2):
        async with running:
            for device in running.devices.values():
                assert isinstance(device, DeafDevice)
                await device.started.wait()
