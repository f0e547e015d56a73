"""The engine: what its users see, its life from start to stop, and how its parts fit together.

commits.py has the instances in memory, the transaction being gathered and what follows its commit;
agenda.py says who takes a turn, turns.py takes it, outcomes.py does what it asks for, timers.py and
activities.py give answers later; offers.py says whose functions run what; lifecycle.py and rewinds.py do
what clients ask for beyond messages, queries.py answers them, health.py says why there is an end. All of
it is the loop's but the writer's thread. Imports among the parts point downwards: engine → rewinds,
lifecycle → turns → outcomes → timers → agenda → commits → health; what must go up (a step is due, an
activity has ended, the engine has failed) goes by callbacks wired here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from durabletask.exception_properties import ExceptionPropertiesProvider
from durabletask.serialization import DataConverter

from provisioning.engine import failures, interpreter
from provisioning.engine.activities import ActivityRunner
from provisioning.engine.agenda import Agenda
from provisioning.engine.clock import EngineClock, SteadyClock
from provisioning.engine.commits import Commits
from provisioning.engine.errors import EngineStoppedError, OrchestrationNotFoundError, StateError
from provisioning.engine.functions import Functions, Registration
from provisioning.engine.health import Health
from provisioning.engine.lifecycle import Lifecycle
from provisioning.engine.offers import Offer, Offers
from provisioning.engine.options import EngineOptions
from provisioning.engine.outcomes import Outcomes
from provisioning.engine.queries import Queries
from provisioning.engine.records import (
    ENDED,
    ActivityCall,
    HistoryEvent,
    InstanceRow,
    Kind,
    Message,
    Status,
)
from provisioning.engine.rewinds import Rewinds
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER
from provisioning.engine.sqlite_store import SqliteStore
from provisioning.engine.store import Store
from provisioning.engine.threads import Pool, ThreadPool
from provisioning.engine.timers import Timers
from provisioning.engine.turns import Turns
from provisioning.engine.watched_store import WatchedStore
from provisioning.engine.writer import Writer


@dataclass(frozen=True, kw_only=True)
class EngineStatistics:
    """A look at a running engine; counters are since its start."""

    live_instances: int
    armed_timers: int
    activity_backlog: int
    waiting_starts: int
    unclaimed: int
    """Instances with something to do, and activities, that no worker takes."""
    turns: int
    commits: int
    rows: int
    replays: int
    storage_trouble: str | None


class Engine(Registration):
    """An embedded durable engine on one state file.

    Register functions, then ``async with engine:``. All its methods belong to the loop on which it
    was started. ``clock`` gives microseconds since the epoch, and is a :class:`SteadyClock` unless given.
    ``pool`` makes, by name and most threads, what runs things off the loop. With ``own_functions``
    False it has no functions but those that are offered while it runs (:meth:`add_offer`).
    Raises StateError, also as StateInUseError or StateFormatError, on entering.
    """

    def __init__(
        self,
        path: Path | str | Store,
        *,
        options: EngineOptions | None = None,
        data_converter: DataConverter | None = None,
        logger: logging.Logger | None = None,
        clock: Callable[[], int] | None = None,
        exception_properties_provider: ExceptionPropertiesProvider | None = None,
        pool: Callable[[str, int], Pool] = ThreadPool,
        own_functions: bool = True,
    ) -> None:
        store: Store = SqliteStore(Path(path)) if isinstance(path, str | Path) else path
        self._store: Store = WatchedStore(store, self._on_unreadable)
        self.options = options or EngineOptions()
        self.converter = data_converter or DEFAULT_DATA_CONVERTER
        self._log = logger or logging.getLogger("provisioning.engine")
        self._given_clock = clock
        self._properties_of: failures.PropertiesOf = failures.no_properties
        if exception_properties_provider is not None:
            self._properties_of = failures.properties_from(exception_properties_provider, self._log)
        self._make_pool = pool
        self._own_functions = own_functions
        super().__init__(Functions(self.converter))
        self._running = False
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"Engine({self._store!r}, running={self._running})"

    def _may_register(self, what: str) -> None:
        if self._running:
            raise RuntimeError(f"{what} can't be added while the engine is running")
        if not self._own_functions:
            raise RuntimeError(f"{what} come with offers here: the engine has none of its own")

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the state, recover what was under way, and go to work."""
        if self._running:
            raise RuntimeError("the engine is running already")
        self._store.open()
        self._stop_task: asyncio.Task[None] | None = None
        self._assemble()
        try:
            self._recover()
        except BaseException:
            self._health.failed = EngineStoppedError("the engine did not start")
            await self._offers.stop()
            self._timers.disarm()
            self._store.close()
            raise
        interpreter.tune(self.options)
        self._running = True

    async def stop(self, *, abandon_threads: bool = False) -> None:
        """End user code, write what is left, close. A second call waits for the first, or does nothing.

        It goes on where its caller is cancelled: half a stop would keep the file. With
        ``abandon_threads`` it does not wait for plain activities, of which nothing is heard any more.
        """
        if not self._running:
            return
        if self._stop_task is None:
            self._health.stopping = True
            self._stop_task = asyncio.create_task(self._stop(abandon_threads), name="engine-stop")
        await asyncio.shield(self._stop_task)

    async def _stop(self, abandon_threads: bool) -> None:
        commits = self._commits
        self._timers.disarm()
        self._offers.begin_no_more()
        # Meanwhile: a plain activity that waits for what can't happen any more ends when it is told so.
        end_of_code = asyncio.create_task(
            self._offers.stop(abandon_threads=abandon_threads), name="activities-stop"
        )
        commits.submit()
        while commits.under_way is not None and commits.writer.trouble is None:
            await asyncio.wait([commits.next_end()], timeout=0.1)
        await commits.writer.stop(give_up=True)
        commits.refuse_all()
        await end_of_code
        if self._removals and not abandon_threads:
            await asyncio.wait(self._removals.values())
        self._running = False
        self._failure = self._health.failed
        interpreter.restore()
        commits.close()
        self._store.close()

    def _assemble(self) -> None:
        """All parts anew: nothing of an earlier life is left in them."""
        self._clock = EngineClock(self._given_clock or SteadyClock())
        self._health = Health(self._log, self._on_failure)
        self._offers = Offers(self._version_of)
        self._removals: dict[Offer, asyncio.Task[None]] = {}
        if self._own_functions:
            own = Offer(functions=self._functions, options=self.options, properties_of=self._properties_of)
            self._activities = self._runner_of(own)
            self._offers.add(own, self._activities)
        self._commits = Commits(
            self._store,
            self.options,
            self._health,
            Writer(self._store, self._make_pool("engine-writer", 1)),
            step=self._step,
            begin_activity=self._offers.submit,
            crowded=lambda: self._offers.crowded,
        )
        self._agenda = Agenda(self._commits)
        self._timers = Timers(
            self._store, self._commits, self._agenda, self._health, self._clock, self.options.timer_window
        )
        self._turns = Turns(
            offers=self._offers,
            options=self.options,
            store=self._store,
            health=self._health,
            clock=self._clock,
            commits=self._commits,
            agenda=self._agenda,
            timers=self._timers,
            log=self._log,
        )
        outcomes = Outcomes(self._commits, self._agenda, self._timers, self._clock)
        self._lifecycle = Lifecycle(
            store=self._store,
            commits=self._commits,
            agenda=self._agenda,
            timers=self._timers,
            turns=self._turns,
            outcomes=outcomes,
            clock=self._clock,
            health=self._health,
        )
        self._rewinds = Rewinds(
            store=self._store,
            commits=self._commits,
            agenda=self._agenda,
            timers=self._timers,
            turns=self._turns,
            outcomes=outcomes,
            clock=self._clock,
            health=self._health,
        )
        self._queries = Queries(self._store, self._health, self.read)

    def _recover(self) -> None:
        """Find by query what the last process left: starts, messages, activities, timers.

        Instances that only wait are not touched: they come back when something comes for them.
        """
        commits = self._commits
        commits.recover()
        answered: set[tuple[str, int, int]] = set()
        for instance_id, message in self._store.messages():
            if message.kind in (Kind.TASK_COMPLETED, Kind.TASK_FAILED):
                answered.add((instance_id, message.execution, message.task_id))
            instance = commits.look_up(instance_id)
            if instance is None or instance.status in ENDED:
                commits.open.batch.messages_gone.append((message.stored_id,))
            else:
                self._agenda.deliver(instance, message)
        for instance_id in self._store.ready_starts():
            self._agenda.add_start(instance_id)
        for call in self._store.unfinished_activities():
            if (call.instance_id, call.execution, call.task_id) not in answered:
                self._offers.submit(call)
        self._timers.extend()
        commits.schedule_step()

    async def wait_broken(self) -> BaseException | None:
        """Returns if the engine has to stop by itself, with the reason: a damaged state file, a defect."""
        await asyncio.shield(self._health.broken)
        return self._health.failed

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            live_instances=len(self._commits.instances),
            armed_timers=len(self._timers),
            activity_backlog=self._offers.backlog,
            waiting_starts=len(self._agenda.starts),
            unclaimed=self._agenda.unclaimed + len(self._offers.unclaimed),
            turns=self._turns.turns,
            commits=self._commits.commits,
            rows=self._commits.rows,
            replays=self._turns.replays,
            storage_trouble=self._commits.writer.trouble,
        )

    # Functions that come and go

    @property
    def has_worker(self) -> bool:
        """Whether there are functions to run at all: on a hub no worker may have been started."""
        return len(self._offers) > 0

    def add_offer(self, offer: Offer) -> None:
        """Run what the offer takes, what has waited for it first. Raises EngineStoppedError."""
        self._check_running()
        self._offers.add(offer, self._runner_of(offer))
        self._agenda.unpark()

    async def remove_offer(self, offer: Offer) -> None:
        """Run nothing more by the offer; returns when none of its code runs.

        Its instances go on where another offer takes them, by replay. Plain activities are waited for,
        and count; coroutines are cancelled, and run again elsewhere, as does what had not begun. A second
        call waits for the first; one for an offer that is not there does nothing.
        """
        removal = self._removals.get(offer)
        if removal is None:
            if not self._running:
                return
            removal = asyncio.create_task(self._remove(offer), name="remove-offer")
            self._removals[offer] = removal
            removal.add_done_callback(lambda _: self._removals.pop(offer, None))
        await asyncio.shield(removal)

    async def _remove(self, offer: Offer) -> None:
        runner = self._offers.remove(offer)
        if runner is None:
            return
        runner.begin_no_more()
        self._turns.let_go(offer.functions)
        left = await runner.stop()
        if self._health.working:
            self._offers.submit_again(left)

    def _runner_of(self, offer: Offer) -> ActivityRunner:
        pool = self._make_pool("activity", offer.options.max_sync_activities)
        return ActivityRunner(
            offer.functions,
            offer.functions.converter,
            offer.options,
            pool,
            self._on_activity_done,
            offer.properties_of,
        )

    def _version_of(self, call: ActivityCall) -> str | None:
        instance = self._commits.look_up(call.instance_id)
        return None if instance is None else instance.version

    # What the parts tell

    def _step(self) -> None:
        self._turns.step()

    def _on_activity_done(self, call: ActivityCall, kind: Kind, text: str | None) -> None:
        if not self._health.working:
            return
        try:
            self._agenda.deliver_result(call, kind, text)
        except Exception as error:  # a defect of ours: better to stop than to guess
            self._health.fail(error)

    def _on_failure(self) -> None:
        self._offers.begin_no_more()
        self._commits.refuse_all()
        self._commits.tell_end()

    # What clients ask for

    @property
    def lifecycle(self) -> Lifecycle:
        """Creation, restart and removal of instances. Raises EngineStoppedError."""
        self._check_running()
        return self._lifecycle

    @property
    def rewinds(self) -> Rewinds:
        """Rewinding of failed instances. Raises EngineStoppedError."""
        self._check_running()
        return self._rewinds

    @property
    def queries(self) -> Queries:
        """Questions about many instances. Raises EngineStoppedError."""
        self._check_running()
        return self._queries

    def send(self, instance_id: str, message: Message) -> asyncio.Future[None]:
        """Hand a message to an instance; the future is done when it is on disk, or dropped for good.

        Ended instances drop it silently. Raises OrchestrationNotFoundError, EngineStoppedError.
        """
        self._check_running()
        commits = self._commits
        instance = commits.look_up(instance_id)
        if instance is None:
            raise OrchestrationNotFoundError(instance_id)
        if instance.status in ENDED:
            return commits.when_committed()
        if not instance.begun and message.kind != Kind.TERMINATED:
            # It may be long before its first turn: the message is kept by a row of its own, and the
            # instance in memory for as long as its inbox holds it.
            commits.touch(instance)
            commits.keep(instance, message)
            instance.inbox.append(message)
            return commits.when_committed()
        waiter = message.waiter = asyncio.get_running_loop().create_future()
        self._agenda.deliver(instance, message)
        return waiter

    async def wait_room(self) -> None:
        """Push back: returns when the batch being gathered has room for more."""
        most = self.options.max_commit_rows
        while self._running and self._health.failed is None and self._commits.open.rows >= most:
            await asyncio.shield(self._commits.next_end())

    def wait_started(self, instance_id: str) -> asyncio.Future[None]:
        """Done at the first commit that shows the instance begun."""
        self._check_running()
        return self._commits.starts.wait(instance_id)

    def wait_ended(self, instance_id: str) -> asyncio.Future[None]:
        """Done at the commit that ends the instance."""
        self._check_running()
        return self._commits.ends.wait(instance_id)

    def read(self, instance_id: str) -> InstanceRow | None:
        """The instance as it is on disk; ``updated_at`` is its latest event's time."""
        self._check_running()
        row = self._store.find(instance_id)
        if row is None or row.status in ENDED:
            return row
        last = self._store.last_event(row.key)
        return row._replace(updated_at=max(row.updated_at, last[1])) if last else row

    def children(
        self, instance_id: str, *, after: int, limit: int
    ) -> tuple[list[tuple[int, str]], str | None]:
        """Of its latest execution the next sub-orchestrations after a place, each with its own place and id,
        and the id of its parent; none where there is no such instance.
        """
        row = self.read(instance_id)
        if row is None:
            return [], None
        return self._store.children(row.key, max(after, row.first_seq - 1), limit), row.parent_id

    def history(
        self, instance_id: str, limit: int | None = None
    ) -> tuple[InstanceRow, list[HistoryEvent]] | None:
        """The instance and the history of its execution as they are on disk; None where there is none.

        ``limit``: the first so many events alone.
        """
        while (row := self.read(instance_id)) is not None:
            events = self._store.history(row.key, row.first_seq, limit)
            now = self._store.find(instance_id)
            if now is not None and (now.key, now.execution) == (row.key, row.execution):
                return row, events
        return None

    def count_by_status(self) -> dict[Status, int]:
        """Number of instances on disk by status."""
        self._check_running()
        return {Status(status): count for status, count in self._store.count_by_status().items()}

    def _on_unreadable(self, error: StateError) -> NoReturn:
        """The state can't be read: whoever starts the engine is told; once it runs it ends with that."""
        if not self._running:
            raise error
        self._health.fail(error)
        raise self._health.stopped_error() from error

    def _check_running(self) -> None:
        if not self._running:
            # A caller that comes after the end of a broken engine is told what broke it, as one before is.
            if self._failure is not None:
                raise EngineStoppedError(f"the engine has stopped: {self._failure}") from self._failure
            raise EngineStoppedError("the engine is not running: start it first")
        if not self._health.working:
            raise self._health.stopped_error()
