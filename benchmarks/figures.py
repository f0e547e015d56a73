"""What was measured: runs by rounds, so that a ratio is one of neighbours in time."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from benchmarks.workloads import Values, Workload

__all__ = ["Figure", "Results", "median"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One contestant under one workload at one size: in each round one run or more."""

    contestant: str
    workload: str
    size: int
    rounds: list[list[Values]] = field(default_factory=list)

    def all(self, name: str) -> list[float]:
        return [values[name] for runs in self.rounds for values in runs]

    def median(self, name: str) -> float:
        return median(self.all(name))

    def of_rounds(self, name: str) -> list[float]:
        """One value a round: its median."""
        return [median([values[name] for values in runs]) for runs in self.rounds]

    def ratio(self, other: Figure, name: str) -> float:
        """How many times the other's: the median over the rounds that both have."""
        pairs = zip(self.of_rounds(name), other.of_rounds(name), strict=False)
        return median([mine / theirs for mine, theirs in pairs])


@dataclass(kw_only=True)
class Results:
    """Everything from one call of the benchmark."""

    machine: str = field(
        default_factory=lambda: (
            f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
        )
    )
    #: Muster by itself, at its own sizes.
    alone: list[Figure] = field(default_factory=list)
    #: Muster and its peers, one after another at the same size.
    beside: list[Figure] = field(default_factory=list)
    #: Why a peer, or one workload of it, is not among them.
    left_out: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def figure(figures: list[Figure], contestant: str, workload: str, size: int) -> Figure:
        """The figure of that name, added where there is none."""
        found = find(figures, lambda f: (f.contestant, f.workload, f.size) == (contestant, workload, size))
        if found is None:
            found = Figure(contestant=contestant, workload=workload, size=size)
            figures.append(found)
        return found

    def of(self, workload: str) -> list[Figure]:
        """Muster's own figures of a workload, smallest size first."""
        return sorted((f for f in self.alone if f.workload == workload), key=lambda f: f.size)

    def compared(self, workload: Workload, contestant: str) -> Figure | None:
        return find(self.beside, lambda f: (f.contestant, f.workload) == (contestant, workload.name))


def find(figures: list[Figure], wanted: Callable[[Figure], bool]) -> Figure | None:
    return next(filter(wanted, figures), None)
