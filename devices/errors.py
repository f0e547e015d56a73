"""Errors of the devices package.

DevicesError
├── FleetSpecError      a fleet that can't be: names the key and the remedy
├── FleetStartError     a fleet that can't start here: bad trust key, too few file descriptors
├── ConnectionLostError a connection to the broker that has ended, or never was one: says why
│   └── NotAuthorisedError  the broker does not let the device in with these credentials
└── DownloadError       one attempt at a package has failed; ``reason`` goes to the service
"""

from __future__ import annotations


class DevicesError(Exception):
    """Base of every error that this package raises on purpose."""


class FleetSpecError(DevicesError, ValueError):
    """A fleet that can't be; ``key`` is the part of the spec at fault, ``remedy`` what to give instead."""

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{key}: {problem}; {remedy}" if key else f"{problem}; {remedy}")
        self.key = key
        self.problem = problem
        self.remedy = remedy

    def below(self, parent: str) -> FleetSpecError:
        """The same error, its key seen from further out."""
        return FleetSpecError(f"{parent}.{self.key}" if self.key else parent, self.problem, self.remedy)


class FleetStartError(DevicesError):
    """A fleet that can't start here; the message says what to change."""


class ConnectionLostError(DevicesError):
    """A connection to the broker has ended, or never was one; the message says why. Another one may hold."""


class NotAuthorisedError(ConnectionLostError):
    """The broker does not let the device in: its token is of another time, or it was revoked."""


class DownloadError(DevicesError):
    """One attempt at a package has failed for good.

    ``reason`` is a slug of the MQTT contract (`DownloadFailed.reason`), ``detail`` a sentence for
    people; neither ever holds the package's URL, which is a secret.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
