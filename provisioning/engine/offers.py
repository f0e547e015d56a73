"""What workers offer, which of them takes what, and the activities that none takes yet.

An engine of its own functions has one offer for all its life, which takes everything. On a task hub
offers come and go with their workers, by name and version as the SDK's filters and versioning say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from durabletask import task
from durabletask.worker import (
    ActivityWorkItemFilter,
    OrchestrationWorkItemFilter,
    VersionFailureStrategy,
    VersioningOptions,
    VersionMatchStrategy,
    WorkItemFilters,
)
from packaging.version import InvalidVersion, parse

from provisioning.engine import failures
from provisioning.engine.activities import ActivityRunner
from provisioning.engine.functions import Functions
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import ActivityCall

_Names = dict[str, frozenset[str]]
"""Names that a filter lets through, each with the versions that it is limited to, none meaning any."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Offer:
    """What one worker takes, and how it wants it run. ``filters`` None: it takes every name."""

    functions: Functions
    options: EngineOptions
    properties_of: failures.PropertiesOf = failures.no_properties
    versioning: VersioningOptions | None = None
    filters: WorkItemFilters | None = None

    @property
    def choosy(self) -> bool:
        """Whether there may be work that it leaves to others."""
        return self.filters is not None or self.versioning is not None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Whose functions run an orchestration; ``refusal`` where it is to fail instead of running."""

    offer: Offer
    refusal: task.FailureDetails | None = None


class _Taker:
    """An offer at work: its filters made ready for look-ups, its activities."""

    def __init__(self, offer: Offer, runner: ActivityRunner) -> None:
        self.offer = offer
        self.runner = runner
        filters = offer.filters
        self.orchestrations = None if filters is None else _by_name(filters.orchestrations)
        self.activities = None if filters is None else _by_name(filters.activities)


class Offers:
    """The offers of one engine. ``version_of`` gives the version of the orchestration of a call."""

    def __init__(self, version_of: Callable[[ActivityCall], str | None]) -> None:
        self._version_of = version_of
        self._takers: dict[Offer, _Taker] = {}
        #: The one offer that takes everything, where there is no other.
        self._only: _Taker | None = None
        #: Whether there may be work that no offer takes.
        self.choosy = False
        #: Activities that no offer takes.
        self.unclaimed: list[ActivityCall] = []

    def __len__(self) -> int:
        return len(self._takers)

    @property
    def backlog(self) -> int:
        """Activities that wait for a place with who took them, or run."""
        if self._only is not None:
            return self._only.runner.backlog
        return sum(taker.runner.backlog for taker in self._takers.values())

    @property
    def crowded(self) -> bool:
        """Whether activities wait for a place with everyone who takes any."""
        if self._only is not None:
            return self._only.runner.crowded
        return bool(self._takers) and all(taker.runner.crowded for taker in self._takers.values())

    def add(self, offer: Offer, runner: ActivityRunner) -> None:
        """Take up an offer: activities that it takes begin."""
        self._takers[offer] = _Taker(offer, runner)
        self._update()
        self.submit_again([])

    def remove(self, offer: Offer) -> ActivityRunner | None:
        """Give nothing more to an offer; its runner is for the caller to stop. None if it is not there."""
        taker = self._takers.pop(offer, None)
        self._update()
        return None if taker is None else taker.runner

    def _update(self) -> None:
        takers = list(self._takers.values())
        self.choosy = any(taker.offer.choosy for taker in takers)
        self._only = takers[0] if len(takers) == 1 and not self.choosy else None

    def have(self, functions: Functions) -> bool:
        """Whether these functions are offered."""
        return any(offer.functions is functions for offer in self._takers)

    # Who takes what

    def choose(self, name: str, version: str | None) -> Choice | None:
        """Who takes an orchestration: one that runs it, else one that fails it; None: it waits."""
        refusal: Choice | None = None
        for taker in self._takers.values():
            offer = taker.offer
            if not _lets_through(taker.orchestrations, name, version):
                continue
            if name not in offer.functions.orchestrators:
                refusal = refusal or Choice(offer=offer)  # as not registered, by its execution
                continue
            wrong = None if offer.versioning is None else mismatch(offer.versioning, version)
            if wrong is None:
                return Choice(offer=offer)
            assert offer.versioning is not None
            if offer.versioning.failure_strategy == VersionFailureStrategy.FAIL:
                details = task.FailureDetails(message=wrong, error_type="VersionMismatch", stack_trace=None)
                refusal = refusal or Choice(offer=offer, refusal=details)
        return refusal

    def submit(self, call: ActivityCall) -> None:
        """Run an activity with who takes it, or keep it until somebody does."""
        taker = self._only or self._taker_of(call)
        if taker is None:
            self.unclaimed.append(call)
        else:
            taker.runner.submit(call)

    def submit_again(self, calls: Iterable[ActivityCall]) -> None:
        """Offer around what was given back, and what nobody took before."""
        waiting, self.unclaimed = self.unclaimed, []
        for call in (*waiting, *calls):
            self.submit(call)

    def _taker_of(self, call: ActivityCall) -> _Taker | None:
        """The least busy of those that have the function; else one that fails it."""
        best: _Taker | None = None
        fallback: _Taker | None = None
        for taker in self._takers.values():
            limited = taker.activities is not None and taker.activities.get(call.name)
            if not _lets_through(taker.activities, call.name, self._version_of(call) if limited else None):
                continue
            if call.name not in taker.offer.functions.activities:
                fallback = fallback or taker
            elif best is None or taker.runner.backlog < best.runner.backlog:
                best = taker
        return best or fallback

    # The end

    def begin_no_more(self) -> None:
        for taker in self._takers.values():
            taker.runner.begin_no_more()

    async def stop(self, *, abandon_threads: bool = False) -> None:
        """As :meth:`ActivityRunner.stop` for all."""
        self.begin_no_more()
        for taker in list(self._takers.values()):
            await taker.runner.stop(abandon_threads=abandon_threads)


def _by_name(
    filters: Iterable[OrchestrationWorkItemFilter] | Iterable[ActivityWorkItemFilter],
) -> _Names:
    names: _Names = {}
    for each in filters:
        names[each.name] = names.get(each.name, frozenset()) | frozenset(each.versions)
    return names


def _lets_through(names: _Names | None, name: str, version: str | None) -> bool:
    if names is None:
        return True
    versions = names.get(name)
    return versions is not None and (not versions or (version or "") in versions)


def mismatch(versioning: VersioningOptions, version: str | None) -> str | None:
    """Why a worker with these options does not run an orchestration of that version; None if it does.

    A strategy that is not set means NONE. (The SDK takes it for an unknown one, and lets every
    orchestration hang.)
    """
    strategy = versioning.match_strategy
    if strategy is None or strategy == VersionMatchStrategy.NONE:
        return None
    order = _compare(version, versioning.version)
    if strategy == VersionMatchStrategy.STRICT:
        if order == 0:
            return None
        return (
            f"The orchestration version '{version}' does not match the worker version '{versioning.version}'."
        )
    if strategy == VersionMatchStrategy.CURRENT_OR_OLDER:
        if order <= 0:
            return None
        return (
            f"The orchestration version '{version}' is greater than the worker version "
            f"'{versioning.version}'."
        )
    return f"The version match strategy '{strategy}' is unknown."


def _compare(version: str | None, other: str | None) -> int:
    """Negative, 0 or positive; none is before all, and what is no version is compared as text."""
    if not version or not other:
        return bool(version) - bool(other)
    try:
        a, b = parse(version), parse(other)
    except InvalidVersion:
        return (version > other) - (version < other)
    return (a > b) - (a < b)
