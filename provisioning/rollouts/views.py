"""Rollouts as operators see them: in short, whole with waves and reasons, and their logs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeVar

from provisioning.registry import STEPS, Registry
from provisioning.state_directory import iso
from provisioning.states import FINAL, WORKING

from .facts import WaveFacts
from .judgement import success_percent
from .rates import Rates
from .records import Rollout
from .tables import Counts, Tables, no_counts

MAX_LISTED: Final = 100
MAX_REASONS: Final = 20
MAX_NAMED: Final = 100
"""Device ids of a plan that a view shows."""

_T = TypeVar("_T")
Json = dict[str, Any]


class RolloutViews:
    """What is shown of the rollouts of one registry."""

    def __init__(self, registry: Registry, rates: Rates | None = None) -> None:
        self._registry = registry
        self._rates = rates or Rates()

    async def open(self) -> Sequence[str]:
        """The ids of those that have not ended, the oldest first."""
        return await self._ask(lambda tables: tables.column("open_rollouts"))

    async def latest(self) -> Sequence[Json]:
        """The latest first, in short."""
        await self._registry.flush()
        return await self._ask(
            lambda tables: [
                _short(tables, rollout, tables.wave_counts(rollout))
                for rollout in tables.rollouts(MAX_LISTED)
            ]
        )

    async def view(self, rollout_id: str, *, now: float) -> Json:
        """One rollout, whole; raises UnknownRolloutError."""
        await self._registry.flush()
        return await self._ask(lambda tables: _whole(tables, tables.rollout(rollout_id), now, self._rates))

    async def check(self, rollout_id: str) -> None:
        """Raises UnknownRolloutError."""
        await self._ask(lambda tables: tables.rollout(rollout_id))

    async def briefs(self, rollout_ids: Collection[str], *, now: float) -> dict[str, Json]:
        """Those of the ids that are rollouts, in short but with their waves and pace, as they are on disk."""

        def work(tables: Tables) -> dict[str, Json]:
            known = set(tables.column("known", json.dumps(list(rollout_ids))))
            return {
                rollout_id: _brief(tables, tables.rollout(rollout_id), now, self._rates)
                for rollout_id in rollout_ids
                if rollout_id in known
            }

        return await self._ask(work)

    async def shown(self, *, ended: int) -> list[str]:
        """The ids of all that have not ended and of the latest few that have, the latest first."""
        return await self._ask(lambda tables: tables.column("shown", ended))

    async def log(self, rollout_id: str) -> Sequence[Json]:
        """What was done to it, and what became of it; raises UnknownRolloutError."""

        def work(tables: Tables) -> Sequence[Json]:
            tables.rollout(rollout_id)
            return [
                {"at": iso(at), "actor": actor, "what": what, "detail": detail}
                for at, actor, what, detail in tables.execute("log", (rollout_id,))
            ]

        return await self._ask(work)

    async def devices(
        self,
        rollout_id: str,
        *,
        states: Sequence[str] | None = None,
        wave: int | None = None,
        after: str | None = None,
        device_id: str | None = None,
        limit: int,
    ) -> Json:
        """A page of a rollout's devices in order of id, with ``next`` (the last id, where there are more) and
        ``total`` (of the states and the wave); raises UnknownRolloutError.
        """
        await self._registry.flush()

        def work(tables: Tables) -> Json:
            rollout = tables.rollout(rollout_id)
            wanted = None if states is None else json.dumps(list(states))
            rows = tables.execute(
                "devices", (rollout_id, wanted, wave, after, limit + 1, device_id)
            ).fetchall()
            of_wave = tables.wave_counts(rollout)
            counted = of_wave if wave is None else of_wave[wave - 1 : wave]
            counts = _sum(counted)
            return {
                "devices": [_device(row) for row in rows[:limit]],
                "next": rows[limit - 1][0] if len(rows) > limit else None,
                "total": sum(counts[state] for state in (counts if states is None else set(states))),
            }

        return await self._ask(work)

    async def _ask(self, work: Callable[[Tables], _T]) -> _T:
        """``work`` sees the file as it is at one moment, in all of its statements."""

        def reading(database: sqlite3.Connection) -> _T:
            database.execute("BEGIN")
            try:
                return work(Tables(self._registry, database))
            finally:
                database.execute("COMMIT")

        return await self._registry.ask(reading)


def _short(tables: Tables, rollout: Rollout, waves: Sequence[Counts]) -> Json:
    ended_at = tables.execute("ended_at", (rollout.rollout_id,)).fetchone()[0]
    return {
        "rollout_id": rollout.rollout_id,
        "name": rollout.plan.name,
        "release": rollout.plan.release,
        "state": rollout.state,
        "reason": rollout.reason,
        "wave": rollout.wave,
        "waves": len(waves),
        "devices": sum(sum(counts.values()) for counts in waves),
        "counts": _sum(waves),
        "created_at": iso(rollout.created_at),
        "ended_at": None if ended_at is None else iso(ended_at),
        "retry_of": rollout.retry_of,
    }


def _brief(tables: Tables, rollout: Rollout, now: float, rates: Rates) -> Json:
    waves = tables.wave_counts(rollout)
    short = _short(tables, rollout, waves)
    counts: Counts = short["counts"]
    ended = sum(counts[state] for state in FINAL)
    ended_at = tables.execute("ended_at", (rollout.rollout_id,)).fetchone()[0]
    began = rollout.started_at
    elapsed_s = None if began is None else max((ended_at if ended_at is not None else now) - began, 0.0)
    devices_per_s = ended / elapsed_s if elapsed_s else 0.0
    running = rollout.state in ("running", "cancelling")
    if running:
        rates.note(rollout.rollout_id, now, ended)
        of_late = rates.of_late(rollout.rollout_id, now, ended)
        devices_per_s = devices_per_s if of_late is None else of_late
    return {
        **short,
        "waves": [_wave(rollout, number, of_wave) for number, of_wave in enumerate(waves, start=1)],
        "in_flight": sum(counts[state] for state in WORKING),
        "elapsed_s": None if elapsed_s is None else round(elapsed_s, 3),
        "devices_per_s": round(devices_per_s, 3),
        "eta_s": round((short["devices"] - ended) / devices_per_s, 1) if running and devices_per_s else None,
    }


def _whole(tables: Tables, rollout: Rollout, now: float, rates: Rates) -> Json:
    began = rollout.started_at
    reasons = tables.execute("reasons", (rollout.rollout_id, MAX_REASONS))
    return {
        **_brief(tables, rollout, now, rates),
        "version": tables.version(rollout),
        "reasons": [
            {"state": state, "reason": reason, "count": count, "example": example}
            for state, reason, count, example in reasons
        ],
        "started_at": None if began is None else iso(began),
        "held": [
            {"run_id": run_id, "how": how, "devices": count}
            for run_id, how, count in tables.execute("held", (rollout.rollout_id,))
        ],
        "plan": _plan(rollout),
    }


def _device(row: Sequence[Any]) -> Json:
    ended_at, device_s, *steps_s = row[12:]
    return {
        "device_id": row[0],
        "wave": row[1],
        "place": row[2],
        "state": row[3],
        "held": row[4],
        "held_by": row[5],
        "attempts": row[6],
        "progress": row[7],
        "error": row[8],
        "online": bool(row[9]),
        "model": row[10],
        "firmware_version": row[11],
        "ended_at": None if ended_at is None else iso(ended_at),
        "device_s": device_s,
        "steps_s": dict(zip(STEPS, steps_s, strict=True)),
    }


def _plan(rollout: Rollout) -> Json:
    """The plan; of ids that it names one by one no more than people read. The devices are another page."""
    plan = rollout.plan.to_json()
    for key in ("devices", "exclude"):
        named = plan["targets"][key]
        if named is not None and len(named) > MAX_NAMED:
            plan["targets"][key] = named[:MAX_NAMED]
            plan["targets"][f"{key}_named"] = len(named)
    return plan


def _wave(rollout: Rollout, number: int, counts: Counts) -> Json:
    devices = sum(counts.values())
    facts = WaveFacts(
        devices=devices, pending=counts["pending"], ended={state: counts[state] for state in FINAL}
    )
    share = success_percent(facts)
    if facts.done and (number <= rollout.wave or rollout.ended):
        state = "done"
    elif number > rollout.wave:
        state = "pending"
    else:
        state = rollout.state if rollout.state in ("paused", "waiting") else "running"
    return {
        "number": number,
        "devices": devices,
        "state": state,
        "counts": counts,
        "success_percent": None if share is None else round(share, 1),
    }


def _sum(waves: Sequence[Counts]) -> Counts:
    return {state: sum(counts[state] for counts in waves) for state in no_counts()}
