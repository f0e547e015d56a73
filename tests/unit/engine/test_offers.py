"""Which worker takes what: versions, filters, names. Pure look-ups, nothing runs."""

from __future__ import annotations

from typing import Any

import pytest
from durabletask.worker import (
    ActivityWorkItemFilter,
    OrchestrationWorkItemFilter,
    VersionFailureStrategy,
    VersioningOptions,
    VersionMatchStrategy,
    WorkItemFilters,
)

from provisioning.engine.functions import Functions
from provisioning.engine.offers import Offer, Offers, mismatch
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import ActivityCall
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER

NONE, STRICT, OLDER = (
    VersionMatchStrategy.NONE,
    VersionMatchStrategy.STRICT,
    VersionMatchStrategy.CURRENT_OR_OLDER,
)
FAIL, REJECT = VersionFailureStrategy.FAIL, VersionFailureStrategy.REJECT


@pytest.mark.parametrize(
    ("strategy", "worker", "orchestration", "taken"),
    [
        (None, "1.0", "2.0", True),  # ours: not set is NONE
        (NONE, "1.0", "2.0", True),
        (STRICT, "1.0", "1.0", True),
        (STRICT, "1.0", "1.0.0", True),  # equal as versions
        (STRICT, "1.0", "1.1", False),
        (STRICT, "1.0", None, False),
        (STRICT, None, None, True),
        (STRICT, None, "1.0", False),
        (OLDER, "1.10", "1.9", True),  # not as text
        (OLDER, "1.9", "1.10", False),
        (OLDER, "1.0", "1.0", True),
        (OLDER, "1.0", None, True),
        (OLDER, None, "1.0", False),
        (OLDER, "beta", "alpha", True),  # no versions: as text
        (OLDER, "alpha", "beta", False),
    ],
)
def test_which_versions_a_worker_takes(
    strategy: VersionMatchStrategy | None, worker: str | None, orchestration: str | None, taken: bool
) -> None:
    """S-VER-1: match strategies, compared by packaging.version."""
    wrong = mismatch(VersioningOptions(version=worker, match_strategy=strategy), orchestration)
    assert (wrong is None) == taken
    if wrong is not None:
        assert f"'{orchestration}'" in wrong
        assert f"'{worker}'" in wrong


class FakeRunner:
    """Counts what it gets."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def submit(self, call: ActivityCall) -> None:
        self.calls.append(call.name)

    @property
    def backlog(self) -> int:
        return len(self.calls)


def offer_of(*names: str, activities: tuple[str, ...] = (), **options: Any) -> Offer:
    functions = Functions(DEFAULT_DATA_CONVERTER)
    for name in names:
        functions.add_orchestrator(name, lambda ctx, value: None)
    for name in activities:
        functions.add_activity(name, lambda ctx, value: None)
    return Offer(functions=functions, options=EngineOptions(), **options)


def offers_of(*offers: Offer, version: str | None = None) -> tuple[Offers, list[FakeRunner]]:
    table = Offers(lambda call: version)
    runners = [FakeRunner() for _ in offers]
    for offer, runner in zip(offers, runners, strict=True):
        table.add(offer, runner)  # type: ignore[arg-type]  # all that is used of it
    return table, runners


def call_of(name: str) -> ActivityCall:
    return ActivityCall("i", 1, 1, 1, name, None)


def orchestrations(*names: str, versions: tuple[str, ...] = ()) -> WorkItemFilters:
    return WorkItemFilters(orchestrations=[OrchestrationWorkItemFilter(n, list(versions)) for n in names])


def test_with_no_offer_all_waits() -> None:
    """S-VER-4: work that no worker accepts waits: none started."""
    table, _ = offers_of()
    assert table.choose("a", None) is None
    table.submit(call_of("a"))
    assert [call.name for call in table.unclaimed] == ["a"]


def test_one_that_runs_goes_before_one_that_would_fail() -> None:
    """S-VER-4: several workers may serve one hub; an unregistered name fails only if it must."""
    other, fitting = offer_of("b", activities=("b",)), offer_of("a", activities=("a",))
    table, (first, second) = offers_of(other, fitting)
    choice = table.choose("a", None)
    assert choice is not None
    assert (choice.offer, choice.refusal) == (fitting, None)
    table.submit(call_of("a"))
    assert (first.calls, second.calls) == ([], ["a"])
    unknown = table.choose("unknown", None)
    assert unknown is not None
    assert "unknown" not in unknown.offer.functions.orchestrators
    table.submit(call_of("unknown"))
    assert first.calls == ["unknown"]


def test_filters_leave_the_rest_to_others() -> None:
    """S-VER-5: filtered work waits, by name and version; with filters nothing unnamed fails."""
    table, _ = offers_of(offer_of("a", "b", filters=orchestrations("a", versions=("1", "2"))))
    assert table.choose("a", "2") is not None
    assert table.choose("a", "3") is None
    assert table.choose("a", None) is None
    assert table.choose("b", "1") is None
    table.submit(call_of("x"))
    assert len(table.unclaimed) == 1


def test_an_activity_counts_as_of_its_orchestrations_version() -> None:
    """S-VER-5: the SDK has no version of an activity, so a filter with one takes none."""
    filters = WorkItemFilters(activities=[ActivityWorkItemFilter("a", ["2"])])
    for version, taken in (("1", []), ("2", ["a"])):
        table, (runner,) = offers_of(offer_of(activities=("a",), filters=filters), version=version)
        table.submit(call_of("a"))
        assert runner.calls == taken


def test_a_mismatch_fails_or_is_left_to_others() -> None:
    """S-VER-2: on mismatch FAIL (VersionMismatch) or REJECT; REJECT where it is not set."""

    def versioning(version: str, failure: VersionFailureStrategy | None) -> VersioningOptions:
        return VersioningOptions(version=version, match_strategy=STRICT, failure_strategy=failure)

    rejecting = offer_of("a", versioning=versioning("1", REJECT))
    unset = offer_of("a", versioning=versioning("1", None))
    failing = offer_of("a", versioning=versioning("2", FAIL))
    table, _ = offers_of(rejecting, unset)
    assert table.choose("a", "3") is None
    table, _ = offers_of(failing, rejecting)
    refused = table.choose("a", "3")
    assert refused is not None
    assert refused.refusal is not None
    assert refused.refusal.error_type == "VersionMismatch"
    taken = table.choose("a", "1")
    assert taken is not None
    assert (taken.offer, taken.refusal) == (rejecting, None)


def test_activities_go_to_the_least_busy() -> None:
    """S-VER-4: several workers may serve one hub."""
    table, (first, second) = offers_of(offer_of(activities=("a",)), offer_of(activities=("a",)))
    for _ in range(4):
        table.submit(call_of("a"))
    assert (len(first.calls), len(second.calls)) == (2, 2)


def test_what_nobody_took_is_offered_again() -> None:
    """S-VER-4: work that waits is picked up when a worker comes."""
    table, _ = offers_of(offer_of(filters=orchestrations("a")))
    table.submit(call_of("x"))
    runner = FakeRunner()
    table.add(offer_of(activities=("x",)), runner)  # type: ignore[arg-type]  # as above
    assert runner.calls == ["x"]
    assert table.unclaimed == []
