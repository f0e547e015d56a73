"""What instances have to do: messages in their inboxes, places in the queue for turns, starts."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from provisioning.engine.commits import Commits
from provisioning.engine.instances import Instance
from provisioning.engine.records import ENDED, ActivityCall, Kind, Message


class Agenda:
    """Which instances take turns next, in order."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        #: Those with messages; each once, and ``queued`` for as long as it is here.
        self.ready: deque[Instance] = deque()
        #: Ids of those that may begin: pending ones, and after a restart those that continue as new.
        self.starts: OrderedDict[str, None] = OrderedDict()
        #: Results of activities that a rewind found under way: the execution that waits for them now, by
        #: instance key, the execution that asked, and task id. A crash forgets it: then they run again.
        self.adopted: dict[tuple[int, int, int], int] = {}
        #: Those whose turn no worker takes; ``queued`` as those in ``ready``.
        self._parked: dict[Instance, None] = {}
        self._parked_starts: dict[str, None] = {}

    def add_start(self, instance_id: str) -> None:
        """It may begin, after all that may already."""
        self.starts[instance_id] = None

    def next_start(self) -> str:
        """Take the next one that may begin; there must be one."""
        return self.starts.popitem(last=False)[0]

    def queue(self, instance: Instance) -> None:
        """Give the instance a place in the queue for a turn, unless it has one."""
        if not instance.queued:
            instance.queued = True
            self.ready.append(instance)

    @property
    def unclaimed(self) -> int:
        """How many instances wait for a worker that takes them, of those that were offered to one."""
        return len(self._parked) + len(self._parked_starts)

    def park(self, instance: Instance) -> None:
        """Let the instance wait for a worker. Its messages are kept by rows, as it may be long."""
        instance.queued = True
        self._parked[instance] = None
        for message in instance.inbox:
            self._put_by(instance, message)

    def _put_by(self, instance: Instance, message: Message) -> None:
        commits = self._commits
        if not message.stored_id and message.kind != Kind.EXECUTION_STARTED:  # that is in the instance's row
            commits.keep(instance, message)
        if message.waiter is not None:
            commits.open.waiters.append(message.waiter)
            message.waiter = None

    def withdraw(self, instance: Instance) -> None:
        """It waits for a worker no longer."""
        if instance in self._parked:
            del self._parked[instance]
            instance.queued = False

    def park_start(self, instance_id: str) -> None:
        """As :meth:`park` for one that has not begun."""
        self._parked_starts[instance_id] = None

    def unpark(self) -> None:
        """There may be a worker for what waits: it has turns and starts again, before all others."""
        self.ready.extend(self._parked)
        for instance_id in reversed(self._parked_starts):
            self.starts[instance_id] = None
            self.starts.move_to_end(instance_id, last=False)
        self._parked = {}
        self._parked_starts = {}
        self._commits.schedule_step()

    def deliver(self, instance: Instance, message: Message) -> None:
        """Give the instance a message and a place in the queue."""
        commits = self._commits
        commits.touch(instance)
        instance.inbox.append(message)
        if not instance.begun:
            if message.kind != Kind.TERMINATED:
                return
            instance.begun = True
            # Before all that waits for the start: there is none, and a turn may not have room for all.
            instance.inbox.insert(0, instance.inbox.pop())
        if not instance.queued:
            instance.queued = True
            self.ready.append(instance)
        elif instance in self._parked:
            if message.kind == Kind.TERMINATED:  # that needs no worker
                del self._parked[instance]
                self.ready.append(instance)
            else:
                self._put_by(instance, message)
        commits.schedule_step()

    def deliver_internal(self, instance_id: str, message: Message) -> None:
        """As :meth:`deliver` for a message that was made here: it is on disk with what made it."""
        instance = self._commits.look_up(instance_id)
        if instance is not None and instance.status not in ENDED:
            self.deliver(instance, message)
            self._commits.open.internal.append((instance, message))

    def deliver_result(self, call: ActivityCall, kind: Kind, text: str | None) -> None:
        """An activity has ended."""
        instance = self._commits.look_up(call.instance_id)
        asked = (call.instance_key, call.execution, call.task_id)
        # By key too: the id may be another instance's by now, whose executions count from 1 as well.
        waits = instance is not None and (instance.key, instance.execution_number) == asked[:2]
        if instance is None or not waits or instance.status in ENDED:
            heir = self.adopted.pop(asked, None)
            if heir is not None:
                self.deliver_result(call._replace(execution=heir), kind, text)
                return
            # Its execution is over: nobody waits, it is only not to run again.
            self._commits.open.batch.detached_gone.append(asked)
            self._commits.schedule_step()
            return
        self.deliver(instance, Message(kind, task_id=call.task_id, data=text, execution=call.execution))

    def begin(self, instance: Instance) -> None:
        """Put its start before all that waits in its inbox; the turn is for the caller to take."""
        self._commits.touch(instance)
        instance.begun = True
        start = Message(Kind.EXECUTION_STARTED, name=instance.name, ref=instance.version, data=instance.input)
        instance.inbox.insert(0, start)

    def forget_starts(self, instance_ids: Iterable[str]) -> None:
        """Take out of the starts what ended before it began, before its id is used anew."""
        for instance_id in instance_ids:
            self.starts.pop(instance_id, None)
            self._parked_starts.pop(instance_id, None)
