"""Rollouts whose devices may come at any time: those that register, and those that another run had.

Both are put on record where they happen (a registration, the outcome in the other run). What is left for a
running service: let devices that have just registered join, and tell the orchestrations of rollouts that have
got devices for more lanes than they have. After a crash `Growth.start` looks at all devices once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final

from provisioning.engines import EngineStoppedError
from provisioning.errors import ProvisioningError

from .store import RolloutStore

_LOG = logging.getLogger(__name__)

LOOK_S: Final = 1.0
LONGEST_LOOK_S: Final = 60.0
"""Between two tellings of a rollout where nothing comes of it: it is paused, or its windows are shut."""
_GATHER_S: Final = 0.05
"""Devices of a fleet register within the same moment: they join together."""


@dataclass(slots=True)
class _Told:
    at: float
    interval_s: float


class Growth:
    """Looks after the growing rollouts of one service; at rest where there are none."""

    def __init__(
        self,
        *,
        store: RolloutStore,
        tell: Callable[[str], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._tell = tell
        self._clock = clock
        self._new = asyncio.Event()
        self._registered: set[str] = set()
        # False until it is known that none is continuous: what registers before is not to be missed.
        self._joinable = True
        # All devices are to be looked at once more: some may have registered while nobody looked.
        self._everyone = True
        self._told: dict[str, _Told] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin with a look at all devices."""
        self._task = asyncio.create_task(self._keep_looking(), name="growing-rollouts")

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def registered(self, device_ids: Collection[str]) -> None:
        """These have registered, on disk."""
        if self._joinable:
            self._registered.update(device_ids)
            self._new.set()

    def rollout_changed(self, *, created: bool = False) -> None:
        """There may be a growing rollout where there was none; ``created``: one that devices have missed."""
        self._joinable = True
        self._everyone = self._everyone or created
        self._new.set()

    async def _keep_looking(self) -> None:
        while True:
            self._new.clear()
            # Before it is looked which rollouts there are: one that is created meanwhile wakes this again.
            registered, self._registered = self._registered, set()
            everyone, self._everyone = self._everyone, False
            try:
                growing = await self._store.growing()
                continuous = any(growing.values())
                if continuous and (everyone or registered):
                    joined = await self._store.join(None if everyone else registered, now=self._clock())
                    registered, everyone = set(), False
                    # Told at once, if there is anything to tell: lanes that live may take them all.
                    for rollout_id in joined:
                        self._told.pop(rollout_id, None)
                await self._tell_waiting(growing)
                self._joinable = continuous or self._new.is_set()
                look_again = bool(growing)
            except EngineStoppedError:
                return
            except Exception as error:
                # An engine or a disk that is away, or a defect of ours: none is to end this.
                known = isinstance(error, ProvisioningError)
                _LOG.warning(
                    "could not look after the growing rollouts (%s); trying on", error, exc_info=not known
                )
                self._registered |= registered
                self._everyone = self._everyone or everyone
                look_again = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if look_again else None):
                    await self._new.wait()
            await asyncio.sleep(_GATHER_S)

    async def _tell_waiting(self, growing: Collection[str]) -> None:
        now = asyncio.get_running_loop().time()
        ready = await self._store.may_go_on(growing)
        self._told = {rollout_id: told for rollout_id, told in self._told.items() if rollout_id in ready}
        for rollout_id in ready:
            told = self._told.get(rollout_id)
            if told is None:
                self._told[rollout_id] = _Told(now, LOOK_S)
            elif now - told.at < told.interval_s:
                continue
            else:
                told.at, told.interval_s = now, min(told.interval_s * 2, LONGEST_LOOK_S)
            await self._tell(rollout_id)
