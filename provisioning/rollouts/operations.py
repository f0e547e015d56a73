"""What the service does for operators: create rollouts, show them, act on them, retry what failed in them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from broker.topics import instance_id_of
from provisioning.device_views import steps_of
from provisioning.engines import (
    EngineClient,
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
)
from provisioning.errors import EngineAwayError
from provisioning.registry import Registry

from .fitting import not_fitting_of_plan, not_fitting_of_rollout
from .growing import Growth
from .operators import RolloutActions
from .orchestrations import ROLLOUT_CHANGED, RolloutOrchestration
from .plan import RolloutPlan
from .records import NotInRolloutError, RolloutRefusedError
from .store import RolloutStore
from .views import RolloutViews

_LOG = logging.getLogger(__name__)

RETRIED_STATES: Final = ("failed", "timed_out")
_AWAY_INTERVAL_S: Final = 1.0

Json = dict[str, Any]


class Rollouts:
    """The rollouts of one service, on a loop with a running engine.

    The registry is told first and the engine second; `open` starts what a crash in between has left out.
    ``on_start`` is told of each rollout, whose end has to be watched as that of any run.
    ``default_release`` is how the release that comes with the service is called.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        store: RolloutStore,
        client: EngineClient,
        on_start: Callable[[str], None] = lambda rollout_id: None,
        default_release: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._default_release = default_release
        self._store = store
        self._views = RolloutViews(registry, store.rates)
        self._actions = RolloutActions(registry)
        self._client = client
        self._on_start = on_start
        self._clock = clock
        self._opening: set[asyncio.Task[None]] = set()
        self._growth = Growth(store=store, tell=self._tell, clock=clock)
        registry.on_registered = self._growth.registered

    async def open(self) -> list[str]:
        """Go on with the rollouts that have not ended; returns them.

        A service that died between the registry and the engine had told the former only: so each is started
        once more, which changes nothing where it runs, and told that something may have changed.
        """
        unfinished = list(await self._views.open())
        if unfinished:
            self._open_when_there(unfinished)
        self._growth.start()
        return unfinished

    async def close(self) -> None:
        """Start nothing more."""
        for task in list(self._opening):
            task.cancel()
            await asyncio.wait([task])
        await self._growth.close()

    def _open_when_there(self, rollout_ids: Sequence[str]) -> None:
        """Start and tell rollouts as soon as the engine answers: what they are to do is on record."""
        task = asyncio.create_task(self._keep_opening(rollout_ids), name="open-rollouts")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _keep_opening(self, rollout_ids: Sequence[str]) -> None:
        for rollout_id in rollout_ids:
            while True:
                try:
                    await self._start(rollout_id)
                    await self._tell(rollout_id)
                except EngineStoppedError:
                    return
                except EngineAwayError:
                    await asyncio.sleep(_AWAY_INTERVAL_S)
                else:
                    break

    async def create(self, document: Mapping[str, Any], *, actor: str) -> Json:
        """A new rollout; on disk, its devices claimed, when this returns."""
        return await self._create(self._read(document), actor=actor)

    async def preview(self, document: Mapping[str, Any]) -> Json:
        """What such a rollout would be: its plan with all defaults, its devices, the sizes of its waves.

        ``not_fitting`` is for how many devices its release is not.
        """
        plan = self._read(document)
        misfits = await not_fitting_of_plan(self._registry, plan)
        return {"plan": plan.to_json(), **await self._store.preview(plan), "not_fitting": misfits}

    def _read(self, document: Mapping[str, Any]) -> RolloutPlan:
        plan = RolloutPlan.from_json(document)
        if plan.release is not None and plan.release == self._default_release:
            return plan.model_copy(update={"release": None})
        return plan

    async def latest(self) -> Sequence[Json]:
        """The latest rollouts, in short."""
        return await self._views.latest()

    async def check(self, rollout_id: str) -> None:
        """Raises UnknownRolloutError."""
        await self._views.check(rollout_id)

    async def briefs(self, rollout_ids: Collection[str]) -> dict[str, Json]:
        """Those of the ids that are rollouts, with waves and pace, as they are on disk."""
        return await self._views.briefs(rollout_ids, now=self._clock())

    async def overview(self, *, ended: int) -> list[Json]:
        """All that have not ended and the latest few that have, as `briefs` has them, the latest first."""
        return list((await self.briefs(await self._views.shown(ended=ended))).values())

    async def view(self, rollout_id: str) -> Json:
        """One rollout with its waves, counts and reasons."""
        return await self._views.view(rollout_id, now=self._clock())

    async def devices(
        self,
        rollout_id: str,
        *,
        states: Sequence[str] | None = None,
        wave: int | None = None,
        after: str | None = None,
        limit: int,
    ) -> Json:
        """A page of a rollout's devices with what became of them in it."""
        return await self._views.devices(rollout_id, states=states, wave=wave, after=after, limit=limit)

    async def device(self, rollout_id: str, device_id: str) -> Json:
        """One device of a rollout with its steps in it; raises UnknownDeviceError too."""
        found = (await self._views.devices(rollout_id, device_id=device_id, limit=1))["devices"]
        if not found:
            raise NotInRolloutError(rollout_id, device_id)
        device: Json = found[0]
        # What has joined another run has its steps there.
        run_id = device["held_by"] if device["held"] == "join" else rollout_id
        instance_id = instance_id_of(run_id, device_id)
        return {**device, "instance_id": instance_id, **await steps_of(self._client, instance_id)}

    async def log(self, rollout_id: str) -> Sequence[Json]:
        """What was done to a rollout and what became of it, in order."""
        return await self._views.log(rollout_id)

    async def act(
        self,
        rollout_id: str,
        action: str,
        *,
        actor: str,
        reason: str | None = None,
        devices: Sequence[str] = (),
        pace: Mapping[str, Any] | None = None,
        versions: Collection[str] | None = None,
    ) -> Json:
        """Do what an operator asks; on disk when this returns. ``changed``: whether anything was to do.

        ``versions``: it is done to a rollout of one of these alone.
        """
        changed = await self._actions.act(
            rollout_id,
            action,
            actor=actor,
            now=self._clock(),
            reason=reason,
            devices=devices,
            pace=pace,
            versions=versions,
        )
        # Told though nothing has changed: who asks again may do so since the first time was cut off.
        try:
            await self._tell(rollout_id)
        except EngineAwayError as error:
            _LOG.warning("rollout %s is told when the engine is there: %s", rollout_id, error)
            self._open_when_there([rollout_id])
        self._growth.rollout_changed()
        return {"view": await self.view(rollout_id), "changed": changed}

    async def retry(self, rollout_id: str, *, actor: str, states: Sequence[str] = RETRIED_STATES) -> Json:
        """A new rollout by the same plan, of the devices that ended in one of ``states`` in another."""
        earlier = await self._views.view(rollout_id, now=self._clock())
        if earlier["ended_at"] is None:
            raise RolloutRefusedError(
                f"{rollout_id} has not ended: wait for it, or cancel it; then what failed is retried."
            )
        plan = RolloutPlan.from_json(
            {
                **earlier["plan"],
                "targets": {"failed_in": rollout_id, "failed_states": list(states)},
                # Once is enough of a time of the past.
                "schedule": {"windows": earlier["plan"]["schedule"]["windows"]},
            }
        )
        return await self._create(plan, actor=actor, retry_of=rollout_id)

    async def _create(self, plan: RolloutPlan, *, actor: str, retry_of: str | None = None) -> Json:
        rollout_id = f"rollout-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        devices = await self._store.create(
            rollout_id, plan, actor=actor, now=self._clock(), retry_of=retry_of
        )
        _LOG.info("rollout %s: %d devices", rollout_id, devices)
        # Before its start, which may take long: what registered since its creation must not be missed.
        self._growth.rollout_changed(created=plan.targets.continuous)
        misfits = await not_fitting_of_rollout(self._registry, plan, rollout_id)
        try:
            await self._start(rollout_id)
        except EngineAwayError as error:
            _LOG.warning("rollout %s starts when the engine is there: %s", rollout_id, error)
            self._open_when_there([rollout_id])
        return {**await self.view(rollout_id), "not_fitting": misfits}

    async def _start(self, rollout_id: str) -> None:
        try:
            await self._client.schedule_new_orchestration(
                RolloutOrchestration, input={"rollout_id": rollout_id}, instance_id=rollout_id
            )
        except OrchestrationAlreadyExistsError:
            # By the life before this one.
            _LOG.debug("%s runs already", rollout_id)
        self._on_start(rollout_id)

    async def _tell(self, rollout_id: str) -> None:
        try:
            await self._client.raise_orchestration_event(rollout_id, ROLLOUT_CHANGED)
        except OrchestrationNotFoundError:
            await self._start(rollout_id)
