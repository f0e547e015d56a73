"""`muster` as a user runs it: a process of its own, on real parts, with nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.local.node import NodeStack

COMMAND_TIMEOUT_S = 120.0


@dataclass(kw_only=True)
class Running:
    """A `muster` that runs; its output is collected as it comes."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)

    def wait_line(self, marker: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Wait for a line of output that holds ``marker``; fails the test where the process ends before."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            found = next((line for line in self.lines if marker in line), None)
            if found is not None:
                return found
            if ended:
                break
            time.sleep(0.01)
        pytest.fail(f"no {marker!r} in the output: {self.lines} {self.errors}")

    def signal(self, signum: int) -> None:
        """As a terminal does: to the whole process group."""
        os.killpg(self.process.pid, signum)

    def finish(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> tuple[int, str, str]:
        """Wait for the end; returns exit code, output, errors."""
        code = self.process.wait(timeout_s)
        for reader in self.readers:
            reader.join()
        return code, "".join(self.lines), "".join(self.errors)


class Sandbox:
    """A state directory and the commands on it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.started: list[Running] = []

    def start(self, *argv: str) -> Running:
        """Start a command."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "provisioning.cli", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            umask=0,  # what is private is so by itself
            env={**os.environ, "MUSTER_STATE": str(self.state_dir), "PYTHONUNBUFFERED": "1"},
        )
        running = Running(process=process)
        for stream, kept in ((process.stdout, running.lines), (process.stderr, running.errors)):
            assert stream is not None
            reader = threading.Thread(target=_collect, args=(stream, kept))
            reader.start()
            running.readers.append(reader)
        self.started.append(running)
        return running

    def run(self, *argv: str) -> tuple[int, str, str]:
        """Run a command to its end; returns exit code, output, errors."""
        return self.start(*argv).finish()

    def json(self, *argv: str) -> dict[str, Any]:
        """Run a command with --json that must succeed."""
        code, out, err = self.run(*argv, "--json")
        assert code == 0, err
        document: dict[str, Any] = json.loads(out)
        return document

    def up(self, *argv: str) -> Running:
        """Start the service on free ports and wait until it is ready."""
        running = self.start("up", "--port=0", "--broker-port=0", "--blob-port=0", *argv)
        running.wait_line("ready;")
        return running

    def processes(self) -> list[psutil.Process]:
        """Every living process that has this state directory on its command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and self._names(process.cmdline()):
                    found.append(process)
        return found

    def _names(self, command: Sequence[str]) -> bool:
        return any(str(self.state_dir) in word for word in command)


def _collect(stream: Any, kept: list[str]) -> None:
    for line in stream:
        kept.append(line)  # noqa: PERF402 - each line must be there as soon as it has come
    stream.close()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Wait for a condition that only asking can tell."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def loose(state_dir: Path) -> list[str]:
    """What is in the state directory, itself too, and may be read or written by others."""
    found = []
    for path in (state_dir, *state_dir.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if mode & 0o077:
                found.append(f"{path} {mode:o}")
    return found


@pytest.fixture
def sandbox(tmp_path: Path, stack_cache: NodeStack) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path / "state")
    yield sandbox
    readable_by_others = loose(sandbox.state_dir)
    for running in sandbox.started:
        if running.process.poll() is None:
            running.signal(signal.SIGTERM)
            running.finish()
    readable_by_others += loose(sandbox.state_dir)
    leftover = sandbox.processes()
    for process in leftover:
        process.kill()
    assert not leftover, "a command left processes behind"
    assert not readable_by_others, "files of the state that others may read"
