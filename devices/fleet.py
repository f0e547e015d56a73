"""Many devices in one process: started along a ramp, counted, and ended in order."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import aiohttp

from broker.connection import BrokerAddress
from devices.device import Device
from devices.download import DownloadLimits
from devices.pacing import Ramp
from devices.plan import DevicePlan, FleetSpec
from devices.statistics import Counters, FleetStatistics
from devices.surroundings import LinkOptions, Surroundings
from devices.verify import Verifier

_LOG = logging.getLogger(__name__)

# One report of trouble that many devices may share (the broker is away) in so many seconds.
_REPORT_INTERVAL_S: Final = 5.0
_CANCEL_AGAIN_S: Final = 0.2
_READ_BUFFER_BYTES: Final = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """How a process runs its devices."""

    connects_per_s: float = 500.0
    """The ramp, for first connections and reconnections alike."""
    max_http_connections: int = 256
    """Downloads at once; further ones wait for a connection."""
    stop_timeout_s: float = 15.0
    """How long the goodbyes may take at the end."""
    max_goodbyes_at_once: int = 500
    link: LinkOptions = field(default_factory=LinkOptions)
    limits: DownloadLimits = field(default_factory=DownloadLimits)


class Fleet:
    """The devices of ``plans``, alive while the ``async with`` block lasts.

    At the end every connected device publishes ``offline`` and disconnects, within
    ``FleetOptions.stop_timeout_s``.
    """

    def __init__(
        self,
        spec: FleetSpec,
        plans: Iterable[DevicePlan],
        *,
        address: BrokerAddress,
        verifier: Verifier,
        options: FleetOptions | None = None,
    ) -> None:
        self._spec = spec
        self._plans: Sequence[DevicePlan] = tuple(plans)
        self._address = address
        self._verifier = verifier
        self._options = options if options is not None else FleetOptions()
        self._counters = Counters()
        self._devices: list[Device] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._http: aiohttp.ClientSession | None = None
        self._started_s = 0.0
        self._last_report_s = -_REPORT_INTERVAL_S

    @property
    def devices(self) -> Sequence[Device]:
        """The devices, in the order of the plan."""
        return self._devices

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        options = self._options
        self._started_s = loop.time()
        # What can refuse comes before what must be closed.
        ramp = Ramp(options.connects_per_s, loop.time)
        self._http = _http_session(options)
        around = Surroundings(
            address=self._address,
            http=self._http,
            verifier=self._verifier,
            counters=self._counters,
            ramp=ramp,
            clock=loop.time,
            report=self._report,
            tls=ssl.create_default_context() if self._address.tls else None,
            link=options.link,
            limits=options.limits,
        )
        for plan in self._plans:
            device = Device(
                plan,
                around,
                model=self._spec.model,
                firmware_version=self._spec.firmware_version,
                tags=self._spec.tags,
            )
            self._devices.append(device)
            self._tasks.append(asyncio.create_task(self._live(device), name=plan.device_id))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            async with asyncio.timeout(self._options.stop_timeout_s):
                await self._say_goodbyes()
        except TimeoutError:
            _LOG.warning("not all devices could say goodbye; their wills speak for them")
        await asyncio.gather(*(_end(task) for task in self._tasks))
        if self._http is not None:
            await self._http.close()

    def statistics(self) -> FleetStatistics:
        """A snapshot of the fleet."""
        return FleetStatistics.of(
            self._counters,
            devices=len(self._devices),
            connected=sum(device.connected for device in self._devices),
            ever_registered=sum(device.registered for device in self._devices),
            downloading=sum(device.downloading for device in self._devices),
            uptime_s=asyncio.get_running_loop().time() - self._started_s,
        )

    async def _live(self, device: Device) -> None:
        try:
            await device.run()
        except Exception:
            # A bug in one device must not end the fleet, and must not hide either.
            self._counters.crashed += 1
            _LOG.exception("%s: crashed: this is a bug", device.device_id)

    async def _say_goodbyes(self) -> None:
        turn = asyncio.Semaphore(self._options.max_goodbyes_at_once)

        async def leave(device: Device, task: asyncio.Task[None]) -> None:
            async with turn:
                await device.say_goodbye()
                await _end(task)

        async with asyncio.TaskGroup() as group:
            for device, task in zip(self._devices, self._tasks, strict=True):
                group.create_task(leave(device, task))

    def _report(self, trouble: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._last_report_s >= _REPORT_INTERVAL_S:
            self._last_report_s = now_s
            connected = sum(device.connected for device in self._devices)
            _LOG.warning("%s (%d of %d devices connected)", trouble, connected, len(self._devices))


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, with which aiomqtt waits, loses a
    cancellation that comes in the same turn as its result.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)


def _http_session(options: FleetOptions) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=options.max_http_connections),
        # No limit on the whole: it would count the wait for a free connection and a slow device's pace.
        timeout=aiohttp.ClientTimeout(
            total=None,
            sock_connect=options.limits.connect_timeout_s,
            sock_read=options.limits.read_timeout_s,
        ),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BUFFER_BYTES,
    )
