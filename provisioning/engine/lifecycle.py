"""The lives of instances as clients begin and end them: creation, replacement, restart, purge."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection
from dataclasses import replace

from provisioning.engine.agenda import Agenda
from provisioning.engine.clock import EngineClock
from provisioning.engine.commits import Commits
from provisioning.engine.errors import (
    OrchestrationAlreadyExistsError,
    OrchestrationNotFoundError,
    OrchestrationStatusError,
)
from provisioning.engine.health import Health
from provisioning.engine.instances import Instance
from provisioning.engine.outcomes import Outcomes
from provisioning.engine.queries import OUTLINES_AT_ONCE
from provisioning.engine.records import ENDED, RECURSIVE, InstanceFilter, InstanceRow, Kind, Message, Status
from provisioning.engine.store import Store
from provisioning.engine.timers import Timers
from provisioning.engine.turns import Turns

_PURGED_AT_ONCE = 1_000
"""Instances removed in one transaction."""
_CHILDREN_AT_ONCE = 1_000
"""Children of one instance that wait to be removed before it."""


class Lifecycle:
    """Begins instances anew and removes them, each in one transaction with all that follows from it."""

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
        self._health = health
        self._store = store
        self._commits = commits
        self._agenda = agenda
        self._timers = timers
        self._turns = turns
        self._outcomes = outcomes
        self._clock = clock

    # Creation

    def create(
        self,
        *,
        instance_id: str,
        name: str,
        input: str | None,
        start_at: int | None = None,
        version: str | None = None,
        tags: str | None = None,
        replaceable: Collection[int] = (),
    ) -> asyncio.Future[None]:
        """Create an instance; the future is done when it is on disk.

        One of the same id whose status is among ``replaceable`` gives way in the same transaction; it is
        terminated before where it still runs. Raises OrchestrationAlreadyExistsError.
        """
        commits = self._commits
        now = self._clock.tick()
        if instance_id not in commits.instances and self._store.find(instance_id) is None:
            instance = commits.create(instance_id, name, now)
        else:
            instance = self._take_place(instance_id, name, now, replaceable)
        instance.input, instance.version, instance.tags = input, version, tags
        commits.open.rows += 1
        commits.mark(instance)
        if start_at is not None and start_at > now:
            self._timers.add(instance, 0, start_at)
        else:
            self._agenda.add_start(instance_id)
        return commits.when_committed()

    def _take_place(self, instance_id: str, name: str, now: int, replaceable: Collection[int]) -> Instance:
        instance = self._commits.look_up(instance_id)
        if instance is None:  # its removal is gathered
            return self._commits.create(instance_id, name, now)
        if instance.status not in replaceable:
            raise OrchestrationAlreadyExistsError(instance_id)
        with self._health.whole():
            if instance.status not in ENDED:
                # All who count on it hear of its end as of any other: its parent, its children, its timers.
                late, instance.inbox = instance.inbox, []
                instance.begun = True
                self._agenda.withdraw(instance)
                self._commits.touch(instance)
                self._turns.take(instance, [Message(Kind.TERMINATED, ref=RECURSIVE), *late])
            self._outcomes.renew(instance, name, now)
            self._agenda.forget_starts({instance_id})
        return instance

    async def restart(self, instance_id: str, *, with_new_id: bool) -> str:
        """Begin an ended instance again, under its own id or a new one, which is returned.

        It has the same input, version and tags, and no parent. Returns when that is on disk. Raises
        OrchestrationNotFoundError, and OrchestrationStatusError for one that has not ended.
        """
        instance = self._commits.look_up(instance_id)
        if instance is None:
            raise OrchestrationNotFoundError(instance_id)
        if instance.status not in ENDED:
            rule = "only one that has ended can be restarted; wait for its end, or terminate it"
            raise OrchestrationStatusError(instance_id, instance.status.name, rule)
        chosen = uuid.uuid4().hex if with_new_id else instance_id
        await self.create(
            instance_id=chosen,
            name=instance.name,
            input=instance.input,
            version=instance.version,
            tags=instance.tags,
            replaceable=ENDED,
        )
        return chosen

    # Removal

    async def purge(self, instance_id: str, *, recursive: bool) -> int:
        """Remove an ended instance, and its ended descendants if ``recursive``; returns how many.

        One that is unknown or has not ended is left, with all below it: 0.
        """
        purge = _Purge(self._store, self._commits, self._agenda, self._health)
        await purge.add(instance_id, recursive)
        await purge.finish()
        return purge.count

    async def purge_by(
        self, which: InstanceFilter, *, recursive: bool, timeout_s: float | None = None
    ) -> tuple[int, bool]:
        """Remove all ended instances that ``which`` fits; returns how many, and whether that was all.

        ``timeout_s`` is looked at after each portion.
        """
        which = replace(which, statuses=ENDED if which.statuses is None else which.statuses & ENDED)
        loop = asyncio.get_running_loop()
        until = None if timeout_s is None else loop.time() + timeout_s
        purge = _Purge(self._store, self._commits, self._agenda, self._health)
        after = 0
        while outlines := self._store.outlines(after, OUTLINES_AT_ONCE):
            for outline in outlines:
                if which.fits(outline):
                    await purge.add(outline.id, recursive)
            await purge.finish()
            await asyncio.sleep(0)
            self._health.check()
            after = outlines[-1].key
            if until is not None and loop.time() >= until:
                return purge.count, not self._store.outlines(after, 1)
        return purge.count, True


class _Step:
    """An instance to be removed once its children up to ``after`` in its history are gone."""

    __slots__ = ("after", "id", "key")

    def __init__(self, row: InstanceRow) -> None:
        self.id, self.key = row.id, row.key
        self.after = -1


class _Purge:
    """Gathers instances to remove, children before their parents, and commits them by portions.

    So what a crash leaves can be purged again: whoever has children left is still there.
    """

    def __init__(self, store: Store, commits: Commits, agenda: Agenda, health: Health) -> None:
        self._store = store
        self._commits = commits
        self._agenda = agenda
        self._health = health
        self._portion: set[int] = set()
        self._unbegun: set[str] = set()
        self.count = 0

    async def add(self, instance_id: str, recursive: bool) -> None:
        """Remove an instance if it has ended, with its ended descendants if ``recursive``."""
        row = await self._ended(instance_id)
        if row is None:
            return
        if not recursive:
            await self._gather(row.id)
            return
        steps = [_Step(row)]
        while steps:
            step = steps[-1]
            page = self._store.children(step.key, step.after, _CHILDREN_AT_ONCE)
            if not page:
                steps.pop()
                await self._gather(step.id)
                continue
            step.after = page[-1][0]
            for child_id in {child_id for _, child_id in page}:
                child = await self._ended(child_id)
                if child is not None and child.parent_id == step.id:  # else the id is another's by now
                    steps.append(_Step(child))

    async def _ended(self, instance_id: str) -> InstanceRow | None:
        """The instance, if it has ended and nothing of it is under way."""
        await self._commits.settled(instance_id)
        if instance_id in self._commits.instances:
            return None
        row = self._store.find(instance_id)
        if row is None or row.status not in ENDED or row.key in self._commits.leaving:
            return None
        return row

    async def _gather(self, instance_id: str) -> None:
        row = await self._ended(instance_id)  # since it was looked at, others may have come before
        if row is None:
            return
        self._commits.open.batch.purged.append((row.key,))
        self._commits.open.rows += 1
        self._commits.leaving.add(row.key)
        self._portion.add(row.key)
        if row.status == Status.TERMINATED:
            self._unbegun.add(row.id)
        if len(self._portion) >= _PURGED_AT_ONCE:
            await self.finish()

    async def finish(self) -> None:
        """Returns when all that was gathered is gone."""
        if not self._portion:
            return
        self._agenda.forget_starts(self._unbegun)
        try:
            await self._commits.when_committed()
            self.count += len(self._portion)
            self._health.check()
        finally:
            self._commits.leaving -= self._portion
            self._portion.clear()
            self._unbegun.clear()
