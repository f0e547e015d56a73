"""The log of a process: to stderr, with the secrets in it masked, whoever writes.

The text is masked when it has been formatted: so arguments, exceptions with their traces, and the loggers of
other packages can't get round it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import Final, TextIO

from broker.masking import masked

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
"""Of what one fleet process says in its life."""
FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class MaskingFormatter(logging.Formatter):
    """A formatter whose texts have no secrets in them."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes until it has written so much, says so, and is silent from then on."""

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


def start_log(level: str, *, max_bytes: int | None = None) -> None:
    """Log to stderr from ``level`` on; warnings, and what ends the process, are masked there too.

    ``max_bytes``: no more than that in the life of the process, which may be long and has its log on a disk.
    """
    handler = logging.StreamHandler() if max_bytes is None else BoundedHandler(max_bytes=max_bytes)
    handler.setFormatter(MaskingFormatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)
    sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(
        masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True
    )
