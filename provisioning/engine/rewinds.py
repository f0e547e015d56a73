"""Rewinds: a failed orchestration goes on from its last good state.

What failed is taken out of the history, what succeeded stays; the last turn, the one that ended in the
failure, is taken again without the failures in it. So the history up to there is one that the code has
gone through before, and whatever the code asks for now is recorded as in any turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from types import GeneratorType
from typing import Any

from durabletask import task

from provisioning.engine import failures
from provisioning.engine.agenda import Agenda
from provisioning.engine.clock import EngineClock
from provisioning.engine.commits import Commits
from provisioning.engine.errors import OrchestrationNotFoundError, OrchestrationStatusError
from provisioning.engine.execution import Execution
from provisioning.engine.functions import Functions
from provisioning.engine.health import Health
from provisioning.engine.instances import Instance
from provisioning.engine.outcomes import Outcomes
from provisioning.engine.records import HistoryEvent, Kind, Message, ParentLink, Status
from provisioning.engine.store import Store
from provisioning.engine.timers import Timers
from provisioning.engine.turns import Turns

_ROWS_AT_ONCE = 5_000
"""A tree of more history than this is rewound in several transactions, children before their parents."""

_OUTPUTS = frozenset(
    {Kind.TASK_SCHEDULED, Kind.CHILD_CREATED, Kind.TIMER_CREATED, Kind.EVENT_SENT, Kind.EXECUTION_COMPLETED}
)
_FAILURES = frozenset({Kind.TASK_FAILED, Kind.CHILD_FAILED})
_ANSWERS = frozenset({Kind.TASK_COMPLETED, Kind.CHILD_COMPLETED, Kind.TIMER_FIRED})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """How one instance goes on: from ``execution``, which has seen ``kept``, with ``again`` to be taken."""

    instance: Instance
    kept: list[HistoryEvent]
    again: list[HistoryEvent]
    execution: Execution
    #: Sub-orchestrations that it waits for, each as its id and its link; failed ones are rewound before it.
    children: list[tuple[str, ParentLink]]

    def waits_for(self, kind: Kind) -> list[Any]:
        """What is asked for, and neither in ``kept`` nor in ``again``."""
        came = {e.task_id for e in self.again if e.kind in _ANSWERS}
        return [a for a in self.execution.outstanding(kind) if a.task_id not in came]


class Rewinds:
    """Rewinds instances with their failed sub-orchestrations, in one transaction where they are not many.

    In several, children come first: whatever a crash leaves, the one that was asked for has still
    failed, and can be rewound again.
    """

    def __init__(
        self,
        *,
        store: Store,
        commits: Commits,
        agenda: Agenda,
        timers: Timers,
        turns: Turns,
        outcomes: Outcomes,
        clock: EngineClock,
        health: Health,
    ) -> None:
        self._store = store
        self._commits = commits
        self._agenda = agenda
        self._timers = timers
        self._turns = turns
        self._outcomes = outcomes
        self._clock = clock
        self._health = health

    async def rewind(self, instance_id: str, reason: str | None) -> None:
        """Returns when it is on disk that the instance goes on.

        Raises OrchestrationNotFoundError, and OrchestrationStatusError unless it has failed.
        """
        self._clock.tick()
        plans = [self._plan(await self._failed(instance_id))]
        try:
            while plans:
                plan = plans[-1]
                if plan.children:
                    child = await self._failed_child(*plan.children.pop())
                    if child is not None:
                        plans.append(self._plan(child))
                    continue
                plans.pop()
                fits = plan.execution.completion is None
                may_go_on = fits and self._turns.may_go_on(plan.execution)
                if may_go_on and not self._has_changed(plan.instance):
                    with self._health.whole():
                        self._carry_out(plan, reason)
                else:
                    plan.execution.close()
                    if not plans:
                        instance = await self._failed(instance_id)  # what has changed may be that
                        if not fits:
                            raise _does_not_fit(plan)
                        plans.append(self._plan(instance))
                if plans and self._commits.open.rows >= _ROWS_AT_ONCE:
                    await self._commits.when_committed()
                    self._health.check()
        finally:
            for plan in plans:
                plan.execution.close()
        await self._commits.when_committed()

    # Plans

    async def _failed(self, instance_id: str) -> Instance:
        """The instance, with all of it on disk. Raises unless it has failed."""
        await self._commits.settled(instance_id)
        instance = self._commits.look_up(instance_id)
        if instance is None:
            raise OrchestrationNotFoundError(instance_id)
        if instance.status != Status.FAILED:
            rule = "only one that has failed can be rewound"
            raise OrchestrationStatusError(instance_id, instance.status.name, rule)
        return instance

    async def _failed_child(self, child_id: str, link: ParentLink) -> Instance | None:
        """The sub-orchestration, if it has failed; its id may be another's by now."""
        await self._commits.settled(child_id)
        child = self._commits.look_up(child_id)
        if child is None or child.status != Status.FAILED or child.parent != link:
            return None
        return child

    def _has_changed(self, instance: Instance) -> bool:
        """Whether it is no longer what was read: others had their turn since."""
        if instance.id in self._commits.instances:
            return True
        row = self._store.find(instance.id)
        return row is None or (row.key, row.execution) != (instance.key, instance.execution_number)

    def _plan(self, instance: Instance) -> _Plan:
        history = self._store.history(instance.key, instance.first_seq)
        cut = _last_turn(history)
        kept = history[:cut]
        if any(e.kind in _FAILURES for e in kept):
            witness = Witness(self._new_execution(instance))
            witness.execution.replay(kept)
            if witness.execution.completion is None:
                kept = _without_failures_of(kept, witness.unnoticed())
            witness.execution.close()
        again = [e for e in history[cut:] if e.kind not in _OUTPUTS and e.kind not in _FAILURES]
        execution = self._new_execution(instance)
        execution.replay(kept)
        plan = _Plan(instance=instance, kept=kept, again=again, execution=execution, children=[])
        if execution.completion is None:  # else it does not fit, and nothing below it is touched
            for action in plan.waits_for(Kind.CHILD_CREATED):
                link = ParentLink(
                    instance_id=instance.id, execution=instance.execution_number, task_id=action.task_id
                )
                plan.children.append((action.ref or "", link))
        return plan

    def _new_execution(self, instance: Instance) -> Execution:
        execution = self._turns.execution_of(instance)
        if execution is None:
            rule = "no worker runs it now: start one that does to rewind"
            raise OrchestrationStatusError(instance.id, instance.status.name, rule)
        execution.number = instance.execution_number + 1
        return execution

    # What follows

    def _carry_out(self, plan: _Plan, reason: str | None) -> None:
        """Bring the instance back and let it take its last turn again, without an await in between."""
        instance, commits = plan.instance, self._commits
        before = instance.execution_number
        commits.instances[instance.id] = instance
        # Another execution: what its end left under way, and nobody adopts, may not reach it.
        instance.execution_number += 1
        instance.first_seq = seq = instance.next_seq
        for event in plan.kept:
            commits.open.batch.history.append((instance.key, seq, *event))
            seq += 1
        instance.next_seq = seq
        commits.open.batch.trims.append((instance.key, instance.first_seq))
        commits.open.rows += len(plan.kept)
        instance.status = Status.RUNNING
        instance.output = instance.failure = None
        instance.begun = True
        instance.execution = plan.execution
        commits.mark(instance)
        number = instance.execution_number
        messages = [
            Message(Kind(e.kind), task_id=e.task_id, name=e.name, ref=e.ref, data=e.data, execution=number)
            for e in plan.again
        ]
        # The start comes first, where that turn was the first. If the code ends in it, no more is recorded.
        messages.insert(0 if plan.kept else 1, Message(Kind.EXECUTION_REWOUND, data=reason))
        self._take_up_activities(plan, before)
        for action in plan.waits_for(Kind.TIMER_CREATED):
            self._timers.add(instance, action.task_id, int(action.ref or 0))
        messages += self._take_up_children(plan, before)
        self._turns.take(instance, messages)

    def _take_up_activities(self, plan: _Plan, before: int) -> None:
        """Run again what has no result, unless it is running still: then its result will do."""
        key, batches = plan.instance.key, [self._commits.open.batch]
        if self._commits.under_way is not None:
            batches.append(self._commits.under_way.batch)
        running = {(key, *row) for row in self._store.detached(key)}
        for batch in batches:
            running.difference_update(batch.detached_gone)
        for action in plan.waits_for(Kind.TASK_SCHEDULED):
            asked = (key, before, action.task_id)
            if asked in running:
                self._agenda.adopted[asked] = plan.instance.execution_number
                self._commits.open.batch.detached_gone.append(asked)
            else:
                self._outcomes.act(plan.instance, [action], new=False)

    def _take_up_children(self, plan: _Plan, before: int) -> list[Message]:
        """Wait for those that run, create anew those that are gone; returns what the others ended with."""
        parent, number = plan.instance, plan.instance.execution_number
        ends = []
        for action in plan.waits_for(Kind.CHILD_CREATED):
            child = self._commits.look_up(action.ref or "")
            link = ParentLink(instance_id=parent.id, execution=before, task_id=action.task_id)
            if child is None or child.parent != link or child.status == Status.TERMINATED:
                self._outcomes.act(parent, [action], new=False)
            elif child.status == Status.COMPLETED:
                ends.append(_answer(Kind.CHILD_COMPLETED, action.task_id, number, child.output))
            else:
                if child.status == Status.FAILED:  # again, at once: or it does not fit its code
                    ends.append(_answer(Kind.CHILD_FAILED, action.task_id, number, child.failure))
                    self._commits.instances[child.id] = child
                child.parent = replace(link, execution=number)
                self._commits.mark(child)
        return ends


