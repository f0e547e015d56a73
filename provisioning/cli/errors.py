"""What can go wrong on the command line: each error is one line for stderr and an exit code.

CliError                     1   the base: something failed
├── UsageError               2   the input cannot be right: nothing was changed
│   └── UnfinishedRunError   2   the state holds an earlier run and the user has not said what to do with it
├── ServiceNotRunningError   1   nobody answers for this state directory
├── ApiError                 1   the service answered with a problem (2 where it is the input's)
├── StackError               1   what `muster` started (stack, service, fleet) did not come up or ended
└── InterruptedBySignalError 130 a signal asked to stop (128 + its number)

The message names the thing and the remedy, in one line.
"""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

MAX_MESSAGE_CHARS = 1000


class CliError(Exception):
    """A command failed; ``str(error)`` is the line shown to the user."""

    exit_code = EXIT_FAILURE


class UsageError(CliError):
    """The command line or the state it names cannot be used as it is."""

    exit_code = EXIT_USAGE


class UnfinishedRunError(UsageError):
    """An earlier run is in the state directory and neither --resume nor --fresh was given."""


class ServiceNotRunningError(CliError):
    """No service answers; ``url`` is where it was looked for, if anywhere."""

    def __init__(self, message: str, *, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class ApiError(CliError):
    """The service refused a request; ``status`` is the HTTP status, ``detail`` its explanation."""

    def __init__(self, *, status: int, title: str, detail: str) -> None:
        super().__init__(detail or title or f"the service answered with HTTP status {status}")
        self.status = status
        self.title = title
        self.detail = detail
        self.exit_code = EXIT_USAGE if status in (400, 422) else EXIT_FAILURE


class StackError(CliError):
    """Something that `muster` started for the user did not come up, or ended by itself."""


class InterruptedBySignalError(CliError):
    """The user (or the system) asked to stop."""

    def __init__(self, message: str, *, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


def one_line(text: str) -> str:
    """Return ``text`` as one printable line of at most MAX_MESSAGE_CHARS characters, secrets masked."""
    # Here, so that commands which have nothing to complain of start without it.
    from broker.masking import masked

    flat = printable(masked(" ".join(text.split())))
    return flat if len(flat) <= MAX_MESSAGE_CHARS else flat[: MAX_MESSAGE_CHARS - 1] + "…"


def printable(text: str) -> str:
    """Return ``text`` with control characters made visible.

    Models, tags and error details come from devices; a terminal must never obey what they contain.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
