"""What operators do to a rollout while it runs: on record with time and actor, and once however often asked.

The store is told first and the orchestration second; lanes find out at their next question, as each of these
begins a new generation of them, or changes what they are told.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from provisioning.errors import UnknownDeviceError, name_some
from provisioning.registry import Registry
from provisioning.states import DeviceState

from .plan import RolloutPlan
from .records import How, Rollout, RolloutChangedError, RolloutRefusedError
from .tables import Tables
from .targets import let_join, settle


class RolloutActions:
    """The actions on the rollouts of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def act(
        self,
        rollout_id: str,
        action: str,
        *,
        actor: str,
        now: float,
        reason: str | None = None,
        devices: Sequence[str] = (),
        pace: Mapping[str, Any] | None = None,
        versions: Collection[str] | None = None,
    ) -> bool:
        """Do what an operator asks; False where it changes nothing. On record, with time and actor.

        Raises UnknownRolloutError, RolloutRefusedError for what can't be as the rollout is, and
        RolloutChangedError where its version is none of ``versions``.
        """
        await self._registry.flush()

        def work(tables: Tables) -> bool:
            rollout = tables.rollout(rollout_id)
            if versions is not None and tables.version(rollout) not in versions:
                raise RolloutChangedError(rollout_id, rollout.state)
            if rollout.ended:
                raise RolloutRefusedError(
                    f"{rollout_id} has ended ({rollout.state}): `muster rollout retry` makes another of "
                    f"those that failed."
                )
            before = dataclasses.replace(rollout)
            detail = reason
            match action:
                case "pause":
                    self._pause(rollout, reason, actor)
                case "resume":
                    self._resume(rollout, tables.ended(rollout_id))
                case "approve":
                    self._approve(rollout)
                case "next":
                    self._next(rollout)
                case "cancel" | "force_cancel":
                    self._cancel_rollout(rollout, "force" if action == "force_cancel" else "finish", actor)
                case "exclude":
                    detail = self._exclude(tables, rollout_id, devices, actor, now)
                    changed = detail is not None
                case "add":
                    detail = self._add(tables, rollout, devices, now)
                    changed = detail is not None
                case "pace":
                    detail = self._set_pace(tables, rollout, pace or {})
                case _:
                    raise RolloutRefusedError(
                        f"There is no action {action!r}: use pause, resume, approve, next, cancel, "
                        f"force_cancel, exclude, add or pace."
                    )
            if action not in ("exclude", "add"):
                changed = rollout != before
            if changed:
                tables.update(rollout)
                tables.log(rollout_id, now, actor, action, detail)
            return changed

        return await self._registry.transact(lambda database: work(Tables(self._registry, database)))

    def _pause(self, rollout: Rollout, reason: str | None, actor: str) -> None:
        if rollout.cancel is not None:
            raise RolloutRefusedError(
                f"{rollout.rollout_id} is being cancelled: it can't be paused any more."
            )
        if rollout.paused is None:
            rollout.paused = f"by {actor}" + (f", {reason}." if reason else ".")
            rollout.state, rollout.reason = "paused", f"Paused: {rollout.paused}"
            rollout.generation += 1

    def _resume(self, rollout: Rollout, ended: Mapping[DeviceState, int]) -> None:
        # What has paused it by itself counts from now on: an operator has looked, and goes on.
        if rollout.paused is None and rollout.state == "paused":
            self._approve(rollout)
        elif rollout.paused is not None:
            rollout.paused = None
            # At once: asked again it must not be taken for what approves a wave.
            rollout.state, rollout.reason = "running", None
            rollout.generation += 1
            rollout.forgiven_json = json.dumps({str(state): count for state, count in ended.items() if count})

    def _approve(self, rollout: Rollout) -> None:
        wave = max(rollout.wave, 1)
        if wave in rollout.approved:
            return
        by_threshold = rollout.state == "paused" and rollout.paused is None
        if rollout.state != "awaiting_approval" and not by_threshold:
            raise RolloutRefusedError(
                f"{rollout.rollout_id} waits for no approval ({rollout.state}): `muster rollout show "
                f"{rollout.rollout_id}` says what it does."
            )
        rollout.approved_json = json.dumps(sorted({*rollout.approved, wave}))

    def _next(self, rollout: Rollout) -> None:
        following = max(rollout.wave, 1) + 1
        if rollout.cancel is not None or following > len(rollout.plan.waves):
            raise RolloutRefusedError(f"{rollout.rollout_id} has no next wave ({rollout.state}).")
        if rollout.skipped_to < following:
            rollout.skipped_to = following
            rollout.generation += 1

    def _cancel_rollout(self, rollout: Rollout, how: How, actor: str) -> None:
        if rollout.cancel == "force" or rollout.cancel == how:
            return
        rollout.cancel = how
        rollout.state, rollout.reason = "cancelling", f"Cancelled by {actor}."
        rollout.generation += 1

    def _exclude(
        self, tables: Tables, rollout_id: str, devices: Sequence[str], actor: str, now: float
    ) -> str | None:
        """Leave devices out that nobody has started; those that are under way go on. None: there was none."""
        found = tables.column("not_started", rollout_id, json.dumps(list(devices)))
        if not found:
            return None
        tables.cancel(rollout_id, found, f"excluded by {actor}", now)
        return name_some(found)

    def _add(self, tables: Tables, rollout: Rollout, devices: Sequence[str], now: float) -> str | None:
        """Let devices join the last wave; None where all are in it already."""
        if rollout.cancel is not None:
            raise RolloutRefusedError(f"{rollout.rollout_id} is being cancelled: nothing can join it.")
        known = tables.known(devices)
        if unknown := [device_id for device_id in devices if device_id not in known]:
            raise UnknownDeviceError(unknown)
        mine = set(tables.column("members", rollout.rollout_id, json.dumps(list(devices))))
        others = {device_id: state for device_id, state in known.items() if device_id not in mine}
        joined = let_join(tables, rollout, settle(tables, rollout.plan, others), now)
        return name_some(joined) if joined else None

    def _set_pace(self, tables: Tables, rollout: Rollout, pace: Mapping[str, Any]) -> str:
        document = rollout.plan.to_json()
        plan = RolloutPlan.from_json({**document, "pace": {**document["pace"], **pace}})
        if plan != rollout.plan:
            # The lanes stop, and as many as there are to be now start.
            tables.write_plan(rollout.rollout_id, plan)
            rollout.plan_version += 1
            rollout.generation += 1
        return ", ".join(f"{name} {json.dumps(value)}" for name, value in pace.items())
