"""The service: everything wired together, and what the HTTP API asks of it.

Order matters. Up: registry, blob storage, broker connection, engine (which resumes what a crash cut off),
bridge, API. Down: API, bridge, engine, then what the engine's activities use. Where the broker, blob storage
or an engine's backend is away, the service starts all the same and goes on trying.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Generator
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from broker.connection import BrokerConnection, ConnectionOptions
from broker.identity import SERVICE_ACCOUNT, GroupKeyError, read_group_key

from . import __version__
from .activities import Activities
from .api import create_api
from .bridge import SUBSCRIPTIONS, Bridge
from .engines import ENGINE_FILE, ManagementClient, OrchestrationEngine, create_engine
from .enrolment.group_key import provide_group_key
from .enrolment.store import Access, Enrolments
from .errors import (
    ProvisioningError,
    SettingsError,
    StateError,
    StateVersionError,
    UnavailableError,
)
from .events.api import Events
from .events.feed import Feed
from .events.hub import Hub
from .fleet_check import check_fleet
from .fleets import FleetLauncher, FleetRecord, FleetRequest, page_of
from .http.access import Access as ApiAccess
from .http.instances import Instances
from .http.serving import Server, listen, url_of
from .inspection.devices import Devices
from .inspection.overview import Inspection
from .orchestrations import DeviceProvisioningOrchestration, ProvisionNewDevices
from .package_store import PackageStore
from .packages import Release
from .registry import Registry, RegistryError, RegistryFormatError
from .releases.store import Releases
from .rollouts.activities import RolloutActivities
from .rollouts.operations import Rollouts
from .rollouts.orchestrations import LaneOrchestration, RolloutOrchestration, WaveOrchestration
from .rollouts.store import RolloutStore
from .runs import Runs
from .sas import SharedUrls, policy_of
from .settings import DEFAULT_API_PORT, RunOptions, ServiceSettings
from .signing import KeyRing
from .state_directory import SERVICE_RECORD, iso, owned, prepare_state_directory, readable, write_atomically

__all__ = ["Service", "prepare_state_directory", "run_service"]

_LOG = logging.getLogger(__name__)

_SERVER_START_TIMEOUT_S = 10.0
_LAST_CALLS_S = 2
"""For how long calls that are under way at the stop may go on; then they are answered that it stops."""


Json = dict[str, Any]


class Service:
    """One provisioning service on one state directory.

        async with Service(settings) as service:
            await service.wait_closed()

    Entering raises StateBusyError, StateVersionError, StateError, PortBusyError or SettingsError; it does
    not wait for the broker, blob storage or an engine's backend.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        fleet_launcher: FleetLauncher | None = None,
        *,
        access: Access | None = None,
    ) -> None:
        """``access`` lets devices in at the broker; None where it is somebody else's, or open to all."""
        self.settings = settings
        self._access = access
        self.url = ""
        """Where the API is; set on entering."""
        self._launcher = fleet_launcher
        self._stack = AsyncExitStack()
        self._started_at = time.time()
        self._close_asked = asyncio.Event()
        self._keys: KeyRing
        self._registry: Registry
        self._store: PackageStore
        self._connection: BrokerConnection
        self._opened = False
        self._engine: OrchestrationEngine
        self._client: ManagementClient
        self._bridge: Bridge
        self._runs: Runs
        self._release: Release
        self._releases: Releases
        self.enrolments: Enrolments
        """Who may connect."""
        self._rollouts: Rollouts
        self._rollout_store: RolloutStore
        self.urls: SharedUrls
        self.inspection: Inspection
        """What people look at, for the API."""
        self._server: Server
        self._events: Events
        self._server_task: asyncio.Task[None]

    # -- life ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def close(self) -> None:
        """Ask the service to stop: `wait_closed` returns."""
        self._close_asked.set()

    async def wait_closed(self) -> None:
        """Wait until `close()`; ProvisioningError if the service can't go on."""
        asked = asyncio.create_task(self._close_asked.wait(), name="close-asked")
        engine = asyncio.create_task(self._engine.wait_broken(), name="engine-broken")
        registry = asyncio.create_task(self._registry.wait_broken(), name="registry-broken")
        try:
            await asyncio.wait(
                {asked, engine, registry, self._server_task}, return_when=asyncio.FIRST_COMPLETED
            )
            for broken in (engine, registry):
                if broken.done():
                    raise ProvisioningError(
                        f"The service can't go on: {broken.result()}. Its state is in "
                        f"{self.settings.state_dir}; see the log, then start it again."
                    )
        finally:
            for task in (asked, engine, registry):
                task.cancel()

    async def _start(self) -> None:
        settings, stack = self.settings, self._stack
        state_dir = settings.state_dir
        self._engine = create_engine(settings.engine, state_dir)
        self._client = self._engine.client
        prepare_state_directory(state_dir)
        stack.enter_context(owned(state_dir))
        listener = self._listen()
        self._keys = KeyRing.open(state_dir)
        registry_path = state_dir / "registry.db"
        with _opening(registry_path):
            self._registry = await stack.enter_async_context(
                Registry(
                    registry_path,
                    linger_s=settings.registry_linger_s,
                    max_batch=settings.registry_max_batch,
                )
            )
        self.enrolments = Enrolments(
            registry=self._registry, group_key=self._group_key(), access=self._access
        )
        await self.enrolments.open()
        stack.push_async_callback(self.enrolments.close)
        self._release = Release.demo(settings.release, settings.firmware_size_bytes)
        self._releases = Releases(
            registry=self._registry, state_dir=state_dir, default=self._release, started_at=self._started_at
        )
        with _opening(registry_path):
            await self._releases.open()
        stack.push_async_callback(self._releases.close)
        self._store = await stack.enter_async_context(
            PackageStore.of(settings, policy=await policy_of(self._registry))
        )
        self.urls = SharedUrls(self._registry, self._store)
        await self._check_engine()
        await self._connect()
        await self._start_engine()
        self._bridge.open()
        stack.push_async_callback(self._bridge.close)
        stack.push_async_callback(self._runs.close)
        # Rollouts first: one whose orchestration a crash has kept from starting must not be taken for gone.
        unfinished = await self._rollouts.open()
        stack.push_async_callback(self._rollouts.close)
        await self._runs.open(but=unfinished)
        prober = asyncio.create_task(self._keep_probing(), name="blob-probe")
        stack.push_async_callback(_cancel, prober)
        self._open_inspection()
        await self._serve(listener)
        write_atomically(state_dir / SERVICE_RECORD, self._record())
        stack.callback((state_dir / SERVICE_RECORD).unlink, missing_ok=True)

    def _listen(self) -> socket.socket:
        settings = self.settings
        wanted = settings.api_port
        ports = (DEFAULT_API_PORT, 0) if wanted is None else (wanted,)
        listener = listen(settings.api.host, ports)
        self._stack.callback(listener.close)
        self.url = url_of(listener, tls=settings.api.certificate is not None)
        return listener

    def _group_key(self) -> bytes:
        try:
            return read_group_key(provide_group_key(self.settings.state_dir, self.settings.group_key_file))
        except GroupKeyError as error:
            raise SettingsError(f"{error}.") from error
        except OSError as error:
            raise StateError(
                f"The group key can't be written to {self.settings.state_dir} ({error.strerror})."
            ) from error

    async def _check_engine(self) -> None:
        """Another engine knows nothing of the runs under way: here they would be taken for gone."""
        engine, state_dir = self.settings.engine, self.settings.state_dir
        earlier = await self._registry.identity(
            "engine", lambda: "embedded" if (state_dir / ENGINE_FILE).exists() else engine.identity
        )
        if earlier == engine.identity:
            return
        if under_way := await self._registry.open_runs():
            kind, _, task_hub = earlier.partition(" ")
            back = f"MUSTER_ENGINE={kind}" + (f" MUSTER_ENGINE_TASKHUB={task_hub}" if task_hub else "")
            raise SettingsError(
                f"Run {under_way[0]} is under way in {state_dir} on another engine: let it end there "
                f"({back}), or choose another state directory for {engine.name}."
            )
        await self._registry.replace_identity("engine", engine.identity)

    async def _connect(self) -> None:
        settings = self.settings
        # One id per state directory: the broker keeps its session, and messages, while the service is away.
        client_id = await self._registry.identity(
            "mqtt_client_id", lambda: f"muster-service-{secrets.token_hex(6)}"
        )
        if self._access is not None:
            # Our own broker knows accounts by their client ids.
            client_id = SERVICE_ACCOUNT
        self._bridge = Bridge(
            registry=self._registry, sink=self._client, is_revoked=self.enrolments.is_revoked
        )
        self._runs = Runs(registry=self._registry, client=self._client, releases=self._releases)
        self._rollout_store = RolloutStore(self._registry)
        self._rollouts = Rollouts(
            registry=self._registry,
            store=self._rollout_store,
            client=self._client,
            on_start=self._runs.watch,
            default_release=settings.release,
        )
        self._connection = await self._stack.enter_async_context(
            BrokerConnection(
                url=settings.broker_url,
                client_id=client_id,
                on_message=self._bridge.take,
                on_new_session=self._bridge.session_is_new,
                subscriptions=SUBSCRIPTIONS,
                tls=settings.broker_tls,
                options=ConnectionOptions(
                    max_unacked=settings.max_unacknowledged,
                    max_inflight_publishes=settings.max_inflight_publishes,
                ),
            )
        )
        self._opened = True

    async def _start_engine(self) -> None:
        settings = self.settings
        activities = Activities(
            registry=self._registry,
            store=self._store,
            publisher=self._connection,
            release=self._release,
            releases=self._releases,
            keys=self._keys,
            publish_timeout_s=settings.publish_timeout_s,
            on_claim=self._runs.on_claim,
            is_revoked=self.enrolments.is_revoked,
        )
        self._engine.add_orchestrator(ProvisionNewDevices)
        self._engine.add_orchestrator(DeviceProvisioningOrchestration)
        for orchestrator in (RolloutOrchestration, WaveOrchestration, LaneOrchestration):
            self._engine.add_orchestrator(orchestrator)
        of_rollouts = RolloutActivities(
            client=self._client,
            store=self._rollout_store,
            publisher=self._connection,
            publish_timeout_s=settings.publish_timeout_s,
        )
        for name, activity in (activities.named() | of_rollouts.named()).items():
            self._engine.add_named_activity(name, activity)
        await self._stack.enter_async_context(self._engine)

    def _open_inspection(self) -> None:
        hub = Hub(secrets.token_hex(4), version=__version__)
        feed = Feed(
            hub,
            registry=self._registry,
            rollouts=self._rollouts.briefs,
            runs=self._runs.briefs,
            fleets=self.list_fleets,
        )
        self._events = Events(hub, feed, check_rollout=self._rollouts.check)
        self._events.start()
        self._stack.push_async_callback(self._events.close)
        self.inspection = Inspection(
            registry=self._registry,
            client=self._client,
            devices=Devices(
                registry=self._registry,
                client=self._client,
                url_of_blob=self._store.url_of,
                is_revoked=self.enrolments.is_revoked,
            ),
            rollouts=self._rollouts,
            runs=self._runs,
            events=self._events,
            fleets=self.list_fleets,
            health=self.health,
            statistics=self.statistics,
            metrics_of_fleets=self._metrics_of_fleets,
            started_at=self._started_at,
        )

    async def _serve(self, listener: socket.socket) -> None:
        api = self.settings.api
        access = ApiAccess(api.tokens(self.settings.state_dir), token_needed=api.token_needed)
        self._server = Server(
            create_api(self, access), last_calls_s=_LAST_CALLS_S, certificate=api.certificate, key=api.key
        )
        self._server_task = asyncio.create_task(self._server.serve(sockets=[listener]), name="api")
        self._stack.push_async_callback(self._stop_serving)
        async with asyncio.timeout(_SERVER_START_TIMEOUT_S):
            while not self._server.started:
                if self._server_task.done():
                    await self._server_task
                    raise ProvisioningError(f"The HTTP API at {self.url} did not start; see the log.")
                # uvicorn has no event for this; the flag is set within a few turns of the loop.
                await asyncio.sleep(0.005)

    async def _stop_serving(self) -> None:
        await self._events.close()  # else the server would wait for them
        self._server.end()
        await asyncio.wait([self._server_task])

    async def _keep_probing(self) -> None:
        while True:
            await self._store.probe()
            await asyncio.sleep(self.settings.probe_interval_s)

    def _record(self) -> Json:
        certificate = self.settings.api.certificate
        return {
            "pid": os.getpid(),
            "url": self.url,
            "certificate": None if certificate is None else str(certificate.absolute()),
            "version": __version__,
            "started_at": iso(self._started_at),
            "broker_url": self._connection.address.url,
            "blob_endpoint": self._store.endpoint,
        }

    # -- what the API asks ---------------------------------------------------------------------------

    def is_connected(self) -> bool:
        """Whether it is connected to the broker, and subscribed there."""
        return self._opened and self._connection.connected

    async def health(self) -> Json:
        """Is all there that provisioning needs."""
        connected, reachable = self._connection.connected, self._store.reachable
        return {
            "status": "ok" if connected and reachable and self._engine.connected else "degraded",
            "version": __version__,
            "pid": os.getpid(),
            "started_at": iso(self._started_at),
            "state_dir": str(self.settings.state_dir.absolute()),
            "broker": {
                "url": self._connection.address.url,
                "connected": connected,
                # Whether it lets in enrolled devices only, as far as this service knows.
                "enrolled_only": self._access is not None,
            },
            "blob": {"endpoint": self._store.endpoint, "reachable": reachable},
            "engine": self._engine.health(),
            "trust": {
                "key_id": self._keys.current.key_id,
                "public_key": self._keys.current.public_key,
                "keys": self._keys.to_json(),
            },
        }

    async def launch_fleet(self, request: FleetRequest) -> FleetRecord:
        """Launch a fleet by the launcher that the command line gave."""
        return await self._fleets().launch(request)

    async def list_fleets(self) -> list[FleetRecord]:
        """All fleets; none without a launcher."""
        return [] if self._launcher is None else list(await self._launcher.list())

    async def fleet(self, fleet_id: str) -> FleetRecord:
        """One fleet with its statistics."""
        return await self._fleets().show(fleet_id)

    async def stop_fleet(self, fleet_id: str) -> FleetRecord:
        """Stop one fleet; with its last statistics."""
        return await self._fleets().stop(fleet_id)

    async def change_fleet(self, fleet_id: str, change: Json) -> Json:
        """Change devices of a fleet while it runs."""
        return await self._fleets().change(fleet_id, change)

    async def fleet_devices(
        self,
        fleet_id: str,
        *,
        group: str | None,
        behaviour: str | None,
        limit: int,
        after: str | None,
        max_attempts: int,
    ) -> Json:
        """One page of a fleet's devices, as they are to be."""
        return page_of(
            await self._fleets().devices(fleet_id),
            group=group,
            behaviour=behaviour,
            after=after,
            limit=limit,
            max_attempts=max_attempts,
        )

    async def check_fleet(self, fleet_id: str) -> Json:
        """Each device of a fleet that has ended in a run, against what was expected of it."""
        devices = await self._fleets().devices(fleet_id)
        await self._registry.flush()
        standings = await self._registry.standings([device.device_id for device in devices])
        # In a thread: what is expected of a hundred thousand devices takes seconds to say.
        return await asyncio.to_thread(check_fleet, fleet_id, devices, standings)

    async def behaviours(self, max_attempts: int) -> Json:
        """How devices of a fleet may behave."""
        return {"behaviours": self._fleets().behaviours(max_attempts=max_attempts)}

    async def _metrics_of_fleets(self, fleet_id: str | None) -> str:
        return "" if self._launcher is None else await self._launcher.metrics(fleet_id)

    def _fleets(self) -> FleetLauncher:
        if self._launcher is None:
            raise UnavailableError("This service launches no fleets; start it with `muster up`.")
        return self._launcher

    async def provision(
        self, device_ids: list[str] | None, options: Json, release: str | None = None
    ) -> Json:
        """Start a run; on disk, and its devices claimed, when this returns."""
        return await self._runs.start(device_ids, RunOptions.from_json(options), release)

    @property
    def releases(self) -> Releases:
        """The releases, for the API."""
        return self._releases

    @property
    def keys(self) -> KeyRing:
        """The keys that packages are signed with, for the API."""
        return self._keys

    @property
    def rollouts(self) -> Rollouts:
        """The rollouts, for the API."""
        return self._rollouts

    @property
    def events(self) -> Events:
        """What changes, for the API."""
        return self._events

    @property
    def instances(self) -> Instances:
        """The orchestrations' instances, for the management API."""
        return Instances(client=self._client, orchestrators=self._engine.orchestrators)

    async def list_runs(self) -> list[Json]:
        """The latest runs, without their times and failures."""
        return await self._runs.list()

    async def run(self, run_id: str) -> Json:
        """One run with its counts, rates, last failures and percentiles."""
        return await self._runs.view(run_id)

    async def run_devices(self, run_id: str, *, limit: int, after: str | None) -> Json:
        """One page of the devices of a run, with what became of each in it."""
        return await self._runs.devices(run_id, limit=limit, after=after)

    async def statistics(self) -> Json:
        """Counters of every part."""
        states = await self._registry.states()
        return {
            "states": {state.value: count for state, count in states.items()},
            "devices": sum(states.values()),
            "bridge": {**asdict(self._connection.statistics()), **asdict(self._bridge.statistics())},
            "engine": self._engine.statistics(),
            "registry": asdict(self._registry.statistics()),
            "packages": {"uploads": self._store.uploads, "upload_failures": self._store.upload_failures},
        }


async def run_service(settings: ServiceSettings, fleet_launcher: FleetLauncher | None = None) -> None:
    """Run a service until it is cancelled or can't go on."""
    async with Service(settings, fleet_launcher) as service:
        _LOG.info("the service listens at %s", service.url)
        await service.wait_closed()


@contextlib.contextmanager
def _opening(path: Path) -> Generator[None, None, None]:
    """Whatever opening and reading the registry raises, as an error of ours that names the file."""
    with readable(path):
        try:
            yield
        except RegistryFormatError as error:
            raise StateVersionError(str(error)) from error
        except RegistryError as error:
            raise StateError(str(error)) from error


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
