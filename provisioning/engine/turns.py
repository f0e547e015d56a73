"""Turns: an instance's messages go in, history and actions come out, all in one transaction."""

from __future__ import annotations

import asyncio
import logging

from provisioning.engine import failures
from provisioning.engine.agenda import Agenda
from provisioning.engine.clock import EngineClock
from provisioning.engine.commits import Commits
from provisioning.engine.execution import Execution
from provisioning.engine.functions import Functions
from provisioning.engine.health import Health
from provisioning.engine.instances import Instance
from provisioning.engine.offers import Choice, Offer, Offers
from provisioning.engine.options import EngineOptions
from provisioning.engine.outcomes import Outcomes
from provisioning.engine.records import ENDED, HistoryEvent, Kind, Message, Status
from provisioning.engine.serialization import DEFAULT_DATA_CONVERTER
from provisioning.engine.store import HistoryRow, Store
from provisioning.engine.timers import Timers

_SLICE_S = 0.002
"""How long turns run before the loop serves others."""

_NOBODYS = Offer(functions=Functions(DEFAULT_DATA_CONVERTER), options=EngineOptions())
"""Of no function, to end what nobody runs."""


class Turns:
    """Takes the turns that the agenda has, in slices, and hands each slice to the writer."""

    def __init__(
        self,
        *,
        offers: Offers,
        options: EngineOptions,
        store: Store,
        health: Health,
        clock: EngineClock,
        commits: Commits,
        agenda: Agenda,
        timers: Timers,
        log: logging.Logger,
    ) -> None:
        self._log = log
        self._offers = offers
        self._options = options
        self._store = store
        self._health = health
        self._clock = clock
        self._commits = commits
        self._agenda = agenda
        self._timers = timers
        self._outcomes = Outcomes(commits, agenda, timers, clock)
        self._loop = asyncio.get_running_loop()
        #: What executions that were let go did, by instance key, while it may not be on disk; and how many
        #: times that is so at present.
        self._unwritten: dict[int, list[HistoryRow]] = {}
        self._settling = 0
        self.turns = self.replays = 0

    def step(self) -> None:
        """Take turns for a while, then hand over what was gathered if the writer is free."""
        if not self._health.working:
            return
        commits, ready = self._commits, self._agenda.ready
        self._clock.tick()
        until = self._loop.time() + _SLICE_S
        try:
            while commits.open.rows < self._options.max_commit_rows:
                if ready:
                    self._turn(ready.popleft())
                elif not self._start_next():
                    break
                if self._loop.time() > until:
                    commits.schedule_step()
                    break
            commits.submit()
        except BaseException as error:  # a defect of ours, not of user code: better to stop than to guess
            self._health.fail(error)
            if not isinstance(error, Exception):
                raise

    def _start_next(self) -> bool:
        """Begin the next instance that may, unless enough is under way."""
        commits, agenda = self._commits, self._agenda
        starting = len(commits.open.activities) + self._offers.backlog
        if not agenda.starts or starting >= self._options.max_activity_backlog or not len(self._offers):
            return False
        instance_id = agenda.next_start()
        if self._offers.choosy and not self._is_taken(instance_id):
            agenda.park_start(instance_id)
            return True
        instance = commits.look_up(instance_id)
        if instance is not None and instance.status not in ENDED and not instance.begun:
            agenda.begin(instance)
            self._turn(instance)
        return True

    def _is_taken(self, instance_id: str) -> bool:
        """Whether somebody runs it; one that is gone by now, or begun, is no longer waiting for that."""
        waiting = self._commits.instances.get(instance_id) or self._store.find(instance_id)
        return waiting is None or self._offers.choose(waiting.name, waiting.version) is not None

    def _turn(self, instance: Instance) -> None:
        """One turn of one instance, with what waits in its inbox."""
        instance.queued = False
        self._commits.touch(instance)
        if instance.status in ENDED or not instance.begun:
            # It ended while it was queued; by now it may have been created anew, and waits for its start.
            return
        if instance.execution is None and not self._revive(instance, instance.inbox):
            self._agenda.park(instance)
            return
        most = self._options.max_turn_messages
        messages, instance.inbox = instance.inbox[:most], instance.inbox[most:]
        self.take(instance, messages)

    def take(self, instance: Instance, messages: list[Message]) -> None:
        """One turn of an instance that has begun and not ended: messages in, rows and actions out.

        Where nobody runs the instance, a termination must be among the messages.
        """
        if instance.execution is None:
            self._revive(instance, messages)
        execution = instance.execution
        assert execution is not None
        self.turns += 1
        commits = self._commits
        transaction = commits.open
        batch = transaction.batch
        for message in messages:
            if message.stored_id:
                batch.messages_gone.append((message.stored_id,))
            if message.kind == Kind.TIMER_FIRED and message.execution == instance.execution_number:
                self._timers.drop(instance, message.task_id)
            if message.waiter is not None:  # before the turn: whatever comes of that, it is told
                transaction.waiters.append(message.waiter)
        turn = execution.turn(self._clock.now, messages)
        new = instance.next_seq == instance.first_seq
        key, seq = instance.key, instance.next_seq
        for event in turn.events:
            batch.history.append((key, seq, *event))
            seq += 1
        transaction.rows += seq - instance.next_seq
        warned = self._options.history_warning_events
        if instance.next_seq - instance.first_seq <= warned < seq - instance.first_seq:
            self._warn_of_length(instance, warned)
        instance.next_seq = seq
        if turn.events:
            instance.last_at = turn.events[-1].at
        for task_id in turn.cancelled_timers:
            self._timers.drop(instance, task_id)
        if turn.actions:
            self._outcomes.act(instance, turn.actions, new=new)
        if execution.custom_status is not instance.custom_status:
            instance.custom_status = execution.custom_status
            commits.mark_custom_status(instance)
        if turn.completion is not None:
            self._outcomes.complete(instance, execution, turn, messages)
            return
        status = Status.SUSPENDED if execution.suspended else Status.RUNNING
        if status != instance.status:
            if instance.status == Status.PENDING:
                transaction.started.append(instance)
            instance.status = status
            commits.mark(instance)
        if instance.inbox:
            self._agenda.queue(instance)

    def _warn_of_length(self, instance: Instance, events: int) -> None:
        self._log.warning(
            "the history of instance %r (%s) has more than %s events, and a restart replays all of them: it "
            "should continue as new, or share its work among sub-orchestrations; beyond %s it fails",
            instance.id,
            instance.name,
            f"{events:,}",
            f"{self._options.max_history_events:,}",
        )

    # Executions

    def execution_of(self, instance: Instance) -> Execution | None:
        """An execution of the instance that has seen nothing yet; None where nobody runs it."""
        choice = self._offers.choose(instance.name, instance.version)
        return None if choice is None else self._execution(instance, choice)

    def _execution(self, instance: Instance, choice: Choice) -> Execution:
        offer = choice.offer
        execution = Execution(
            instance_id=instance.id,
            number=instance.execution_number,
            parent_id=instance.parent.instance_id if instance.parent else None,
            version=instance.version,
            functions=offer.functions,
            converter=offer.functions.converter,
            options=offer.options,
            custom_status=instance.custom_status,
            properties_of=offer.properties_of,
        )
        if offer.versioning is not None:
            execution.default_version = offer.versioning.default_version
        if choice.refusal is not None:
            execution.refusal = failures.encode(choice.refusal)
        return execution

    def _revive(self, instance: Instance, messages: list[Message]) -> bool:
        """Give the instance its execution, from its history where it has one; False: it has to wait.

        What nobody runs can be terminated all the same: nothing else among the messages matters then.
        """
        execution = self.execution_of(instance)
        nobodys = execution is None
        if execution is None:
            if not any(message.kind == Kind.TERMINATED for message in messages):
                return False
            messages.sort(key=lambda message: message.kind != Kind.TERMINATED)
            execution = self._execution(instance, Choice(offer=_NOBODYS))
        if instance.next_seq > instance.first_seq:
            self.replays += 1
            execution.replay(self._history_of(instance))
            # Replay sets the status once more; what is on disk is the same text.
            if execution.custom_status == instance.custom_status:
                execution.custom_status = instance.custom_status
        if nobodys:
            execution.completion = None  # that the code is not there is no failure now
        instance.execution = execution
        return True

    def _history_of(self, instance: Instance) -> list[HistoryEvent]:
        history = self._store.history(instance.key, instance.first_seq)
        if self._unwritten:
            following = instance.first_seq + len(history)
            rows = self._unwritten.get(instance.key, [])
            history += [HistoryEvent(*row[2:]) for row in rows if row[1] >= following]
        return history

    # Functions that go

    def may_go_on(self, execution: Execution) -> bool:
        """Whether its functions are still offered."""
        return self._offers.have(execution.functions)

    def let_go(self, functions: Functions) -> None:
        """Close all executions of these functions: their instances go on by replay, where they are taken."""
        closed: set[int] = set()
        for instance in list(self._commits.instances.values()):
            execution = instance.execution
            if execution is not None and execution.functions is functions:
                execution.close()
                instance.execution = None
                closed.add(instance.key)
                self._unwritten.pop(instance.key, None)
        if not closed:
            return
        for transaction in (self._commits.under_way, self._commits.open):
            for row in transaction.batch.history if transaction is not None else ():
                if row[0] in closed:
                    self._unwritten.setdefault(row[0], []).append(row)
        self._settling += 1
        self._commits.when_committed().add_done_callback(self._on_settled)

    def _on_settled(self, _: asyncio.Future[None]) -> None:
        self._settling -= 1
        if not self._settling:
            self._unwritten.clear()
