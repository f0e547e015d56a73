"""Behaviours of a download: cut off by a reboot, damaged, too large, not trusted, out of date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from devices.behaviours.base import ALWAYS, Behaviour, Controls, Failure, Spoils, Step, strikes
from devices.behaviours.network import check
from devices.dice import Dice

if TYPE_CHECKING:
    from broker.messages import Package

_SHARES: Final = (0.2, 0.8)
_LONG_AGO: Final = "2000-01-01T00:00:00Z"
MAX_ATTEMPTS: Final = 100


def check_attempts(attempts: int) -> None:
    """Raise ValueError for a number of attempts that can't be."""
    check("attempts", attempts, ALWAYS, MAX_ATTEMPTS)


@dataclass(kw_only=True)
class Reboot(Behaviour):
    """Loses power in mid-download, once; resumes with Range where it left off, or starts over."""

    keep_download: bool = True
    """Whether what had arrived is on flash, and only the rest is asked for."""
    boot_s: float = 2.0
    at_fraction: float = 0.0
    """The share of the package at which it strikes; 0: drawn for each device."""
    _done: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check("boot_s", self.boot_s, 0, 86_400)
        check("at_fraction", self.at_fraction, 0, 1)

    def prepare(self, dice: Dice) -> None:
        self.at_fraction = self.at_fraction or dice.uniform("reboot at share", *_SHARES)

    def pauses(self) -> Sequence[float]:
        return () if self._done else (self.at_fraction,)

    async def at(self, step: Step, device: Controls) -> None:
        if step is Step.DOWNLOADING and not self._done:
            self._done = True
            await device.reboot(self.boot_s, keep_download=self.keep_download)


@dataclass(kw_only=True)
class Corrupt(Behaviour):
    """Gets damaged bytes, which its check of the hash finds."""

    attempts: int = 1
    """How many attempts are spoilt; 0: all."""

    def __post_init__(self) -> None:
        check_attempts(self.attempts)

    def costs(self) -> Spoils | None:
        return Spoils(outcome="failed", step=Step.DOWNLOADING, attempts=self.attempts)

    def received(self, chunk: bytes, offset: int, package: Package) -> bytes:
        if strikes(package.attempt, self.attempts) and chunk:
            return bytes((chunk[0] ^ 0x01,)) + chunk[1:]
        return chunk


@dataclass(kw_only=True)
class Truncated(Behaviour):
    """Gets a part of the package and takes it for the whole, which its check of the size finds."""

    attempts: int = 1
    """How many attempts are spoilt; 0: all."""
    at_fraction: float = 0.0
    """The share of the package that it gets; 0: drawn for each device."""

    def __post_init__(self) -> None:
        check_attempts(self.attempts)
        check("at_fraction", self.at_fraction, 0, 1)

    def costs(self) -> Spoils | None:
        return Spoils(outcome="failed", step=Step.DOWNLOADING, attempts=self.attempts)

    def prepare(self, dice: Dice) -> None:
        self.at_fraction = self.at_fraction or dice.uniform("truncated at share", *_SHARES)

    def pauses(self) -> Sequence[float]:
        return (self.at_fraction,)

    async def at(self, step: Step, device: Controls) -> None:
        if step is Step.DOWNLOADING and strikes(device.attempt, self.attempts):
            raise Failure("truncated", f"the body ended after {self.at_fraction:.0%} of the package")


@dataclass(kw_only=True)
class OutOfStorage(Behaviour):
    """Has no room for the package."""

    attempts: int = ALWAYS
    """After how many attempts there is room; 0: never."""

    def __post_init__(self) -> None:
        check_attempts(self.attempts)

    def costs(self) -> Spoils | None:
        return Spoils(outcome="failed", step=Step.NOTIFIED, attempts=self.attempts)

    async def at(self, step: Step, device: Controls) -> None:
        package = device.package
        if step is Step.NOTIFIED and package is not None and strikes(device.attempt, self.attempts):
            raise Failure("out-of-storage", f"no room for {package.size_bytes} bytes")


@dataclass(kw_only=True)
class BadSignature(Behaviour):
    """Was given the wrong key to verify packages with, so that none is good enough for it."""

    def costs(self) -> Spoils | None:
        # The signature is looked at when the package is there, and before anything else is done with it.
        return Spoils(outcome="failed", step=Step.DOWNLOADING, share=1.0)

    def trusts(self) -> bool:
        return False


@dataclass(kw_only=True)
class ExpiredUrl(Behaviour):
    """Comes with a SAS URL that has expired, is turned away by blob storage, and asks for another.

    A URL is good for longer than a device is waited for; so it is the expiry in the URL that is set back,
    and the storage that refuses it.
    """

    attempts: int = 1
    """How many attempts are spoilt; 0: all."""

    def __post_init__(self) -> None:
        check_attempts(self.attempts)

    def costs(self) -> Spoils | None:
        # Refused when it is asked for: after all that happens at `Step.NOTIFIED`, before a byte has come.
        return Spoils(outcome="failed", step=Step.DOWNLOADING, attempts=self.attempts, share=0.0)

    def url(self, package: Package) -> str:
        if not strikes(package.attempt, self.attempts):
            return package.url
        parts = urlsplit(package.url)
        query = [(name, _LONG_AGO if name == "se" else value) for name, value in parse_qsl(parts.query)]
        return urlunsplit(parts._replace(query=urlencode(query)))
