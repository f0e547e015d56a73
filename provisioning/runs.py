"""Runs: started once, watched to their end, shown with their figures.

A run is an instance of `ProvisionNewDevices`; what it has come to is in the registry. The engine says that
it has ended, however it did, and that closes it in the registry: after a crash too.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from durabletask.client import OrchestrationState, OrchestrationStatus

from broker import topics
from broker.topics import check_device_id

from .engines import EngineStoppedError, ManagementClient, OrchestrationNotFoundError
from .errors import (
    DeviceBusyError,
    EngineAwayError,
    NothingToDoError,
    UnavailableError,
    UnknownDeviceError,
    UnknownRunError,
)
from .orchestrations import ProvisionNewDevices
from .registry import STEPS, Registry, RunRecord, RunStatistics
from .releases.store import Releases
from .settings import RunOptions
from .state_directory import iso
from .states import FINAL, WORKING, DeviceState

_LOG = logging.getLogger(__name__)

MAX_RUNS_LISTED = 100
_CLAIM_TIMEOUT_S = 60.0
# An answer may be lost on its way from an engine elsewhere: after this time it is asked again.
_WATCH_INTERVAL_S = 60.0
_AWAY_INTERVAL_S = 1.0
_ENDED_AT_ONCE = 100

Json = dict[str, Any]

_STATUS = {
    OrchestrationStatus.COMPLETED: "completed",
    OrchestrationStatus.FAILED: "failed",
    OrchestrationStatus.TERMINATED: "terminated",
}


class Runs:
    """The runs of one service; `open()` and `close()` on a loop with a running engine."""

    def __init__(self, *, registry: Registry, client: ManagementClient, releases: Releases) -> None:
        self._registry = registry
        self._releases = releases
        self._client = client
        self._starting = asyncio.Lock()
        self._claims: dict[str, asyncio.Event] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def open(self, *, but: Collection[str] = ()) -> None:
        """Watch the runs that an earlier process left under way, ``but`` those that somebody else starts."""
        for run_id in await self._registry.open_runs():
            if run_id not in but:
                self.watch(run_id)

    async def close(self) -> None:
        """Watch no more; the runs stay as they are."""
        for task in list(self._watchers.values()):
            task.cancel()
            await asyncio.wait([task])

    def on_claim(self, run_id: str) -> None:
        """Told by GetNewDeviceIds that a run has its devices."""
        if (claimed := self._claims.get(run_id)) is not None:
            claimed.set()
        self.watch(run_id)

    def watch(self, run_id: str) -> None:
        """Close the run in the registry when its orchestration ends; asked twice, once is enough."""
        if run_id not in self._watchers:
            task = asyncio.create_task(self._end_when_done(run_id), name=f"watch-{run_id}")
            self._watchers[run_id] = task
            task.add_done_callback(lambda _: self._watchers.pop(run_id, None))

    async def _end_when_done(self, run_id: str) -> None:
        """Close the run in the registry when its orchestration ends, however it does."""
        try:
            state = await self._final_state(run_id)
        except EngineStoppedError:
            return
        status = "failed" if state is None else _STATUS[state.runtime_status]
        if status != "completed":
            try:
                await self._end_devices(run_id)
            except EngineStoppedError:
                return
        # A device whose orchestration broke has recorded no outcome: it must not look busy for ever.
        await self._registry.end_run(
            run_id,
            status=status,
            left_over=DeviceState.CANCELLED if status == "terminated" else DeviceState.FAILED,
            reason="the run's orchestration is gone"
            if state is None
            else f"the run ended ({status}) before it",
        )
        _LOG.info("run %s %s", run_id, status)

    async def _end_devices(self, run_id: str) -> None:
        """End the devices' orchestrations that have outlived their run's: it was terminated alone, or broke.

        Before the devices are free: the next run must not begin with one that this one still works on.
        """
        device_ids = await self._registry.unfinished(run_id)
        while device_ids:
            some, device_ids = device_ids[:_ENDED_AT_ONCE], device_ids[_ENDED_AT_ONCE:]
            try:
                await asyncio.gather(
                    *(
                        self._client.terminate_orchestration(topics.instance_id_of(run_id, device_id))
                        for device_id in some
                    )
                )
            except EngineAwayError:
                device_ids = some + device_ids
                await asyncio.sleep(_AWAY_INTERVAL_S)
            except OrchestrationNotFoundError:
                continue

    async def _final_state(self, run_id: str) -> OrchestrationState | None:
        """The orchestration as it ended; None where it is gone."""
        while True:
            try:
                state = await self._client.get_orchestration_state(run_id, fetch_payloads=False)
                if state is None or state.runtime_status in _STATUS:
                    return state
                ended = await self._client.wait_for_orchestration_completion(
                    run_id, fetch_payloads=False, timeout=_WATCH_INTERVAL_S
                )
                # Not asked again: it may have been purged by then, and would seem lost.
                if ended is not None and ended.runtime_status in _STATUS:
                    return ended
            except TimeoutError:
                continue
            except EngineAwayError:
                await asyncio.sleep(_AWAY_INTERVAL_S)

    async def start(
        self, device_ids: list[str] | None, options: RunOptions, release: str | None = None
    ) -> Json:
        """Start a run; on disk, and its devices claimed, when this returns.

        Raises UnknownReleaseError, UnknownDeviceError, DeviceBusyError, NothingToDoError, or BadIdError of
        the MQTT contract.
        """
        # One at a time: two calls at once must not both believe that the new devices are theirs.
        async with self._starting:
            with self._releases.held(release) as name:
                run_id = await self._start(device_ids, options, {} if name is None else {"release": name})
        run = await self._registry.run(run_id)
        if run is None or run.devices == 0:
            raise NothingToDoError
        _LOG.info("run %s: %d devices", run_id, run.devices)
        return {
            "run_id": run_id,
            "devices": run.devices,
            "release": name,
            "not_fitting": await self._releases.not_fitting(name, run_id),
        }

    async def _start(self, device_ids: list[str] | None, options: RunOptions, release: Json) -> str:
        await self._registry.flush()
        wanted = None if device_ids is None else list(dict.fromkeys(map(check_device_id, device_ids)))
        await self._check_wanted(wanted)
        run_id = f"run-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        claimed = self._claims[run_id] = asyncio.Event()
        try:
            await self._client.schedule_new_orchestration(
                ProvisionNewDevices,
                input={"device_ids": wanted, "options": options.to_json(), **release},
                instance_id=run_id,
            )
            async with asyncio.timeout(_CLAIM_TIMEOUT_S):
                await claimed.wait()
        except EngineAwayError as error:
            raise UnavailableError(
                f"{error} If the start of {run_id} got through all the same, `muster watch {run_id}` "
                f"will show it."
            ) from error
        except TimeoutError:
            raise UnavailableError(
                f"Run {run_id} is accepted, but has not claimed its devices yet: `muster watch {run_id}`."
            ) from None
        finally:
            del self._claims[run_id]
        return run_id

    async def _check_wanted(self, device_ids: list[str] | None) -> None:
        if device_ids is None:
            if await self._registry.count_devices(state=DeviceState.NEW) == 0:
                raise NothingToDoError
            return
        known = await self._registry.known_states(device_ids)
        if unknown := [device_id for device_id in device_ids if device_id not in known]:
            raise UnknownDeviceError(unknown)
        if busy := [device_id for device_id in device_ids if known[device_id] in WORKING]:
            raise DeviceBusyError(busy)

    async def list(self) -> list[Json]:
        """The latest runs, without their times and failures."""
        return [
            {
                "run_id": run.run_id,
                "status": run.status,
                "devices": run.devices,
                "started_at": iso(run.started_at),
                "ended_at": None if run.ended_at is None else iso(run.ended_at),
                "release": run.release,
            }
            for run in await self._registry.runs(limit=MAX_RUNS_LISTED)
        ]

    async def devices(self, run_id: str, *, limit: int, after: str | None) -> Json:
        """A page of a run's devices in order of id, as those of a rollout are shown.

        Raises UnknownRunError.
        """
        run = await self._registry.run(run_id)
        if run is None:
            raise UnknownRunError(run_id)
        rows = await self._registry.run_devices(run_id, after=after, limit=limit + 1)
        return {
            "devices": [_device(row) for row in rows[:limit]],
            "next": rows[limit - 1][0] if len(rows) > limit else None,
            "total": run.devices,
        }

    async def view(self, run_id: str) -> Json:
        """One run with its counts, rates, last failures and percentiles."""
        run = await self._registry.run(run_id)
        if run is None:
            raise UnknownRunError(run_id)
        statistics = await self._registry.run_statistics(run_id)
        return {
            **_brief(run, statistics),
            "percentiles": {
                "device": _percentiles(statistics.percentiles.get("device")),
                "steps": {step: _percentiles(statistics.percentiles.get(step)) for step in STEPS},
            },
        }

    async def briefs(self, run_ids: Collection[str]) -> dict[str, Json]:
        """Those of the ids that are runs, as `view` has them, but without percentiles."""
        found = {}
        for run_id in run_ids:
            if (run := await self._registry.run(run_id)) is not None:
                statistics = await self._registry.run_statistics(run_id, with_percentiles=False)
                found[run_id] = _brief(run, statistics)
        return found

    async def overview(self, *, ended: int) -> Sequence[Json]:
        """All that have not ended and the latest few that have, as `briefs` has them; no rollouts."""
        return list((await self.briefs(await self._registry.shown_runs(ended=ended))).values())


def _brief(run: RunRecord, statistics: RunStatistics) -> Json:
    return {
        "run_id": run.run_id,
        "status": run.status,
        "devices": run.devices,
        "release": run.release,
        "counts": {state.value: count for state, count in statistics.counts.items()},
        "started_at": iso(run.started_at),
        "ended_at": None if run.ended_at is None else iso(run.ended_at),
        **_pace(run, sum(statistics.counts[state] for state in FINAL)),
        "failures": [
            {
                "device_id": failure.device_id,
                "state": failure.state.value,
                "reason": failure.error,
                "at": iso(failure.at),
            }
            for failure in statistics.failures
        ],
    }


def _pace(run: RunRecord, ended: int) -> Json:
    elapsed_s = max((run.ended_at if run.ended_at is not None else time.time()) - run.started_at, 0.0)
    devices_per_s = ended / elapsed_s if elapsed_s > 0 else 0.0
    left = max(run.devices - ended, 0)
    return {
        "elapsed_s": round(elapsed_s, 3),
        "devices_per_s": round(devices_per_s, 3),
        "eta_s": round(left / devices_per_s, 1) if devices_per_s > 0 and run.ended_at is None else None,
    }


def _device(row: tuple[Any, ...]) -> Json:
    ended_at, device_s, *steps_s = row[8:]
    return {
        "device_id": row[0],
        "state": row[1],
        "attempts": row[2],
        "progress": row[3],
        "error": row[4],
        "online": bool(row[5]),
        "model": row[6],
        "firmware_version": row[7],
        "ended_at": None if ended_at is None else iso(ended_at),
        "device_s": device_s,
        "steps_s": dict(zip(STEPS, steps_s, strict=True)),
    }


def _percentiles(values: dict[int, float] | None) -> dict[str, float | None]:
    return {f"p{percent}_s": (values or {}).get(percent) for percent in (50, 95, 99)}
