"""How often a device is tried again after each kind of failure, and after how long.

| kind | what has happened | unless told otherwise |
|---|---|---|
| no_ack | no acknowledgement of the download within ack_timeout_s | max_attempts |
| download_failed | the device says that its download failed | max_attempts |
| bad_ack | it acknowledged other bytes than it was sent: another hash, another size | max_attempts |
| rejected | it will not have the package | 1: it is not tried again |
| package_lost | it had the package, and not any more when it was to activate it | max_attempts |
| activation_failed | the device says that its activation failed | max_attempts |
| activation_timeout | no confirmation of the activation within activation_timeout_s | max_attempts |

After the first five the device gets its package again, after the last two it is told to activate once more.
Pure: a delay follows from the policy, the device's id and how often it has failed so.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any, Final, Literal, get_args

from .errors import OptionError

FailureKind = Literal[
    "no_ack",
    "download_failed",
    "bad_ack",
    "rejected",
    "package_lost",
    "activation_failed",
    "activation_timeout",
]
KINDS: Final[tuple[FailureKind, ...]] = get_args(FailureKind)

MAX_ATTEMPTS: Final = 100
MAX_DELAY_S: Final = 7 * 86_400.0
MAX_FACTOR: Final = 100.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """What is done about one kind of failure; checked on construction (OptionError)."""

    max_attempts: int | None = None
    """Attempts that may end so, after which there is none; None: as many as the run makes at all."""
    delay_s: float = 0.0
    """How long the first retry waits."""
    factor: float = 1.0
    """By how much each further one waits longer."""
    max_delay_s: float | None = None
    """And no longer than this; None: MAX_DELAY_S."""
    jitter: float = 0.0
    """Up to this share of the delay a device comes back earlier, by its id: a fleet does not all at once."""

    def __post_init__(self) -> None:
        if self.max_attempts is not None and (
            type(self.max_attempts) is not int or not 1 <= self.max_attempts <= MAX_ATTEMPTS
        ):
            raise OptionError(
                "max_attempts",
                f"{_shown(self.max_attempts)} can't be used",
                f"give a whole number from 1 to {MAX_ATTEMPTS}",
            )
        for name, low, high, unit in (
            ("delay_s", 0.0, MAX_DELAY_S, "seconds"),
            ("factor", 1.0, MAX_FACTOR, "a number"),
            ("max_delay_s", 0.0, MAX_DELAY_S, "seconds"),
            ("jitter", 0.0, 1.0, "a share"),
        ):
            value = getattr(self, name)
            if value is None and name == "max_delay_s":
                continue
            if not _is_number(value) or not low <= value <= high:
                raise OptionError(
                    name, f"{_shown(value)} can't be used", f"give {unit} from {low:g} to {high:,.0f}"
                )
        self._agree()

    def _agree(self) -> None:
        if self.delay_s == 0:
            defaults = {"factor": 1.0, "max_delay_s": None, "jitter": 0.0}
            for name, default in defaults.items():
                if getattr(self, name) != default:
                    raise OptionError(name, "there is no delay that it says more of", "give delay_s too")
        elif self.max_attempts == 1:
            raise OptionError(
                "delay_s",
                "max_attempts is 1, so nothing is tried after it",
                "give max_attempts of 2 or more, or leave delay_s out",
            )
        elif self.max_delay_s is not None and self.max_delay_s < self.delay_s:
            raise OptionError(
                "max_delay_s",
                f"{self.max_delay_s:g} is less than delay_s",
                f"give at least {self.delay_s:g}, or a smaller delay_s",
            )

    def delay_after(self, failures: int, salt: str) -> float:
        """How many seconds are waited after the ``failures``-th failure; the same for the same ``salt``."""
        if self.delay_s == 0:
            return 0.0
        longest = MAX_DELAY_S if self.max_delay_s is None else self.max_delay_s
        delay_s = min(self.delay_s * self.factor ** (failures - 1), longest)
        if self.jitter:
            share = int.from_bytes(blake2b(salt.encode(), digest_size=8).digest()) / 2**64
            delay_s *= 1 - self.jitter * share
        return delay_s


_FIELDS: Final = tuple(field.name for field in fields(RetryPolicy))


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """What is done about each kind of failure."""

    no_ack: RetryPolicy = RetryPolicy()
    download_failed: RetryPolicy = RetryPolicy()
    bad_ack: RetryPolicy = RetryPolicy()
    rejected: RetryPolicy = RetryPolicy(max_attempts=1)
    package_lost: RetryPolicy = RetryPolicy()
    activation_failed: RetryPolicy = RetryPolicy()
    activation_timeout: RetryPolicy = RetryPolicy()

    def of(self, kind: FailureKind) -> RetryPolicy:
        """The policy for one kind."""
        policy: RetryPolicy = getattr(self, kind)
        return policy

    @classmethod
    def from_json(cls, document: object) -> Retries:
        """Policies from a mapping of mappings by kind; OptionError names the key at fault."""
        if isinstance(document, Retries):
            return document
        if not isinstance(document, Mapping):
            raise OptionError("", f"{_shown(document)} is no table", "give a table for each kind of failure")
        found: dict[str, RetryPolicy] = {}
        for kind, given in document.items():
            if kind not in KINDS:
                raise _unknown(str(kind), KINDS, "kind of failure")
            try:
                found[kind] = _policy(given, DEFAULT_RETRIES.of(kind))
            except OptionError as error:
                raise error.below(kind) from None
        return cls(**found)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """What `from_json` reads: no more than what differs from the defaults."""
        document: dict[str, dict[str, Any]] = {}
        for kind in KINDS:
            policy, default = self.of(kind), DEFAULT_RETRIES.of(kind)
            if policy != default:
                document[kind] = {
                    name: getattr(policy, name)
                    for name in _FIELDS
                    if getattr(policy, name) != getattr(default, name)
                }
        return document


DEFAULT_RETRIES: Final = Retries()


def _policy(given: object, default: RetryPolicy) -> RetryPolicy:
    if not isinstance(given, Mapping):
        raise OptionError(
            "", f"{_shown(given)} is no table", "give one, as in {max_attempts = 3, delay_s = 5}"
        )
    for name in given:
        if name not in _FIELDS:
            raise _unknown(str(name), _FIELDS, "key")
    return replace(default, **given)


def _unknown(name: str, known: Iterable[str], what: str) -> OptionError:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"use {', '.join(names)}"
    return OptionError(name, f"there is no such {what}", remedy)
