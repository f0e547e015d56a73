"""How many requests there were, and how long they took."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ENDLESS: Final = "/api/events"


@dataclass
class HttpCounts:
    """Requests since the start."""

    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By method and status."""
    under_way: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    """By how long they took until the end of the answer; streams of events are left out."""
    seconds: float = 0.0


class Counting:
    """Counts what passes."""

    def __init__(self, app: ASGIApp, counts: HttpCounts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counts = self._counts
        # A client may say any word: each would be a label of its own.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                counts.answered[method, message["status"]] += 1
            await send(message)

        counts.under_way += 1
        try:
            await self._app(scope, receive, counted)
        finally:
            counts.under_way -= 1
            if scope["path"] != _ENDLESS:
                took_s = time.perf_counter() - began
                counts.buckets[bisect_left(BUCKETS_S, took_s)] += 1
                counts.seconds += took_s
