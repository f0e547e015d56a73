"""The log of a process: to stderr, with the secrets in it masked, whoever writes.

The text is masked when it has been formatted: so arguments, exceptions with their traces, and the loggers of
other packages can't get round it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import Final

from broker.masking import masked

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class MaskingFormatter(logging.Formatter):
    """A formatter whose texts have no secrets in them."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def start_log(level: str) -> None:
    """Log to stderr from ``level`` on; warnings, and what ends the process, are masked there too."""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)
    sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(
        masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True
    )
