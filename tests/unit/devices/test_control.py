"""How a fleet process is told of changes: whoever else connects keeps it from nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from devices import control
from devices.control import ControlAddress, ControlError, ControlServer
from devices.roster import Change


class NotedFleet:
    """Notes the changes that it is told of."""

    def __init__(self) -> None:
        self.told: list[Change] = []

    def apply(self, change: Change) -> int:
        self.told.append(change)
        return 7


async def address_of(path: Path) -> ControlAddress:
    address = ControlAddress.read(path)
    assert address is not None
    return address


async def test_whoever_connects_and_says_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    fleet: Any = NotedFleet()
    async with asyncio.timeout(5):
        async with ControlServer(fleet, tmp_path / "control", number=0):
            address = await address_of(tmp_path / "control")
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
            assert await address.tell(Change(do="stop"), number=1) == 7
        assert not (tmp_path / "control").exists()
        assert await reader.read() == b""
        writer.close()


async def test_whoever_says_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_ASK_TIMEOUT_S", 0.1)
    fleet: Any = NotedFleet()
    async with asyncio.timeout(5), ControlServer(fleet, tmp_path / "control", number=0):
        address = await address_of(tmp_path / "control")
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
        assert await reader.read() == b""
        writer.close()


async def test_what_is_no_request_of_the_owners_changes_nothing(tmp_path: Path) -> None:
    fleet: Any = NotedFleet()
    async with ControlServer(fleet, tmp_path / "control", number=3):
        address = await address_of(tmp_path / "control")
        for line in (b"[" * 100_000, b"\xff", b"{}", b'{"token": "", "number": 4, "change": {"do": "stop"}}'):
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
            writer.write(line + b"\n")
            assert "error" in json.loads(await reader.readline())
            writer.close()
        stranger = ControlAddress(port=address.port, token="guessed", pid=address.pid)
        with pytest.raises(ControlError, match="the token is wrong"):
            await stranger.tell(Change(do="stop"), number=4)
        # The fleet was started with it.
        assert await address.tell(Change(do="stop"), number=3) == 0
    assert fleet.told == []
