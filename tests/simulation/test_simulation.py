"""The embedded engine under a simulated world: thousands of small cases, each from a seed.

A failure names its seed; ``python -m tests.simulation SEED`` shows all that happens in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.__main__ import failures_of
from tests.simulation.mutants import MUTANTS
from tests.simulation.scenario import scenario
from tests.simulation.world import POINTS, REAL_EVERY, simulate

SEEDS = 2_000
SEEDS_PER_TEST = 50
SEEDS_TO_CATCH = 150
"""A planted defect is found within so many seeds."""


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_whatever_happens_the_end_is_that_of_an_undisturbed_run(first: int) -> None:
    """DESIGN 2: crashes, full disks, broken stores, stops, set clocks change no end, break no promise."""
    assert failures_of(range(first, first + SEEDS_PER_TEST)) == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name: str) -> None:
    """The simulation itself: it can fail, for each of these reasons."""
    with MUTANTS[name]():
        for seed in range(1, SEEDS_TO_CATCH):
            if seed % REAL_EVERY and failures_of(range(seed, seed + 1)):
                return
    pytest.fail(f"not found within {SEEDS_TO_CATCH} seeds")


def test_a_seed_is_the_same_wherever_it_runs() -> None:
    """STYLE 20: all comes from the seed: not from hashes, addresses, the clock or the machine."""
    root = Path(__file__).parents[2]
    told = []
    for hashes in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "7"],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        told.append(ran.stdout.splitlines())
    here: list[str] = []
    simulate(7, say=here.append)
    assert told[0] == told[1]
    assert here == [line for line in told[0] if line in set(here)]
    assert len(here) > 20


def _kinds(steps: list[dict[str, Any]]) -> Iterator[str]:
    for step in steps:
        yield step["kind"]
        yield from _kinds(step.get("steps", []))


def test_everything_that_can_happen_does() -> None:
    """The simulation itself: no kind of accident, step, operation or end has silently gone out of it."""
    accidents, ends, kinds, operations = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for seed in range(200):
        course = simulate(seed)
        case = scenario(seed)
        accidents += course.happened
        ends += Counter(end[1] for end in course.end_state.values())
        kinds += Counter(_kinds(case.roots))
        operations += Counter(operation.kind for lane in case.lanes for operation in lane)
        operations["purge"] += len(case.purged)
    for by in ("death", "a broken store", "a stop"):
        for at in POINTS:
            assert accidents[f"{by} at a {at}"], f"{by} at a {at}"
    assert {"full disk", "refused, and on disk", "clock set"} <= accidents.keys()
    assert set(ends) == {"COMPLETED", "FAILED", "TERMINATED"}
    assert len(kinds) == 16, sorted(kinds)
    assert set(operations) == {
        "pause",
        "start",
        "start again",
        "raise",
        "echo",
        "suspend",
        "resume",
        "terminate",
        "purge",
    }
