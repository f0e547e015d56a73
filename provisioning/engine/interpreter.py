"""What running engines ask of the interpreter, which is one for the whole process.

- Rarer looks for cyclic garbage: by default they walk through all live orchestrations so often that the
  cost of each grows with their number.
- Quicker changes of threads: SQLite gives up the interpreter lock at each step, and the writer has to win
  it back from a loop that never rests. By default that takes a whole switch interval of 5 ms, several
  times a commit, while the disk does nothing.

The first engine that starts asks for it, the last one that stops puts back what was found.
"""

from __future__ import annotations

import gc
import sys
import threading

from provisioning.engine.options import EngineOptions

_lock = threading.Lock()
_engines = 0
_found: tuple[tuple[int, int, int], float] = ((0, 0, 0), 0.0)


def tune(options: EngineOptions) -> None:
    """An engine starts. Call :func:`restore` once when it stops."""
    global _engines, _found
    with _lock:
        _engines += 1
        if _engines > 1:
            return
        thresholds, interval_s = gc.get_threshold(), sys.getswitchinterval()
        _found = thresholds, interval_s
        if thresholds[0] != 0:  # 0: the process does without
            gc.set_threshold(max(options.gc_threshold, thresholds[0]), *thresholds[1:])
        sys.setswitchinterval(min(interval_s, options.switch_interval_s))


def restore() -> None:
    """An engine has stopped."""
    global _engines
    with _lock:
        _engines -= 1
        if _engines == 0:
            thresholds, interval_s = _found
            gc.set_threshold(*thresholds)
            sys.setswitchinterval(interval_s)
