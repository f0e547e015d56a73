"""The worker: the Durable Task SDK's method names and options, on the embedded engine."""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any, Self

from durabletask.exception_properties import ExceptionPropertiesProvider
from durabletask.serialization import DataConverter
from durabletask.worker import (
    ActivityWorkItemFilter,
    ConcurrencyOptions,
    OrchestrationWorkItemFilter,
    VersioningOptions,
    VersionMatchStrategy,
    WorkItemFilters,
)

from provisioning.engine import failures
from provisioning.engine.activities import functions_of_caller
from provisioning.engine.engine import Engine
from provisioning.engine.errors import EngineStoppedError, EntitiesUnsupportedError
from provisioning.engine.functions import Functions, Registration
from provisioning.engine.hub import AnyHub, HubHold, hub_of
from provisioning.engine.offers import Offer
from provisioning.engine.options import EngineOptions
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER

_THREE_DAYS = timedelta(days=3)
_EVERYTHING_REGISTERED = WorkItemFilters()
"""Stands for the filters of what is registered when the worker starts; known by identity."""


class TaskHubWorker(Registration):
    """Runs orchestrators and activities for a task hub of this process, beside other workers of it.

    Made where ``durabletask.worker.TaskHubGrpcWorker`` was; ``hub`` is a :class:`TaskHub`, or the path of
    its file, ``taskhub.db`` by default. All methods may be called from any thread; one that would wait
    for itself, such as :meth:`stop` in one of the worker's own activities, raises RuntimeError.

    Of the concurrency options, ``maximum_concurrent_activity_work_items`` bounds plain and asynchronous
    activities, each kind by itself; the former run in threads, ``maximum_thread_pool_workers`` at most.
    Orchestrators take their turns one after another on the hub's own thread.

    Raises ValueError for a logger together with a handler or formatter, and for a bound below 1.
    """

    def __init__(
        self,
        *,
        hub: AnyHub | None = None,
        log_handler: logging.Handler | None = None,
        log_formatter: logging.Formatter | None = None,
        logger: logging.Logger | None = None,
        concurrency_options: ConcurrencyOptions | None = None,
        maximum_timer_interval: timedelta | None = _THREE_DAYS,
        data_converter: DataConverter | None = None,
        exception_properties_provider: ExceptionPropertiesProvider | None = None,
    ) -> None:
        super().__init__(Functions(data_converter or DEFAULT_DATA_CONVERTER))
        self._hub = hub_of(hub)
        self._log = _logger(logger, log_handler, log_formatter)
        self._properties_of: failures.PropertiesOf = failures.no_properties
        if exception_properties_provider is not None:
            self._properties_of = failures.properties_from(exception_properties_provider, self._log)
        self._concurrency_options = concurrency_options or ConcurrencyOptions()
        self._maximum_timer_interval = maximum_timer_interval
        self._options(EngineOptions())  # raises where they are wrong
        self._versioning: VersioningOptions | None = None
        self._filters: WorkItemFilters | None = None
        #: One thread at a time starts or stops it.
        self._lock = threading.Lock()
        self._hold: HubHold | None = None
        self._offer: Offer | None = None

    def __repr__(self) -> str:
        return f"TaskHubWorker(hub={self._hub!r}, running={self._hold is not None})"

    @property
    def concurrency_options(self) -> ConcurrencyOptions:
        return self._concurrency_options

    @property
    def maximum_timer_interval(self) -> timedelta | None:
        """Longer timers are made of several; None: none is."""
        return self._maximum_timer_interval

    def __enter__(self) -> Self:
        """As the SDK's: what is entered is not started yet."""
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # What it takes

    def use_versioning(self, version: VersioningOptions) -> None:
        """Which versions of orchestrations it runs, what becomes of others, and the version of
        sub-orchestrations that name none.

        A match strategy that is not set means NONE, a failure strategy that is not set REJECT.
        Raises RuntimeError while the worker is running.
        """
        self._may_register("versioning options")
        self._versioning = version

    def use_work_item_filters(self, filters: WorkItemFilters | None = _EVERYTHING_REGISTERED) -> None:
        """Take only what the filters name: by default what is registered at the start, None for everything.

        An activity counts as of the version of its orchestration. Raises RuntimeError while the worker is
        running, TypeError for what is no filters.
        """
        self._may_register("work item filters")
        if filters is not None and not isinstance(filters, WorkItemFilters):
            raise TypeError(f"filters must be WorkItemFilters or None, not {filters!r}")
        self._filters = filters

    def add_entity(self, fn: Any, name: str | None = None) -> str:
        """Raises EntitiesUnsupportedError: there are no entities."""
        raise EntitiesUnsupportedError

    def configure_scheduled_tasks(self) -> None:
        """Raises EntitiesUnsupportedError: scheduled tasks are made of entities."""
        raise EntitiesUnsupportedError

    def _may_register(self, what: str) -> None:
        if self._hold is not None:
            raise RuntimeError(f"{what} can't be added or changed while the worker is running")

    # Life

    def start(self) -> None:
        """Open the hub if nobody has, and take work. Returns when the hub is open.

        Raises RuntimeError if it is running already, and StateError, also as StateInUseError or
        StateFormatError.
        """
        with self._lock:
            if self._hold is not None:
                raise RuntimeError("the worker is already running")
            hold = HubHold(self._hub)
            try:
                offer = hold.call(self._begin)
            except BaseException:
                hold.close()
                raise
            self._hold, self._offer = hold, offer
        self._log.info("the worker has started on %r", self._hub)

    async def _begin(self, engine: Engine) -> Offer:
        offer = Offer(
            functions=self._functions,
            options=self._options(engine.options),
            properties_of=self._properties_of,
            versioning=self._versioning,
            filters=self._present_filters(),
        )
        engine.add_offer(offer)
        return offer

    def stop(self) -> None:
        """Take no more work. Returns when none of the worker's code runs, and the hub is closed if nobody
        else uses it. Does nothing where the worker is not running.

        Plain activities that run are waited for, and their results count; asynchronous ones are
        cancelled, and run again later. Raises RuntimeError in one of the worker's own activities.
        """
        hold, offer = self._hold, self._offer
        if hold is None or offer is None:
            return
        hold.refuse_own_thread()  # before the lock: whoever has it may be waiting for that thread
        if functions_of_caller() is self._functions:
            raise RuntimeError(
                "stop() in one of the worker's own activities would wait for itself: stop it elsewhere"
            )
        with self._lock:
            if self._hold is not hold:  # another thread has stopped it
                return
            self._log.info("the worker is stopping")
            with contextlib.suppress(EngineStoppedError):  # where its hub has ended nothing runs
                hold.call(lambda engine: engine.remove_offer(offer))
            hold.close()
            self._hold = self._offer = None
        self._log.info("the worker has stopped")

    def _options(self, options: EngineOptions) -> EngineOptions:
        wanted, interval = self._concurrency_options, self._maximum_timer_interval
        activities = wanted.maximum_concurrent_activity_work_items
        return replace(
            options,
            max_async_activities=activities,
            max_sync_activities=min(activities, wanted.maximum_thread_pool_workers),
            maximum_timer_interval=timedelta.max if interval is None else interval,
        )

    def _present_filters(self) -> WorkItemFilters | None:
        if self._filters is not _EVERYTHING_REGISTERED:
            return self._filters
        versioning = self._versioning
        strict = versioning is not None and versioning.match_strategy == VersionMatchStrategy.STRICT
        versions = [versioning.version] if strict and versioning is not None and versioning.version else []
        return WorkItemFilters(
            orchestrations=[OrchestrationWorkItemFilter(n, versions) for n in self._functions.orchestrators],
            activities=[ActivityWorkItemFilter(n, versions) for n in self._functions.activities],
        )


def _logger(
    logger: logging.Logger | None, handler: logging.Handler | None, formatter: logging.Formatter | None
) -> logging.Logger:
    """The one given, or one of its own for the handler and formatter, as the SDK has it."""
    if handler is None and formatter is None:
        return logger or logging.getLogger("provisioning.engine.worker")
    if logger is not None:
        raise ValueError("a logger can't be given together with a log handler or formatter: set it up itself")
    handler = handler or logging.StreamHandler()
    if formatter is not None:
        handler.setFormatter(formatter)
    # Not in the tree of loggers: the handler is this worker's alone.
    own = logging.Logger("durabletask-worker")  # noqa: LOG001
    own.addHandler(handler)
    return own