def _answer(kind: Kind, task_id: int, execution: int, data: str | None) -> Message:
    return Message(kind, task_id=task_id, data=data, execution=execution)


def _does_not_fit(plan: _Plan) -> OrchestrationStatusError:
    completion = plan.execution.completion
    assert completion is not None
    why = failures.decode(completion.failure or "{}").message
    rule = f"its code does not fit its history, put it right to rewind, or restart ({why})"
    return OrchestrationStatusError(plan.instance.id, "FAILED", rule)


def _last_turn(history: Sequence[HistoryEvent]) -> int:
    """Where the messages begin that the last turn took, or turns before it that led to nothing."""
    at = history[-1].at if history else 0
    end = len(history)
    while end and history[end - 1].kind in _OUTPUTS and history[end - 1].at == at:
        end -= 1
    while end and history[end - 1].kind not in _OUTPUTS and history[end - 1].kind != Kind.EXECUTION_REWOUND:
        end -= 1
    return end


def _without_failures_of(history: Sequence[HistoryEvent], task_ids: set[int]) -> list[HistoryEvent]:
    """Without the last failure of each task: of those that were tried before, they are what led there."""
    left = set(task_ids)
    kept = []
    for event in reversed(history):
        if event.kind in _FAILURES and event.task_id in left:
            left.remove(event.task_id)
        else:
            kept.append(event)
    return kept[::-1]


