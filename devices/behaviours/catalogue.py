"""Which behaviours there are by name: the built-in ones, and those that a fleet file defines.

A definition names what it is (``is``: a built-in behaviour, or ``module:Class`` or ``file.py:Class`` of the
user's own) and sets parameters. Parameters may follow a name, too: ``hangs(after=notified)``. Names combine
by ``+``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import grp
import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import pwd
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from devices.behaviours.answers import (
    ClockSkew,
    DuplicateAck,
    Hangs,
    Impostor,
    LateAck,
    LostAck,
    Malformed,
    NeverAnswers,
    Rejects,
    WrongAck,
)
from devices.behaviours.base import NO_LIMITS, Behaviour, Outcome
from devices.behaviours.combined import HEALTHY, Combined, Complaint
from devices.behaviours.downloads import BadSignature, Corrupt, ExpiredUrl, OutOfStorage, Reboot, Truncated
from devices.behaviours.network import Flaky, Healthy, Lossy, Offline, Sleepy, Slow
from devices.dice import Dice
from devices.errors import FleetSpecError

Parameter = int | float | str | bool
MAX_DEFINITIONS: Final = 1_000
MAX_COMBINED: Final = 8

NAME_PATTERN: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_WITH_PARAMETERS: Final = re.compile(r"([^()]+)\(([^()]*)\)")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A behaviour by name: its class, and the parameters that are not the class's own."""

    cls: type[Behaviour]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def make(self) -> Behaviour:
        """A new one; not prepared yet."""
        return self.cls(**self.parameters)

    @property
    def summary(self) -> str:
        """The first line of the class's documentation."""
        return (self.cls.__doc__ or "").strip().partition("\n")[0]


BUILT_IN: Final[Mapping[str, Definition]] = MappingProxyType(
    {
        "healthy": Definition(cls=Healthy),
        "slow": Definition(cls=Slow),
        "lossy": Definition(cls=Lossy),
        "flaky": Definition(cls=Flaky),
        "offline": Definition(cls=Offline),
        "sleepy": Definition(cls=Sleepy),
        "reboot": Definition(cls=Reboot),
        "reboot-afresh": Definition(cls=Reboot, parameters={"keep_download": False}),
        "corrupt": Definition(cls=Corrupt),
        "truncated": Definition(cls=Truncated),
        "out-of-storage": Definition(cls=OutOfStorage),
        "bad-signature": Definition(cls=BadSignature),
        "expired-url": Definition(cls=ExpiredUrl),
        "rejects": Definition(cls=Rejects),
        "never-answers": Definition(cls=NeverAnswers),
        "hangs": Definition(cls=Hangs),
        "duplicate-ack": Definition(cls=DuplicateAck),
        "late-ack": Definition(cls=LateAck),
        "lost-ack": Definition(cls=LostAck),
        "wrong-ack": Definition(cls=WrongAck),
        "malformed": Definition(cls=Malformed),
        "impostor": Definition(cls=Impostor),
        "clock-skew": Definition(cls=ClockSkew),
    }
)


def parameters_of(cls: type[Behaviour]) -> dict[str, Parameter]:
    """The parameters of a class with their defaults."""
    return {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.init and isinstance(field.default, int | float | str | bool)
    }


