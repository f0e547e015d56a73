"""Rollouts as operators see them: in short, whole with waves and reasons, and their logs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from provisioning.registry import Registry
from provisioning.state_directory import iso
from provisioning.states import FINAL, WORKING

from .facts import WaveFacts
from .judgement import success_percent
from .records import Rollout
from .tables import Counts, Tables, no_counts

MAX_LISTED: Final = 100
MAX_REASONS: Final = 20

_T = TypeVar("_T")
Json = dict[str, Any]


class RolloutViews:
    """What is shown of the rollouts of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

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
        return await self._ask(lambda tables: _whole(tables, tables.rollout(rollout_id), now))

    async def log(self, rollout_id: str) -> Sequence[Json]:
        """What was done to it, and what became of it; raises UnknownRolloutError."""

        def work(tables: Tables) -> Sequence[Json]:
            tables.rollout(rollout_id)
            return [
                {"at": iso(at), "actor": actor, "what": what, "detail": detail}
                for at, actor, what, detail in tables.execute("log", (rollout_id,))
            ]

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


def _whole(tables: Tables, rollout: Rollout, now: float) -> Json:
    waves = tables.wave_counts(rollout)
    short = _short(tables, rollout, waves)
    counts: Counts = short["counts"]
    ended = sum(counts[state] for state in FINAL)
    ended_at = tables.execute("ended_at", (rollout.rollout_id,)).fetchone()[0]
    began = rollout.started_at
    elapsed_s = None if began is None else max((ended_at if ended_at is not None else now) - began, 0.0)
    devices_per_s = ended / elapsed_s if elapsed_s else 0.0
    running = rollout.state in ("running", "cancelling")
    reasons = tables.execute("reasons", (rollout.rollout_id, MAX_REASONS))
    return {
        **short,
        "waves": [_wave(rollout, number, of_wave) for number, of_wave in enumerate(waves, start=1)],
        "in_flight": sum(counts[state] for state in WORKING),
        "elapsed_s": None if elapsed_s is None else round(elapsed_s, 3),
        "devices_per_s": round(devices_per_s, 3),
        "eta_s": round((short["devices"] - ended) / devices_per_s, 1) if running and devices_per_s else None,
        "reasons": [
            {"state": state, "reason": reason, "count": count, "example": example}
            for state, reason, count, example in reasons
        ],
        "started_at": None if began is None else iso(began),
        "plan": rollout.plan.to_json(),
    }


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
