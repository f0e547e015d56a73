"""The synchronous client: each method is the asynchronous one, waited for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from durabletask.serialization import DataConverter

from provisioning.engine.client import AsyncTaskHubClient
from provisioning.engine.hub import AnyHub, HubHold, hub_of

P = ParamSpec("P")
R = TypeVar("R")


def _waiting(
    method: Callable[Concatenate[AsyncTaskHubClient, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[TaskHubClient, P], R]:
    @functools.wraps(method)
    def call(self: TaskHubClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        client = self._client
        return self._hold.call(lambda engine: client.on(engine, method, *args, **kwargs))

    return call


class TaskHubClient:
    """Client of a task hub of this process, from any thread, one with a running event loop too.

    Made where ``durabletask.client.TaskHubGrpcClient`` was; ``hub`` is a :class:`TaskHub`, or the path of
    its file, ``taskhub.db`` by default. The hub is opened by the first call. Close the client, lest the hub
    be open until the process ends.

    All methods are those of :class:`AsyncTaskHubClient`, and raise the same. RuntimeError where waiting
    would be for ever: in an orchestrator or an asynchronous activity.
    """

    def __init__(
        self,
        *,
        hub: AnyHub | None = None,
        default_version: str | None = None,
        data_converter: DataConverter | None = None,
    ) -> None:
        named = hub_of(hub)
        self._client = AsyncTaskHubClient(
            hub=named, default_version=default_version, data_converter=data_converter
        )
        self._hold = HubHold(named)

    def __repr__(self) -> str:
        return f"TaskHubClient(hub={self._hold.hub!r})"

    @property
    def default_version(self) -> str | None:
        """Of orchestrations that are scheduled without one."""
        return self._client.default_version

    @default_version.setter
    def default_version(self, version: str | None) -> None:
        self._client.default_version = version

    def close(self) -> None:
        """Let go of the hub; returns when it is closed, if nobody else uses it. Again: no effect."""
        self._hold.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    schedule_new_orchestration = _waiting(AsyncTaskHubClient.schedule_new_orchestration)
    get_orchestration_state = _waiting(AsyncTaskHubClient.get_orchestration_state)
    get_orchestration_history = _waiting(AsyncTaskHubClient.get_orchestration_history)
    list_instance_ids = _waiting(AsyncTaskHubClient.list_instance_ids)
    get_all_orchestration_states = _waiting(AsyncTaskHubClient.get_all_orchestration_states)
    get_orchestration_states_page = _waiting(AsyncTaskHubClient.get_orchestration_states_page)
    wait_for_orchestration_start = _waiting(AsyncTaskHubClient.wait_for_orchestration_start)
    wait_for_orchestration_completion = _waiting(AsyncTaskHubClient.wait_for_orchestration_completion)
    raise_orchestration_event = _waiting(AsyncTaskHubClient.raise_orchestration_event)
    terminate_orchestration = _waiting(AsyncTaskHubClient.terminate_orchestration)
    suspend_orchestration = _waiting(AsyncTaskHubClient.suspend_orchestration)
    resume_orchestration = _waiting(AsyncTaskHubClient.resume_orchestration)
    rewind_orchestration = _waiting(AsyncTaskHubClient.rewind_orchestration)
    restart_orchestration = _waiting(AsyncTaskHubClient.restart_orchestration)
    purge_orchestration = _waiting(AsyncTaskHubClient.purge_orchestration)
    purge_orchestrations_by = _waiting(AsyncTaskHubClient.purge_orchestrations_by)
    signal_entity = _waiting(AsyncTaskHubClient.signal_entity)
    get_entity = _waiting(AsyncTaskHubClient.get_entity)
    get_all_entities = _waiting(AsyncTaskHubClient.get_all_entities)
    clean_entity_storage = _waiting(AsyncTaskHubClient.clean_entity_storage)