class Catalogue:
    """The behaviours that one fleet knows by name."""

    def __init__(self, definitions: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Built-in ones and ``definitions``; loads the code of the user's own.

        Raises `FleetSpecError` for a definition that can't be, naming its key.
        """
        self._known: dict[str, Definition] = dict(BUILT_IN)
        # Names with parameters that were looked up before, as each device looks its own up.
        self._with_parameters: dict[str, Definition] = {}
        if definitions is not None and len(definitions) > MAX_DEFINITIONS:
            raise FleetSpecError(
                "behaviours", f"{len(definitions)} definitions", f"give at most {MAX_DEFINITIONS:,}"
            )
        for name, definition in (definitions or {}).items():
            self._known[name] = self._define(name, definition)

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._known)

    def definition(self, name: str) -> Definition:
        """What ``name`` stands for; KeyError where there is none."""
        return self._known[name]

    def check(self, name: str, *, key: str) -> str:
        """Return ``name`` if it is a behaviour or several joined by '+'; `FleetSpecError` about ``key``."""
        parts = split(name, "+")
        for part in parts:
            self._find(part, key)
        if len(set(parts)) != len(parts):
            raise FleetSpecError(key, f"{name!r} names one twice", "name each behaviour once")
        if len(parts) > MAX_COMBINED:
            raise FleetSpecError(
                key, f"{name!r} combines {len(parts)} behaviours", f"combine at most {MAX_COMBINED}"
            )
        return name

    def make(self, name: str, dice: Dice, complain: Complaint) -> Combined:
        """The behaviour called ``name`` of one device; ``complain`` is told where it fails."""
        if name == "healthy":
            return HEALTHY
        behaviours = []
        for part in split(name, "+"):
            behaviour = self._find(part, "behaviours").make()
            try:
                behaviour.prepare(dice)
            except Exception as error:
                complain(behaviour, "prepare", error)
            behaviours.append(behaviour)
        return Combined(behaviours, complain)

    def expected_outcome(
        self, name: str, seed: int, *, max_attempts: int, limits: Mapping[str, int] = NO_LIMITS
    ) -> Outcome:
        """How the service should end the device with that seed; see `outcome_of`."""
        made = self.make(name, Dice(seed), _pass_over)
        return made.expected_outcome(max_attempts=max_attempts, limits=limits)

    def _find(self, part: str, key: str) -> Definition:
        """What one name stands for, with the parameters that may follow it; raises `FleetSpecError`."""
        if (definition := self._known.get(part) or self._with_parameters.get(part)) is not None:
            return definition
        if not part.strip():
            raise FleetSpecError(key, "a behaviour has no name", "join names by '+', as in slow+flaky")
        if part.count("(") != part.count(")"):
            raise FleetSpecError(
                key,
                f"{part!r} lacks a parenthesis",
                "write it as in hangs(after=notified)",
            )
        found = _WITH_PARAMETERS.fullmatch(part)
        if found is None or found[1] not in self._known:
            name = part if found is None else found[1]
            raise FleetSpecError(key, f"unknown behaviour {name!r}", self._instead_of(name))
        base = self._known[found[1]]
        known = parameters_of(base.cls)
        given: dict[str, Any] = {}
        for item in found[2].split(","):
            name, _, text = (word.strip() for word in item.partition("="))
            given[name] = _read(text, known[name]) if name in known else text
        self._with_parameters[part] = _made(base, given, key, part)
        return self._with_parameters[part]

    def _instead_of(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._known, n=1)
        if close:
            return f"did you mean {close[0]!r}? `muster fleet behaviours` lists all"
        return f"use {', '.join(self._known)}, or several joined by '+'"

    def _define(self, name: str, definition: Mapping[str, Any]) -> Definition:
        key = f"behaviours.{name}"
        if not NAME_PATTERN.fullmatch(name):
            raise FleetSpecError(key, f"{name!r} is no name", "use lower-case letters, digits and hyphens")
        if name in BUILT_IN:
            raise FleetSpecError(key, "a built-in behaviour has that name", "choose another name")
        if not isinstance(definition, Mapping):
            raise FleetSpecError(key, "it is no table", f'write [behaviours.{name}] with is = "slow"')
        source = definition.get("is")
        if not isinstance(source, str) or not source:
            raise FleetSpecError(
                f"{key}.is",
                "it does not say what it is",
                'give a built-in one (is = "slow") or a class of your own (is = "my_devices.py:Stubborn")',
            )
        if ":" in source:
            base = Definition(cls=load_class(source, key=f"{key}.is"))
        elif source in BUILT_IN:
            base = BUILT_IN[source]
        else:
            raise FleetSpecError(f"{key}.is", f"unknown behaviour {source!r}", self._instead_of(source))
        given = {parameter: value for parameter, value in definition.items() if parameter != "is"}
        return _made(base, given, key, source)


def split(text: str, separator: str) -> list[str]:
    """``text`` at each ``separator`` outside of parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == separator and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def expand(weights: Mapping[str, float], names: Iterable[str] = tuple(BUILT_IN)) -> dict[str, float]:
    """``all`` as a name stands for each of ``names``, which share its weight."""
    if "all" not in weights:
        return dict(weights)
    names = list(names)
    expanded = {name: weight for name, weight in weights.items() if name != "all"}
    for name in names:
        expanded[name] = expanded.get(name, 0.0) + weights["all"] / len(names)
    return expanded


def load_class(source: str, *, key: str) -> type[Behaviour]:
    """The class that ``module:Class`` or ``path/file.py:Class`` names.

    A file is run, so it must belong to the user, or to root, and be writable by nobody else.
    """
    place, _, class_name = source.rpartition(":")
    try:
        module = _load_file(Path(place), key) if place.endswith(".py") else importlib.import_module(place)
        found = getattr(module, class_name, None)
    except FleetSpecError:
        raise
    except Exception as error:
        raise FleetSpecError(
            key,
            f"{place!r} can't be loaded ({type(error).__name__}: {error})",
            "mend the module, or its name",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Behaviour)):
        raise FleetSpecError(
            key,
            f"{place!r} has no behaviour {class_name!r}",
            "name a class that is derived from devices.behaviours.Behaviour",
        )
    if "__dataclass_fields__" not in vars(found) and vars(found).get("__annotations__"):
        raise FleetSpecError(
            key, f"{class_name} has fields and is no dataclass", "decorate it with @dataclass(kw_only=True)"
        )
    return found


