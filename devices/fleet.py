"""Many devices in one process: started along a ramp, counted, changed while they run, ended in order."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from broker.connection import BrokerAddress
from devices.behaviours import HEALTHY, Behaviour, Combined
from devices.certificates import DeviceTls
from devices.credentials import Credentials
from devices.device import Device
from devices.dice import Dice, Trace
from devices.download import DownloadLimits
from devices.limits import MAX_HTTP_CONNECTIONS
from devices.pacing import Ramp
from devices.roster import Change, Entry, Roster
from devices.statistics import GAUGES, Counters, Latencies, document
from devices.surroundings import LinkOptions, Surroundings
from devices.verify import Verifier

_LOG = logging.getLogger(__name__)

# One report of trouble that many devices may share (the broker is away) in so many seconds.
_REPORT_INTERVAL_S: Final = 5.0
_CANCEL_AGAIN_S: Final = 0.2
_READ_BUFFER_BYTES: Final = 256 * 1024
_RATE_OVER_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """How a process runs its devices."""

    max_http_connections: int = MAX_HTTP_CONNECTIONS
    """Downloads at once; further ones wait for a connection. Slow ones hold theirs for long."""
    stop_timeout_s: float = 15.0
    """How long the goodbyes may take at the end."""
    max_goodbyes_at_once: int = 500
    ramp_share: float = 1.0
    """The part of the fleet's ramp that is this process's."""
    link: LinkOptions = field(default_factory=LinkOptions)
    limits: DownloadLimits = field(default_factory=DownloadLimits)


class Fleet:
    """The devices of ``roster``, alive while the ``async with`` block lasts.

    At the end every connected device publishes ``offline`` and disconnects, within
    ``FleetOptions.stop_timeout_s``.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        address: BrokerAddress,
        verifier: Verifier,
        credentials: Credentials | None = None,
        tls: DeviceTls | None = None,
        options: FleetOptions | None = None,
        trace: Trace | None = None,
    ) -> None:
        """``trace`` is told of each random choice of each device; ``tls`` is for an ``mqtts://`` address."""
        self._roster = roster
        self._address = address
        self._verifier = verifier
        self._credentials = credentials or Credentials.of(address, None)
        self._tls = (tls or DeviceTls()) if address.tls else None
        self._options = options if options is not None else FleetOptions()
        self._trace = trace
        self._counters = Counters()
        self._latencies = Latencies()
        self._groups = {group.name: group for group in roster.spec.groups}
        self._devices: dict[str, Device] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Until when devices are off the network that come back by themselves, by the fleet's clock.
        self._outages: dict[str, float] = {}
        # Devices that are switched off: still saying goodbye.
        self._leaving: set[asyncio.Task[None]] = set()
        self._http: aiohttp.ClientSession | None = None
        self._around: Surroundings | None = None
        self._started_s = 0.0
        self._last_report_s = -_REPORT_INTERVAL_S
        self._complained: set[tuple[type[Behaviour], str, type[Exception]]] = set()
        self._connects: deque[tuple[float, int]] = deque()

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices that run, by id."""
        return self._devices

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        options, spec = self._options, self._roster.spec
        self._started_s = loop.time()
        # What can refuse comes before what must be closed.
        ramp = Ramp(spec.ramp, loop.time, share=options.ramp_share, seed=spec.seed)
        self._http = _http_session(options)
        self._around = Surroundings(
            address=self._address,
            http=self._http,
            verifier=self._verifier,
            distrustful=Verifier.distrustful(),
            counters=self._counters,
            latencies=self._latencies,
            ramp=ramp,
            true_clock=loop.time,
            complain=self._complain,
            credentials=self._credentials,
            speed=spec.speed,
            trace=self._trace,
            report=self._report,
            tls=self._tls,
            link=options.link,
            limits=options.limits,
        )
        for entry in self._roster.entries.values():
            if entry.running:
                self._switch_on(entry)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            async with asyncio.timeout(self._options.stop_timeout_s):
                turn = asyncio.Semaphore(self._options.max_goodbyes_at_once)
                async with asyncio.TaskGroup() as group:
                    for device_id in tuple(self._devices):
                        group.create_task(self._switch_off(device_id, turn))
        except TimeoutError:
            _LOG.warning("not all devices could say goodbye; their wills speak for them")
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*(_end(task) for task in (*self._tasks.values(), *self._leaving)))
        if self._http is not None:
            await self._http.close()

    def apply(self, change: Change) -> int:
        """Make ``change``; returns how many devices it is about. `FleetSpecError` changes nothing."""
        entries = self._roster.apply(change)
        if change.group is not None:
            self._groups[change.group.name] = change.group
        storm = Random(self._roster.spec.seed)
        turn = asyncio.Semaphore(self._options.max_goodbyes_at_once)
        for entry in entries:
            device_id = entry.plan.device_id
            device = self._devices.get(device_id)
            match change.do:
                case "add" | "start":
                    if device is None:
                        self._switch_on(entry)
                case "stop" if device is not None:
                    self._spawn(self._switch_off(device_id, turn))
                case "kill" if device is not None:
                    device.link.leave(math.inf)
                    self._spawn(_end(self._forget(device_id)[1]))
                case "offline" if device is not None:
                    device.link.leave(math.inf if change.for_s is None else change.for_s)
                    if change.for_s is not None and self._around is not None:
                        self._outages[device_id] = self._around.clock() + change.for_s
                case "online" if device is not None:
                    device.link.come_back()
                    self._outages.pop(device_id, None)
                case "behave" if device is not None:
                    device.behave(self._combined(entry))
                case "storm" if device is not None:
                    device.link.storm(storm.uniform(0.0, change.spread_s))
                case _:
                    pass
        return len(entries)

    def statistics(self) -> dict[str, Any]:
        """How it is and what was counted, as `devices.statistics` gives it."""
        now_s = asyncio.get_running_loop().time()
        fleet_s = self._around.clock() if self._around is not None else 0.0
        self._outages = {device_id: end_s for device_id, end_s in self._outages.items() if end_s > fleet_s}
        groups = {name: dict.fromkeys(_COUNTED, 0.0) for name in self._groups}
        for entry in self._roster.entries.values():
            group = groups[entry.plan.group]
            group["devices"] += 1
            group["offline"] += not entry.online or entry.plan.device_id in self._outages
            device = self._devices.get(entry.plan.device_id)
            if device is not None:
                group["running"] += 1
                group["connected"] += device.connected
                group["registered"] += device.connected and device.registered
                group["ever_registered"] += device.registered
                group["downloading"] += device.downloading
        counted = document(
            self._counters,
            self._latencies,
            {name: {gauge: int(value) for gauge, value in group.items()} for name, group in groups.items()},
            uptime_s=round(now_s - self._started_s, 3),
        )
        counted["connects_per_s"] = self._connects_per_s(now_s)
        return counted

    def _connects_per_s(self, now_s: float) -> float:
        """Over the last seconds, as far as statistics were asked for."""
        recent = self._connects
        recent.append((now_s, self._counters.connects))
        while len(recent) > 2 and recent[1][0] <= now_s - _RATE_OVER_S:
            recent.popleft()
        began_s, before = recent[0] if len(recent) > 1 else (self._started_s, 0)
        return round((self._counters.connects - before) / max(now_s - began_s, 0.001), 1)

    def _switch_on(self, entry: Entry) -> None:
        assert self._around is not None
        device_id = entry.plan.device_id
        self._outages.pop(device_id, None)
        device = Device(entry.plan, self._groups[entry.plan.group], self._combined(entry), self._around)
        if not entry.online:
            device.link.leave(math.inf)
        self._devices[device_id] = device
        self._tasks[device_id] = asyncio.create_task(
            self._live(device, after=self._tasks.get(device_id)), name=device_id
        )

    def _switch_off(self, device_id: str, turn: asyncio.Semaphore) -> Coroutine[Any, Any, None]:
        """Gone from the fleet at once; the coroutine says goodbye for it."""
        device, task = self._forget(device_id)

        async def leave() -> None:
            async with turn:
                await device.say_goodbye()
                await _end(task)

        return leave()

    def _forget(self, device_id: str) -> tuple[Device, asyncio.Task[None]]:
        return self._devices.pop(device_id), self._tasks[device_id]

    def _spawn(self, leaving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(leaving)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _combined(self, entry: Entry) -> Combined:
        if entry.behaviour == "healthy":
            return HEALTHY
        dice = Dice(entry.plan.seed, device_id=entry.plan.device_id, trace=self._trace)
        return self._roster.spec.catalogue.make(entry.behaviour, dice, self._complain)

    async def _live(self, device: Device, *, after: asyncio.Task[None] | None) -> None:
        gone = False
        while after is not None and not after.done():
            # Switched off a moment ago: the broker must not see the same device twice. Nor if this one is
            # switched off too, and on again: whoever comes next waits for this task alone.
            try:
                await asyncio.wait([after])
            except asyncio.CancelledError:
                gone = True
        if gone:
            return
        try:
            await device.run()
        except Exception:
            # A bug in one device must not end the fleet, and must not hide either.
            self._counters.crashed += 1
            _LOG.exception("%s: crashed: this is a bug", device.device_id)

    def _report(self, trouble: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._last_report_s >= _REPORT_INTERVAL_S:
            self._last_report_s = now_s
            connected = sum(device.connected for device in self._devices.values())
            _LOG.warning("%s (%d of %d devices connected)", trouble, connected, len(self._devices))

    def _complain(self, behaviour: Behaviour, method: str, error: Exception) -> None:
        self._counters.behaviour_failures += 1
        about = (type(behaviour), method, type(error))
        if about not in self._complained:
            self._complained.add(about)
            _LOG.warning(
                "the behaviour %s fails in %s(); its devices go on without it (further ones are counted)",
                type(behaviour).__qualname__,
                method,
                exc_info=error,
            )


_COUNTED: Final = tuple(gauge for gauge in GAUGES if gauge != "connects_per_s")


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, which libraries and behaviours may wait with,
    loses a cancellation that comes in the same turn as its result.
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
