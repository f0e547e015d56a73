"""The functions that an engine runs, by name, with what their annotations say of their data."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from durabletask import task
from durabletask.serialization import DataConverter

AnyFunction = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A registered orchestrator or activity. ``input_type`` is what its input is rebuilt to, if anything."""

    name: str
    call: AnyFunction
    input_type: Any
    is_async: bool


class Functions:
    """Orchestrators and activities by name, with the converter of their data."""

    def __init__(self, converter: DataConverter) -> None:
        self.converter = converter
        self.orchestrators: dict[str, Function] = {}
        self.activities: dict[str, Function] = {}

    def add_orchestrator(self, name: str, call: AnyFunction) -> None:
        """Raises ValueError for an empty or a taken name."""
        self._add(self.orchestrators, "orchestrator", name, call)

    def add_activity(self, name: str, call: AnyFunction) -> None:
        """Raises ValueError for an empty or a taken name."""
        self._add(self.activities, "activity", name, call)

    def _add(self, table: dict[str, Function], what: str, name: str, call: AnyFunction) -> None:
        if not callable(call):
            raise ValueError(f"the {what} {name!r} is no function but {call!r}")
        if not name:
            raise ValueError(f"a non-empty {what} name is required")
        if name in table:
            raise ValueError(f"an {what} named {name!r} is already registered")
        table[name] = Function(
            name=name,
            call=call,
            input_type=input_type_of(call, self.converter),
            is_async=inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__),
        )


class Registration:
    """The methods by which users register functions."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions

    def add_orchestrator(self, fn: AnyFunction) -> str:
        """Register an orchestrator under its own name, which is returned.

        Raises RuntimeError while it runs, ValueError for an empty or a taken name.
        """
        self._may_register("orchestrators")
        return self.add_named_orchestrator(function_name(fn), fn)

    def add_named_orchestrator(self, name: str, fn: AnyFunction) -> str:
        """As :meth:`add_orchestrator`, under another name."""
        self._may_register("orchestrators")
        self._functions.add_orchestrator(name, fn)
        return name

    def add_activity(self, fn: AnyFunction) -> str:
        """Register an activity, plain or ``async``, under its own name, which is returned.

        Raises RuntimeError while it runs, ValueError for an empty or a taken name.
        """
        self._may_register("activities")
        return self.add_named_activity(function_name(fn), fn)

    def add_named_activity(self, name: str, fn: AnyFunction) -> str:
        """As :meth:`add_activity`, under another name."""
        self._may_register("activities")
        self._functions.add_activity(name, fn)
        return name

    def _may_register(self, what: str) -> None:
        """Raises RuntimeError."""


def function_name(function: AnyFunction | str) -> str:
    """The name under which a function, or the name itself, is registered.

    Raises ValueError for a lambda, and for what has no name.
    """
    if isinstance(function, str):
        return function
    if not hasattr(function, "__name__"):
        raise ValueError(f"{function!r} has no name: give a function, or the name that one is registered by")
    return task.get_name(function)


def input_type_of(call: AnyFunction, converter: DataConverter) -> Any:
    """Annotation of the second positional parameter, where the converter can rebuild it; else None."""
    try:
        parameters = [
            p
            for p in inspect.signature(call).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return None
    if len(parameters) < 2:
        return None
    return _reconstructable(call, parameters[1].name, parameters[1].annotation, converter)


def return_type_of(call: AnyFunction, converter: DataConverter) -> Any:
    """Return annotation, where the converter can rebuild it; else None."""
    try:
        return _return_type_of(call, converter)
    except TypeError:  # a callable, or a converter, that can't be a key
        return _return_type_of.__wrapped__(call, converter)


@functools.lru_cache(maxsize=1_024)  # orchestrators ask at each call of an activity
def _return_type_of(call: AnyFunction, converter: DataConverter) -> Any:
    try:
        annotation = inspect.signature(call).return_annotation
    except (TypeError, ValueError):
        return None
    return _reconstructable(call, "return", annotation, converter)


def _reconstructable(call: AnyFunction, name: str, annotation: Any, converter: DataConverter) -> Any:
    try:
        annotation = typing.get_type_hints(call).get(name, annotation)
    except Exception:  # hints that can't be resolved say nothing; the raw value is handed over
        return None
    if annotation in (inspect.Parameter.empty, None, type(None), Any) or isinstance(annotation, str):
        return None
    return annotation if converter.can_reconstruct(annotation) else None
