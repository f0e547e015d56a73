"""The timers in memory."""

from __future__ import annotations

import random

from provisioning.engine.store import StoredTimer
from provisioning.engine.timers import TimerQueue


def timer(key: int, task_id: int, due: int) -> StoredTimer:
    return StoredTimer(f"i{key}", key, task_id, due)


def test_equal_times_fire_in_the_order_of_arming() -> None:
    """S-TMR-1: in order."""
    queue = TimerQueue()
    queue.extend(100, [])
    for key in range(5):
        queue.add(timer(key, 1, 10))
    queue.add(timer(9, 1, 5))
    assert [t.instance_key for t in queue.pop_due(10, 100)] == [9, 0, 1, 2, 3, 4]


def test_later_ones_wait_for_their_window() -> None:
    """TimerQueue: timers due after the horizon are on disk only."""
    queue = TimerQueue()
    queue.extend(100, [])
    queue.add(timer(1, 1, 101))
    assert queue.next_due() is None
    queue.extend(200, [timer(1, 1, 101)])
    assert queue.next_due() == 101


def test_the_same_id_armed_again_is_another_timer() -> None:
    """S-CAN-5: ids start over: the one armed last counts."""
    queue = TimerQueue()
    queue.extend(100, [])
    queue.add(timer(1, 1, 10))
    queue.cancel(1, 1)
    queue.add(timer(1, 1, 50))
    assert queue.pop_due(20, 100) == []
    assert [t.due for t in queue.pop_due(60, 100)] == [50]
    assert len(queue) == 0


def test_cancelling_keeps_the_memory_small() -> None:
    """STYLE 10: what is cancelled does not pile up until it would have been due."""
    queue = TimerQueue()
    queue.extend(10**9, [])
    for n in range(10_000):
        queue.add(timer(n, 1, 10**6))
        if n >= 10:
            queue.cancel(n - 10, 1)
    assert len(queue) == 10
    assert len(queue._heap) < 100


def test_against_a_plain_model() -> None:
    """Random arming, cancelling and firing against a dictionary; the seed is in the message."""
    for seed in range(50):
        dice = random.Random(seed)
        queue, model, now = TimerQueue(), dict[tuple[int, int], int](), 0
        queue.extend(10**6, [])
        for _ in range(200):
            key = (dice.randint(1, 5), dice.randint(1, 5))
            match dice.randint(0, 2):
                case 0 if key not in model:
                    model[key] = now + dice.randint(0, 20)
                    queue.add(timer(*key, model[key]))
                case 1:
                    model.pop(key, None)
                    queue.cancel(*key)
                case _:
                    now += dice.randint(0, 5)
                    fired = queue.pop_due(now, 1_000)
                    expected = {k: d for k, d in model.items() if d <= now}
                    assert {(t.instance_key, t.task_id): t.due for t in fired} == expected, f"seed {seed}"
                    assert [t.due for t in fired] == sorted(t.due for t in fired), f"seed {seed}"
                    for k in expected:
                        del model[k]
            assert len(queue) == len(model), f"seed {seed}"
            assert queue.next_due() == (min(model.values()) if model else None), f"seed {seed}"
