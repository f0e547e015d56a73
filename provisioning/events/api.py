"""The route of the events.

| call | answer |
|---|---|
| GET /api/events | what changes, as it changes: `text/event-stream`, until the reader goes |
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response

from .feed import Feed
from .hub import TOPICS, Hub, HubStatistics, Topic
from .stream import EventStream

_TOPIC: Final = f"({'|'.join(TOPICS)})"
_TOPICS_PATTERN: Final = f"^{_TOPIC}(,{_TOPIC})*$"
MAX_ID_CHARS: Final = 100
_EVENT: Final = {
    "title": "Event",
    "description": "One event of the stream.",
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "Where to go on from, as Last-Event-ID."},
        "event": {"type": "string", "enum": ["hello", "reset", "devices", "rollout", "run", "fleet"]},
        "data": {"type": "string", "description": "JSON on one line; docs/HTTP-API.md has each."},
    },
    "required": ["id", "event", "data"],
}


class Events:
    """The events of a service. ``check_rollout`` raises where there is none of an id."""

    def __init__(self, hub: Hub, feed: Feed, *, check_rollout: Callable[[str], Awaitable[None]]) -> None:
        self._hub = hub
        self._feed = feed
        self._check_rollout = check_rollout

    def start(self) -> None:
        """Be ready for readers."""
        self._feed.start()

    async def close(self) -> None:
        """End all streams."""
        self._hub.close()
        await self._feed.close()

    async def stream(
        self, topics: Collection[Topic], *, rollout_id: str | None = None, last_id: str | None = None
    ) -> EventStream:
        """A stream for one reader: what changes after its first event is in it.

        Raises TooManyReadersError, StoppingError and UnknownRolloutError.
        """
        if rollout_id is not None:
            await self._check_rollout(rollout_id)
        async with self._feed.recording(topics):
            return EventStream(self._hub, self._hub.open(topics, only=rollout_id, last_id=last_id))

    def statistics(self) -> HubStatistics:
        """Readers and events."""
        return self._hub.statistics()


def event_routes(events: Callable[[], Events]) -> APIRouter:
    """The route, for the events of a service that runs by the time of a call."""
    router = APIRouter(prefix="/api/events", tags=["events"])

    @router.get(
        "",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {"schema": _EVENT}}}},
    )
    async def stream(
        topics: Annotated[str, Query(max_length=100, pattern=_TOPICS_PATTERN)] = ",".join(TOPICS),
        rollout: Annotated[str | None, Query(max_length=200)] = None,
        last_event_id: Annotated[str | None, Query(max_length=MAX_ID_CHARS)] = None,
        resumed_from: Annotated[str | None, Header(alias="Last-Event-ID", max_length=MAX_ID_CHARS)] = None,
    ) -> Response:
        """What changes, as it changes: server-sent events, until the reader goes."""
        named = topics.split(",")
        return await events().stream(
            [topic for topic in TOPICS if topic in named],
            rollout_id=rollout,
            last_id=resumed_from or last_event_id or None,
        )

    return router
