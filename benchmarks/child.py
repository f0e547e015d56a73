"""A measurement in a process of its own, so that no run inherits another's memory: both of its ends.

The child is ``python -m MODULE RUN SIZE DIRECTORY``; its last line on stdout is a JSON object of numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

Run = Callable[[int, Path], Coroutine[Any, Any, dict[str, float]]]
"""Measures once at a size, with its files in a directory; returns numbers by name."""

ROOT = Path(__file__).parents[1]
_TAIL_LINES = 8
_LIMIT_S = 3_600


class ChildError(Exception):
    """The child did not measure; the message has the last lines that it wrote."""


def serve(runs: Mapping[str, Run]) -> None:
    """The child's end: take the run from the command line, print what it measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", choices=runs)
    parser.add_argument("size", type=int)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    report(asyncio.run(runs[arguments.run](arguments.size, arguments.directory)))


def report(values: Mapping[str, float]) -> None:
    """Say what was measured. :func:`serve` does so at the end of a run."""
    print(json.dumps(values), flush=True)


def measure(
    module: str,
    run: str,
    size: int,
    directory: Path,
    *,
    python: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """The parent's end; ``variables`` are added to the child's environment. Raises ChildError."""
    command = [str(python or sys.executable), "-m", module, run, str(size), str(directory.absolute())]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            # The peers' environment has not this project in it.
            env={**os.environ, **(variables or {}), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=_LIMIT_S)
        except BaseException as error:
            # With what it started itself: a peer's server.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise ChildError(f"{module} {run} {size:,} took longer than {_LIMIT_S:,} s") from error
            raise
        errors.seek(0)
        tail = "\n".join(errors.read().splitlines()[-_TAIL_LINES:])
    if process.returncode != 0:
        raise ChildError(f"{module} {run} {size:,} ended with exit status {process.returncode}:\n{tail}")
    values: dict[str, float] = json.loads(output.splitlines()[-1])
    return values
