"""What is going on, in one look; and whether the service is ready, and its metrics."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from durabletask.client import OrchestrationState

from provisioning import __version__
from provisioning.engines import ManagementClient
from provisioning.errors import RequestError, UnknownRunError
from provisioning.events.api import Events
from provisioning.fleets import FleetRecord
from provisioning.http.counting import HttpCounts
from provisioning.registry import Registry
from provisioning.rollouts.operations import Rollouts
from provisioning.runs import Runs
from provisioning.state_directory import iso
from provisioning.states import DeviceState

from .cells import Cells, cells_of_devices, cells_of_rollout
from .children import children_of
from .devices import SQL, Devices
from .metrics import prometheus
from .series import series_of

MAX_ENDED: Final = 5
"""Rollouts, and runs, that have ended."""
MAX_FAILURES: Final = 10

Json = dict[str, Any]


class NotReadyError(RequestError):
    """Something is missing that provisioning needs."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    title = "Not ready"


class Inspection:
    """What is asked of one service. ``statistics``, ``health`` and ``metrics_of_fleets`` are the service's
    own.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        client: ManagementClient,
        devices: Devices,
        rollouts: Rollouts,
        runs: Runs,
        events: Events,
        fleets: Callable[[], Awaitable[Sequence[FleetRecord]]],
        health: Callable[[], Awaitable[Json]],
        statistics: Callable[[], Awaitable[Json]],
        metrics_of_fleets: Callable[[str | None], Awaitable[str]],
        started_at: float,
    ) -> None:
        self._registry = registry
        self._client = client
        self.devices = devices
        self._rollouts = rollouts
        self._runs = runs
        self._events = events
        self._fleets = fleets
        self._health = health
        self._statistics = statistics
        self._metrics_of_fleets = metrics_of_fleets
        self._started_at = started_at

    async def overview(self) -> Json:
        """Rollouts and runs that are open or have just ended, devices, fleets, failures, health."""

        def work(database: sqlite3.Connection) -> tuple[dict[str, int], int, list[Any]]:
            states = dict(database.execute(SQL["states"]).fetchall())
            online = database.execute(SQL["online"]).fetchone()[0]
            return states, online, database.execute(SQL["failures"], (MAX_FAILURES,)).fetchall()

        rollouts = await self._rollouts.overview(ended=MAX_ENDED)
        runs = await self._runs.overview(ended=MAX_ENDED)
        states, online, failures = await self._registry.ask(work)
        return {
            "rollouts": rollouts,
            "runs": runs,
            "states": {str(state): states.get(state, 0) for state in DeviceState},
            "devices": sum(states.values()),
            "online": online,
            "fleets": [
                {
                    "fleet_id": fleet.fleet_id,
                    "devices": fleet.devices,
                    "running": fleet.running,
                    "connected": fleet.connected,
                }
                for fleet in await self._fleets()
            ],
            "failures": [
                {
                    "state": state,
                    "reason": reason,
                    "count": count,
                    "example": example,
                    "run_id": run_id,
                    "last_at": iso(last_at),
                }
                for state, reason, count, example, run_id, last_at in failures
            ],
            "health": await self._health(),
        }

    async def cells(self, rollout_id: str | None = None, *, with_ids: bool) -> Cells:
        """All devices, or those of a rollout; raises UnknownRolloutError."""
        if rollout_id is None:
            return await cells_of_devices(self._registry, with_ids=with_ids)
        await self._rollouts.check(rollout_id)
        return await cells_of_rollout(self._registry, rollout_id, with_ids=with_ids)

    async def series(self, run_id: str, *, points: int) -> Json:
        """A run, or a rollout, over time; raises UnknownRunError."""
        found = await series_of(self._registry, run_id, points=points, now=time.time())
        if found is None:
            raise UnknownRunError(run_id)
        return found

    async def series_of_rollout(self, rollout_id: str, *, points: int) -> Json:
        """Raises UnknownRolloutError."""
        await self._rollouts.check(rollout_id)
        return await self.series(rollout_id, points=points)

    async def children(
        self, instance_id: str, *, top: int, after: str | None
    ) -> tuple[list[OrchestrationState], str | None, str | None]:
        """Sub-orchestrations, where to go on, and the parent; see `children_of`."""
        return await children_of(self._client, instance_id, top=top, after=after)

    async def check_ready(self) -> None:
        """Raises NotReadyError, which names what is missing."""
        health = await self._health()
        missing = [
            what
            for there, what in (
                (health["broker"]["connected"], f"the broker at {health['broker']['url']}"),
                (health["blob"]["reachable"], f"blob storage at {health['blob']['endpoint']}"),
                (health["engine"]["connected"], "the engine's backend"),
            )
            if not there
        ]
        if missing:
            raise NotReadyError(f"No answer from {' and '.join(missing)}. The service goes on trying.")

    async def metrics(self, fleet_id: str | None, http: HttpCounts) -> str:
        """The service and its fleets for Prometheus; one fleet alone, where it is named."""
        of_fleets = await self._metrics_of_fleets(fleet_id)
        if fleet_id is not None:
            return of_fleets

        def work(database: sqlite3.Connection) -> tuple[int, dict[str, int], dict[str, int]]:
            return (
                database.execute(SQL["online"]).fetchone()[0],
                dict(database.execute(SQL["rollouts_by_state"]).fetchall()),
                dict(database.execute(SQL["runs_by_status"]).fetchall()),
            )

        online, rollouts, runs = await self._registry.ask(work)
        health = await self._health()
        of_service = prometheus(
            version=__version__,
            started_at=self._started_at,
            statistics=await self._statistics(),
            online=online,
            rollouts=rollouts,
            runs=runs,
            events=asdict(self._events.statistics()),
            engine_connected=health["engine"]["connected"],
            storage_reachable=health["blob"]["reachable"],
            cpu_s=time.process_time(),
            http=http,
        )
        return of_service + of_fleets
