"""One case: orchestrations, what the outside does to them, and the engine's bounds, all from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from provisioning.engine.options import EngineOptions
from tests.simulation.programs import PLAIN, QUICK, SLOW, Step, payloads

_MOST_STEPS = 15


@dataclass(kw_only=True)
class Operation:
    """Something that the outside does. It is tried, life after life, until it is acknowledged.

    ``key``: with an idempotency key it may be sent again at will, once the one ``after`` which it comes is
    done; without a key only where it did not arrive.
    """

    kind: str
    target: str = ""
    name: str = ""
    payload: str | None = None
    key: str | None = None
    delay_s: float = 0.0
    recursive: bool = False
    step: Step | None = None
    after: Operation | None = None
    tried: bool = False
    done: bool = False


@dataclass(kw_only=True)
class Scenario:
    """``lanes`` run side by side, the operations of one in order; at the end the ``purged`` roots go."""

    seed: int
    roots: list[Step]
    purged: list[str]
    lanes: list[list[Operation]]
    options: dict[str, Any]

    def engine_options(self) -> EngineOptions:
        return EngineOptions(**self.options)


def scenario(seed: int) -> Scenario:
    """The scenario of a seed: always the same one."""
    return _Author(seed).write()


@dataclass
class _Author:
    seed: int
    dice: random.Random = field(init=False)
    lanes: list[list[Operation]] = field(default_factory=list)
    #: Ids of instances that will exist at some time, and of those that are never made anew.
    ids: list[str] = field(default_factory=list)
    lasting: list[str] = field(default_factory=list)
    written: int = 0

    def write(self) -> Scenario:
        self.dice = dice = random.Random(f"scenario {self.seed}")
        roots = []
        for number in range(dice.choice((1, 1, 1, 2))):
            path = f"r{number}"
            self.exists(path)
            steps = self.steps(path, depth=2, owner=path, outside=True, counts=(2, 2, 3, 4))
            roots.append({"kind": "child", "path": path, "steps": steps, "fails": 0, "attempts": 1})
            self.start(roots[-1])
        for _ in range(dice.choice((0, 0, 1, 2))):
            self.suspend(dice.choice(self.ids))
        for _ in range(dice.choice((0, 0, 1, 2))):
            target, payload = dice.choice(self.lasting), f"noise {len(self.lanes)}"
            self.lane(Operation(kind="raise", target=target, name="noise", payload=payload))
        purged = [f"r{number}" for number in range(len(roots)) if dice.random() < 0.3]
        return Scenario(seed=self.seed, roots=roots, purged=purged, lanes=self.lanes, options=self.options())

    def options(self) -> dict[str, Any]:
        dice = self.dice
        return {
            "max_live_instances": dice.choice((1, 3, 50_000)),
            "max_turn_messages": dice.choice((1, 2, 1_000)),
            "max_commit_rows": dice.choice((1, 5, 20_000)),
            "max_async_activities": dice.choice((1, 2, 256)),
            "max_sync_activities": dice.choice((1, 16)),
            "max_activity_backlog": dice.choice((1, 10_000)),
            "maximum_timer_interval": timedelta(seconds=dice.choice((0.05, 2, 86_400))),
            "timer_window": timedelta(seconds=dice.choice((0.2, 5, 600))),
        }

    def exists(self, instance_id: str, *, lasting: bool = True) -> None:
        self.ids.append(instance_id)
        if lasting:
            self.lasting.append(instance_id)

    # What the outside does

    def lane(self, *operations: Operation) -> None:
        """The operations, with a pause before most of them."""
        lane = []
        for operation in operations:
            if self.dice.random() < 0.7:
                lane.append(Operation(kind="pause", delay_s=self.dice.choice((0.001, 0.01, 0.1, 1.0))))
            lane.append(operation)
        self.lanes.append(lane)

    def start(self, root: Step) -> None:
        delay_s = self.dice.choice((0.0, 0.0, 0.01, 0.5))
        starts = [Operation(kind="start", target=root["path"], step=root, delay_s=delay_s)]
        if self.dice.random() < 0.1:
            starts.append(Operation(kind="start again", target=root["path"], step=root))
        self.lane(*starts)

    def events(self, target: str, name: str, step: Step) -> None:
        """All events of a step, in order; those with a key come again at any time."""
        sent = []
        for payload in payloads(step):
            key = payload if self.dice.random() < 0.5 else None
            event = Operation(kind="raise", target=target, name=name, payload=payload, key=key)
            sent.append(event)
            if key is not None and self.dice.random() < 0.3:
                self.lane(replace(event, kind="echo", after=event))
        self.lane(*sent)

    def suspend(self, target: str) -> None:
        self.lane(Operation(kind="suspend", target=target), Operation(kind="resume", target=target))

    def terminate(self, path: str, *, recursive: bool) -> None:
        last = f"{path}/last"
        terminate = Operation(kind="terminate", target=f"{path}/doomed", name=last, recursive=recursive)
        end = Operation(kind="raise", target=last, name="End", payload=f"{path}#end", key=f"{path}#end")
        self.lane(*([terminate] if recursive else [terminate, end]))

    # The steps

    def steps(
        self,
        path: str,
        *,
        depth: int,
        owner: str | None,
        outside: bool,
        counts: Sequence[int] = (1, 2, 2, 3, 4),
    ) -> list[Step]:
        count = self.dice.choice(counts)
        return [self.step(f"{path}/{n}", depth=depth, owner=owner, outside=outside) for n in range(count)]

    def step(self, path: str, *, depth: int, owner: str | None, outside: bool) -> Step:
        """A step of the instance ``owner`` (None: its id is not known); ``outside``: others may reach it."""
        dice = self.dice
        self.written += 1
        kinds = ["work", "work", "flaky", "sleep", "race", "nobody"]
        if self.written < _MOST_STEPS:
            kinds += ["talk", "report", "again", "bubbles", "exists", "twice", "count"]
            kinds += ["doomed", "count"] * outside + ["hear", "hear"] * (outside and owner is not None)
            kinds += ["child", "child", "together", "together"] * (depth > 0)
        kind = dice.choice(kinds)
        step: Step = {"kind": kind, "path": path}
        how = dice.choice((QUICK, PLAIN, SLOW))
        ms = dice.choice((0, 1, 10, 300))
        match kind:
            case "work":
                step |= {"how": how}
            case "flaky":
                step |= {"how": how, "ms": ms, "fails": dice.randint(0, 3), "attempts": dice.randint(1, 3)}
            case "sleep":
                step |= {"ms": ms}
            case "race":
                against = dice.choice((QUICK, PLAIN, SLOW, "event"))
                then = dice.choice(("wait for both", "cancel", "leave"))
                step |= {"ms": ms, "against": against, "then": then}
            case "nobody":
                step |= {"what": dice.choice(("activity", "orchestrator"))}
            case "talk":
                step |= {"count": dice.randint(0, 3)}
            case "exists":
                step |= {"count": 1}
            case "again":
                step |= {"how": how, "times": dice.randint(0, 3), "ms": ms}
            case "bubbles":
                step |= {"deep": dice.randint(0, 2)}
            case "count":
                step |= {"count": dice.randint(1, 3), "outside": outside and dice.random() < 0.6}
                if step["outside"]:
                    self.exists(path)
                    self.events(path, "word", step)
            case "hear":
                step |= {"count": dice.randint(1, 3)}
                self.events(owner or "", f"Go {path}", step)
            case "doomed":
                recursive = dice.random() < 0.5
                self.exists(f"{path}/doomed")
                self.exists(f"{path}/last")
                self.terminate(path, recursive=recursive)
            case "child":
                step |= self.child(path, depth=depth, outside=outside, ms=ms)
            case "together":
                step |= self.together(path, depth=depth, outside=outside)
        return step

    def child(self, path: str, *, depth: int, outside: bool, ms: int) -> Step:
        dice = self.dice
        fails, attempts = dice.choice(((0, 1), (0, 1), (1, 2), (1, 3), (2, 2)))
        reached = outside and fails < attempts
        named = reached and dice.random() < 0.7
        if named:
            self.exists(path, lasting=not fails)
        # What is raised to one that has failed is dropped: such a child hears nothing itself.
        owner = path if named and not fails else None
        steps = self.steps(path, depth=depth - 1, owner=owner, outside=reached)
        return {"id": path if named else None, "fails": fails, "attempts": attempts, "ms": ms, "steps": steps}

    def together(self, path: str, *, depth: int, outside: bool) -> Step:
        """What is more than a task gets an instance of its own there, see programs.ask."""
        steps = []
        for number in range(self.dice.randint(1, 4)):
            inner = f"{path}/{number}"
            steps.append(self.step(inner, depth=depth - 1, owner=f"{inner}/own", outside=outside))
        return {"any": self.dice.random() < 0.5, "steps": steps}
