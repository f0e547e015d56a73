"""What the management API does to instances, on whichever engine runs them.

What an instance's status does not allow is found out beforehand, so that both engines answer the same; what
changes between the question and the deed the engine itself refuses, or drops.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import unicodedata
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from durabletask.client import OrchestrationQuery, OrchestrationState, OrchestrationStatus, Page
from durabletask.history import HistoryEvent

from provisioning.engines import ENDED, ManagementClient, OrchestrationNotFoundError
from provisioning.errors import RequestError, name_some

MAX_INSTANCE_ID_CHARS: Final = 256
MAX_HISTORY_EVENTS: Final = 10_000
"""Events of a history in one answer: the first ones."""
MAX_INSTANCES_ON_PAGE: Final = 1_000
MAX_WAIT_S: Final = 600.0
"""For how long the answer to a start may wait for the instance's end."""

_MAX_NAMES: Final = 50
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class BadRequestError(RequestError):
    """A request of the management API that makes no sense."""

    title = "Invalid request"


class InstanceEndedError(RequestError):
    """An instance that has ended takes nothing any more."""

    status = 410
    title = "Instance has ended"


class NotAllowedByStatusError(RequestError):
    """An instance whose status does not allow it."""

    status = 412
    title = "Status does not allow it"


class StillRunsError(RequestError):
    """An instance that would have to end first."""

    status = 409
    title = "Instance runs"


class NothingPurgedError(RequestError):
    """A purge that no instance fitted."""

    status = 404
    title = "Nothing to purge"


@dataclass(frozen=True, kw_only=True)
class InstanceFilter:
    """Which instances are meant; times are included, and UTC where they don't say."""

    created_from: datetime | None = None
    created_to: datetime | None = None
    statuses: Sequence[OrchestrationStatus] | None = None
    """None: whatever their status; none of them: nothing fits."""
    id_prefix: str | None = None

    @property
    def end(self) -> datetime | None:
        """The first moment after ``created_to``, which engines leave out."""
        try:
            return None if self.created_to is None else self.created_to + timedelta(microseconds=1)
        except OverflowError:  # the last moment that there is
            return None


