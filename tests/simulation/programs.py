"""What the simulated orchestrations do: trees of steps whose values are known beforehand.

A step is plain data, and goes into orchestrations as their input. Whatever the timing, and however
often the engine dies, a step gives what :func:`expected` says: that is the specification. The races
are inside the steps (who is first, what is left behind), and never in their values.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import Any

from durabletask import task

Ctx = task.OrchestrationContext
Step = dict[str, Any]
Steps = Generator[task.Task[Any], Any, Any]

QUICK, PLAIN, SLOW, FAILURES = "quick", "plain", "slow", "failures"
"""The activities: on the loop, off the loop, on the loop for a while; how often a path has failed."""

NEVER = "never"
READY = "ready"


# What a step gives


def expected(step: Step) -> Any:
    """The value of a step."""
    path = step["path"]
    match step["kind"]:
        case "work" | "sleep" | "race":
            return path
        case "flaky":
            return path if step["fails"] < step["attempts"] else failed("OSError")
        case "hear" | "talk" | "count":
            return payloads(step)
        case "report":
            return [path, path]
        case "child":
            inner = [expected(s) for s in step["steps"]]
            return inner if step["fails"] < step["attempts"] else failed("ValueError")
        case "together":
            return [expected(s) for s in step["steps"]]
        case "again":
            return step["times"]
        case "doomed":
            return failed("ChildTerminatedError")
        case "bubbles":
            return failed("ValueError")
        case "exists":
            return [failed("OrchestrationAlreadyExistsError"), payloads(step)]
        case "twice":
            return [[path], [path]]
        case _:
            return failed("ActivityNotRegisteredError" if step["what"] == "activity" else NOT_REGISTERED)


NOT_REGISTERED = "OrchestratorNotRegisteredError"


def failed(error: str) -> list[str]:
    return ["failed", error]


def payloads(step: Step) -> list[str]:
    """What the events of a step carry, in the order in which they are sent: each of them unique."""
    return [f"{step['path']}#{n}" for n in range(step["count"])]


# The orchestrators


def runs(ctx: Ctx, step: Step) -> Steps:
    """Its steps one after the other; as often as it must it fails first."""
    path, results = step["path"], []
    if step.get("fails"):
        failures = yield ctx.call_activity(FAILURES, input=label(ctx, step))
        if failures < step["fails"]:
            raise ValueError(path)
    for number, inner in enumerate(step["steps"]):
        ctx.set_custom_status([path, number])
        results.append((yield from perform(ctx, inner)))
    ctx.set_custom_status([path, "done"])
    return results


def perform(ctx: Ctx, step: Step) -> Steps:
    """One step, and its value; a failure is a value too."""
    try:
        return (yield from _PERFORM.get(step["kind"], _alone)(ctx, step))
    except task.TaskFailedError as error:
        return failed(deepest(error.details))


def deepest(details: task.FailureDetails) -> str:
    """The type, less its module, of what failed first."""
    while details.inner_failure is not None:
        details = details.inner_failure
    return details.error_type.rpartition(".")[2]


def ask(ctx: Ctx, step: Step) -> task.Task[Any]:
    """Begin a step; one that is more than a task goes into a sub-orchestration of its own."""
    path = step["path"]
    asked: task.Task[Any]
    match step["kind"]:
        case "work":
            asked = ctx.call_activity(step["how"], input=label(ctx, step))
        case "flaky":
            asked = ctx.call_activity(
                step["how"], input=label(ctx, step), retry_policy=policy(step, step["attempts"])
            )
        case "sleep":
            asked = ctx.create_timer(timedelta(milliseconds=step["ms"]))
        case "child":
            retry = policy(step, step["attempts"]) if step["attempts"] > 1 else None
            asked = ctx.call_sub_orchestrator(runs, input=step, instance_id=step["id"], retry_policy=retry)
        case "count":
            asked = ctx.call_sub_orchestrator(counts, input={**step, "got": []}, instance_id=path)
            if not step["outside"]:
                send_all(ctx, path, step)
        case "again":
            asked = ctx.call_sub_orchestrator(again, input={**step, "done": 0})
        case "bubbles":
            asked = ctx.call_sub_orchestrator(bubbles, input=step)
        case "nobody":
            if step["what"] == "activity":
                asked = ctx.call_activity("nobody", input=label(ctx, step))
            else:
                asked = ctx.call_sub_orchestrator("nobody", input=step)
        case _:
            own = {"path": f"{path}/own", "steps": [step], "fails": 0}
            asked = ctx.call_sub_orchestrator(runs, input=own, instance_id=f"{path}/own")
    return asked


def label(ctx: Ctx, step: Step) -> Step:
    """The input of an activity: what it shall do, under a name that no other call has."""
    return {"path": step["path"], "label": ctx.new_uuid(), "fails": step.get("fails", 0)}


def policy(step: Step, attempts: int) -> task.RetryPolicy:
    return task.RetryPolicy(
        first_retry_interval=timedelta(milliseconds=step["ms"]),
        max_number_of_attempts=attempts,
        backoff_coefficient=2.0,
    )


def send_all(ctx: Ctx, target: str, step: Step) -> None:
    for payload in payloads(step):
        ctx.send_event(target, "Word", data=payload)


def _alone(ctx: Ctx, step: Step) -> Steps:
    return value_of(step, (yield ask(ctx, step)))


def value_of(step: Step, result: Any) -> Any:
    """The value of a step from the result of the task that it was begun with."""
    if step["kind"] == "sleep":
        return step["path"]
    return result[0] if step["kind"] in _PERFORM else result


def _together(ctx: Ctx, step: Step) -> Steps:
    asked = [ask(ctx, inner) for inner in step["steps"]]
    if step["any"]:
        yield task.when_any(asked)
    results = []
    for inner, begun in zip(step["steps"], asked, strict=True):
        try:
            results.append(value_of(inner, (yield begun)))
        except task.TaskFailedError as error:
            results.append(failed(deepest(error.details)))
    return results


def _hear(ctx: Ctx, step: Step) -> Steps:
    heard = []
    for number in range(step["count"]):
        name = f"go {step['path']}"
        heard.append((yield ctx.wait_for_external_event(name.upper() if number % 2 else name)))
    return heard


def _talk(ctx: Ctx, step: Step) -> Steps:
    listening = ctx.call_sub_orchestrator(listens, input=step, instance_id=f"{step['path']}/ear")
    send_all(ctx, f"{step['path']}/ear", step)
    return (yield listening)


def _report(ctx: Ctx, step: Step) -> Steps:
    path = step["path"]
    child = ctx.call_sub_orchestrator(reports, input={"path": f"{path}/voice", "of": path})
    first = yield ctx.wait_for_external_event(f"from {path}")
    second = yield child
    return [first, second]


def _race(ctx: Ctx, step: Step) -> Steps:
    timer = ctx.create_timer(timedelta(milliseconds=step["ms"]))
    other: task.Task[Any]
    if step["against"] == "event":
        other = event = ctx.wait_for_external_event(NEVER)
        yield task.when_any([timer, event])
        event.cancel()
        return step["path"]
    other = ctx.call_activity(step["against"], input=label(ctx, step))
    winner = yield task.when_any([timer, other])
    match step["then"]:
        case "wait for both":
            yield task.when_all([timer, other])
        case "cancel" if winner is not timer:
            timer.cancel()
    return step["path"]


def _doomed(ctx: Ctx, step: Step) -> Steps:
    yield ctx.call_sub_orchestrator(doomed, input=step, instance_id=f"{step['path']}/doomed")


def _exists(ctx: Ctx, step: Step) -> Steps:
    ear = f"{step['path']}/ear"
    listening = ctx.call_sub_orchestrator(listens, input=step, instance_id=ear)
    try:
        refused = yield ctx.call_sub_orchestrator(listens, input=step, instance_id=ear)
    except task.TaskFailedError as error:
        refused = failed(deepest(error.details))
    send_all(ctx, ear, step)
    heard = yield listening
    return [refused, heard]


def _twice(ctx: Ctx, step: Step) -> Steps:
    path, results = step["path"], []
    for _ in range(2):
        inner = {"path": f"{path}/again", "fails": 0, "steps": [{"kind": "work", "path": path, "how": QUICK}]}
        results.append((yield ctx.call_sub_orchestrator(runs, input=inner, instance_id=f"{path}/again")))
    return results


_PERFORM = {
    "together": _together,
    "hear": _hear,
    "talk": _talk,
    "report": _report,
    "race": _race,
    "doomed": _doomed,
    "exists": _exists,
    "twice": _twice,
}


def listens(ctx: Ctx, step: Step) -> Steps:
    heard = []
    for _ in range(step["count"]):
        heard.append((yield ctx.wait_for_external_event("WORD")))  # noqa: PERF401 -- yields
    return heard


def reports(ctx: Ctx, step: Step) -> Steps:
    yield ctx.create_timer(timedelta(milliseconds=1))
    ctx.send_event(ctx.parent_instance_id or "", f"From {step['of']}", data=step["of"])
    return step["of"]


def counts(ctx: Ctx, step: Step) -> Steps:
    """One event per execution; those that come too early are carried over."""
    word = yield ctx.wait_for_external_event("word")
    got = [*step["got"], word]
    ctx.set_custom_status(len(got))
    if len(got) < step["count"]:
        ctx.continue_as_new({**step, "got": got}, save_events=True)
        return None
    return got


def again(ctx: Ctx, step: Step) -> Steps:
    """Continues as new, leaving a timer and an activity behind each time."""
    ctx.create_timer(timedelta(hours=1))
    if step["done"] == step["times"]:
        return step["done"]
    ctx.call_activity(step["how"], input=label(ctx, step))
    yield ctx.create_timer(timedelta(milliseconds=step["ms"]))
    ctx.continue_as_new({**step, "done": step["done"] + 1})
    return None


def bubbles(ctx: Ctx, step: Step) -> Steps:
    """Fails far down; nobody on the way catches it."""
    if step["deep"] == 0:
        yield ctx.create_timer(timedelta(0))
        raise ValueError(step["path"])
    inner = {**step, "path": f"{step['path']}/{step['deep']}", "deep": step["deep"] - 1}
    yield ctx.call_sub_orchestrator(bubbles, input=inner)


def doomed(ctx: Ctx, step: Step) -> Steps:
    """Waits for what never comes, with a child that waits too: somebody terminates it."""
    last = f"{step['path']}/last"
    child = ctx.call_sub_orchestrator(waits, input={"path": last}, instance_id=last)
    yield task.when_all([child, ctx.wait_for_external_event(NEVER)])


def waits(ctx: Ctx, step: Step) -> Steps:
    ctx.set_custom_status(READY)
    ended = yield ctx.wait_for_external_event("end")
    return ended


ORCHESTRATORS = (runs, listens, reports, counts, again, bubbles, doomed, waits)
