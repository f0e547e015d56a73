"""What is said to code that does not ask for what its history has."""

from __future__ import annotations

from durabletask import task

from provisioning.engine.context import Action
from provisioning.engine.records import HistoryEvent, Kind

_METHODS: dict[int, str] = {
    Kind.TASK_SCHEDULED: "call_activity",
    Kind.CHILD_CREATED: "call_sub_orchestrator",
    Kind.TIMER_CREATED: "create_timer",
    Kind.EVENT_SENT: "send_event",
}
_WHY = (
    "The code was changed while this instance was under way, or is not deterministic (it reads a clock, "
    "chance, or the outside world without an activity)."
)


def _step(step: HistoryEvent | Action) -> str:
    called = f"{_METHODS[step.kind]}({step.name!r})" if step.name else _METHODS[step.kind]
    return f"{called} as step {step.task_id}"


def check(event: HistoryEvent, action: Action | None) -> None:
    """Raises NonDeterminismError where the code's action is not the one of the history.

    Kind and name must be the same, and the target of an event. Inputs are not compared.
    """
    before = f"A previous execution called {_step(event)}"
    if action is None:
        raise task.NonDeterminismError(f"{before}; the code now does not. {_WHY}")
    if action.kind != event.kind or (action.name != event.name and event.kind != Kind.TIMER_CREATED):
        raise task.NonDeterminismError(f"{before}; the code now calls {_step(action)}. {_WHY}")
    if event.kind == Kind.EVENT_SENT and action.ref != event.ref:
        raise task.NonDeterminismError(
            f"{before} for instance {event.ref!r}; the code now sends it to {action.ref!r}. {_WHY}"
        )


def unexpected(action: Action) -> task.NonDeterminismError:
    """The code asks for more than its history has."""
    return task.NonDeterminismError(
        f"The code now calls {_step(action)}; the previous execution had not at that point. {_WHY}"
    )
