"""The engine factory: the one module that knows which engine runs the orchestrations.

The service registers its functions with an `OrchestrationEngine`, enters it and talks to its client. Which
one it is (the embedded engine, or a Durable Task backend elsewhere through the official SDK) is said by
`EngineSettings` and shows in `health()` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from durabletask.client import OrchestrationState
from durabletask.task import ActivityContext, Orchestrator

from .engine import (
    AsyncTaskHubClient,
    Engine,
    EngineError,
    EngineStoppedError,
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
    PayloadTooLargeError,
    StateFormatError,
    StateInUseError,
)
from .errors import StateBusyError, StateError, StateVersionError
from .settings import EngineSettings
from .state_directory import readable

__all__ = [
    "ENGINE_FILE",
    "EngineClient",
    "EngineError",
    "EngineStoppedError",
    "EventSink",
    "OrchestrationAlreadyExistsError",
    "OrchestrationEngine",
    "OrchestrationNotFoundError",
    "PayloadTooLargeError",
    "create_engine",
]

ENGINE_FILE = "engine.db"

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


class OrchestrationEngine(Protocol):
    """An engine's life. Functions are added before it is entered."""

    @property
    def client(self) -> EngineClient:
        """To be used between entering and leaving."""
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
        self.client: EngineClient = AsyncTaskHubClient(self._engine)
        self.add_orchestrator = self._engine.add_orchestrator
        self.add_named_activity = self._engine.add_named_activity
        self.wait_broken = self._engine.wait_broken

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
