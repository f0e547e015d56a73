"""Rollouts in the registry's file: created, decided upon, handed out device by device.

Whatever decides whether a device is started happens in one transaction with its start, so that bounds are
exact and two who ask at once never get the same. Those who ask while a transaction is being written go
together into the next one.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from provisioning.errors import ProvisioningError
from provisioning.registry import Registry
from provisioning.states import DeviceState

from . import schedule
from .decisions import decide
from .facts import Cancel, Directive, End, RunWave, Wait
from .fitting import not_fitting
from .judgement import should_abort
from .pace import interval_s
from .plan import RolloutPlan, ordered, wave_sizes
from .records import How, Rollout, Take
from .tables import Tables, instant
from .targets import targets_of

# A lane asks again at least so often: the pace may have grown meanwhile.
MAX_WAIT_S: Final = 5.0
MIN_WAIT_S: Final = 0.001
LOOK_AGAIN_S: Final = 5.0
SERVICE: Final = "muster"
"""The actor in the log of what nobody has asked for."""

_T = TypeVar("_T")
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeRequest:
    """A lane asks for its ``seq``-th device; asked again with the same number it is given the same one."""

    rollout_id: str
    wave: int
    generation: int
    lane: int
    seq: int
    now: float


class RolloutStore:
    """The rollouts of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._asking: list[tuple[TakeRequest, asyncio.Future[Take]]] = []
        self._taking: asyncio.Task[None] | None = None
        # Lanes that wait for their turn by the pace, in order of their coming; not on disk.
        self._queues: dict[str, dict[str, None]] = {}

    # -- creating ------------------------------------------------------------------------------------

    async def create(
        self, rollout_id: str, plan: RolloutPlan, *, actor: str, now: float, retry_of: str | None = None
    ) -> int:
        """Put a rollout on record, its devices claimed; returns how many it has. Twice is an error.

        Raises UnknownDeviceError, RolloutRefusedError and NothingToDoError, and then nothing has changed.
        """
        await self._registry.flush()

        def work(tables: Tables) -> int:
            chosen = targets_of(tables, plan)
            misfits = not_fitting(tables, plan, chosen)
            plan_json = json.dumps(plan.to_json())
            options = json.dumps(plan.options.to_json())
            tables.execute("create_run", (rollout_id, now, 0, options, plan.release))
            tables.execute("create", (rollout_id, plan_json, retry_of, now))
            devices = tables.claim(rollout_id, chosen, now)
            waves = (
                wave for wave, size in enumerate(wave_sizes(plan, len(devices)), start=1) for _ in range(size)
            )
            in_order = enumerate(zip(ordered(plan, devices), waves, strict=True), start=1)
            tables.join(rollout_id, ((device_id, wave, place) for place, (device_id, wave) in in_order))
            what = "created" if retry_of is None else f"created as a retry of {retry_of}"
            detail = f"{len(devices):,} devices"
            if misfits:
                detail += f", {misfits:,} that the release {plan.release} does not fit"
            tables.log(rollout_id, now, actor, what, detail)
            return len(devices)

        return await self._transact(work)

    async def preview(self, plan: RolloutPlan) -> list[int]:
        """How many devices each wave of such a rollout would have now; raises as `create` does."""
        await self._registry.flush()
        chosen = await self._registry.ask(lambda database: targets_of(Tables(self._registry, database), plan))
        return wave_sizes(plan, len(chosen))

    async def _transact(self, work: Callable[[Tables], _T]) -> _T:
        def in_tables(database: sqlite3.Connection) -> _T:
            return work(Tables(self._registry, database))

        return await self._registry.transact(in_tables)

    # -- deciding ------------------------------------------------------------------------------------

    async def decide(self, rollout_id: str, *, now: float, under_way: bool) -> Json:
        """What the rollout does next, as its orchestration reads it; its state is put on record.

        ``under_way``: a wave runs, and it is asked only whether that goes on.
        """
        await self._registry.flush()
        if not under_way:
            # Its lanes have stopped: those that waited for their turn are gone.
            self._queues.pop(rollout_id, None)

        def work(tables: Tables) -> Json:
            rollout = tables.rollout(rollout_id)
            if rollout.ended:
                return {"do": "end", "state": rollout.state, "reason": rollout.reason}
            before = (rollout.state, rollout.reason)
            directive = decide(rollout.plan, tables.facts(rollout, now))
            decision = self._follow(tables, rollout, directive, now, under_way=under_way)
            tables.update(rollout)
            if (rollout.state, rollout.reason) != before:
                tables.log(rollout_id, now, SERVICE, rollout.state, rollout.reason)
            return decision

        return await self._transact(work)

    def _follow(
        self,
        tables: Tables,
        rollout: Rollout,
        directive: Directive,
        now: float,
        *,
        under_way: bool,
    ) -> Json:
        """Put on record what was decided, and say it to the orchestration."""
        match directive:
            case RunWave(number=number, lanes=lanes):
                if rollout.started_at is None:
                    rollout.started_at = now
                rollout.wave = max(rollout.wave, number)
                rollout.state, rollout.reason = "running", None
                if not under_way:
                    # Whoever may have been left over from before is not to take devices beside the new lanes.
                    rollout.generation += 1
                return {
                    "do": "run_wave",
                    "wave": number,
                    "generation": rollout.generation,
                    "lanes": lanes,
                    "options": rollout.plan.options.to_json(),
                    **({} if rollout.plan.release is None else {"release": rollout.plan.release}),
                }
            case Wait(until=until, state=state, cause=cause, reason=reason):
                if cause == "abort":
                    rollout.paused = reason
                rollout.state, rollout.reason = state, reason
                if cause in ("in_flight", "cancel", "end") and not under_way:
                    # No lane waits for these: a wave was terminated by hand. Look again by the clock.
                    again = instant(now + LOOK_AGAIN_S)
                    until = again if until is None else min(until, again)
                return {"do": "wait", "until": None if until is None else until.isoformat()}
            case Cancel(force=force, reason=reason):
                rollout.state, rollout.reason = "cancelling", reason
                how: How = "force" if force else "finish"
                rollout.cancel = rollout.cancel if rollout.cancel == "force" else how
                return {"do": "stop", "force": force}
            case End(state=state, reason=reason):
                left = tables.column("all_not_started", rollout.rollout_id)
                tables.cancel(rollout.rollout_id, left, reason, now)
                rollout.state, rollout.reason = state, reason
                status = {"cancelled": "terminated"}.get(state, state)
                tables.execute("end_run", (rollout.rollout_id, now, status))
                return {"do": "end", "state": state, "reason": reason}

    async def stop(self, rollout_id: str, *, force: bool, now: float) -> list[str]:
        """End what was not started as cancelled; returns the devices that are in flight. Twice is as once."""
        await self._registry.flush()

        def work(tables: Tables) -> list[str]:
            rollout = tables.rollout(rollout_id)
            left = tables.column("all_not_started", rollout_id)
            tables.cancel(rollout_id, left, rollout.reason or "the rollout was cancelled", now)
            rollout.cancelled = "force" if force else rollout.cancelled or "finish"
            tables.update(rollout)
            return tables.column("in_flight", rollout_id)

        return await self._transact(work)

    # -- handing out ---------------------------------------------------------------------------------

    async def take(self, request: TakeRequest) -> Take:
        """A device for a lane, or how long it has to wait, or why there is none for it."""
        future: asyncio.Future[Take] = asyncio.get_running_loop().create_future()
        self._asking.append((request, future))
        if self._taking is None:
            self._taking = asyncio.create_task(self._keep_taking(), name="rollout-takes")
        return await future

    async def _keep_taking(self) -> None:
        try:
            while self._asking:
                asking, self._asking = self._asking, []
                try:
                    taken = await self._transact(partial(self._take_all, [one for one, _ in asking]))
                except Exception as error:
                    for _, future in asking:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), take in zip(asking, taken, strict=True):
                    if future.done():
                        continue
                    if isinstance(take, Take):
                        future.set_result(take)
                    else:
                        future.set_exception(take)
        finally:
            self._taking = None

    def _take_all(self, requests: Sequence[TakeRequest], tables: Tables) -> list[Take | ProvisioningError]:
        return [self._take_or_why_not(tables, request) for request in requests]

    def _take_or_why_not(self, tables: Tables, request: TakeRequest) -> Take | ProvisioningError:
        """One that can't be answered (its rollout or plan can't be read) is no trouble of the others."""
        try:
            return self._take(tables, request)
        except ProvisioningError as error:
            return error

    def _take(self, tables: Tables, request: TakeRequest) -> Take:
        lane = f"{request.generation}.{request.lane}"
        known = tables.execute("taken_by", (request.rollout_id, lane, request.seq)).fetchone()
        if known is not None:
            return Take(device_id=known[0])
        rollout = tables.rollout(request.rollout_id)
        if rollout.state != "running":
            return Take(stop=rollout.state)
        if rollout.generation != request.generation:
            return Take(stop="changed")
        plan = rollout.plan
        if not schedule.open_at(plan.schedule.windows, instant(request.now)):
            return Take(stop="window")
        if self._ends(rollout, request.now):
            return Take(stop="deadline")
        counts = tables.ended(request.rollout_id)
        if should_abort(plan, counts, forgiven=rollout.forgiven) is not None:
            return Take(stop="abort")
        found = tables.execute("next_device", (request.rollout_id, request.wave)).fetchone()
        if found is None:
            return Take(stop="done")
        wait_s = self._wait_s(rollout, lane, request.now, counts)
        if wait_s > 0:
            return Take(wait_s=wait_s)
        tables.execute("take", (request.rollout_id, found[0], lane, request.seq))
        rollout.taken += 1
        tables.update(rollout)
        return Take(device_id=found[0])

    def _ends(self, rollout: Rollout, now: float) -> bool:
        plan = rollout.plan
        if plan.schedule.end_at is not None and now >= plan.schedule.end_at.timestamp():
            return True
        limit_s = plan.deadlines.rollout_s
        return limit_s is not None and rollout.started_at is not None and now >= rollout.started_at + limit_s

    def _wait_s(self, rollout: Rollout, lane: str, now: float, counts: Mapping[DeviceState, int]) -> float:
        """How long the lane has to wait for its turn; where it has not, the next turn is put off."""
        interval = interval_s(
            rollout.plan.pace.per_minute,
            notified=rollout.taken,
            succeeded=counts[DeviceState.PROVISIONED],
        )
        queue = self._queues.setdefault(rollout.rollout_id, {})
        if interval <= 0:
            queue.pop(lane, None)
            return 0.0
        if now >= rollout.next_at and (not queue or lane in queue):
            queue.pop(lane, None)
            # A turn that comes late by less than the interval is made up for; a rest is not.
            rollout.next_at = max(rollout.next_at, now - interval) + interval
            return 0.0
        queue.setdefault(lane, None)
        wait_s = max(rollout.next_at - now, 0.0) + list(queue).index(lane) * interval
        return min(max(wait_s, MIN_WAIT_S), MAX_WAIT_S)
