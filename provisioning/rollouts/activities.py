"""The activities of rollouts. Each may run twice, and twice is as once.

| activity | why a second run does no harm |
|---|---|
| DecideRollout | it reads what is, and puts on record what follows from it |
| TakeDevice | a lane's n-th question is answered with the same device |
| StopRollout | what has been cancelled stays so |
| TellCancelled | a device that is told twice forgets once |
| EndLost | the first record of an outcome stays |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Protocol

from durabletask.task import ActivityContext

from broker import messages, topics
from provisioning.device_views import ENDED
from provisioning.engines import EngineClient

from . import orchestrations
from .records import UnknownRolloutError
from .store import RolloutStore, TakeRequest

Json = dict[str, Any]

_CANCELLED: Final = "the rollout was cancelled"


class Publisher(Protocol):
    """Where messages to devices go: `broker.connection.BrokerConnection`."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float) -> None:
        """Return at the broker's acknowledgement, or raise."""
        ...


class RolloutActivities:
    """The activities with what they need; their names are those of `orchestrations`."""

    def __init__(
        self,
        *,
        store: RolloutStore,
        client: EngineClient,
        publisher: Publisher,
        publish_timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._client = client
        self._publisher = publisher
        self._publish_timeout_s = publish_timeout_s
        self._clock = clock

    def named(self) -> dict[str, Callable[[ActivityContext, Json], Any]]:
        """The activities by name, to be registered with an engine or a worker."""
        return {
            orchestrations.DECIDE_ROLLOUT: self.decide_rollout,
            orchestrations.TAKE_DEVICE: self.take_device,
            orchestrations.STOP_ROLLOUT: self.stop_rollout,
            orchestrations.TELL_CANCELLED: self.tell_cancelled,
            orchestrations.END_LOST: self.end_lost,
        }

    async def decide_rollout(self, _ctx: ActivityContext, request: Json) -> Json:
        """What the rollout does next."""
        try:
            return await self._store.decide(
                request["rollout_id"], now=_seconds(request["now"]), under_way=request.get("under_way")
            )
        except UnknownRolloutError:  # started by hand: no other try would find it
            return {"do": "unknown"}

    async def take_device(self, _ctx: ActivityContext, request: Json) -> Json:
        """A device for a lane, or how long it has to wait, or why there is none for it."""
        take = await self._store.take(
            TakeRequest(
                rollout_id=request["rollout_id"],
                wave=request["wave"],
                generation=request["generation"],
                lane=request["lane"],
                seq=request["seq"],
                # What a crash has cut off is done again with the same input, maybe hours later: no device is
                # to be started in a window that has long been shut.
                now=max(_seconds(request["now"]), self._clock()),
            )
        )
        return take.to_json()

    async def stop_rollout(self, _ctx: ActivityContext, request: Json) -> list[str]:
        """End what was not started; the devices that are in flight."""
        return await self._store.stop(
            request["rollout_id"], force=request["force"], now=_seconds(request["now"])
        )

    async def tell_cancelled(self, _ctx: ActivityContext, request: Json) -> None:
        """Tell devices to forget their provisioning; returns when the broker has all of that."""
        for device_id in request["device_ids"]:
            instance_id = topics.instance_id_of(request["rollout_id"], device_id)
            command = messages.Cancel(instance_id=instance_id, reason=_CANCELLED)
            await self._publisher.publish(
                topics.command(device_id, "Cancel"), command.to_json(), timeout_s=self._publish_timeout_s
            )

    async def end_lost(self, _ctx: ActivityContext, request: Json) -> list[str]:
        """End devices whose orchestration is gone: those ``suspects`` that still are; returns new suspects.

        A lane that was ended by hand may have taken a device and begun with it a moment later: so twice.
        """
        rollout_id = request["rollout_id"]
        gone = []
        for device_id in await self._store.in_flight(rollout_id):
            instance_id = topics.instance_id_of(rollout_id, device_id)
            state = await self._client.get_orchestration_state(instance_id, fetch_payloads=False)
            if state is None or state.runtime_status in ENDED:
                gone.append(device_id)
        suspects = set(request["suspects"])
        lost = [device_id for device_id in gone if device_id in suspects]
        await self._store.end_lost(rollout_id, lost, now=_seconds(request["now"]))
        return [device_id for device_id in gone if device_id not in suspects]


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()
