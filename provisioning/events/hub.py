"""The latest events in one ring, and who reads them.

A reader is a place in the ring and no queue of its own: however many read, an event is kept and encoded
once. Who is so slow that the ring has gone past is dropped.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from broker.masking import masked
from provisioning.errors import RequestError

Topic = Literal["rollouts", "devices", "fleets", "runs"]
TOPICS: Final[tuple[Topic, ...]] = get_args(Topic)

MAX_READERS: Final = 64
MAX_EVENTS: Final = 4_096
MAX_BYTES: Final = 4 * 1024 * 1024
"""What the ring holds, so what may be resumed: some minutes, of a fleet in full flight."""
_CHUNK_BYTES: Final = 256 * 1024
LINGER_S: Final = 60.0
"""For how long events are kept for those who have left, and may come back."""
KEEP_ALIVE_S: Final = 15.0
_KEEP_ALIVE: Final = b": keep-alive\n\n"


class TooManyReadersError(RequestError):
    """As many read events as may."""

    status = 503
    title = "Too many readers"

    def __init__(self, readers: int) -> None:
        super().__init__(f"{readers} read events already, the most at once: close one, and try again.")


class StoppingError(RequestError):
    """The service stops, and with it all events."""

    status = 503
    title = "Stopping"

    def __init__(self) -> None:
        super().__init__("The service stops: `muster up` starts it again.")


@dataclass(frozen=True, kw_only=True)
class HubStatistics:
    """Counters since the start, and who reads now."""

    readers: int
    opened: int
    dropped: int
    """Readers that were too slow."""
    refused: int
    resumed: int
    resets: int
    published: int
    kept: int
    kept_bytes: int


@dataclass(kw_only=True, slots=True)
class _Event:
    """One event; what it is about decides who is sent it."""

    topic: Topic | None
    """None: a gap, which nobody is sent."""
    name: str
    event_id: str
    data: str = ""
    rollout_id: str | None = None
    """Of an event about one."""
    parts: Sequence[tuple[str | None, str]] | None = None
    """Of an event about devices: each with the run that has it."""
    head: str = ""
    size: int = 0
    encoded: dict[str | None, bytes] = field(default_factory=dict)
    """By the rollout that a reader is about: what some are sent is together no more than what all are."""

    def bytes_for(self, reader: Reader) -> bytes:
        if self.topic is None or self.topic not in reader.topics:
            return b""
        only = reader.only if self.parts is not None or self.rollout_id is not None else None
        if only is not None and self.parts is None and only != self.rollout_id:
            return b""
        known = self.encoded.get(only)
        if known is None:
            known = self.encoded[only] = self._encode(only)
        return known

    def _encode(self, only: str | None) -> bytes:
        data = self.data
        if self.parts is not None:
            chosen = [text for run_id, text in self.parts if only is None or run_id == only]
            if not chosen:
                return b""
            data = f"{self.head}{','.join(chosen)}]}}"
        return encode(self.name, data, self.event_id)


def encode(name: str, data: str, event_id: str) -> bytes:
    """One event as it is sent, without secrets; ``data`` is JSON on one line."""
    return f"id: {event_id}\nevent: {name}\ndata: {masked(data)}\n\n".encode()


class Reader:
    """Who reads events, from its place on."""

    def __init__(
        self, hub: Hub, topics: frozenset[Topic], only: str | None, place: int, first: bytes
    ) -> None:
        self.topics = topics
        self.only = only
        """The rollout that it wants to hear of alone; None: all."""
        self.place = place
        """The number of the last event that it has."""
        self.closed = False
        self.abort: Callable[[], None] = lambda: None
        """Cuts its connection, whatever is not sent yet."""
        self.sending = False
        self._hub = hub
        self._first = first
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        """There will be nothing more; what is being sent to it is cut off."""
        self.closed = True
        self._wake.set()
        if self.sending:
            self.abort()

    async def next(self) -> bytes | None:
        """What there is to send, a comment where there is nothing for long; None: no more."""
        while not self.closed:
            if self._first:
                first, self._first = self._first, b""
                return first
            self._wake.clear()
            if found := self._hub.after(self):
                return found
            try:
                async with asyncio.timeout(self._hub.keep_alive_s):
                    await self._wake.wait()
            except TimeoutError:
                return _KEEP_ALIVE
        return None


class Hub:
    """The events of one life of the service.

    ``life`` is in each event's id, so that ids of another one are known as such. ``on_topics`` is told when
    somebody begins to read, or nobody has done so for `LINGER_S`.
    """

    def __init__(
        self,
        life: str,
        *,
        version: str,
        max_readers: int = MAX_READERS,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
        keep_alive_s: float = KEEP_ALIVE_S,
        linger_s: float = LINGER_S,
    ) -> None:
        self.life = life
        self.keep_alive_s = keep_alive_s
        self.on_topics: Callable[[], None] = lambda: None
        self._version = version
        self._max_readers = max_readers
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._linger_s = linger_s
        self._ring: deque[_Event] = deque()
        self._bytes = 0
        self._number = 0
        self._readers: set[Reader] = set()
        self._held: Counter[Topic] = Counter()
        self._lingering: dict[Topic, asyncio.TimerHandle] = {}
        self._recorded_from: dict[Topic, int] = {}
        self._closed = False
        self._opened = self._dropped = self._refused = self._resumed = self._resets = self._published = 0

    @property
    def topics(self) -> Set[Topic]:
        """What events are made of: somebody reads them, or has done so a moment ago."""
        return self._recorded_from.keys()

    # -- events --------------------------------------------------------------------------------------

    def publish(
        self, topic: Topic, name: str, data: Mapping[str, Any], *, rollout_id: str | None = None
    ) -> None:
        """One event, about all or one rollout."""
        text = json.dumps(data, separators=(",", ":"))
        self._add(
            _Event(
                topic=topic,
                name=name,
                event_id=self._next_id(),
                data=text,
                rollout_id=rollout_id,
                size=2 * len(text),
            )
        )

    def publish_devices(self, at: str, rows: Sequence[tuple[str | None, str]]) -> None:
        """One event about devices, each as JSON with the run that has it."""
        self._add(
            _Event(
                topic="devices",
                name="devices",
                event_id=self._next_id(),
                parts=rows,
                head=f'{{"at":"{at}","devices":[',
                size=3 * sum(len(text) for _, text in rows),
            )
        )

    def _next_id(self) -> str:
        return f"{self.life}-{self._number + 1}"

    def _add(self, event: _Event) -> None:
        self._number += 1
        self._published += event.topic is not None
        self._ring.append(event)
        self._bytes += event.size
        # The newest stays, however large: those who keep up are to have it.
        while len(self._ring) > 1 and (len(self._ring) > self._max_events or self._bytes > self._max_bytes):
            self._bytes -= self._ring.popleft().size
        oldest = self._number - len(self._ring)
        for reader in list(self._readers):
            if reader.place < oldest:
                self.drop(reader)
            else:
                reader.wake()

    def after(self, reader: Reader) -> bytes:
        """What follows the reader's place, up to some size; its place is then after that."""
        found = []
        size = 0
        while reader.place < self._number and size < _CHUNK_BYTES:
            event = self._ring[len(self._ring) - (self._number - reader.place)]
            reader.place += 1
            if text := event.bytes_for(reader):
                found.append(text)
                size += len(text)
        return b"".join(found)

    # -- readers -------------------------------------------------------------------------------------

    def hold(self, topics: Collection[Topic]) -> None:
        """Keep events of these from now on; `release` is for when somebody reads them, or nobody will."""
        self._held.update(topics)
        begun = [topic for topic in topics if topic not in self._recorded_from]
        if begun:
            # An id of before is no place to go on from: what happened between is not here.
            self._add(_Event(topic=None, name="gap", event_id=""))
            self._recorded_from |= dict.fromkeys(begun, self._number)
            self.on_topics()
        for topic in topics:
            self._linger(topic)

    def release(self, topics: Collection[Topic]) -> None:
        """The other end of `hold`: they are kept as long as somebody reads them, and a while."""
        self._held.subtract(topics)
        for topic in topics:
            self._linger(topic)

    def open(
        self, topics: Collection[Topic], *, only: str | None = None, last_id: str | None = None
    ) -> Reader:
        """A reader, from where ``last_id`` was; what it reads must be held already.

        Raises TooManyReadersError and StoppingError.
        """
        if self._closed:
            raise StoppingError
        if len(self._readers) >= self._max_readers:
            self._refused += 1
            raise TooManyReadersError(len(self._readers))
        place, why = self._number, None
        if last_id is not None:
            resumed = self._place_of(last_id, topics)
            if isinstance(resumed, int):
                place = resumed
                self._resumed += 1
            else:
                why = resumed
                self._resets += 1
        hello = json.dumps({"service": self.life, "version": self._version})
        first = encode("hello", hello, f"{self.life}-{place}")
        if why is not None:
            first += encode("reset", json.dumps({"why": why}), f"{self.life}-{place}")
        reader = Reader(self, frozenset(topics), only, place, first)
        self._readers.add(reader)
        self._opened += 1
        for topic in topics:
            self._linger(topic)
        return reader

    def leave(self, reader: Reader) -> None:
        """It reads no more; twice is as once."""
        if reader in self._readers:
            self._leave(reader)
        reader.closed = True

    def drop(self, reader: Reader) -> None:
        """It is too slow: its connection is cut."""
        if reader in self._readers:
            self._dropped += 1
            self._leave(reader)
        reader.close()
        reader.abort()

    def _leave(self, reader: Reader) -> None:
        self._readers.discard(reader)
        for topic in reader.topics:
            self._linger(topic)

    def _linger(self, topic: Topic) -> None:
        """Begin to count the time without readers, or count it no more."""
        if (handle := self._lingering.pop(topic, None)) is not None:
            handle.cancel()
        wanted = self._held[topic] > 0 or any(topic in reader.topics for reader in self._readers)
        if not wanted and not self._closed:
            loop = asyncio.get_running_loop()
            self._lingering[topic] = loop.call_later(self._linger_s, self._forget, topic)

    def _forget(self, topic: Topic) -> None:
        del self._lingering[topic], self._recorded_from[topic]
        if not self._recorded_from:
            self._ring.clear()
            self._bytes = 0
        self.on_topics()

    def _place_of(self, last_id: str, topics: Collection[Topic]) -> int | str:
        """Where to go on; or why that can't be."""
        life, _, number = last_id.rpartition("-")
        if life != self.life or not (number.isascii() and number.isdigit() and len(number) < 20):
            return "That was another life of the service."
        place = int(number)
        oldest = max(self._number - len(self._ring), *(self._recorded_from[topic] for topic in topics))
        if not oldest <= place <= self._number:
            return "That is too long ago: the events since then are not kept."
        return place

    def close(self) -> None:
        """End all streams, and open no more."""
        self._closed = True
        for handle in self._lingering.values():
            handle.cancel()
        self._lingering.clear()
        for reader in list(self._readers):
            reader.close()
        self._readers.clear()

    def statistics(self) -> HubStatistics:
        """A snapshot."""
        return HubStatistics(
            readers=len(self._readers),
            opened=self._opened,
            dropped=self._dropped,
            refused=self._refused,
            resumed=self._resumed,
            resets=self._resets,
            published=self._published,
            kept=len(self._ring),
            kept_bytes=self._bytes,
        )
