"""One run of a scenario: lives of the engine one after the other on one disk, each with its own end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from durabletask import task

from provisioning.engine import AsyncTaskHubClient, Engine, EngineStoppedError, StateError
from provisioning.engine.clock import SteadyClock
from provisioning.engine.functions import Functions, function_name
from provisioning.engine.records import HistoryEvent, InstanceRow, Kind, Message, Status
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER
from provisioning.engine.store import Batch, Store, StoredTimer
from tests.simulation import programs
from tests.simulation.audit import Audit, BrokenPromiseError
from tests.simulation.machine import SECOND, Loop, Pool, StalledError, Time
from tests.simulation.outside import Outside
from tests.simulation.scenario import Scenario, scenario
from tests.simulation.store import Disk, Layer, MemoryStore, TwinStore

_MOST_DEATHS = 7
REAL_EVERY = 25
"""One seed in so many has a real state file too."""
POINTS = ("round", "commit", "full", "committed", "worked", "read", "history", "activity", "acknowledged")
"""Where a life may end: at its n-th point of one of these kinds."""
_MOST_ROUNDS = 50_000
"""Rounds of the loop in one life; a scenario takes some hundreds."""

_SILENT = logging.getLogger("tests.simulation.silent")
_SILENT.disabled = True


Say = Callable[[str], None]


class DiedError(Exception):
    """The process has died: what still runs of it does nothing any more."""


class BrokenStoreError(StateError):
    """A commit or a read has failed for good, or so the store says."""

    def __init__(self, when: str) -> None:
        super().__init__("memory", f"the store has broken, {when}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a life ends: at the ``fuse``-th point of the kind ``at``; ``by`` "" lets it live to the end."""

    by: str = ""
    at: str = ""
    fuse: int = 0


@dataclass(frozen=True, kw_only=True)
class Course:
    """What came of a run."""

    end_state: dict[str, tuple[Any, ...]]
    lives: int
    commits: int
    happened: Counter[str]


class World:
    """Everything around the engine. ``harsh``: it dies, breaks, and its disk and clock misbehave."""

    def __init__(self, case: Scenario, *, harsh: bool, path: Path | None, say: Say | None) -> None:
        self.scenario = case
        self.harsh = harsh
        self.path = path
        self.time = Time()
        self.disk = Disk()
        self.audit = Audit(self.disk)
        self._say = say
        #: How often each kind of accident has happened.
        self.happened: Counter[str] = Counter()
        self.commits = 0
        kind = "harsh" if harsh else "mild"
        self.dice = random.Random(f"{kind} timing {case.seed}")
        self.faults = random.Random(f"{kind} faults {case.seed}")

    def note(self, text: str) -> None:
        if self._say is not None:
            self._say(f"{self.time.now / SECOND:12.6f}  {text}")

    def store(self) -> Store:
        return MemoryStore(self.disk) if self.path is None else TwinStore(self.path, self.disk)

    def run(self) -> Course:
        """All lives. Raises what broke: a promise of the engine, or the engine."""
        threshold, full = gc.get_threshold(), logging.getLogger("provisioning.engine.writer")
        full.disabled = True
        deaths = self.faults.randint(2, _MOST_DEATHS) if self.harsh else 0
        try:
            for number in range(deaths + 1):
                plan = self._plan() if number < deaths else Plan()
                self.note(f"life {number + 1}: {plan}")
                life = Life(self, plan)
                if life.run():
                    break
                if self.harsh and self.faults.random() < 0.3:
                    self.set_clock()
        finally:
            gc.set_threshold(*threshold)
            full.disabled = False
        self.audit.close()
        return Course(
            end_state=self.audit.ends or {}, lives=number + 1, commits=self.commits, happened=self.happened
        )

    def set_clock(self) -> None:
        by = self.faults.choice((-60, -1, 1, 60))
        self.time.wall_offset += by * SECOND
        self.note(f"the wall clock is set by {by} s")
        self.happened["clock set"] += 1

    def _plan(self) -> Plan:
        faults = self.faults
        by = faults.choice(("death", "death", "death", "death", "a broken store", "a stop"))
        at = faults.choice(POINTS)
        most = faults.choice((20, 200) if at == "round" else (2, 8))
        return Plan(by=by, at=at, fuse=faults.randint(1, most))


