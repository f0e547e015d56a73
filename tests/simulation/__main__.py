"""Simulates seeds: one with all that happens (``python -m tests.simulation SEED``), or many.

Ends with 1 where a seed has failed; each is named with the command that shows it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from tests.simulation.scenario import scenario
from tests.simulation.world import simulate

_SEEDS_AT_ONCE = 50
_MOST_FAILURES = 20
"""After so many failed seeds the rest would say nothing new."""

Failure = tuple[int, str]


def failures_of(seeds: range) -> list[Failure]:
    """The seeds that fail, with what is wrong."""
    failed = []
    for seed in seeds:
        try:
            simulate(seed)
        except Exception as error:  # whatever it is: the seed is what matters, and the rest goes on
            failed.append((seed, f"{type(error).__name__}: {error}"))
    return failed


def show(seed: int) -> int:
    """One seed with all that happens, on standard output."""
    case = scenario(seed)
    for name, value in case.options.items():
        print(f"{name} = {value}")
    for root in case.roots:
        print(root)
    try:
        course = simulate(seed, say=print)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return 1
    print(f"seed {seed}: as it should be, {course.lives} lives, {course.commits} commits")
    return 0


def run_many(seeds: range, jobs: int) -> int:
    """All seeds over processes; progress goes to standard error, failed seeds to standard output."""
    began, done, failed = time.monotonic(), 0, 0
    parts = [seeds[at : at + _SEEDS_AT_ONCE] for at in range(0, len(seeds), _SEEDS_AT_ONCE)]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = iter(parts)
        running = [(part, pool.submit(failures_of, part)) for part in islice(waiting, 2 * jobs)]
        while running:
            part, first = running.pop(0)
            for seed, reason in first.result():
                failed += 1
                print(f"\nseed {seed} failed: {reason}\n  python -m tests.simulation {seed}", flush=True)
            done += len(part)
            rate = done / (time.monotonic() - began)
            said = f"{done:,} of {len(seeds):,} seeds, {failed} failed, {rate:,.0f}/s"
            print(f"\r{said}", end="", file=sys.stderr, flush=True)
            if failed < _MOST_FAILURES:
                running += [(more, pool.submit(failures_of, more)) for more in islice(waiting, 1)]
    print(file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, help="show this one with all that happens")
    parser.add_argument("--seeds", type=int, default=2_000, help="how many to run (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    given = parser.parse_args()
    if given.seed is not None:
        return show(given.seed)
    if given.seeds < 1 or given.jobs < 1:
        parser.error("--seeds and --jobs are at least 1")
    return run_many(range(given.first, given.first + given.seeds), given.jobs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
