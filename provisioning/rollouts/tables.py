"""The tables of rollouts within one transaction: rows read and written, no decision made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from provisioning.errors import name_some
from provisioning.registry import Registry, statements
from provisioning.releases.tables import ReleaseTables
from provisioning.states import FINAL, WORKING, DeviceState

from .facts import Facts, WaveFacts
from .plan import RolloutPlan
from .records import Member, Rollout, UnknownRolloutError

_SQL: Final = statements(__package__, "statements.sql")
_COLUMNS: Final = tuple(f.name for f in dataclasses.fields(Rollout) if f.name != "plan")
# Plans by rollout and version, as they were read: a large one is not to be read for each device.
_PLANS: Final[WeakKeyDictionary[Registry, dict[tuple[str, int], RolloutPlan]]] = WeakKeyDictionary()
_MAX_PLANS: Final = 64
_FINAL_IN_ORDER: Final = tuple(state for state in DeviceState if state in FINAL)

Counts = dict[str, int]


class Known(NamedTuple):
    """What the registry says of a device."""

    state: str
    run_id: str | None


class Tables:
    """One connection to the registry's file, within a transaction of the caller's."""

    def __init__(self, registry: Registry, database: sqlite3.Connection) -> None:
        self._registry = registry
        self._database = database
        self.releases = ReleaseTables(database)

    def execute(self, name: str, arguments: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute the statement of that name."""
        return self._database.execute(_SQL[name], arguments)

    def column(self, name: str, *arguments: Any) -> list[str]:
        """The first column of what a statement finds."""
        return [row[0] for row in self.execute(name, arguments)]

    def rollout(self, rollout_id: str) -> Rollout:
        """One rollout; raises UnknownRolloutError."""
        row = self.execute("rollout", (rollout_id,)).fetchone()
        if row is None:
            raise UnknownRolloutError(rollout_id)
        return self._rollout(row)

    def rollouts(self, limit: int) -> list[Rollout]:
        """The latest ones first."""
        return [self._rollout(row) for row in self.execute("rollouts", (limit,))]

    def _rollout(self, row: tuple[Any, ...]) -> Rollout:
        columns = dict(zip(_COLUMNS, row, strict=True))
        columns["continuous"] = bool(columns["continuous"])
        return Rollout(**columns, plan=self._plan(columns["rollout_id"], columns["plan_version"]))

    def _plan(self, rollout_id: str, version: int) -> RolloutPlan:
        known = _PLANS.setdefault(self._registry, {})
        plan = known.get((rollout_id, version))
        if plan is None:
            text = self.execute("plan", (rollout_id,)).fetchone()[0]
            plan = RolloutPlan.from_json(json.loads(text))
            if len(known) >= _MAX_PLANS:
                known.clear()
            known[rollout_id, version] = plan
        return plan

    def create(self, rollout_id: str, plan: RolloutPlan, *, retry_of: str | None, now: float) -> None:
        """A new rollout without devices, and the run that it is."""
        targets = plan.targets
        states = None if targets.states is None else json.dumps([str(state) for state in targets.states])
        self.execute("create_run", (rollout_id, now, 0, json.dumps(plan.options.to_json()), plan.release))
        self.execute("create", (rollout_id, retry_of, now, int(targets.continuous), states))
        self.write_plan(rollout_id, plan)

    def write_plan(self, rollout_id: str, plan: RolloutPlan) -> None:
        """Keep a plan; whoever changes one counts the rollout's `plan_version` up."""
        self.execute("write_plan", (rollout_id, json.dumps(plan.to_json())))

    def update(self, rollout: Rollout) -> None:
        """Write what may have changed of a rollout, but for its plan."""
        self.execute(
            "update",
            (
                rollout.rollout_id,
                rollout.started_at,
                rollout.state,
                rollout.reason,
                rollout.wave,
                rollout.generation,
                rollout.paused,
                rollout.approved_json,
                rollout.skipped_to,
                rollout.forgiven_json,
                rollout.cancel,
                rollout.cancelled,
                rollout.taken,
                rollout.next_at,
                rollout.plan_version,
                rollout.lanes,
            ),
        )

    def version(self, rollout: Rollout) -> str:
        """Another one whenever its course has changed: its state, its plan, what operators did. Not with each
        device that ends, or an operator could never act on what he has seen.
        """
        last = self.execute("last_log", (rollout.rollout_id,)).fetchone()
        course = (rollout.state, rollout.wave, rollout.generation, rollout.plan_version, last and last[0])
        return hashlib.blake2b(json.dumps(course).encode(), digest_size=8).hexdigest()

    def log(self, rollout_id: str, now: float, actor: str, what: str, detail: str | None) -> None:
        """Add a line to the rollout's log."""
        self.execute("write_log", (rollout_id, now, actor, what, detail))

    def log_joined(self, rollout_id: str, now: float, actor: str, joined: Sequence[str]) -> None:
        """Say in the log which devices have joined; one line for all that do with nothing between them."""
        last = self.execute("last_log", (rollout_id,)).fetchone()
        count = len(joined)
        if last is not None and last[1] == "joined":
            count += int(last[2].partition(" ")[0].replace(",", ""))
            self.execute("forget_log", (rollout_id, last[0]))
        detail = f"{count:,} device{'' if count == 1 else 's'}, the latest {name_some(joined)}"
        self.log(rollout_id, now, actor, "joined", detail)

    def known(self, device_ids: Sequence[str]) -> dict[str, Known]:
        """State and latest run of those of the devices that are registered, in order of id."""
        return {row[0]: Known(*row[1:]) for row in self.execute("named", (json.dumps(list(device_ids)),))}

    def claim(self, rollout_id: str, device_ids: Sequence[str], now: float) -> list[str]:
        """Give the rollout those of the devices that may be queued; returns them, in order of id."""
        as_json = json.dumps(list(device_ids))
        self.execute("claim", (rollout_id, now, as_json))
        return sorted(self.column("claimed", rollout_id, as_json))

    def join(self, rollout_id: str, members: Iterable[Member]) -> None:
        """Let devices be of the rollout."""
        rows = [dataclasses.astuple(member) for member in members]
        self.execute("add_devices", (rollout_id, json.dumps(rows)))
        self.execute("count_run", (rollout_id, len(rows)))
        if any(row[3] is not None for row in rows):
            self.execute("overlaps", (rollout_id,))

    def end(
        self, rollout_id: str, device_ids: Sequence[str], state: DeviceState, reason: str, now: float
    ) -> None:
        """Record the outcome of devices for which no orchestration does."""
        rows = json.dumps(
            [(rollout_id, device_id, state, 0, reason, now, *[None] * 6) for device_id in device_ids]
        )
        self._database.execute(self._registry.sql("outcomes"), (rows,))
        self._database.execute(self._registry.sql("finish"), (rows,))

    def cancel(self, rollout_id: str, device_ids: Sequence[str], reason: str, now: float) -> None:
        """End devices that were not started as cancelled."""
        self.end(rollout_id, device_ids, DeviceState.CANCELLED, reason, now)

    def ended(self, rollout_id: str) -> dict[DeviceState, int]:
        """How many devices have ended how; as quick with a million devices as with one."""
        counts = dict.fromkeys(FINAL, 0)
        for _, state, count, _ in self.execute("counts", (rollout_id,)):
            counts[DeviceState(state)] += count
        return counts

    def facts(self, rollout: Rollout, now: float) -> Facts:
        """What is so, for `decisions.decide`."""
        # Of those that have ended nobody reads the rows: a continuous rollout has ever more of them.
        in_flight = dict(self.execute("in_flight_by_wave", (rollout.rollout_id,)))
        pending: dict[int, int] = {}
        held: dict[int, int] = {}
        for wave, count, of_others in self.execute("waiting", (rollout.rollout_id,)):
            pending[wave] = pending.get(wave, 0) + count
            held[wave] = held.get(wave, 0) + of_others
        ended: dict[int, dict[DeviceState, int]] = {}
        last: dict[int, float] = {}
        for wave, state, count, last_at in self.execute("counts", (rollout.rollout_id,)):
            ended.setdefault(wave, {})[DeviceState(state)] = count
            last[wave] = max(last.get(wave, 0.0), last_at)
        waves = []
        for number in range(1, len(rollout.plan.waves) + 1):
            counts = ended.get(number, {})
            under_way = pending.get(number, 0) + in_flight.get(number, 0)
            size, done = under_way + sum(counts.values()), not under_way and number in last
            waves.append(
                WaveFacts(
                    devices=size,
                    pending=pending.get(number, 0),
                    held=held.get(number, 0),
                    ended=counts,
                    ended_at=instant(last[number]) if done else None,
                )
            )
        return Facts(
            now=instant(now),
            created_at=instant(rollout.created_at),
            started_at=None if rollout.started_at is None else instant(rollout.started_at),
            waves=tuple(waves),
            wave=max(rollout.wave, 1),
            paused=rollout.paused,
            approved_waves=rollout.approved,
            skipped_to=rollout.skipped_to,
            cancel=rollout.cancel,
            cancel_reason=rollout.reason if rollout.state == "cancelling" else None,
            cancelled=rollout.cancelled,
            forgiven=rollout.forgiven,
        )

    def wave_counts(self, rollout: Rollout) -> list[Counts]:
        """The devices of each wave by state, ``pending`` those not started: they add up to its size."""
        waves = [no_counts() for _ in rollout.plan.waves]
        for wave, state, count, _ in self.execute("counts", (rollout.rollout_id,)):
            waves[wave - 1][state] += count
        for wave, count, _ in self.execute("waiting", (rollout.rollout_id,)):
            waves[wave - 1]["pending"] += count
        for wave, state, count in self.execute("states", (rollout.rollout_id,)):
            waves[wave - 1][state if state in WORKING else DeviceState.QUEUED] += count
        for wave, size in self.execute("wave_sizes", (rollout.rollout_id,)):
            counts = waves[wave - 1]
            counts[DeviceState.QUEUED] += size - sum(counts.values())
        return waves


def no_counts() -> Counts:
    """No device in any state."""
    return {"pending": 0, **{str(state): 0 for state in (*WORKING, *_FINAL_IN_ORDER)}}


def instant(seconds: float) -> datetime:
    """Seconds since the epoch as an aware time."""
    return datetime.fromtimestamp(seconds, UTC)