class _Source(importlib.abc.SourceLoader):
    """Loads one text, and no bytecode that lies beside it.

    Bytecode counts as that of a file by its length and the second of its last change: too coarse for a file
    that is mended while the service runs, and whoever may write to the cache's directory could put any there.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = str(path)
        self._data = data

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: bytes | str) -> bytes:
        if path != self._path:
            raise OSError(path)
        return self._data


def _load_file(path: Path, key: str) -> Any:
    path = path.resolve()
    try:
        with path.open("rb") as file:
            # Of the file that was opened: another one could be put in its place.
            status = os.fstat(file.fileno())
            data = file.read()
    except OSError as error:
        raise FleetSpecError(
            key, f"{path} can't be read ({error.strerror})", "give the path of a Python file"
        ) from None
    if status.st_uid not in (os.geteuid(), 0) or _others_may_write(status):
        raise FleetSpecError(
            key,
            f"{path} belongs to another user, or others may write to it",
            "only code of your own is run: take it over (chown), and `chmod go-w` it",
        )
    # Loaded anew each time: the service goes on while its user mends the file.
    name = f"muster_behaviours_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_loader(name, _Source(path, data))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _others_may_write(status: os.stat_result) -> bool:
    """Whether anybody but its owner may write to a file; a group that is the owner's alone is the owner."""
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return True
    return group.gr_name != owner or not set(group.gr_mem) <= {owner}


def _made(base: Definition, given: Mapping[str, Any], key: str, source: str) -> Definition:
    """``base`` with further parameters, tried out; raises `FleetSpecError`."""
    made = Definition(cls=base.cls, parameters={**base.parameters, **_checked(base.cls, given, key)})
    try:
        made.make()
    except ValueError as error:
        problem = str(error)
        parameter = next((p for p in given if problem.startswith(p)), None)
        raise FleetSpecError(
            f"{key}.{parameter}" if parameter else key, problem, "see `muster fleet behaviours`"
        ) from error
    except Exception as error:
        raise FleetSpecError(
            key, f"{source} can't be made ({type(error).__name__}: {error})", "mend its class"
        ) from error
    return made


def _read(text: str, default: Parameter) -> Any:
    """A parameter's value as its text says it; the text itself where it is of another kind."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}.get(text, text)
        return type(default)(text)
    except ValueError:
        return text


def _checked(cls: type[Behaviour], given: Mapping[str, Any], key: str) -> dict[str, Parameter]:
    """``given`` as the class takes it; each value of its parameter's type."""
    known = parameters_of(cls)
    checked: dict[str, Parameter] = {}
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'none'}"
            raise FleetSpecError(f"{key}.{name}", "there is no such parameter", remedy)
        wanted = type(known[name])
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                value = float(value)
        if type(value) is not wanted:
            raise FleetSpecError(
                f"{key}.{name}", f"{value!r} is no {_KINDS[wanted]}", f"give one, such as {known[name]!r}"
            )
        checked[name] = value
    return checked


_KINDS: Final[Mapping[type, str]] = MappingProxyType(
    {int: "whole number", float: "number", str: "text", bool: "true or false"}
)


def _pass_over(behaviour: Behaviour, method: str, error: Exception) -> None:
    """What fails here fails in the device again, and is told of there."""
