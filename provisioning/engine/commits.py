"""Instances in memory, what is gathered about them, its commit, and what may happen after it.

Memory runs ahead of the disk by at most one batch under way and one being gathered. Nothing that a
batch caused leaves the process before that batch is on disk: activities start, callers return and
observers hear only then.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from provisioning.engine.health import Health
from provisioning.engine.instances import Instance, Transaction
from provisioning.engine.options import EngineOptions
from provisioning.engine.records import ENDED, ActivityCall, Message, Status
from provisioning.engine.store import Store
from provisioning.engine.waiters import Waiters, fulfil, refuse
from provisioning.engine.writer import Writer

_PLENTY = 1_000
"""Rows that are worth a commit of their own, however soon it comes."""


class Commits:
    """The transaction being gathered (``open``), the one at the writer, and the instances of both.

    ``step`` is called soon after something was gathered, and after each commit; it takes turns and
    ends with :meth:`submit`. ``begin_activity`` is called for each activity that is on disk.
    """

    def __init__(
        self,
        store: Store,
        options: EngineOptions,
        health: Health,
        writer: Writer,
        *,
        step: Callable[[], None],
        begin_activity: Callable[[ActivityCall], None],
        crowded: Callable[[], bool],
    ) -> None:
        self._store = store
        self._options = options
        self._health = health
        self._step = step
        self._begin_activity = begin_activity
        self._crowded = crowded
        self._loop = asyncio.get_running_loop()
        self._step_scheduled = False
        #: When the next commit may begin while it is crowded, on the loop's clock; who sees to it then.
        self._not_before = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None
        self._number = 1
        self._next_key = self._next_message = 0
        #: Those that only wait: with a history, the longest idle first; and to begin, the next one first.
        self._idle: OrderedDict[str, Instance] = OrderedDict()
        self._unbegun: OrderedDict[str, Instance] = OrderedDict()
        #: By id: those that are about to change, and idle ones up to a bound. No ended ones on disk.
        self.instances: dict[str, Instance] = {}
        #: Keys of ended instances whose removal is gathered: until it is on disk, reads still show them.
        self.leaving: set[int] = set()
        self.open = Transaction(self._number)
        self.under_way: Transaction | None = None
        self.writer = writer
        #: Who waits for an instance's first turn, or its end.
        self.starts, self.ends = Waiters(), Waiters()
        self.commits = self.rows = 0

    def recover(self) -> None:
        """Before all else: number on from what is on disk."""
        self._next_key = self._store.next_key()
        self._next_message = self._store.next_message_id()

    # Instances

    def look_up(self, instance_id: str) -> Instance | None:
        """The instance, from memory or from disk; ended ones too. None where there is none."""
        instance = self.instances.get(instance_id)
        if instance is not None:
            return instance
        row = self._store.find(instance_id)
        if row is None or row.key in self.leaving:
            return None
        # What is to begin has no history.
        last = None if row.status == Status.PENDING else self._store.last_event(row.key)
        instance = Instance.from_row(row, last)
        if instance.status not in ENDED:
            self.instances[instance_id] = instance
            self.touch(instance)
        return instance

    def absent(self, instance_ids: Sequence[str]) -> set[str]:
        """Those of the ids that no instance has, by one question to the store."""
        unknown = [one for one in instance_ids if one not in self.instances]
        return set(unknown) - self._store.existing(unknown)

    def create(self, instance_id: str, name: str, created_at: int) -> Instance:
        """A new instance; it is for the caller to fill in and :meth:`mark`."""
        instance = Instance(key=self._next_key, id=instance_id, name=name, created_at=created_at)
        self._next_key += 1
        self.instances[instance_id] = instance
        return instance

    def touch(self, instance: Instance) -> None:
        """Keep the instance in memory at least until what is gathered now is on disk."""
        transaction = self.open
        if instance.last_batch != transaction.number:  # else it is not idle: see _rest
            if self._idle.pop(instance.id, None) is None:
                self._unbegun.pop(instance.id, None)
            instance.last_batch = transaction.number
            transaction.touched.append(instance)

    def mark(self, instance: Instance) -> None:
        """Its row is to be written."""
        self.touch(instance)
        if not instance.dirty:
            instance.dirty = True
            self.open.changed.append(instance)

    def mark_custom_status(self, instance: Instance) -> None:
        """Its custom status is to be written, the rest of its row being as it was."""
        self.touch(instance)
        self.open.status_changed[instance.key] = instance

    def keep(self, instance: Instance, message: Message) -> None:
        """Write the message: no turn has taken it yet."""
        message.stored_id = self._next_message
        self._next_message += 1
        self.open.rows += 1
        self.open.batch.messages.append(
            (
                message.stored_id,
                instance.key,
                message.kind,
                message.task_id,
                message.name,
                message.ref,
                message.data,
                message.execution,
            )
        )

    # The commit

    def schedule_step(self) -> None:
        if not self._step_scheduled:
            self._step_scheduled = True
            self._loop.call_soon(self._run_step)

    def _run_step(self) -> None:
        self._step_scheduled = False
        self._step()

    def when_committed(self) -> asyncio.Future[None]:
        """Done when what is gathered now is on disk."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self.open.waiters.append(waiter)
        self.schedule_step()
        return waiter

    def next_end(self) -> asyncio.Future[None]:
        """Done at the next end of a commit, or of the engine. Shared: shield it."""
        if self._ended is None:
            self._ended = self._loop.create_future()
        return self._ended

    def tell_end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            fulfil(ended)

    def submit(self) -> None:
        """Hand what was gathered to the writer, if it is free, and if that is not too soon."""
        transaction = self.open
        # After a failure nothing may follow: a batch is missing before it, or half of a turn is in it.
        if self.under_way is not None or self._health.failed is not None or not transaction:
            return
        if self._too_soon(transaction):
            return
        for instance, message in transaction.internal:
            if not message.consumed and not message.stored_id and instance.status not in ENDED:
                self.keep(instance, message)
        rows = transaction.batch.instances
        for instance in transaction.changed:
            instance.dirty = False
            rows.append(instance.row())
        whole = {row.key for row in rows}
        transaction.batch.custom_statuses = [
            (key, instance.last_at, instance.custom_status)
            for key, instance in transaction.status_changed.items()
            if key not in whole
        ]
        self._number += 1
        self.open = Transaction(self._number)
        self.under_way = transaction
        self.writer.submit(transaction.batch, self._on_committed)

    def _too_soon(self, transaction: Transaction) -> bool:
        """Whether to gather more first: what a commit would begin now would wait for a place all the same."""
        plenty = min(_PLENTY, self._options.max_commit_rows)  # at the latter turns and callers wait for it
        if transaction.rows >= plenty or self._health.stopping or not self._crowded():
            wait_s = 0.0
        else:
            wait_s = self._not_before - self._loop.time()
        if wait_s <= 0:
            self._not_before = self._loop.time() + self._options.commit_distance.total_seconds()
            return False
        if self._later is None:
            self._later = self._loop.call_later(wait_s, self._step_at_last)
        return True

    def _step_at_last(self) -> None:
        self._later = None
        self.schedule_step()

    def _on_committed(self, error: BaseException | None) -> None:
        transaction = self.under_way
        assert transaction is not None
        self.under_way = None
        self.tell_end()
        if error is not None:
            self._health.fail(error)
            for waiter in transaction.waiters:
                refuse(waiter, self._health.stopped_error())
            return
        self.commits += 1
        self.rows += transaction.rows
        try:
            self._begin_effects(transaction)
            self.submit()
        except Exception as error_after:  # a defect of ours: better to stop than to guess
            self._health.fail(error_after)
            return
        self.schedule_step()  # turns may have waited for room in the batch

    # What follows

    def _begin_effects(self, transaction: Transaction) -> None:
        """What was asked for in the transaction may happen: it is on disk."""
        if self._health.failed is None:
            for call in transaction.activities:
                self._begin_activity(call)
        for waiter in transaction.waiters:
            fulfil(waiter)
        self.starts.tell(transaction.started)
        self.ends.tell(transaction.ended)
        for instance in transaction.touched:
            self._rest(instance, transaction.number)
        self._evict()

    def _rest(self, instance: Instance, committed: int) -> None:
        """Let go of an instance that has ended, and note one that only waits."""
        if instance.last_batch > committed or instance.inbox or instance.queued:
            return
        if instance.status in ENDED:
            if self.instances.get(instance.id) is instance:
                del self.instances[instance.id]
        elif instance.begun:
            self._idle[instance.id] = instance
        else:
            self._unbegun[instance.id] = instance

    def _evict(self) -> None:
        """Of those that are to begin the last one goes first: it is the last that will be wanted."""
        while len(self._idle) + len(self._unbegun) > self._options.max_live_instances:
            if self._unbegun:
                _, instance = self._unbegun.popitem(last=True)
            else:
                _, instance = self._idle.popitem(last=False)
            if instance.execution is not None:
                instance.execution.release()
                instance.execution = None
            del self.instances[instance.id]

    # The end of the engine

    def refuse_all(self) -> None:
        """Nothing more will be committed: all who wait for it hear why."""
        waiting = [*self.ends, *self.starts, *self.open.waiters]
        waiting += [m.waiter for i in self.instances.values() for m in i.inbox if m.waiter is not None]
        for waiter in waiting:
            refuse(waiter, self._health.stopped_error())

    def close(self) -> None:
        """Let go of all instances, their generators closed."""
        if self._later is not None:
            self._later.cancel()
        for instance in self.instances.values():
            if instance.execution is not None:
                instance.execution.release()
        self.instances.clear()
        self._idle.clear()
        self._unbegun.clear()

    # What is read from disk

    async def settled(self, instance_id: str) -> None:
        """Returns when the instance, if it has ended, is on disk as it is. Raises EngineStoppedError."""
        while (instance := self.instances.get(instance_id)) is not None and instance.status in ENDED:
            self._health.check()
            await self.when_committed()
