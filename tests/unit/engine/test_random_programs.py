"""Random orchestrations on the pure core, in a random world: replay always leads to where life is.

A failure names its seed: ``-k "[17]"`` runs that one alone.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from durabletask import task

from provisioning.engine.options import EngineOptions
from provisioning.engine.records import HistoryEvent, Kind, Message, Status
from tests.unit.engine.driving import Ctx, Driver, Steps

SEEDS = 500
SEEDS_PER_TEST = 25
MOST_TURNS = 80
NAMES = ("go", "Go", "stop")

OPTIONS = EngineOptions(maximum_timer_interval=timedelta(minutes=1), max_buffered_events=40)


def start_one(ctx: Ctx, dice: random.Random) -> task.Task[Any]:
    """Ask for something that will end."""
    retry = None
    if dice.random() < 0.3:
        retry = task.RetryPolicy(
            first_retry_interval=timedelta(seconds=dice.choice([0, 1, 200])),
            max_number_of_attempts=dice.randint(1, 4),
            backoff_coefficient=dice.choice([1.0, 2.0]),
            retry_timeout=dice.choice([None, timedelta(seconds=30)]),
        )
    kind = dice.choice(["activity", "activity", "child", "timer", "event"])
    started: task.Task[Any]
    if kind == "activity":
        started = ctx.call_activity(dice.choice("ABC"), input=ctx.new_uuid(), retry_policy=retry)
    elif kind == "child":
        started = ctx.call_sub_orchestrator("Child", retry_policy=retry)
    elif kind == "timer":
        started = ctx.create_timer(timedelta(seconds=dice.choice([-5, 0, 1, 30, 200])))
    else:
        started = ctx.wait_for_external_event(dice.choice(NAMES))
    return started


def program(ctx: Ctx, seed: str) -> Steps:
    """What the seed says: each step asks for some things, waits in some way, and goes on."""
    dice = random.Random(seed)
    left: list[task.Task[Any]] = []
    results: list[Any] = []
    for step in range(dice.randint(1, 8)):
        ctx.set_custom_status([step, ctx.current_utc_datetime.isoformat()])
        begun = [start_one(ctx, dice) for _ in range(dice.randint(0, 4))]
        for one in begun:
            if dice.random() < 0.1 and isinstance(one, task.CancellableTask):
                one.cancel()
        if dice.random() < 0.2:
            ctx.send_event("someone", dice.choice(NAMES), data=step)
        pool = [*begun, *left]
        choice = dice.random()
        try:
            if choice < 0.4:
                results.append((yield task.when_all(begun)))
            elif choice < 0.7 and pool:
                winner = yield task.when_any(pool)
                results.append(pool.index(winner))
                left = [one for one in pool if one is not winner]
            elif choice < 0.9 and pool:
                results.append((yield dice.choice(pool)))
            else:
                left += begun
        except task.TaskFailedError as error:
            results.append(error.details.error_type)
        except task.TaskCancelledError:
            results.append("cancelled")
        if dice.random() < 0.5:
            for one in left:
                if isinstance(one, task.CancellableTask):
                    one.cancel()
            left = []
        if dice.random() < 0.05:
            raise LookupError(str(step))
    if dice.random() < 0.3 and len(seed) < 12:
        ctx.continue_as_new(seed + "+", save_events=dice.random() < 0.5)
    return results


class World:
    """Answers an orchestration at random: late, twice, in any order, in batches, or not at all."""

    def __init__(self, seed: int, *, reload_each_turn: bool) -> None:
        self.dice = random.Random(seed)
        self.driver = Driver(program, options=OPTIONS)
        self.reload_each_turn = reload_each_turn
        self.seed = seed
        self.recorded: list[HistoryEvent] = []

    def run(self) -> tuple[list[HistoryEvent], Any]:
        driver, dice = self.driver, self.dice
        turn = driver.start(str(self.seed))
        for _ in range(MOST_TURNS):
            if turn.completion is not None:
                self.recorded += driver.history
                if turn.completion.status != Status.CONTINUED_AS_NEW:
                    break
                turn = driver.continue_as_new(turn.completion)
                continue
            if self.reload_each_turn:
                driver.reload()
            messages = [self.message() for _ in range(dice.randint(1, 4))]
            turn = driver.turn(*messages, after_s=dice.choice([0, 0.001, 1, 100]))
        else:
            turn = driver.turn(driver.resume(), driver.terminate("enough"))
            self.recorded += driver.history
        assert turn.completion is not None
        end = turn.completion
        driver.execution.close()
        return self.recorded, (end.status, end.output, end.failure and end.failure[:60])

    def message(self) -> Message:
        driver, dice = self.driver, self.dice
        choice = dice.random()
        if choice < 0.25:
            key = dice.choice([None, "k1", "k2", "k3"])
            return driver.event(dice.choice(NAMES), dice.randint(0, 9), key=key)
        if choice < 0.29:
            return driver.suspend()
        if choice < 0.38:
            return driver.resume()
        if choice < 0.42:
            return self.answer(dice.randint(1, 12), dice.choice(list(Kind)[1:4]))
        pending = driver.execution.pending
        if not pending:
            return driver.event(dice.choice(NAMES))
        task_id = dice.choice(sorted(pending))
        return self.answer(task_id, pending[task_id].action.kind)

    def answer(self, task_id: int, kind: Kind) -> Message:
        driver, dice = self.driver, self.dice
        works = dice.random() < 0.7
        if kind == Kind.TIMER_CREATED:
            return driver.fired(task_id)
        if kind == Kind.CHILD_CREATED:
            return driver.child_done(task_id, "c") if works else driver.child_failed(task_id)
        return driver.done(task_id, "a") if works else driver.failed(task_id)


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_replay_equals_life(first: int) -> None:
    """S-FAIL-11, and all else: history alone decides. Driver compares replay and life after each turn; and a
    world whose orchestration is reloaded before each turn records the very same history."""
    ends: set[Status] = set()
    for seed in range(first, first + SEEDS_PER_TEST):
        try:
            live, end = World(seed, reload_each_turn=False).run()
            reloaded, end_reloaded = World(seed, reload_each_turn=True).run()
            assert live == reloaded
            assert end == end_reloaded
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        ends.add(end[0])
        kinds = {event.kind for event in live}
        assert Kind.EXECUTION_COMPLETED in kinds, f"seed {seed}"
    assert Status.COMPLETED in ends
    assert len(ends) > 1
