"""Turns: an instance's messages go in, history and actions come out, all in one transaction."""

from __future__ import annotations

import asyncio
import logging

from durabletask.serialization import DataConverter

from provisioning.engine import failures
from provisioning.engine.activities import ActivityRunner
from provisioning.engine.agenda import Agenda
from provisioning.engine.clock import EngineClock
from provisioning.engine.commits import Commits
from provisioning.engine.execution import Execution
from provisioning.engine.functions import Functions
from provisioning.engine.health import Health
from provisioning.engine.instances import Instance
from provisioning.engine.options import EngineOptions
from provisioning.engine.outcomes import Outcomes
from provisioning.engine.records import ENDED, Kind, Message, Status
from provisioning.engine.store import Store
from provisioning.engine.timers import Timers

_SLICE_S = 0.002
"""How long turns run before the loop serves others."""


class Turns:
    """Takes the turns that the agenda has, in slices, and hands each slice to the writer."""

    def __init__(
        self,
        *,
        functions: Functions,
        converter: DataConverter,
        options: EngineOptions,
        store: Store,
        health: Health,
        clock: EngineClock,
        commits: Commits,
        agenda: Agenda,
        activities: ActivityRunner,
        timers: Timers,
        properties_of: failures.PropertiesOf,
        log: logging.Logger,
    ) -> None:
        self._properties_of = properties_of
        self._log = log
        self._functions = functions
        self._converter = converter
        self._options = options
        self._store = store
        self._health = health
        self._clock = clock
        self._commits = commits
        self._agenda = agenda
        self._activities = activities
        self._timers = timers
        self._outcomes = Outcomes(commits, agenda, timers, clock)
        self._loop = asyncio.get_running_loop()
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
        commits, starts = self._commits, self._agenda.starts
        starting = len(commits.open.activities) + self._activities.backlog
        if not starts or starting >= self._options.max_activity_backlog:
            return False
        instance = commits.look_up(starts.popleft())
        if instance is not None and instance.status not in ENDED and not instance.begun:
            self._agenda.begin(instance)
            self._turn(instance)
        return True

    def _turn(self, instance: Instance) -> None:
        """One turn of one instance, with what waits in its inbox."""
        instance.queued = False
        self._commits.touch(instance)
        if instance.status in ENDED or not instance.begun:
            # It ended while it was queued; by now it may have been created anew, and waits for its start.
            return
        most = self._options.max_turn_messages
        messages, instance.inbox = instance.inbox[:most], instance.inbox[most:]
        self.take(instance, messages)

    def take(self, instance: Instance, messages: list[Message]) -> None:
        """One turn of an instance that has begun and not ended: messages in, rows and actions out."""
        self.turns += 1
        commits = self._commits
        execution = instance.execution
        if execution is None:
            execution = instance.execution = self._revive(instance)
        turn = execution.turn(self._clock.now, messages)
        transaction = commits.open
        batch = transaction.batch
        for message in messages:
            if message.stored_id:
                batch.messages_gone.append((message.stored_id,))
            if message.kind == Kind.TIMER_FIRED and message.execution == execution.number:
                self._timers.drop(instance, message.task_id)
            if message.waiter is not None:
                transaction.waiters.append(message.waiter)
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
        for action in turn.actions:
            self._outcomes.act(instance, action, new=new)
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

    def execution_of(self, instance: Instance) -> Execution:
        """An execution of the instance that has seen nothing yet."""
        return Execution(
            instance_id=instance.id,
            number=instance.execution_number,
            parent_id=instance.parent.instance_id if instance.parent else None,
            version=instance.version,
            functions=self._functions,
            converter=self._converter,
            options=self._options,
            custom_status=instance.custom_status,
            properties_of=self._properties_of,
        )

    def _revive(self, instance: Instance) -> Execution:
        """The instance's execution, from its history where it has one."""
        execution = self.execution_of(instance)
        if instance.next_seq > instance.first_seq:
            self.replays += 1
            execution.replay(self._store.history(instance.key, instance.first_seq))
            # Replay sets the status once more; what is on disk is the same text.
            if execution.custom_status == instance.custom_status:
                execution.custom_status = instance.custom_status
        return execution
