"""The SDK's worker and client, made for one Durable Task backend: limits, time limits, credentials."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from durabletask.client import (
    AsyncTaskHubGrpcClient,
    OrchestrationQuery,
    OrchestrationState,
    Page,
    parse_orchestration_state,
)
from durabletask.grpc_options import GrpcChannelOptions, GrpcWorkerResiliencyOptions
from durabletask.internal.client_helpers import build_query_instances_req
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker

from .errors import SettingsError
from .settings import AZURE_CREDENTIAL, EngineSettings

_LOG = logging.getLogger(__name__)

MAX_ACTIVITIES = 256
"""Activities at once. Each waits in a thread, because the SDK's worker awaits nothing."""
MAX_ORCHESTRATIONS = 16
"""Orchestrators that take a turn at once; they have threads of their own beside the activities'."""
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The history of a run with all its devices goes over the wire at each of its turns."""
CALL_TIMEOUT_S = 10.0
"""What asks or tells the backend anything is answered within this time, or fails."""

PURGE_TIMEOUT_S = 120.0
"""A purge may be of very many instances."""

_RECONNECT_S = (0.5, 5.0)

# By gRPC's own service config, so that the calls which the SDK makes without a time limit have one; those
# that deliver a result wait for a backend that is just away, lest the work be done again.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "TaskHubSidecarService", "method": method}
                for method in (
                    *(
                        "StartInstance",
                        "GetInstance",
                        "RaiseEvent",
                        "QueryInstances",
                        "StreamInstanceHistory",
                    ),
                    *("TerminateInstance", "SuspendInstance", "ResumeInstance"),
                    *("RewindInstance", "RestartInstance"),
                )
            ],
            "timeout": f"{CALL_TIMEOUT_S}s",
        },
        {
            "name": [{"service": "TaskHubSidecarService", "method": "PurgeInstances"}],
            "timeout": f"{PURGE_TIMEOUT_S}s",
        },
        {
            "name": [
                {"service": "TaskHubSidecarService", "method": method}
                for method in (
                    "CompleteActivityTask",
                    "CompleteOrchestratorTask",
                    "AbandonTaskActivityWorkItem",
                    "AbandonTaskOrchestratorWorkItem",
                )
            ],
            "timeout": f"{CALL_TIMEOUT_S}s",
            "waitForReady": True,
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
    ]
}


async def query_page(
    client: AsyncTaskHubGrpcClient, query: OrchestrationQuery, continuation_token: str | None
) -> Page[OrchestrationState]:
    """One page of ``max_instance_count`` instances.

    The client's own method goes through all pages, however many; so this asks by its stub, which is no public
    part of it (the SDK's version is bounded in pyproject.toml).
    """
    request = build_query_instances_req(query, None)
    if continuation_token is not None:
        request.query.continuationToken.value = continuation_token
    answer = await client._get_stub().QueryInstances(request)
    last = answer.continuationToken.value
    return Page(
        [parse_orchestration_state(state) for state in answer.orchestrationState],
        last if last not in ("", "0", continuation_token) else None,
    )


async def _nothing_to_close() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Sdk:
    """The SDK's objects for one backend."""

    worker: TaskHubGrpcWorker
    client: AsyncTaskHubGrpcClient
    close_credentials: Callable[[], Awaitable[None]] = _nothing_to_close


def connect(settings: EngineSettings) -> Sdk:
    """The worker and the client for a backend; nothing is sent before they are used.

    Raises SettingsError where the packages for a task hub are missing.
    """
    # The SDK tells of every try to connect, and Azure's credentials of every token that they don't get, in
    # a dozen lines each time; we say once that the backend is away, and why.
    logger = _LOG.getChild("sdk")
    for teller in (logger, logging.getLogger("azure.identity")):
        teller.setLevel(logging.NOTSET if _LOG.isEnabledFor(logging.INFO) else logging.ERROR)
    channel_options = GrpcChannelOptions(
        max_receive_message_length=MAX_MESSAGE_BYTES,
        max_send_message_length=MAX_MESSAGE_BYTES,
        raw_options=[("grpc.enable_retries", 1), ("grpc.service_config", json.dumps(_SERVICE_CONFIG))],
    )
    first_s, longest_s = _RECONNECT_S
    resiliency_options = GrpcWorkerResiliencyOptions(
        hello_timeout_seconds=CALL_TIMEOUT_S,
        reconnect_backoff_base_seconds=first_s,
        reconnect_backoff_cap_seconds=longest_s,
    )
    concurrency_options = ConcurrencyOptions(
        maximum_concurrent_activity_work_items=MAX_ACTIVITIES,
        maximum_concurrent_orchestration_work_items=MAX_ORCHESTRATIONS,
        maximum_thread_pool_workers=MAX_ACTIVITIES + MAX_ORCHESTRATIONS,
    )
    if settings.task_hub is not None:
        return _scheduler_sdk(settings, logger, channel_options, resiliency_options, concurrency_options)
    metadata = None
    if settings.credential is not None:
        name, _, value = settings.credential.partition("=")
        metadata = [(name, value)]

    return Sdk(
        worker=TaskHubGrpcWorker(
            host_address=settings.endpoint,
            secure_channel=settings.tls,
            metadata=metadata,
            logger=logger,
            channel_options=channel_options,
            resiliency_options=resiliency_options,
            concurrency_options=concurrency_options,
        ),
        client=AsyncTaskHubGrpcClient(
            host_address=settings.endpoint,
            secure_channel=settings.tls,
            metadata=metadata,
            logger=logger,
            channel_options=channel_options,
        ),
    )


def _scheduler_sdk(
    settings: EngineSettings,
    logger: logging.Logger,
    channel_options: GrpcChannelOptions,
    resiliency_options: GrpcWorkerResiliencyOptions,
    concurrency_options: ConcurrencyOptions,
) -> Sdk:
    """For Azure's Durable Task Scheduler, and its emulator, which wants no credential."""
    try:
        from azure.identity import DefaultAzureCredential
        from azure.identity.aio import DefaultAzureCredential as AsyncDefaultAzureCredential
        from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient
        from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
    except ImportError as error:
        raise SettingsError(
            "MUSTER_ENGINE_TASKHUB is set, and the packages for Azure's Durable Task Scheduler are missing: "
            "pip install durabletask.azuremanaged, or unset it for another backend."
        ) from error
    assert settings.task_hub is not None
    azure = settings.credential == AZURE_CREDENTIAL
    credential = DefaultAzureCredential() if azure else None
    async_credential = AsyncDefaultAzureCredential() if azure else None

    async def close_credentials() -> None:
        if credential is not None:
            credential.close()
        if async_credential is not None:
            await async_credential.close()

    return Sdk(
        worker=DurableTaskSchedulerWorker(
            host_address=settings.endpoint,
            taskhub=settings.task_hub,
            token_credential=credential,
            secure_channel=settings.tls,
            logger=logger,
            channel_options=channel_options,
            resiliency_options=resiliency_options,
            concurrency_options=concurrency_options,
        ),
        client=AsyncDurableTaskSchedulerClient(
            host_address=settings.endpoint,
            taskhub=settings.task_hub,
            token_credential=async_credential,
            secure_channel=settings.tls,
            logger=logger,
            channel_options=channel_options,
        ),
        close_credentials=close_credentials,
    )