class Life:
    """One process: an engine on a loop of its own, and the outside that talks to it."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self._plan = plan
        self._fuse = plan.fuse
        self._rounds = 0
        self.dead = False
        self._failure: Exception | None = None
        #: The next commit, or the next read, fails for good.
        self.breaking = False
        self.breaks_at_reads = plan.at in ("read", "history")
        self._stopping = asyncio.Event()
        self._loop = Loop(world.time, world.dice.choice((0, 0, 1, 700)), self._on_round)
        self.store = MortalStore(world.store(), self)

    def run(self) -> bool:
        """Whether it lived to the end of the scenario."""
        main = self._loop.create_task(self._main())
        main.add_done_callback(lambda _: self._loop.stop())
        try:
            self._loop.run_forever()
            if self._failure is not None:
                raise self._failure
            return main.done() and not self.dead and main.result()
        finally:
            self.dead = True
            self._loop.abandon()
            self.store.die()

    async def _main(self) -> bool:
        world = self.world
        clock = SteadyClock(wall=world.time.wall, monotonic=world.time.monotonic)
        engine = Engine(
            self.store,
            options=world.scenario.engine_options(),
            clock=clock,
            logger=_SILENT,
            pool=lambda _, most: Pool(most, world.dice, partial(self.at_point, "worked")),
        )
        engine._functions, _STAGE.life = _STAGE.functions, self
        try:
            await engine.start()
        except BrokenStoreError:
            return False
        outside = Outside(
            world.scenario,
            AsyncTaskHubClient(engine),
            world.audit,
            world.dice,
            clock,
            self._acknowledged,
            lambda: world.audit.check_ends(_STAGE.functions, engine.options),
        )
        if world.harsh and world.faults.random() < 0.2:
            self._loop.call_later(world.faults.choice((0.001, 0.01, 0.1)), world.set_clock)
        working = asyncio.create_task(outside.work())
        stopping = asyncio.create_task(self._stopping.wait())
        broken = asyncio.create_task(engine.wait_broken())
        await asyncio.wait([working, stopping, broken], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        broken.cancel()
        if self._stopping.is_set():
            await engine.stop()
        try:
            await working
        except EngineStoppedError:
            failed = engine._health.failed
            # A stop gives up where the disk is full.
            stopped = self._stopping.is_set() and isinstance(failed, OSError | None)
            if not stopped and not isinstance(failed, BrokenStoreError):
                raise
            ended = False
        else:
            ended = True
        await engine.stop()
        return ended

    # What happens on the way

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """A promise that is broken in here ends the run, whatever the engine makes of the error."""
        try:
            yield
        except BrokenPromiseError as error:
            self._failure = self._failure or error
            self._loop.stop()
            raise

    def at_point(self, kind: str) -> None:
        """Something may end here."""
        if self.dead or not self._plan.by or (kind != self._plan.at):
            return
        self._fuse -= 1
        if self._fuse:
            return
        self.world.note(f"{self._plan.by}, at a {kind}")
        self.world.happened[f"{self._plan.by} at a {kind}"] += 1
        match self._plan.by:
            case "death":
                self.dead = True
                self._loop.stop()
            case "a broken store":
                self.breaking = True
            case _:
                self._loop.call_soon(self._stopping.set)

    def _on_round(self) -> None:
        self._rounds += 1
        if self._rounds > _MOST_ROUNDS:
            raise StalledError(f"no end after {_MOST_ROUNDS} rounds of the loop")
        self.at_point("round")

    def _acknowledged(self, text: str) -> None:
        if not self.dead:
            self.world.note(text)
            self.at_point("acknowledged")

    # Activities

    def begin(self, ctx: task.ActivityContext, data: dict[str, Any]) -> None:
        if self.dead:
            raise DiedError
        self.world.note(f"activity {ctx.orchestration_id} {ctx.task_id} for {data['path']} begins")
        with self.watching():
            self.world.audit.begins(data)
        self.at_point("activity")

    def end(self, data: dict[str, Any]) -> Any:
        """Fails as often, by what is on disk, as it is told to."""
        if self.world.audit.failures[data["label"]] < data["fails"]:
            raise OSError(f"not yet {data['path']}")
        return data["path"]


class _Stage:
    """The functions of all engines, which are registered once: reading their annotations takes long.

    ``life``: the one that runs. Nothing runs of those before it.
    """

    life: Life

    def __init__(self) -> None:
        self.functions = Functions(DEFAULT_DATA_CONVERTER)
        for orchestrator in programs.ORCHESTRATORS:
            self.functions.add_orchestrator(function_name(orchestrator), orchestrator)
        for activity in (self.quick, self.slow, self.plain, self.failures):
            self.functions.add_activity(activity.__name__, activity)

    async def quick(self, ctx: task.ActivityContext, data: dict[str, Any]) -> Any:
        return self.plain(ctx, data)

    async def slow(self, ctx: task.ActivityContext, data: dict[str, Any]) -> Any:
        self.life.begin(ctx, data)
        await asyncio.sleep(self.life.world.dice.choice((0.0, 0.001, 0.05, 0.3)))
        return self.life.end(data)

    def plain(self, ctx: task.ActivityContext, data: dict[str, Any]) -> Any:
        self.life.begin(ctx, data)
        return self.life.end(data)

    async def failures(self, ctx: task.ActivityContext, data: dict[str, Any]) -> int:
        self.life.begin(ctx, data)
        return self.life.world.audit.failures[data["path"]]


_STAGE = _Stage()


class MortalStore(Layer):
    """The store of one life: full, broken or gone when the life says so."""

    def __init__(self, inner: Store, life: Life) -> None:
        super().__init__(inner)
        self._life = life
        self._full_for = 0
        #: Refused for want of space, and perhaps on disk all the same if the process dies now.
        self._doubtful: Batch | None = None

    def commit(self, batch: Batch) -> None:
        life, world = self._life, self._life.world
        life.at_point("commit")
        if life.dead:
            raise DiedError
        if self._full_for or (world.harsh and world.faults.random() < 0.05):
            self._full_for = self._full_for - 1 if self._full_for else world.faults.randint(0, 4)
            self._doubtful = batch
            world.note("commit: the disk is full")
            world.happened["full disk"] += 1
            life.at_point("full")
            raise OSError(28, "No space left on device")
        self._doubtful = None
        breaks = life.breaking and not life.breaks_at_reads
        life.breaking = life.breaking and not breaks
        if breaks and world.faults.random() < 0.5:
            raise BrokenStoreError("before a commit")
        self._write(batch)
        if breaks:
            raise BrokenStoreError("after a commit")
        life.at_point("committed")

    def find(self, instance_id: str) -> InstanceRow | None:
        self._on_read()
        return super().find(instance_id)

    def existing(self, instance_ids: Sequence[str]) -> set[str]:
        self._on_read()
        return super().existing(instance_ids)

    def last_event(self, key: int) -> tuple[int, int] | None:
        self._on_read()
        return super().last_event(key)

    def history(self, key: int, first_seq: int, limit: int | None = None) -> list[HistoryEvent]:
        self._on_read("history")
        return super().history(key, first_seq, limit)

    def messages(self) -> list[tuple[str, Message]]:
        self._on_read()
        return super().messages()

    def timers(self, after: int, until: int) -> Iterable[StoredTimer]:
        self._on_read()
        return super().timers(after, until)

    def _on_read(self, kind: str = "read") -> None:
        life = self._life
        life.at_point(kind)
        if life.breaks_at_reads and life.breaking:
            life.breaking = False
            raise BrokenStoreError("at a read")

    def _write(self, batch: Batch) -> None:
        world = self._life.world
        self.inner.commit(batch)
        world.commits += 1
        world.note(f"commit {world.commits}: {summary(batch)}")
        with self._life.watching():
            world.audit.committed(batch)

    def close(self) -> None:
        self._doubtful = None
        super().close()

    def die(self) -> None:
        """The process is gone. What was being written may be on disk."""
        if self._doubtful is not None and self._life.world.faults.random() < 0.5:
            self._life.world.happened["refused, and on disk"] += 1
            self._write(self._doubtful)
        self.close()


def summary(batch: Batch) -> str:
    """A batch in one line."""
    parts = [f"{row.id} {Status(row.status).name}" for row in batch.instances]
    parts += [
        f"{key}.{seq} {Kind(kind).name} {task_id or ''}" for key, seq, kind, _, task_id, *_ in batch.history
    ]
    parts += [f"purges {key}" for (key,) in batch.purged]
    for stored_id, key, kind, *_rest in batch.messages:
        parts.append(f"keeps message {stored_id}, {Kind(kind).name} for {key}")
    parts += [f"drops message {stored_id}" for (stored_id,) in batch.messages_gone]
    parts += [f"{key}.{task_id} is left to run" for key, _, task_id, *_rest in batch.detached]
    parts += [f"{key}.{task_id} has run" for key, _, task_id in batch.detached_gone]
    return "; ".join(parts)


def simulate(seed: int, say: Say | None = None) -> Course:
    """Run the scenario of a seed twice, once undisturbed: both must end alike. Returns the harsh course.

    Some seeds have a real state file beside the store in memory. ``say`` hears all that happens.
    """
    mild = World(scenario(seed), harsh=False, path=None, say=say).run()
    with contextlib.ExitStack() as files:
        path = None
        if seed % REAL_EVERY == 0:
            path = Path(files.enter_context(tempfile.TemporaryDirectory())) / "engine.db"
        harsh = World(scenario(seed), harsh=True, path=path, say=say).run()
    for at in sorted(mild.end_state.keys() | harsh.end_state.keys()):
        alone, crashed = mild.end_state.get(at), harsh.end_state.get(at)
        if alone != crashed:
            raise BrokenPromiseError(f"{at} ends as {crashed}, and without crashes as {alone}")
    return harsh