class Instances:
    """The instances of one engine. ``orchestrators`` are those that can be started."""

    def __init__(self, *, client: ManagementClient, orchestrators: Sequence[str]) -> None:
        self._client = client
        self._orchestrators = orchestrators

    async def start(
        self, name: str, *, instance_id: str | None, input: Any, version: str | None = None
    ) -> str:
        """Start one, in the place of an ended one of its id; returns its id, once it is on disk."""
        if name not in self._orchestrators:
            known = sorted(self._orchestrators)[:_MAX_NAMES]
            raise BadRequestError(f"There is no orchestrator {name!r} here. There are: {', '.join(known)}.")
        chosen = _checked_id(instance_id) if instance_id is not None else uuid.uuid4().hex
        with _arguments("This can't be started"):
            await self._client.start_orchestration(name, input=input, instance_id=chosen, version=version)
        return chosen

    async def wait(self, instance_id: str, timeout_s: float) -> OrchestrationState | None:
        """The instance as it ended; None where it has not after this time."""
        try:
            return await self._client.wait_for_orchestration_completion(
                instance_id, timeout=min(timeout_s, MAX_WAIT_S)
            )
        except TimeoutError:
            return None

    async def state(self, instance_id: str, *, payloads: bool = True) -> OrchestrationState:
        """Raises OrchestrationNotFoundError, as do all that take an instance's id."""
        state = await self._client.get_orchestration_state(instance_id, fetch_payloads=payloads)
        if state is None:
            raise OrchestrationNotFoundError(instance_id)
        return state

    async def history(self, state: OrchestrationState) -> tuple[list[HistoryEvent], bool]:
        """The first `MAX_HISTORY_EVENTS` events of the latest execution, and whether there are more."""
        if state.runtime_status == OrchestrationStatus.PENDING:
            return [], False
        events = await self._client.get_orchestration_history(
            state.instance_id, max_events=MAX_HISTORY_EVENTS + 1
        )
        return events[:MAX_HISTORY_EVENTS], len(events) > MAX_HISTORY_EVENTS

    async def page(self, which: InstanceFilter, *, top: int, token: str | None) -> Page[OrchestrationState]:
        """The next instances that fit, and the token of the page after them."""
        if which.statuses is not None and not which.statuses:
            return Page([], None)
        query = OrchestrationQuery(
            created_time_from=which.created_from,
            created_time_to=which.end,
            runtime_status=None if which.statuses is None else list(which.statuses),
            instance_id_prefix=which.id_prefix or None,
            fetch_inputs_and_outputs=True,
        )
        with _arguments("No such page"):
            page = await self._client.get_orchestration_states_page(
                query,
                page_size=min(top, MAX_INSTANCES_ON_PAGE),
                continuation_token=None if not token else _unwrapped(token),
            )
        following = page.continuation_token
        return Page(page.items, None if following is None else _wrapped(following))

    async def raise_event(self, instance_id: str, event_name: str, data: Any) -> None:
        """Raise an event; on disk when this returns."""
        if not event_name.strip():
            raise BadRequestError("The event's name is empty.")
        with _arguments("This event can't be raised"):
            await self._client.raise_orchestration_event(instance_id, event_name, data=data)

    async def check_going(self, instance_id: str) -> None:
        """Raises InstanceEndedError for one that has ended."""
        state = await self.state(instance_id, payloads=False)
        if state.runtime_status in ENDED:
            raise InstanceEndedError(
                f"Instance {instance_id!r} has ended ({_word(state)}): it takes nothing any more."
            )

    async def terminate(self, instance_id: str, reason: str | None) -> None:
        """End it, with its sub-orchestrations; the reason is its output."""
        await self.check_going(instance_id)
        await self._client.terminate_orchestration(instance_id, output=reason)

    async def suspend(self, instance_id: str, reason: str | None) -> None:
        """Hold back everything but a resume or a termination."""
        await self.check_going(instance_id)
        await self._client.suspend_orchestration(instance_id, reason=reason)

    async def resume(self, instance_id: str, reason: str | None) -> None:
        """Deliver what was held back."""
        await self.check_going(instance_id)
        await self._client.resume_orchestration(instance_id, reason=reason)

    async def rewind(self, instance_id: str, reason: str | None) -> None:
        """Let a failed one go on from its last good state."""
        state = await self.state(instance_id, payloads=False)
        if state.runtime_status != OrchestrationStatus.FAILED:
            raise NotAllowedByStatusError(
                f"Instance {instance_id!r} is {_word(state)}: only one that has failed can be rewound."
            )
        await self._client.rewind_orchestration(instance_id, reason=reason)

    async def restart(self, instance_id: str, *, new_id: bool) -> str:
        """Begin one again with its input; returns the id. Under its own id only one that has ended."""
        state = await self.state(instance_id, payloads=new_id)
        if state.runtime_status not in ENDED:
            if not new_id:
                raise StillRunsError(
                    f"Instance {instance_id!r} is {_word(state)}: only one that has ended can be restarted "
                    f"under its own id."
                )
            # Engines restart what has ended alone; this is what Durable Functions does too.
            given = state.serialized_input
            return await self.start(
                state.name, instance_id=None, input=None if given is None else json.loads(given)
            )
        return await self._client.restart_orchestration(instance_id, restart_with_new_instance_id=new_id)

    async def purge(self, instance_id: str) -> int:
        """Remove an ended one, and it alone; returns how many were removed."""
        state = await self.state(instance_id, payloads=False)
        if state.runtime_status not in ENDED:
            raise NotAllowedByStatusError(
                f"Instance {instance_id!r} is {_word(state)}: only one that has ended can be purged."
            )
        purged = await self._client.purge_orchestration(instance_id, recursive=False)
        return purged.deleted_instance_count

    async def purge_all(self, which: InstanceFilter) -> int:
        """Remove all ended ones that fit; returns how many there were."""
        statuses = [status for status in ENDED if which.statuses is None or status in which.statuses]
        count = 0
        if statuses:
            purged = await self._client.purge_orchestrations_by(which.created_from, which.end, statuses)
            count = purged.deleted_instance_count
        if count == 0:
            raise NothingPurgedError("No instance that has ended fits this.")
        return count


@contextlib.contextmanager
def _arguments(what: str) -> Iterator[None]:
    """What the engine, or a backend, takes for no value of its own is the caller's."""
    try:
        yield
    except ValueError as error:
        raise BadRequestError(f"{what}: {error}.") from error


def _word(state: OrchestrationState) -> str:
    return state.runtime_status.name.lower()


def _checked_id(instance_id: str) -> str:
    """Raises BadRequestError for what can't be an instance's id."""
    if not instance_id.strip():
        raise BadRequestError("The instance's id is empty.")
    if instance_id.startswith("@"):
        raise BadRequestError(f"The instance id {instance_id!r} starts with '@': such ids are entities'.")
    if len(instance_id) > MAX_INSTANCE_ID_CHARS:
        raise BadRequestError(f"An instance's id has {MAX_INSTANCE_ID_CHARS} characters at most.")
    if any(unicodedata.category(letter) in _INVISIBLE for letter in instance_id):
        raise BadRequestError(f"The instance id {instance_id!r} has characters that can't be seen in it.")
    return instance_id


def utc(when: datetime | None) -> datetime | None:
    """The time in UTC, without saying so, as engines take it. Raises BadRequestError where there is none."""
    if when is None or when.tzinfo is None:
        return when
    try:
        return when.astimezone(UTC).replace(tzinfo=None)
    except OverflowError as error:
        raise BadRequestError(f"{when.isoformat()} is out of range.") from error


def _wrapped(token: str) -> str:
    """A token as a header can hold it: it has an instance's id in it."""
    return base64.urlsafe_b64encode(token.encode()).decode("ascii")


def _unwrapped(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise ValueError(
            f"{name_some([token[:100]])!r} is no continuation token: pass one as it was given"
        ) from None
