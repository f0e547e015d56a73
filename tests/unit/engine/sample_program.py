"""A program as one writes it for the Durable Task SDK: it knows nothing of who runs it.

``run`` gets a worker and a client by whatever constructors, and gives what its users would see.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from durabletask import task
from durabletask.client import OrchestrationState

_LONG_S = 30.0


class Worker(Protocol):
    """What the program uses of the SDK's worker."""

    def add_orchestrator(self, fn: Any) -> str: ...
    def add_activity(self, fn: Any) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc: object) -> None: ...


class Client(Protocol):
    """What the program uses of the SDK's client."""

    def schedule_new_orchestration(
        self, orchestrator: Any, *, input: Any = ..., instance_id: str | None = ...
    ) -> str: ...
    def wait_for_orchestration_start(
        self, instance_id: str, *, timeout: float = ...
    ) -> OrchestrationState | None: ...
    def wait_for_orchestration_completion(
        self, instance_id: str, *, timeout: float = ...
    ) -> OrchestrationState | None: ...
    def get_orchestration_state(self, instance_id: str) -> OrchestrationState | None: ...
    def raise_orchestration_event(self, instance_id: str, event_name: str, *, data: Any = ...) -> None: ...
    def terminate_orchestration(self, instance_id: str, *, output: Any = ...) -> None: ...


@dataclass
class Order:
    item: str
    quantity: int


Steps = Generator[task.Task[Any], Any, Any]


def get_work_items(ctx: task.ActivityContext, count: int) -> list[int]:
    return list(range(count))


def process(ctx: task.ActivityContext, item: int) -> int:
    return item * item


def fan_out_fan_in(ctx: task.OrchestrationContext, count: int) -> Steps:
    items = yield ctx.call_activity(get_work_items, input=count)
    results = yield task.when_all([ctx.call_activity(process, input=item) for item in items])
    return sum(results)


def send_approval_request(ctx: task.ActivityContext, order: Order) -> str:
    return f"{order.quantity} x {order.item}"


def place_order(ctx: task.ActivityContext, order: Order) -> str:
    return f"placed {order.item}"


def purchase(ctx: task.OrchestrationContext, order: Order) -> Steps:
    if order.quantity < 10:
        return "approved by itself"
    ctx.set_custom_status((yield ctx.call_activity(send_approval_request, input=order)))
    approval = ctx.wait_for_external_event("approval")
    timeout = ctx.create_timer(timedelta(days=1))
    winner = yield task.when_any([approval, timeout])
    if winner is timeout:
        return "cancelled"
    placed = yield ctx.call_activity(place_order, input=order)
    return f"{placed}, approved by {approval.get_result()}"


_failures_left = {"flaky": 2}


def flaky(ctx: task.ActivityContext, _: Any) -> str:
    if _failures_left["flaky"]:
        _failures_left["flaky"] -= 1
        raise OSError("not yet")
    return "at last"


def always_fails(ctx: task.ActivityContext, _: Any) -> None:
    raise ValueError("as always")


def retries(ctx: task.OrchestrationContext, _: Any) -> Steps:
    policy = task.RetryPolicy(first_retry_interval=timedelta(milliseconds=10), max_number_of_attempts=3)
    came = yield ctx.call_activity(flaky, retry_policy=policy)
    try:
        yield ctx.call_activity(always_fails, retry_policy=policy)
    except task.TaskFailedError as error:
        return [came, error.details.error_type, error.details.message]


def child(ctx: task.OrchestrationContext, n: int) -> Steps:
    squared = yield ctx.call_activity(process, input=n)
    return {"id": ctx.instance_id, "squared": squared}


def parent(ctx: task.OrchestrationContext, count: int) -> Steps:
    named = yield ctx.call_sub_orchestrator(child, input=7, instance_id=f"{ctx.instance_id}-named")
    others = yield task.when_all([ctx.call_sub_orchestrator(child, input=n) for n in range(count)])
    return [named, *others]


def fails(ctx: task.OrchestrationContext, _: Any) -> Steps:
    yield ctx.call_activity(always_fails)


def waits(ctx: task.OrchestrationContext, _: Any) -> Steps:
    yield ctx.wait_for_external_event("never")


EXPECTED = {
    "fan-out": ("COMPLETED", 140),
    "small": ("COMPLETED", "approved by itself"),
    "large": ("COMPLETED", "placed anvils, approved by Ann"),
    "large, waiting": ("RUNNING", "12 x anvils"),
    "retries": ("COMPLETED", ["at last", "builtins.ValueError", "as always"]),
    "parent": (
        "COMPLETED",
        [
            {"id": "parent-named", "squared": 49},
            {"id": "parent:0002", "squared": 0},
            {"id": "parent:0003", "squared": 1},
        ],
    ),
    "fails": ("FAILED", "durabletask.task.TaskFailedError", "fails: Activity task #1 failed: as always"),
    "waits": ("TERMINATED", "enough"),
}


def run(worker: Worker, client: Client) -> dict[str, Any]:
    """Everything once; the names of the results are those of :data:`EXPECTED`."""
    _failures_left["flaky"] = 2
    for activity in (get_work_items, process, send_approval_request, place_order, flaky, always_fails):
        assert worker.add_activity(activity) == activity.__name__
    for orchestrator in (fan_out_fan_in, purchase, retries, child, parent, fails, waits):
        assert worker.add_orchestrator(orchestrator) == orchestrator.__name__
    seen: dict[str, Any] = {}
    with worker:
        worker.start()
        client.schedule_new_orchestration(fan_out_fan_in, input=8, instance_id="fan-out")
        client.schedule_new_orchestration(purchase, input=Order("pens", 2), instance_id="small")
        client.schedule_new_orchestration("purchase", input=Order("anvils", 12), instance_id="large")
        client.schedule_new_orchestration(retries, instance_id="retries")
        client.schedule_new_orchestration(parent, input=2, instance_id="parent")
        client.schedule_new_orchestration(fails, instance_id="fails")
        client.schedule_new_orchestration(waits, instance_id="waits")
        waiting = _state(client.wait_for_orchestration_start("large", timeout=_LONG_S))
        while waiting.serialized_custom_status is None:
            waiting = _state(client.get_orchestration_state("large"))
        seen["large, waiting"] = (waiting.runtime_status.name, waiting.get_custom_status())
        client.raise_orchestration_event("large", "Approval", data="Ann")
        _state(client.wait_for_orchestration_start("waits", timeout=_LONG_S))
        client.terminate_orchestration("waits", output="enough")
        for instance_id in ("fan-out", "small", "large", "retries", "parent", "fails", "waits"):
            state = _state(client.wait_for_orchestration_completion(instance_id, timeout=_LONG_S))
            failure = state.failure_details
            if failure is None:
                seen[instance_id] = (state.runtime_status.name, state.get_output())
            else:
                seen[instance_id] = (state.runtime_status.name, failure.error_type, failure.message)
    return seen


def _state(state: OrchestrationState | None) -> OrchestrationState:
    assert state is not None
    return state
