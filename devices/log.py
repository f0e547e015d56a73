"""What a fleet process says, within bounds: a fleet may run for months, and its log is on a disk."""

from __future__ import annotations

import logging
from typing import Final, TextIO

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
"""Of what one process says in its life."""


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error until it has written so much, says so, and is silent from then on."""

    def __init__(self, stream: TextIO | None = None, *, max_bytes: int = MAX_LOG_BYTES) -> None:
        super().__init__(stream)
        self._left = max_bytes

    def format(self, record: logging.LogRecord) -> str:
        """As it is written; the length is what counts."""
        text = super().format(record)
        self._left -= len(text.encode("utf-8", "replace")) + 1
        return text if self._left > 0 else f"{text}\nmore than that is not logged by this process"

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or nothing any more."""
        if self._left > 0:
            super().emit(record)
