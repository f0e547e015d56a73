"""Events of what is on disk: gathered, so that much that happens at once is few events, and only while
somebody reads.

The registry tells what each transaction has changed. Of devices the rows come with it; rollouts and runs are
only marked, and looked at by their turn. Fleets are no part of the registry: they are looked at every other
second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence, Set
from typing import Any, Final

from provisioning.changes import Changes
from provisioning.fleets import FleetRecord
from provisioning.registry import Registry
from provisioning.state_directory import iso

from .hub import Hub, Topic

_LOG = logging.getLogger(__name__)

DEVICES_INTERVAL_S: Final = 0.25
RUNS_INTERVAL_S: Final = 0.5
FLEETS_INTERVAL_S: Final = 2.0
MAX_DEVICES: Final = 5_000
"""In one event; more wait for the next."""
_DUTY: Final = 0.05
"""At most this share of the time goes into looking at rollouts and runs, and at fleets."""
_REST_AFTER_FAILURE: Final = 10
"""So many times the usual distance: what fails each time is to fill no log."""
_MAX_KNOWN: Final = 1_000

_OF_RUNS: Final[frozenset[Topic]] = frozenset({"rollouts", "runs"})
_OF_REGISTRY: Final[frozenset[Topic]] = _OF_RUNS | {"devices"}

Json = dict[str, Any]
Look = Callable[[Collection[str]], Awaitable[Mapping[str, Json]]]
"""Those of the ids that are known, as they are shown; without waiting for what is not on disk."""


class Feed:
    """Feeds a hub; `start` and `close` on the loop of the registry."""

    def __init__(
        self,
        hub: Hub,
        *,
        registry: Registry,
        rollouts: Look,
        runs: Look,
        fleets: Callable[[], Awaitable[Sequence[FleetRecord]]],
        clock: Callable[[], float] = time.time,
        devices_interval_s: float = DEVICES_INTERVAL_S,
        runs_interval_s: float = RUNS_INTERVAL_S,
        fleets_interval_s: float = FLEETS_INTERVAL_S,
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._rollouts = rollouts
        self._runs = runs
        self._fleets = fleets
        self._clock = clock
        self._intervals_s = (devices_interval_s, runs_interval_s, fleets_interval_s)
        self._devices: dict[str, tuple[str | None, str]] = {}
        self._marked: set[str] = set()
        self._known: dict[str, Json] = {}
        self._known_fleets: dict[str, Json] = {}
        self._news_of_devices = asyncio.Event()
        self._news_of_runs = asyncio.Event()
        self._look_at_fleets = asyncio.Event()
        self._turning = asyncio.Lock()
        self._watching = False
        self._tasks: set[asyncio.Task[None]] = set()
        hub.on_topics = self._topics_changed

    def start(self) -> None:
        """Be ready; nothing is done until somebody reads."""
        of_devices, of_runs, of_fleets = self._intervals_s
        self._begin(self._keep(self._publish_devices, self._news_of_devices, of_devices), "event-devices")
        self._begin(self._keep(self._publish_runs, self._news_of_runs, of_runs), "event-runs")
        self._begin(self._keep(self._publish_fleets, self._look_at_fleets, of_fleets), "event-fleets")

    async def close(self) -> None:
        """Feed no more."""
        for task in list(self._tasks):
            task.cancel()
            await asyncio.wait([task])

    @contextlib.asynccontextmanager
    async def recording(self, topics: Collection[Topic]) -> AsyncIterator[None]:
        """Within, all that goes to disk becomes events of these topics, for readers that are opened."""
        self._hub.hold(topics)
        try:
            await self._turn()
            yield
        finally:
            self._hub.release(topics)

    def _begin(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _topics_changed(self) -> None:
        if "fleets" in self._hub.topics:
            self._look_at_fleets.set()
        else:
            self._known_fleets.clear()
        if not _OF_REGISTRY & self._hub.topics:
            self._begin(self._turn(), "events-unwatched")

    async def _turn(self) -> None:
        """Watch the registry, or not, as somebody reads or nobody."""
        async with self._turning:
            wanted = bool(_OF_REGISTRY & self._hub.topics)
            if wanted != self._watching:
                await self._registry.watch(self._changed if wanted else None)
                self._watching = wanted
            if not wanted:
                self._devices.clear()
                self._marked.clear()
                self._known.clear()

    def _changed(self, changes: Changes) -> None:
        if changes.devices and "devices" in self._hub.topics:
            # The latest last, so that one that changes all the time does not go before all others.
            self._devices |= changes.devices
            self._news_of_devices.set()
        if changes.runs and _OF_RUNS & self._hub.topics:
            self._marked.update(changes.runs)
            self._news_of_runs.set()

    async def _keep(
        self, publish: Callable[[], Awaitable[float]], news: asyncio.Event, interval_s: float
    ) -> None:
        """Publish whenever there is news, with a distance between: what comes alone goes at once."""
        while True:
            await news.wait()
            news.clear()
            try:
                rest_s = max(interval_s, await publish() / _DUTY)
            except Exception:
                # A disk that is away, or a defect of ours: the next turn is another try.
                _LOG.warning("could not make events; trying on", exc_info=True)
                rest_s = _REST_AFTER_FAILURE * interval_s
            await asyncio.sleep(rest_s)

    async def _publish_devices(self) -> float:
        if len(self._devices) <= MAX_DEVICES:
            now, self._devices = self._devices, {}
        else:
            ids = list(self._devices)[:MAX_DEVICES]
            now = {device_id: self._devices.pop(device_id) for device_id in ids}
            self._news_of_devices.set()
        if now:
            self._hub.publish_devices(iso(self._clock()), list(now.values()))
        return 0.0

    async def _publish_runs(self) -> float:
        began = time.monotonic()
        marked, self._marked = self._marked, set()
        try:
            await self._look_at(marked)
        except Exception:
            # What ended just now has no further news: it is looked at again by the next turn.
            self._marked |= marked
            self._news_of_runs.set()
            raise
        return time.monotonic() - began

    async def _look_at(self, marked: Set[str]) -> None:
        rollouts = await self._rollouts(marked)
        for rollout_id, rollout in rollouts.items():
            if "rollouts" in self._hub.topics and self._is_news(rollout_id, rollout):
                self._hub.publish("rollouts", "rollout", rollout, rollout_id=rollout_id)
        others = marked - rollouts.keys()
        runs = await self._runs(others) if others and "runs" in self._hub.topics else {}
        for run_id, run in runs.items():
            if self._is_news(run_id, run):
                self._hub.publish("runs", "run", run)

    def _is_news(self, run_id: str, shown: Json) -> bool:
        if self._known.get(run_id) == shown:
            return False
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[run_id] = shown
        return True

    async def _publish_fleets(self) -> float:
        began = time.monotonic()
        if "fleets" not in self._hub.topics:
            return 0.0
        # Before anything can fail: nobody else asks for another look.
        self._look_at_fleets.set()
        fleets = {record.fleet_id: record.model_dump(mode="json") for record in await self._fleets()}
        if "fleets" not in self._hub.topics:
            return 0.0
        for fleet_id, fleet in fleets.items():
            if self._known_fleets.get(fleet_id) != fleet:
                self._hub.publish("fleets", "fleet", fleet)
        for fleet_id, fleet in self._known_fleets.items():
            if fleet_id not in fleets:
                gone = {**fleet, "running": False, "connected": 0, "pids": [], "removed": True}
                self._hub.publish("fleets", "fleet", gone)
        self._known_fleets = fleets
        return time.monotonic() - began
