"""Rollouts in the registry's file: created, decided upon, handed out device by device.

Whatever decides whether a device is started happens in one transaction with its start, so that bounds are
exact and two who ask at once never get the same. Those who ask while a transaction is being written go
together into the next one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

from provisioning.errors import ProvisioningError
from provisioning.registry import Registry
from provisioning.states import DeviceState

from . import schedule
from .decisions import decide
from .facts import Cancel, Directive, End, Facts, RunWave, Wait
from .fitting import not_fitting
from .judgement import should_abort
from .pace import interval_s
from .plan import RolloutPlan, ordered, wave_sizes
from .records import How, Rollout, Take
from .tables import Tables, instant
from .targets import Targets, joiners_of, let_join, targets_of

# A lane asks again at least so often: the pace may have grown meanwhile.
MAX_WAIT_S: Final = 5.0
MIN_WAIT_S: Final = 0.001
LOOK_AGAIN_S: Final = 5.0
# Whoever lets devices come tells; this is for the case that nobody did.
LOOK_FOR_DEVICES_S: Final = 300.0
_GROWING: Final = ("overlap", "targets")
_IN_FLIGHT: Final = ("in_flight", "cancel", "end")
"""What is waited for where devices in flight are."""
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
            misfits = not_fitting(tables, plan, [*chosen.free, *chosen.busy])
            tables.create(rollout_id, plan, retry_of=retry_of, now=now)
            claimed = tables.claim(rollout_id, chosen.free, now)
            devices = ordered(plan, [*claimed, *chosen.busy])
            waves = (
                wave for wave, size in enumerate(wave_sizes(plan, len(devices)), start=1) for _ in range(size)
            )
            tables.join(rollout_id, chosen.members(zip(devices, waves, count(1), strict=False)))
            what = "created" if retry_of is None else f"created as a retry of {retry_of}"
            detail = _number(len(devices), chosen)
            if misfits:
                detail += f", {misfits:,} that the release {plan.release} does not fit"
            tables.log(rollout_id, now, actor, what, detail)
            return len(devices)

        return await self._transact(work)

    async def preview(self, plan: RolloutPlan) -> Json:
        """What such a rollout would have now: ``devices``, ``waves`` (the size of each) and ``held`` (devices
        by the run that has them); raises as `create` does.
        """
        await self._registry.flush()
        chosen = await self._registry.ask(lambda database: targets_of(Tables(self._registry, database), plan))
        return {
            "devices": len(chosen),
            "waves": wave_sizes(plan, len(chosen)),
            "held": [
                {"run_id": hold.run_id, "how": hold.how, "devices": devices}
                for hold, devices in sorted(Counter(chosen.busy.values()).items())
            ],
        }

    # -- growing -------------------------------------------------------------------------------------

    async def growing(self) -> dict[str, bool]:
        """The open rollouts that devices may come to at any time; True: such as register, too."""
        return await self._ask(
            lambda tables: {rollout_id: bool(joins) for rollout_id, joins in tables.execute("growing")}
        )

    async def join(self, device_ids: Collection[str] | None, *, now: float) -> list[str]:
        """Let devices (None: all) join the continuous rollouts that mean them; returns those that grew.

        They are of the last wave. Where several rollouts mean a device, the oldest has it first. Twice is as
        once.
        """

        def work(tables: Tables) -> list[str]:
            grown = []
            for rollout_id, joins in tables.execute("growing").fetchall():
                rollout = tables.rollout(rollout_id)
                if joins and rollout.cancel is None and not self._ends(rollout, now):
                    joiners = joiners_of(tables, rollout, device_ids)
                    if joined := let_join(tables, rollout, joiners, now):
                        tables.log_joined(rollout_id, now, SERVICE, joined)
                        grown.append(rollout_id)
            return grown

        return await self._transact(work)

    async def may_go_on(self, rollout_ids: Collection[str]) -> list[str]:
        """Those rollouts with devices for more lanes than they have, or that wait for none any more."""

        def work(tables: Tables) -> list[str]:
            return [
                rollout_id
                for rollout_id in rollout_ids
                if tables.execute(
                    "may_go_on", (rollout_id, tables.rollout(rollout_id).plan.pace.in_flight)
                ).fetchone()[0]
            ]

        return await self._ask(work)

    async def _ask(self, work: Callable[[Tables], _T]) -> _T:
        return await self._registry.ask(lambda database: work(Tables(self._registry, database)))

    async def _transact(self, work: Callable[[Tables], _T]) -> _T:
        def in_tables(database: sqlite3.Connection) -> _T:
            return work(Tables(self._registry, database))

        return await self._registry.transact(in_tables)

    # -- deciding ------------------------------------------------------------------------------------

    async def decide(self, rollout_id: str, *, now: float, under_way: Json | None) -> Json:
        """What the rollout does next, as its orchestration reads it; its state is put on record.

        ``under_way``: so many ``lanes`` of a ``generation`` were started in a ``wave``, and it is asked
        whether that goes on, and with how many more. Asked twice it says so twice: what nobody has heard of
        was not started.
        """
        await self._registry.flush()
        if under_way is None:
            # Those that waited for their turn by the pace are gone, or are to go.
            self._queues.pop(rollout_id, None)

        def work(tables: Tables) -> Json:
            rollout = tables.rollout(rollout_id)
            if rollout.ended:
                return {"do": "end", "state": rollout.state, "reason": rollout.reason}
            before = (rollout.state, rollout.reason)
            if under_way is None:
                # Whoever may have been left over from before takes no devices beside the lanes to come.
                rollout.generation += 1
                rollout.lanes = 0
                tables.execute("forget_lanes", (rollout_id,))
            facts = tables.facts(rollout, now)
            directive = decide(rollout.plan, facts)
            if isinstance(directive, RunWave):
                decision = self._run_wave(tables, rollout, directive, facts, now, under_way=under_way)
            else:
                decision = self._follow(tables, rollout, directive, now, under_way=under_way is not None)
            tables.update(rollout)
            if (rollout.state, rollout.reason) != before and _is_news(rollout, before[0], directive):
                tables.log(rollout_id, now, SERVICE, rollout.state, rollout.reason)
            return decision

        return await self._transact(work)

    def _follow(
        self,
        tables: Tables,
        rollout: Rollout,
        directive: Wait | Cancel | End,
        now: float,
        *,
        under_way: bool,
    ) -> Json:
        """Put on record what was decided, and say it to the orchestration."""
        match directive:
            case Wait(until=until, state=state, cause=cause, reason=reason):
                if cause == "abort":
                    rollout.paused = reason
                rollout.state, rollout.reason = state, reason
                # No lane that is waited for has those in flight: a wave was terminated by hand, or an earlier
                # execution began it. Look again by the clock.
                orphaned = cause in _IN_FLIGHT and not under_way
                again_at = until if under_way else None
                if orphaned or cause in _GROWING:
                    again = instant(now + (LOOK_AGAIN_S if orphaned else LOOK_FOR_DEVICES_S))
                    until = again if until is None else min(until, again)
                return {
                    "do": "wait",
                    "until": None if until is None else until.isoformat(),
                    "orphaned": orphaned,
                    **_look_again_at(again_at),
                }
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

    def _run_wave(
        self,
        tables: Tables,
        rollout: Rollout,
        directive: RunWave,
        facts: Facts,
        now: float,
        *,
        under_way: Json | None,
    ) -> Json:
        """Put on record how many lanes start, beside those that live and the devices in flight that none of
        these has: together they are within the bound.
        """
        lanes, strays, begins = 0, 0, under_way is None
        if under_way is None:
            under_way = {"generation": rollout.generation, "wave": directive.number, "lanes": 0}
        anew = (under_way["generation"], under_way["wave"]) != (rollout.generation, directive.number)
        # Those that live stop at their next question, and others begin beside them.
        if not anew:
            rollout.lanes = under_way["lanes"]
            stopped = tables.execute("stopped_lanes", (rollout.rollout_id,)).fetchone()[0]
            strays = tables.execute(
                "strays", (rollout.rollout_id, directive.number, f"{rollout.generation}.")
            ).fetchone()[0]
            lanes = max(directive.lanes - strays - (rollout.lanes - stopped), 0)
        elsewhere = facts.in_flight - facts.waves[directive.number - 1].in_flight
        if begins and not lanes:
            why = f"{facts.in_flight:,} in flight from before, the most at once."
            waiting = Wait(until=None, state="running", cause="in_flight", reason=why)
            return self._follow(tables, rollout, waiting, now, under_way=False)
        if rollout.started_at is None:
            rollout.started_at = now
        rollout.wave = max(rollout.wave, directive.number)
        rollout.state, rollout.reason = "running", None
        first = rollout.lanes + 1
        rollout.lanes += lanes
        return {
            "do": "run_wave",
            "wave": directive.number,
            "generation": rollout.generation,
            "first_lane": first,
            "lanes": lanes,
            "look_again_s": LOOK_AGAIN_S if strays or elsewhere else None,
            **({"anew": True} if anew else {}),
            **_look_again_at(directive.until),
            "options": rollout.plan.options.to_json(),
            **({} if rollout.plan.release is None else {"release": rollout.plan.release}),
        }

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

    async def in_flight(self, rollout_id: str) -> list[str]:
        """The devices that were started and have not ended."""
        await self._registry.flush()
        return await self._ask(lambda tables: tables.column("in_flight", rollout_id))

    async def end_lost(self, rollout_id: str, device_ids: Sequence[str], *, now: float) -> None:
        """End devices in flight as failed whose orchestrations are gone."""
        reason = "its orchestration was ended by hand, or is gone"

        def work(tables: Tables) -> None:
            tables.end(rollout_id, device_ids, DeviceState.FAILED, reason, now)

        if device_ids:
            await self._transact(work)

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
        stopped = tables.execute("stopped_lane", (request.rollout_id, lane)).fetchone()
        if stopped is not None:
            return Take(stop=stopped[0])
        rollout = tables.rollout(request.rollout_id)
        if rollout.generation != request.generation:
            return Take(stop="changed" if rollout.state == "running" else rollout.state)
        if rollout.state != "running":
            take = Take(stop=rollout.state)
        else:
            take = self._take_in_turn(tables, rollout, lane, request)
        if take.stop is not None:
            # On record, so that it is known how many live: and so it stays stopped though it asks again.
            tables.execute("stop_lane", (request.rollout_id, lane, take.stop))
        return take

    def _take_in_turn(self, tables: Tables, rollout: Rollout, lane: str, request: TakeRequest) -> Take:
        plan = rollout.plan
        if not schedule.open_at(plan.schedule.windows, instant(request.now)):
            return Take(stop="window")
        if self._ends(rollout, request.now):
            return Take(stop="deadline")
        counts = tables.ended(request.rollout_id)
        if should_abort(plan, counts, forgiven=rollout.forgiven) is not None:
            # One of the lanes tells: the others may be at their devices for long.
            first = tables.execute("lanes_stopped_by", (request.rollout_id, "abort")).fetchone()[0] == 0
            return Take(stop="abort", tell=first)
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


def _look_again_at(at: datetime | None) -> Json:
    """When an orchestration that waits for its lanes is to ask again all the same."""
    return {} if at is None else {"look_again_at": at.isoformat()}


def _is_news(rollout: Rollout, state: str, directive: Directive) -> bool:
    """Whether a change belongs into the log.

    How many are in flight or waited for does not; nor that a continuous rollout has devices again, and then
    none: it may go on so for weeks.
    """
    if isinstance(directive, Wait) and directive.cause not in ("in_flight", *_GROWING):
        return True
    if not isinstance(directive, Wait | RunWave):
        return True
    comes_and_goes = {rollout.state, state} == {"running", "waiting"} and rollout.continuous
    return rollout.state != state and not comes_and_goes


def _number(devices: int, chosen: Targets) -> str:
    held = Counter(hold.how for hold in chosen.busy.values())
    told = "".join(f", {count:,} in the hands of other runs ({how})" for how, count in sorted(held.items()))
    return f"{devices:,} device{'' if devices == 1 else 's'}{told}"
