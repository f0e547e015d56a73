"""What a behaviour can do with its device: `devices.behaviours.Controls`, for a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.messages import Package
from devices.behaviours.combined import Powerless
from devices.dice import Dice

if TYPE_CHECKING:
    from devices.device import Device

_LOOK_AGAIN_S: Final = 0.1


class DeviceControls:
    """The controls of one device; made for devices that misbehave only."""

    __slots__ = ("_device", "attempt")

    def __init__(self, device: Device, attempt: int = 0) -> None:
        self._device = device
        self.attempt = attempt

    @property
    def device_id(self) -> str:
        return self._device.device_id

    @property
    def dice(self) -> Dice:
        return self._device.dice

    @property
    def package(self) -> Package | None:
        return self._device.package

    @property
    def busy(self) -> bool:
        return self._device.busy

    @property
    def connected(self) -> bool:
        return self._device.connected

    async def wait_connected(self) -> None:
        while not self._device.connected:
            await self._device.around.sleep(_LOOK_AGAIN_S)

    def true_s(self, seconds: float) -> float:
        return seconds * self._device.around.speed

    async def sleep(self, seconds: float) -> None:
        await self._device.around.sleep(seconds)

    async def go_offline(self, seconds: float) -> None:
        self._device.around.counters.planned_outages += 1
        self._device.link.leave(seconds)
        await self._device.around.sleep(seconds)

    async def doze(self, seconds: float) -> None:
        self._device.around.counters.planned_outages += 1
        await self._device.link.doze(seconds)
        await self._device.around.sleep(seconds)

    def drop_connection(self) -> None:
        self._device.link.leave(0.0)

    async def reboot(self, seconds: float, *, keep_download: bool) -> None:
        if self._device.lose_power(seconds, keep_download=keep_download):
            raise Powerless
        await self._device.around.sleep(seconds)

    async def hang(self) -> None:
        if self._device.hang():
            raise Powerless

    def publish(self, kind: str, payload: bytes, *, as_device: str | None = None) -> None:
        self._device.publish_raw(as_device or self._device.device_id, kind, payload)
