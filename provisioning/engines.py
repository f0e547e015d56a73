"""The engine factory: the one module that knows which engine runs the orchestrations.

The service registers its functions with an `OrchestrationEngine`, enters it and talks to its client. Which
one it is (the embedded engine, or a Durable Task backend elsewhere through the official SDK) is said by
`EngineSettings` and shows in `health()` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from durabletask.client import OrchestrationQuery, OrchestrationState, OrchestrationStatus, Page
from durabletask.client import PurgeInstancesResult as Purged
from durabletask.history import HistoryEvent
from durabletask.task import ActivityContext, Orchestrator

from .engine import (
    AsyncTaskHubClient,
    Engine,
    EngineError,
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationIdReusePolicy,
    OrchestrationNotFoundError,
    OrchestrationStatusError,
    PayloadTooLargeError,
    StateFormatError,
    StateInUseError,
)
from .errors import StateBusyError, StateError, StateVersionError
from .settings import EngineSettings
from .state_directory import readable

__all__ = [
    "ENDED",
    "ENGINE_FILE",
    "EngineClient",
    "EngineError",
    "EngineStoppedError",
    "EventSink",
    "ManagementClient",
    "OrchestrationAlreadyExistsError",
    "OrchestrationEngine",
    "OrchestrationNotFoundError",
    "OrchestrationStatusError",
    "PayloadTooLargeError",
    "create_engine",
]

ENGINE_FILE = "engine.db"
ENDED = (OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED)

Json = dict[str, Any]
Activity = Callable[[ActivityContext, Any], Any]
"""Plain or `async`."""


class EventSink(Protocol):
    """Where external events go."""

    async def raise_orchestration_event(
        self,
        instance_id: str,
        event_name: str,
        *,
        data: Any | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Return when the engine has the event for good.

        Raises OrchestrationNotFoundError; PayloadTooLargeError or ValueError for what it will never take;
        EngineAwayError where another try may do. An engine without idempotency keys takes an event twice.
        """
        ...


class EngineClient(EventSink, Protocol):
    """What the service asks of an engine: the SDK's names, the embedded engine's errors.

    Each raises EngineStoppedError outside the engine's life, and EngineAwayError where it can't be reached.
    """

    async def schedule_new_orchestration(
        self, orchestrator: Any, *, input: Any | None = None, instance_id: str | None = None
    ) -> str:
        """Start one and return its id; OrchestrationAlreadyExistsError."""
        ...

    async def get_orchestration_state(
        self, instance_id: str, *, fetch_payloads: bool = True
    ) -> OrchestrationState | None:
        """The instance as it is; None where there is none."""
        ...

    async def wait_for_orchestration_completion(
        self, instance_id: str, *, fetch_payloads: bool = True, timeout: float = 60
    ) -> OrchestrationState | None:
        """The instance as it ended; TimeoutError."""
        ...


class ManagementClient(EngineClient, Protocol):
    """What operators ask of an engine besides; the names that the SDK has are its.

    What a backend has not is an UnsupportedByEngineError. Each raises OrchestrationNotFoundError, and
    OrchestrationStatusError where the instance's status does not allow what was asked, as far as the engine
    says so.
    """

    async def start_orchestration(
        self, name: str, *, input: Any | None, instance_id: str, version: str | None
    ) -> None:
        """Start one by its name; an instance of that id that has ended is replaced.

        Raises OrchestrationAlreadyExistsError, PayloadTooLargeError.
        """
        ...

    async def get_orchestration_states_page(
        self, orchestration_query: OrchestrationQuery, *, page_size: int, continuation_token: str | None
    ) -> Page[OrchestrationState]:
        """The next instances that the query fits; ValueError for a token that is none."""
        ...

    async def get_orchestration_history(self, instance_id: str, *, max_events: int) -> list[HistoryEvent]:
        """The first events of the latest execution."""
        ...

    async def get_children(
        self, instance_id: str, *, after: int, limit: int
    ) -> tuple[list[tuple[int, str]], str | None]:
        """Of its latest execution the next sub-orchestrations that were begun after a place, each with its
        own place and id (one that is tried again comes more than once); and the id of its parent.
        """
        ...

    async def terminate_orchestration(self, instance_id: str, *, output: Any | None = None) -> None: ...

    async def suspend_orchestration(self, instance_id: str, *, reason: str | None = None) -> None: ...

    async def resume_orchestration(self, instance_id: str, *, reason: str | None = None) -> None: ...

    async def rewind_orchestration(self, instance_id: str, *, reason: str | None = None) -> None: ...

    async def restart_orchestration(
        self, instance_id: str, *, restart_with_new_instance_id: bool = False
    ) -> str:
        """Begin an ended one again; returns its id."""
        ...

    async def purge_orchestration(self, instance_id: str, recursive: bool = True) -> Purged: ...

    async def purge_orchestrations_by(
        self,
        created_time_from: datetime | None = None,
        created_time_to: datetime | None = None,
        runtime_status: list[OrchestrationStatus] | None = None,
    ) -> Purged: ...


