"""What a turn leads to: activities, sub-orchestrations, timers, events sent, and the execution's end."""

from __future__ import annotations

from collections.abc import Container, Sequence

from provisioning.engine import failures
from provisioning.engine.agenda import Agenda
from provisioning.engine.clock import EngineClock
from provisioning.engine.commits import Commits
from provisioning.engine.completion import Completion, Turn
from provisioning.engine.context import Action
from provisioning.engine.errors import ChildTerminatedError, OrchestrationAlreadyExistsError
from provisioning.engine.execution import Execution
from provisioning.engine.instances import Instance
from provisioning.engine.records import (
    ENDED,
    RECURSIVE,
    ActivityCall,
    Kind,
    Message,
    ParentLink,
    Status,
)
from provisioning.engine.timers import Timers


class Outcomes:
    """Carries out, in the transaction of the turn, what the turn has asked for."""

    def __init__(self, commits: Commits, agenda: Agenda, timers: Timers, clock: EngineClock) -> None:
        self._commits = commits
        self._agenda = agenda
        self._timers = timers
        self._clock = clock

    # Actions

    def act(self, instance: Instance, actions: Sequence[Action], *, new: bool) -> None:
        """Do what the orchestrator has asked for; ``new``: in the first turn of its execution."""
        absent: set[str] = set()
        if len(actions) > 1:  # a fan-out: ask for all children at once whether they exist
            children = [a.ref or "" for a in actions if a.kind == Kind.CHILD_CREATED]
            absent = self._commits.absent(children) if children else absent
        for action in actions:
            if action.kind == Kind.TASK_SCHEDULED:
                call = ActivityCall(
                    instance.id,
                    instance.key,
                    instance.execution_number,
                    action.task_id,
                    action.name or "",
                    action.data,
                    new,
                )
                self._commits.open.activities.append(call)
            elif action.kind == Kind.CHILD_CREATED:
                self._create_child(instance, action, absent)
            elif action.kind == Kind.TIMER_CREATED:
                self._timers.add(instance, action.task_id, action.due)
            elif action.kind == Kind.EVENT_SENT:
                event = Message(Kind.EVENT_RAISED, name=action.name, data=action.data)
                self._agenda.deliver_internal(action.ref or "", event)

    def _create_child(self, parent: Instance, action: Action, absent: Container[str]) -> None:
        """In the parent's own transaction: the two can't disagree. ``absent`` were not there before it."""
        child_id, name, now = action.ref or "", action.name or "", self._clock.now
        link = ParentLink(instance_id=parent.id, execution=parent.execution_number, task_id=action.task_id)
        version = action.version
        commits = self._commits
        child = commits.instances.get(child_id) if child_id in absent else commits.look_up(child_id)
        if child is not None and child.status not in ENDED:
            exists = OrchestrationAlreadyExistsError(child_id)
            self._tell_parent(link, child_id, Kind.CHILD_FAILED, failures.encode(failures.details_of(exists)))
            return
        if child is None:
            child = self._commits.create(child_id, name, now)
        else:
            if child.parent == link:  # tried again: the worker's default may be another one by now
                version = child.version
            self.renew(child, name, now)
        child.input, child.version, child.parent = action.data, version, link
        self._commits.mark(child)
        self._agenda.add_start(child_id)

    def renew(self, instance: Instance, name: str, created_at: int) -> None:
        """Make an ended instance a new one of the same id; it is for the caller to fill in and mark."""
        # Its number goes on, so that nothing meant for the one that ended reaches this one.
        self._restart(instance)
        instance.status = Status.PENDING
        instance.name, instance.created_at, instance.parent = name, created_at, None
        instance.output = instance.failure = instance.custom_status = instance.tags = None
        self._commits.instances[instance.id] = instance

    def _restart(self, instance: Instance) -> None:
        """Make room for another execution of the same instance."""
        instance.execution = None
        instance.execution_number += 1
        instance.first_seq = instance.next_seq
        instance.begun = False
        self._commits.open.batch.trims.append((instance.key, instance.first_seq))

    def _tell_parent(self, parent: ParentLink, child_id: str, kind: Kind, data: str | None) -> None:
        message = Message(kind, task_id=parent.task_id, ref=child_id, data=data, execution=parent.execution)
        self._agenda.deliver_internal(parent.instance_id, message)

    # Ends

    def complete(self, instance: Instance, execution: Execution, turn: Turn, messages: list[Message]) -> None:
        """End the execution; ``messages`` are those that this turn took."""
        completion = turn.completion
        assert completion is not None
        left = execution.outstanding(Kind.TASK_SCHEDULED)
        if left:
            # Results that came with the end, or stand behind it, are taken by nobody; they came all the same.
            came = {
                m.task_id
                for m in (*messages, *instance.inbox)
                if m.kind in (Kind.TASK_COMPLETED, Kind.TASK_FAILED) and m.execution == execution.number
            }
            self._commits.open.batch.detached += [
                (instance.key, execution.number, action.task_id, action.name or "", action.data)
                for action in left
                if action.task_id not in came
            ]
        for action in execution.outstanding(Kind.TIMER_CREATED):
            self._timers.drop(instance, action.task_id)
        if completion.status == Status.CONTINUED_AS_NEW:
            self._continue(instance, completion)
        else:
            self._end(instance, execution, turn, completion)
        execution.release()
        self._commits.mark(instance)

    def _continue(self, instance: Instance, completion: Completion) -> None:
        later = instance.inbox
        self._restart(instance)
        if instance.status == Status.PENDING:
            self._commits.open.started.append(instance)
        # It runs on for all who look; that its history is empty tells recovery to begin it.
        instance.status = Status.RUNNING
        instance.input = completion.new_input
        instance.version = completion.new_version or instance.version
        instance.custom_status = None
        instance.inbox = []
        self._agenda.begin(instance)
        for message in completion.carried:
            fresh = Message(message.kind, name=message.name, ref=message.ref, data=message.data)
            instance.inbox.append(fresh)
            self._commits.open.internal.append((instance, fresh))
        instance.inbox += later
        self._agenda.queue(instance)

    def _end(self, instance: Instance, execution: Execution, turn: Turn, completion: Completion) -> None:
        transaction = self._commits.open
        if instance.status == Status.PENDING:
            transaction.started.append(instance)
            self._timers.drop(instance, 0)
        instance.status = completion.status
        instance.output, instance.failure = completion.output, completion.failure
        instance.execution = None
        for message in instance.inbox:
            if message.stored_id:
                transaction.batch.messages_gone.append((message.stored_id,))
            if message.waiter is not None:
                transaction.waiters.append(message.waiter)
            message.consumed = True
        instance.inbox = []
        transaction.ended.append(instance)
        if completion.status == Status.TERMINATED:
            recursive = any(e.kind == Kind.TERMINATED and e.ref == RECURSIVE for e in turn.events)
            if recursive:
                self._end_children(instance, execution, completion.output)
        if instance.parent is not None:
            self._report(instance, instance.parent, completion)

    def _end_children(self, instance: Instance, execution: Execution, output: str | None) -> None:
        for asked in execution.outstanding(Kind.CHILD_CREATED):
            link = ParentLink(instance_id=instance.id, execution=execution.number, task_id=asked.task_id)
            child = self._commits.look_up(asked.ref or "")
            if child is not None and child.parent == link:  # else it was replaced, and the id is another's
                self._agenda.deliver_internal(child.id, Message(Kind.TERMINATED, ref=RECURSIVE, data=output))

    def _report(self, instance: Instance, parent: ParentLink, completion: Completion) -> None:
        if completion.status == Status.COMPLETED:
            self._tell_parent(parent, instance.id, Kind.CHILD_COMPLETED, completion.output)
            return
        failure = completion.failure
        if failure is None:
            terminated = ChildTerminatedError(f"sub-orchestration {instance.id!r} was terminated")
            failure = failures.encode(failures.details_of(terminated))
        self._tell_parent(parent, instance.id, Kind.CHILD_FAILED, failure)
