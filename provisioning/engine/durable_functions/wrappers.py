"""Functions of one argument as the SDK's functions of two, which is what both engines register."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Generator
from functools import partial
from types import GeneratorType
from typing import Any

from durabletask import task

from provisioning.engine.durable_functions.context import DurableOrchestrationContext

OneArgument = Callable[[Any], Any]
SdkFunction = Callable[[Any, Any], Any]


def orchestrator(fn: Callable[[DurableOrchestrationContext], Any], *, name: str | None = None) -> SdkFunction:
    """The SDK's orchestrator ``(context, input)`` for a one-argument one, under ``name`` or its own.

    Raises TypeError where ``fn`` takes more than one argument or none, or is ``async``; ValueError where it
    has no name.
    """
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{fn!r} is async, and orchestrators are generators: write yield instead of await")

    def run(context: task.OrchestrationContext, input_: Any) -> Any:
        own = DurableOrchestrationContext(context, input_)
        result = fn(own)
        return _steps(own, result) if isinstance(result, GeneratorType) else result

    return _named(run, fn, "orchestrator", name)


def activity(fn: OneArgument, *, name: str | None = None) -> SdkFunction:
    """The SDK's activity ``(context, input)`` for a one-argument one, plain or ``async``.

    The annotations of ``fn`` go on to say what its input and its result are rebuilt to. Raises TypeError and
    ValueError as :func:`orchestrator`.
    """
    run: SdkFunction
    if inspect.iscoroutinefunction(fn):

        async def run_async(context: task.ActivityContext, input_: Any) -> Any:
            return await fn(input_)

        run = run_async
    else:

        def run_sync(context: task.ActivityContext, input_: Any) -> Any:
            return fn(input_)

        run = run_sync
    named = _named(run, fn, "activity", name)
    try:
        hints = typing.get_type_hints(fn)
    except Exception:  # hints that can't be resolved say nothing, here as in the engines
        return named
    parameter = next(iter(inspect.signature(fn).parameters))
    named.__annotations__ = {"input_": hints.get(parameter, Any), "return": hints.get("return", Any)}
    return named


class Orchestrator:
    """For modules that end with ``main = df.Orchestrator.create(orchestrator_function)``."""

    create = staticmethod(orchestrator)


def _named(run: SdkFunction, fn: OneArgument, what: str, name: str | None) -> SdkFunction:
    """``run`` under the name of ``fn``. Not by ``functools.wraps``: its arguments are not those of ``fn``."""
    try:
        inspect.signature(fn).bind(None)
    except TypeError as error:
        raise TypeError(
            f"a Durable Functions {what} takes one argument, and {fn!r} does not ({error}); "
            "register one that takes (context, input) as it is"
        ) from None
    run.__name__ = run.__qualname__ = name or task.get_name(fn)
    run.__doc__ = fn.__doc__
    return run


def _steps(
    context: DurableOrchestrationContext, generator: Generator[Any, Any, Any]
) -> Generator[task.Task[Any], Any, Any]:
    """The orchestrator's steps, as both engines take them alike.

    Only a task that is not complete is yielded: the SDK's worker never comes back to one that is, where
    it is the first. What is no task, and a cancelled one, is an exception in the orchestrator.
    """
    resume: Callable[[], Any] = partial(next, generator)
    try:
        while True:
            try:
                awaited = resume()
            except StopIteration as end:
                return end.value
            if context.will_continue_as_new:
                return None
            try:
                value = (yield awaited) if _is_open(awaited) else awaited.get_result()
            except Exception as error:
                resume = partial(generator.throw, error)
            else:
                resume = partial(generator.send, value)
    finally:
        generator.close()


def _is_open(awaited: Any) -> bool:
    if not isinstance(awaited, task.Task):
        raise TypeError(
            f"an orchestrator yields tasks, not {type(awaited).__name__!r}: "
            "yield what call_activity, create_timer, task_all, … return"
        )
    return not awaited.is_complete