class Witness:
    """Sees which failed tasks an orchestrator takes notice of while its history is replayed.

    A failure that the code was told of, and went on from, was dealt with: it belongs to the good state.
    One that came while the code waited for something else led nowhere yet.
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self._tasks: dict[int, task.Task[Any]] = {}
        self._noticed: set[int] = set()
        functions = Functions(execution.converter)
        for name, function in execution.functions.orchestrators.items():
            functions.orchestrators[name] = replace(function, call=self._watched(function.call))
        execution.functions = functions

    def unnoticed(self) -> set[int]:
        """Ids of the tasks that have failed for good, unknown to the code."""
        return {
            task_id
            for task_id, asked in self._tasks.items()
            if asked.is_complete and asked.is_failed and id(asked) not in self._noticed
        }

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(context: task.OrchestrationContext, value: Any) -> Any:
            steps = call(context, value)
            return self._follow(steps) if isinstance(steps, GeneratorType) else steps

        return watched

    def _follow(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = steps.__next__
        with contextlib.closing(steps):
            while True:
                try:
                    awaited = step()
                except StopIteration as end:
                    return end.value
                self._note_new_tasks()
                try:
                    value = yield awaited
                except Exception as error:
                    step = _thrower(steps, error)
                else:
                    step = _sender(steps, value)
                self._notice(awaited)

    def _note_new_tasks(self) -> None:
        pending = self.execution.pending
        for task_id in reversed(pending):  # the last step's are the last
            if task_id in self._tasks:
                return
            asked = pending[task_id].task
            if asked is not None:
                self._tasks[task_id] = asked

    def _notice(self, awaited: Any) -> None:
        told = [awaited]
        while told:
            one = told.pop()
            if isinstance(one, task.CompositeTask):
                told += one.get_tasks()
            elif isinstance(one, task.Task) and one.is_complete:
                self._noticed.add(id(one))


def _thrower(steps: Generator[Any, Any, Any], error: Exception) -> Callable[[], Any]:
    return lambda: steps.throw(error)


def _sender(steps: Generator[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: steps.send(value)
