"""Failures as data: from exceptions to JSON on disk, and back to the SDK's public types."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

from durabletask import task
from durabletask.exception_properties import ExceptionPropertiesProvider

T = TypeVar("T")

MAX_DEPTH = 10
"""Inner failures kept, as in the SDK."""
MAX_STACK_CHARS = 16_384
"""A longer stack trace keeps its end, which names the place."""

PropertiesOf = Callable[[BaseException], dict[str, Any] | None]
"""What an application wants to say of an error beside its message. Never raises."""


def no_properties(error: BaseException) -> dict[str, Any] | None:
    """Where the application has no provider."""
    return None


def properties_from(provider: ExceptionPropertiesProvider, log: logging.Logger) -> PropertiesOf:
    """Those of the SDK's kind of provider, as plain data. One that fails is logged and has said nothing."""

    def properties_of(error: BaseException) -> dict[str, Any] | None:
        if not isinstance(error, Exception):
            return None
        try:
            found = provider.get_exception_properties(error)
            return {str(key): _plain(value) for key, value in found.items()} if found else None
        except Exception:
            log.warning("the exception properties provider failed for %s", type(error), exc_info=True)
            return None

    return properties_of


def _plain(value: Any) -> Any:
    """What any Durable Task backend can keep: JSON's own types, all else as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in value]
    return str(value)


def qualified_name(kind: type) -> str:
    """``module.qualname``, as the SDK names error types."""
    return f"{kind.__module__}.{kind.__qualname__}"


def details_of(error: BaseException, properties_of: PropertiesOf = no_properties) -> task.FailureDetails:
    """The failure as a record, inner ones from ``__cause__`` or ``__context__``."""
    return _details_of(error, properties_of, seen=set())


def _details_of(error: BaseException, properties_of: PropertiesOf, seen: set[int]) -> task.FailureDetails:
    seen.add(id(error))
    if isinstance(error, task.TaskFailedError):
        inner: task.FailureDetails | None = error.details
    else:
        cause = error.__cause__ or error.__context__
        follow = isinstance(cause, Exception) and id(cause) not in seen and len(seen) <= MAX_DEPTH
        inner = _details_of(cause, properties_of, seen) if follow and cause is not None else None
    return task.FailureDetails(
        message=_message(error),
        error_type=qualified_name(type(error)),
        stack_trace="".join(traceback.format_tb(error.__traceback__))[-MAX_STACK_CHARS:],
        inner_failure=inner,
        properties=properties_of(error),
    )


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as unprintable:  # user code too: it may not hide what happened
        return f"<an error whose text can't be had: {type(unprintable).__name__}>"


def encode(details: task.FailureDetails) -> str:
    """As JSON text, the form that the state file keeps. Properties that are no JSON become text."""
    return json.dumps(_as_dict(details, MAX_DEPTH), default=repr)


def _as_dict(details: task.FailureDetails, depth: int) -> dict[str, Any]:
    inner = details.inner_failure if depth else None
    return {
        "type": details.error_type,
        "message": details.message,
        "stack": details.stack_trace,
        "inner": _as_dict(inner, depth - 1) if inner else None,
        "properties": details.properties,
    }


def decode(text: str) -> task.FailureDetails:
    """Inverse of :func:`encode`."""
    return _from_dict(json.loads(text))


def _from_dict(raw: dict[str, Any]) -> task.FailureDetails:
    inner = raw.get("inner")
    return task.FailureDetails(
        message=raw["message"],
        error_type=raw["type"],
        stack_trace=raw.get("stack"),
        inner_failure=_from_dict(inner) if inner else None,
        properties=raw.get("properties"),
    )


class StoredFailure(task.TaskFailedError):
    """A :class:`durabletask.task.TaskFailedError` whose details come from a record."""

    def __init__(self, message: str, details: task.FailureDetails) -> None:
        # The SDK's own constructor wants a protobuf message or a live exception; neither is at hand.
        Exception.__init__(self, message)
        self._stored_details = details

    @property
    def details(self) -> task.FailureDetails:
        return self._stored_details


# Whoever prints or stores its type sees the SDK's error, as on every other backend.
StoredFailure.__module__ = task.TaskFailedError.__module__
StoredFailure.__name__ = task.TaskFailedError.__name__
StoredFailure.__qualname__ = task.TaskFailedError.__qualname__


class ResultTask(task.CompletableTask[T]):
    """A task that can fail with a stored failure, through the SDK's public face alone."""

    def __init__(self) -> None:
        super().__init__()
        self._failure: StoredFailure | None = None

    def fail_with(self, failure: StoredFailure) -> None:
        """End the task as failed. It may not have ended before."""
        self._failure = failure
        self.complete(None)  # type: ignore[arg-type]  # no result: get_result() raises the failure

    @property
    def is_failed(self) -> bool:
        return self._failure is not None

    def get_exception(self) -> task.TaskFailedError:
        if self._failure is None:
            raise ValueError("The task has not failed.")
        return self._failure

    def get_result(self) -> T:
        if self._failure is not None:
            raise self._failure
        return super().get_result()
