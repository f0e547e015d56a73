"""Runs everything, in rounds: a machine whose speed drifts changes both sides of a ratio."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import child, startup
from benchmarks.contestants import MUSTER, PEERS, Contestant, Program
from benchmarks.figures import Figure, Results
from benchmarks.peers.environment import PeerMissingError
from benchmarks.workloads import SEED, WORKLOADS, Values, Workload

Say = Callable[[str], None]

SMALLEST_RUNS = 2
"""Runs of the seed's smallest size before each larger one, and after the last: each is short, and noisy."""
DISK, STARTUP, MEMORY = "disk", "startup", "memory"
_DISK_SAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured. ``peer_rounds`` of the ``rounds`` have the peers too."""

    workloads: tuple[Workload, ...] = WORKLOADS
    rounds: int = 3
    seed_sizes: tuple[int, ...] = SEED.sizes
    peers: tuple[Contestant, ...] = PEERS
    peer_rounds: int = 1
    startup_size: int | None = 100_000
    memory_sizes: tuple[int, ...] = (100_000,)
    quick: bool = False
    directory: Path | None = None
    """Where the state files go while they are needed: on the disk that is measured."""

    def sizes(self, workload: Workload) -> tuple[int, ...]:
        if workload is SEED:
            return self.seed_sizes
        return (workload.quick_size,) if self.quick else workload.sizes

    def peer_size(self, workload: Workload) -> int:
        return min(workload.peer_size, workload.quick_size) if self.quick else workload.peer_size


def measure(plan: Plan, say: Say) -> Results:
    """All of the plan. A peer that can't be had or fails is left out, with the reason."""
    return _Measuring(plan, say).run()


class _Measuring:
    def __init__(self, plan: Plan, say: Say) -> None:
        self._plan = plan
        self._say = say
        self._results = Results()
        self._programs: dict[str, Program] = {}

    def run(self) -> Results:
        plan = self._plan
        for peer in plan.peers:
            try:
                self._programs[peer.name] = peer.provide(self._say)
            except PeerMissingError as error:
                self._leave_out(peer.title, error)
        for number in range(plan.rounds):
            self._say(f"round {number + 1} of {plan.rounds}")
            self._take_alone(DISK, _DISK_SAMPLES, [self._once(DISK, _DISK_SAMPLES)])
            for workload in plan.workloads:
                if workload is SEED:
                    self._seed_sizes()
                else:
                    for size in plan.sizes(workload):
                        self._take_alone(workload.name, size, [self._once(workload.name, size)])
                if number < plan.peer_rounds and self._programs:
                    self._beside(workload)
        if plan.startup_size is not None:
            self._startup(plan.startup_size)
        for size in plan.memory_sizes:
            with self._directory() as directory:
                values = child.measure("benchmarks.memory", "waiting", size, directory)
                self._take_alone(MEMORY, size, [values])
        return self._results

    def _seed_sizes(self) -> None:
        """The smallest size among the others."""
        smallest, *larger = self._plan.seed_sizes
        small_runs: list[Values] = []
        for size in [*larger, None]:
            small_runs += [self._once(SEED.name, smallest) for _ in range(SMALLEST_RUNS)]
            if size is not None:
                self._take_alone(SEED.name, size, [self._once(SEED.name, size)])
        self._take_alone(SEED.name, smallest, small_runs)

    def _beside(self, workload: Workload) -> None:
        """Muster and each peer, one after another."""
        size = self._plan.peer_size(workload)
        contestants = [peer for peer in self._plan.peers if peer.name in self._programs]
        for contestant in [MUSTER, *contestants]:
            program = self._programs.get(contestant.name, Program())
            try:
                with self._directory() as directory:
                    values = contestant.measure(program, workload, size, directory)
            except child.ChildError as error:
                if contestant is MUSTER:
                    raise
                self._leave_out(f"{contestant.title}, {workload.name}", error)
                continue
            figure = self._results.figure(self._results.beside, contestant.name, workload.name, size)
            self._take(figure, [values])

    def _startup(self, size: int) -> None:
        """One state file, and a start in a fresh process on a copy of it in each round."""
        with self._directory() as built:
            self._say(f"making a state file with {size:,} unfinished instances")
            child.measure("benchmarks.startup", "build", size, built)
            for _ in range(self._plan.rounds):
                with self._directory() as directory:
                    startup.copy_state(built, directory)
                    values = child.measure("benchmarks.startup", "start", size, directory)
                    self._take_alone(STARTUP, size, [values])

    def _once(self, run: str, size: int) -> Values:
        with self._directory() as directory:
            return child.measure(MUSTER.module, run, size, directory)

    def _take_alone(self, workload: str, size: int, runs: list[Values]) -> None:
        self._take(self._results.figure(self._results.alone, MUSTER.name, workload, size), runs)

    def _take(self, figure: Figure, runs: list[Values]) -> None:
        figure.rounds.append(runs)
        for values in runs:
            text = ", ".join(f"{name} {value:,.6g}" for name, value in values.items())
            self._say(f"  {figure.contestant} {figure.workload} {figure.size:,}: {text}")

    def _leave_out(self, what: str, error: Exception) -> None:
        self._results.left_out[what] = str(error)
        self._say(f"  left out: {what}: {error}")

    @contextlib.contextmanager
    def _directory(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=self._plan.directory) as directory:
            yield Path(directory)
