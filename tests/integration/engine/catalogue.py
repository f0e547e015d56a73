"""The catalogue of programs that run on both engines, what each ends with, and what they share.

A program is an orchestrator, its input, and what a client does to it meanwhile (:data:`Drive`). It
is written against the SDK's public types alone, so that the very same code runs on either engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from durabletask import task
from durabletask.client import OrchestrationState

Ctx = task.OrchestrationContext
Steps = Generator[task.Task[Any], Any, Any]
Task = task.CompletableTask[Any]
Client = Any
"""Either engine's asynchronous client: the method names are the same, and nothing else is used."""
Drive = Callable[[Client, str], Awaitable[Any]]
"""What a client does to the instance of that id. What it returns is compared too."""

LONG_S = 60
FAILED = "durabletask.task.TaskFailedError"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is compared of a program's end."""

    status: str
    output: str | None
    custom_status: str | None
    #: From the outside in: error type and message. Stack traces name each engine's own lines.
    failure: tuple[tuple[str, str], ...]
    properties: dict[str, Any] | None
    notes: Any


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where the engines differ on purpose: the fields of Outcome that each has, all others being equal.

    ``sdk`` is None where the SDK would wait for ever: the program runs on ours alone.
    """

    reason: str
    sdk: dict[str, Any] | None
    ours: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Program:
    name: str
    input: Any = None
    drive: Drive | None = None
    difference: Difference | None = None
    #: Neither engine starts it: ``drive`` does.
    started: bool = True


PROGRAMS: list[Program] = []
ORCHESTRATORS: list[Callable[..., Any]] = []


def program(
    *,
    input: Any = None,
    drive: Drive | None = None,
    differs: str | None = None,
    sdk: dict[str, Any] | None = None,
    ours: dict[str, Any] | None = None,
    started: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put an orchestrator into the catalogue, as a program of that name."""

    def add(orchestrator: Callable[..., Any]) -> Callable[..., Any]:
        difference = None
        if differs is not None:
            assert ours, "say what ours does"
            difference = Difference(reason=differs, sdk=sdk, ours=ours)
        PROGRAMS.append(
            Program(
                name=orchestrator.__name__, input=input, drive=drive, difference=difference, started=started
            )
        )
        return child(orchestrator)

    return add


def child(orchestrator: Callable[..., Any]) -> Callable[..., Any]:
    """Register an orchestrator that programs call."""
    ORCHESTRATORS.append(orchestrator)
    return orchestrator


class PartError(Exception):
    """An application's own error, with something to say beside its message."""

    def __init__(self, part: str) -> None:
        super().__init__(f"part {part} is broken")
        self.part = part


class Properties:
    """An ExceptionPropertiesProvider."""

    def get_exception_properties(self, exception: Exception) -> dict[str, Any] | None:
        if isinstance(exception, PartError):
            return {"part": exception.part, "count": 2, "list": [1.5, None, True], "nested": {"a": "b"}}
        return None


def activities() -> list[Callable[..., Any]]:
    """The activities, with state of their own for each engine."""
    counts: Counter[str] = Counter()

    def echo(ctx: task.ActivityContext, value: Any) -> Any:
        return value

    def identify(ctx: task.ActivityContext, _: Any) -> Any:
        return [ctx.orchestration_id, ctx.task_id]

    def count(ctx: task.ActivityContext, key: str) -> int:
        """How often it was called with that key."""
        counts[key] += 1
        return counts[key]

    def fail(ctx: task.ActivityContext, message: str) -> None:
        raise ValueError(message)

    def fail_with_cause(ctx: task.ActivityContext, _: Any) -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise RuntimeError("outer") from error

    def fail_silently(ctx: task.ActivityContext, _: Any) -> None:
        raise LookupError

    def fail_with_properties(ctx: task.ActivityContext, part: str) -> None:
        raise PartError(part)

    def fail_until(ctx: task.ActivityContext, plan: list[Any]) -> int:
        """``plan``: a key, and the number of the first call that works."""
        key, works_at = plan
        n = count(ctx, key)
        if n < works_at:
            raise ConnectionError(f"attempt {n}")
        return n

    def no_data(ctx: task.ActivityContext, _: Any) -> Any:
        return {1, 2}

    return [
        echo,
        identify,
        count,
        fail,
        fail_with_cause,
        fail_silently,
        fail_with_properties,
        fail_until,
        no_data,
    ]


def chain_of(details: task.FailureDetails | None) -> tuple[tuple[str, str], ...]:
    """Type and message of a failure and of all within it."""
    found: list[tuple[str, str]] = []
    while details is not None:
        found.append((details.error_type, details.message))
        details = details.inner_failure
    return tuple(found)


def outcome_of(state: OrchestrationState | None, notes: Any) -> Outcome:
    assert state is not None
    details = state.failure_details
    return Outcome(
        status=state.runtime_status.name,
        output=state.serialized_output,
        custom_status=state.serialized_custom_status,
        failure=chain_of(details),
        properties=details.properties if details else None,
        notes=notes,
    )


async def run(client: Client, one: Program) -> Outcome:
    """One program on one engine, from start to end."""
    instance_id, notes = f"p-{one.name}", None
    if one.started:
        await client.schedule_new_orchestration(one.name, input=one.input, instance_id=instance_id)
    if one.drive is not None:
        notes = await one.drive(client, instance_id)
    return outcome_of(await client.wait_for_orchestration_completion(instance_id, timeout=LONG_S), notes)


@dataclass
class Refusals:
    """Which of the calls were refused."""

    seen: list[bool] = field(default_factory=list)

    async def note(self, call: Awaitable[Any]) -> None:
        try:
            await call
        except Exception:
            self.seen.append(True)
        else:
            self.seen.append(False)