class OrchestrationEngine(Protocol):
    """An engine's life. Functions are added before it is entered."""

    @property
    def client(self) -> ManagementClient:
        """To be used between entering and leaving."""
        ...

    @property
    def orchestrators(self) -> list[str]:
        """The names of those that were added."""
        ...

    @property
    def connected(self) -> bool:
        """Whether it can take work now."""
        ...

    def add_orchestrator(self, fn: Orchestrator[Any, Any]) -> str: ...

    def add_named_activity(self, name: str, fn: Activity) -> str: ...

    async def __aenter__(self) -> Self:
        """Go to work, or begin to try; StateError where it keeps its state here and can't."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End user code: what is cut off runs again after the next start."""
        ...

    async def wait_broken(self) -> BaseException | None:
        """Return, with the reason, if the engine can't ever go on."""
        ...

    def health(self) -> Json:
        """`kind`, `connected`, what this engine does not have (`unsupported`), and its own figures."""
        ...

    def statistics(self) -> Json:
        """Its counters."""
        ...


def create_engine(settings: EngineSettings, state_dir: Path) -> OrchestrationEngine:
    """The engine that the settings name, not started; SettingsError where its packages are missing."""
    if settings.kind == "embedded":
        return _EmbeddedEngine(state_dir / ENGINE_FILE)
    # Here, because gRPC's worker and Azure's packages are not for those who don't use them.
    from .durable_task import DurableTaskEngine

    return DurableTaskEngine(settings)


class _EmbeddedEngine:
    """The engine in this process, its state in one file."""

    connected = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = Engine(path)
        self.client: ManagementClient = _EmbeddedClient(self._engine)
        self.orchestrators: list[str] = []
        self.add_named_activity = self._engine.add_named_activity
        self.wait_broken = self._engine.wait_broken

    def add_orchestrator(self, fn: Orchestrator[Any, Any]) -> str:
        self.orchestrators.append(self._engine.add_orchestrator(fn))
        return self.orchestrators[-1]

    async def __aenter__(self) -> Self:
        with readable(self._path):
            try:
                await self._engine.start()
            except StateInUseError as error:
                raise StateBusyError(str(error)) from error
            except StateFormatError as error:
                raise StateVersionError(str(error)) from error
            except EngineError as error:
                raise StateError(str(error)) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.stop()

    def health(self) -> Json:
        return {"kind": "embedded", "connected": True, "unsupported": [], **self.statistics()}

    def statistics(self) -> Json:
        return asdict(self._engine.statistics())


class _EmbeddedClient(AsyncTaskHubClient):
    """The engine's own client, and what the SDK has no method for."""

    async def get_children(
        self, instance_id: str, *, after: int, limit: int
    ) -> tuple[list[tuple[int, str]], str | None]:
        return self._engine.children(instance_id, after=after, limit=limit)

    async def start_orchestration(
        self, name: str, *, input: Any | None, instance_id: str, version: str | None
    ) -> None:
        await self.schedule_new_orchestration(
            name,
            input=input,
            instance_id=instance_id,
            version=version,
            reuse_id_policy=OrchestrationIdReusePolicy(replaceableStatus=ENDED),
        )
