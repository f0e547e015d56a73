"""A program of the local stack as a child process: started, adopted, watched, stopped.

The child runs in its own session, so a Ctrl-C in the terminal reaches only the service, which then stops
its children in order. A service that dies by ``kill -9`` leaves them running on purpose: devices keep their
connections, downloads go on, and the next service adopts what the records name (`broker.local.records`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import filelock
import psutil

from broker.local.errors import LocalStackError, PortInUseError, StackInUseError, StartError
from broker.local.ports import accepts_connections, any_free_port, is_free
from broker.local.records import ProcessRecord, forget_record, read_record, stack_records, write_record
from broker.masking import masked
from broker.private_files import UMASK, make_private_directory, open_private, rotate

Progress = Callable[[str], None]
"""Receives one line of text at a time about what takes long: a download, a start, a restart."""

logger = logging.getLogger(__name__)

POLL_INTERVAL_S: Final = 0.02
WATCH_INTERVAL_S: Final = 0.25
KILL_TIMEOUT_S: Final = 5.0
# Another program may take an automatically chosen port before ours does.
MAX_START_ATTEMPTS: Final = 3
MAX_RESTARTS_IN_A_ROW: Final = 10
RESTART_BACKOFF_S: Final = 0.2
MAX_RESTART_BACKOFF_S: Final = 10.0
# A program that ran for this long was healthy: its next failure is a new story.
HEALTHY_AFTER_S: Final = 30.0
LOG_TAIL_LINES: Final = 8
# A connection of a device is a descriptor of the broker. Beyond this a larger limit only costs: there are
# systems whose hard limit is a billion, and programs that walk through all of it.
MAX_DESCRIPTORS: Final = 131_072


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run: a server that listens on one TCP port of the loopback interface.

    ``command`` gives the argument list for a port (and may write the configuration that it names).
    A state directory has one program of each ``role`` at a time.
    ``fingerprint`` changes whenever a process that is still running must not be adopted (`ProcessRecord`).
    ``prepare`` writes what it reads, before it is started or adopted, never under the hands of another owner.
    """

    name: str
    role: str
    command: Callable[[int], tuple[str, ...]]
    fingerprint: str
    default_port: int
    prepare: Callable[[], None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 30.0
    stop_timeout_s: float = 10.0


def ignore_progress(_line: str) -> None:
    """The progress callback of those who don't want any."""


class LocalProcess:
    """One `Program`, kept running from `start` to `stop`.

    ``port``: None takes the port of the last time, else the program's default, else any free one; 0 likewise
    but never the default; any other number is that port or `PortInUseError`. ``replaces`` is the directory of
    another program with the same role: it is ended, and its port is the port of the last time. A program that
    dies is started again on the same port, with backoff. Use it from one event loop.
    """

    def __init__(
        self,
        program: Program,
        *,
        directory: Path,
        port: int | None = None,
        replaces: Path | None = None,
        progress: Progress = ignore_progress,
    ) -> None:
        self._program = program
        self._directory = directory
        self._requested_port = port
        self._previous_port: int | None = None
        self._replaces = replaces
        self._progress = progress
        # Held by an open file that children don't inherit: it ends with this process, however that ends.
        self._lock = filelock.FileLock(directory.parent / f"{program.role}.lock", mode=0o600)
        self._child: subprocess.Popen[bytes] | None = None
        self._record: ProcessRecord | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._adopted = False
        self._restarts = 0
        # A program that is not ready yet may not know the signal to reload, which would end it.
        self._ready = False
        self._reload_when_ready = False

    @property
    def name(self) -> str:
        """The program's name."""
        return self._program.name

    @property
    def port(self) -> int:
        """The port that it listens on; only after `start`."""
        if self._record is None:
            raise LocalStackError(f"{self.name} was not started yet: await start() first")
        return self._record.port

    @property
    def pid(self) -> int | None:
        """The process id, None while it doesn't run."""
        return self._record.pid if self._record is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether the process lives right now."""
        if self._child is not None:
            return self._child.poll() is None
        return self._record is not None and self._record.process() is not None

    @property
    def adopted(self) -> bool:
        """Whether the process was found running instead of started."""
        return self._adopted

    @property
    def restarts(self) -> int:
        """How often the program died and was started again."""
        return self._restarts

    @property
    def log_path(self) -> Path:
        """The file with the program's output."""
        return self._directory / f"{self.name}.log"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Adopt the process that an earlier owner left running, or start one, and wait for its readiness.

        Ready is who accepts connections. Raises `PortInUseError`, `StackInUseError`, `StartError`. After
        `stop` it may be called again, and then insists on the port that it had.
        """
        make_private_directory(self._directory)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise StackInUseError(self.name, str(self._directory)) from error
        try:
            self._program.prepare()
            await self._retire_replaced()
            if not await self._adopt():
                await self._spawn_on_some_port()
        except BaseException:
            await self._end_process()
            self._lock.release()
            raise
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    def reload(self) -> None:
        """Let it read its files again (SIGHUP), as soon as it is ready; one that is down will anyway."""
        if not self._ready:
            self._reload_when_ready = True
            return
        process = None if self._record is None else self._record.process()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGHUP)

    async def stop(self) -> None:
        """Stop the process: SIGTERM, and SIGKILL after the program's ``stop_timeout_s``; may be repeated."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        try:
            await self._end_process()
        finally:
            self._lock.release()

    async def _retire_replaced(self) -> None:
        """End the other program of the same role and inherit its port: devices know one address."""
        record = None if self._replaces is None else read_record(self._replaces)
        if record is None or self._replaces is None:
            return
        process = record.process()
        if process is not None:
            await _end(process, self._program.stop_timeout_s)
        self._previous_port = record.port
        forget_record(self._replaces)

    async def _adopt(self) -> bool:
        """Take over the recorded process if it is what would be started now; end it otherwise."""
        record = read_record(self._directory)
        if record is None:
            return False
        if self._previous_port is None:
            self._previous_port = record.port
        process = record.process()
        if process is None:
            return False
        wanted = self._requested_port in (None, 0, record.port)
        if wanted and record.fingerprint == self._program.fingerprint and accepts_connections(record.port):
            self._record = record
            self._adopted = self._ready = True
            logger.info("adopted %s (pid %s) on port %s", self.name, record.pid, record.port)
            return True
        await _end(process, self._program.stop_timeout_s)
        return False

    async def _spawn_on_some_port(self) -> None:
        if self._record is not None:  # a second start: connections of the first one hold on to the port
            self._requested_port = self._record.port
        for attempt in range(1, MAX_START_ATTEMPTS + 1):
            port = self._choose_port()
            try:
                await self._spawn(port)
                return
            except StartError:
                # The usual reason that another try can cure: someone took the port after we had chosen it.
                if is_free(port) or self._requested_port or attempt == MAX_START_ATTEMPTS:
                    raise

    def _choose_port(self) -> int:
        if self._requested_port:
            if not is_free(self._requested_port):
                raise PortInUseError(self.name, self._requested_port)
            return self._requested_port
        candidates = [self._previous_port]
        if self._requested_port is None:
            candidates.append(self._program.default_port)
        return (
            next((port for port in candidates if port is not None and is_free(port)), None) or any_free_port()
        )

    async def _spawn(self, port: int) -> None:
        self._ready = self._reload_when_ready = False
        argv = self._program.command(port)
        rotate(self.log_path)
        with open_private(self.log_path, "a") as log:
            self._child = subprocess.Popen(  # noqa: ASYNC220 - a fork takes a millisecond; the wait is below
                _with_many_descriptors(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=_environment(self._program.environment),
                start_new_session=True,
                umask=UMASK,
            )
        self._adopted = False
        child = psutil.Process(self._child.pid)
        self._record = ProcessRecord(
            name=self.name,
            port=port,
            pid=self._child.pid,
            created_at=child.create_time(),
            argv=argv,
            fingerprint=self._program.fingerprint,
        )
        # Before it is ready: a service that is killed now must find it all the same.
        write_record(self._directory, self._record)
        ended = self._child

        def ready_or_ended() -> bool:
            return ended.poll() is not None or (accepts_connections(port) and _listens(child, port))

        in_time = await _until(ready_or_ended, self._program.ready_timeout_s)
        if in_time and self._child.poll() is None:
            self._ready = True
            if self._reload_when_ready:
                self.reload()
            return
        what = (
            "accepted no connection in time"
            if self._child.poll() is None
            else f"ended with {_status(self._child)}"
        )
        await self._end_process()
        raise StartError(
            f"{self.name} {what} on port {port}; its last words ({self.log_path}):\n{self._log_tail()}\n"
            "run 'muster doctor' to see what is missing"
        )

    async def _end_process(self) -> None:
        """End the child or the adopted process and record that there is none any more; the port is kept."""
        record, child = self._record, self._child
        if record is None:
            return
        process = record.process()
        if process is not None:
            await _end(process, self._program.stop_timeout_s, child)
        if child is not None:
            child.poll()  # reaps it
        self._child = None
        self._adopted = False
        self._record = replace(record, pid=None, created_at=None)
        write_record(self._directory, self._record)

    async def _watch(self) -> None:
        """Start the program again whenever it dies, until it dies too often."""
        failures = 0
        started_at = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            if self.running:
                continue
            if time.monotonic() - started_at > HEALTHY_AFTER_S:
                failures = 0
            failures += 1
            if failures > MAX_RESTARTS_IN_A_ROW:
                self._say(f"{self.name} failed {failures} times in a row and stays down; see {self.log_path}")
                return
            self._say(f"{self.name} ended unexpectedly; starting it again on port {self.port}")
            await asyncio.sleep(min(RESTART_BACKOFF_S * 2 ** (failures - 1), MAX_RESTART_BACKOFF_S))
            try:
                await self._spawn(self.port)
                self._restarts += 1
            except (StartError, OSError) as error:
                self._say(f"{self.name} could not be started again: {error}")
            started_at = time.monotonic()

    def _say(self, line: str) -> None:
        logger.info("%s", line)  # the progress line is the one for people
        self._progress(line)

    def _log_tail(self) -> str:
        try:
            text = self.log_path.read_bytes()[-16_384:].decode("utf-8", "replace")
        except OSError as error:
            return f"(no log: {error})"
        return (
            "\n".join(f"  {masked(line)}" for line in text.splitlines()[-LOG_TAIL_LINES:])
            or "  (it said nothing)"
        )


async def stop_recorded(state_dir: Path, *, timeout_s: float = 10.0) -> tuple[ProcessRecord, ...]:
    """End every process of the local stack that the records of ``state_dir`` name; return the ended.

    For clearing up after a service that was killed. One that lives would start them again: stop it first.
    """
    ended = []
    for directory, record in stack_records(state_dir):
        process = record.process()
        if process is not None:
            await _end(process, timeout_s)
            ended.append(record)
        if record.pid is not None:
            write_record(directory, replace(record, pid=None, created_at=None))
    return tuple(ended)


async def _end(
    process: psutil.Process, timeout_s: float, child: subprocess.Popen[bytes] | None = None
) -> None:
    """SIGTERM, then SIGKILL after ``timeout_s``; ``child`` is the same process where it is ours to reap."""

    def ended() -> bool:
        if child is not None:
            return child.poll() is not None
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            if await _until(ended, timeout_s):
                return
        except asyncio.CancelledError:
            process.kill()
            raise
        process.kill()
        await _until(ended, KILL_TIMEOUT_S)


async def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition that only asking can tell; False when it didn't come in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_INTERVAL_S)
    return True


def _listens(process: psutil.Process, port: int) -> bool:
    """Whether this process, and not a stranger that was quicker, listens on ``port``."""
    try:
        connections = process.net_connections("tcp4")
    except (psutil.Error, OSError):
        return True  # not every system lets one look; then the successful connection has to do
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def _status(child: subprocess.Popen[bytes]) -> str:
    code = child.returncode
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, less the variables that would change what the program does, and our secrets."""
    hidden = ("AZURITE_", "MUSTER_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(hidden) and k != "NODE_OPTIONS"}
    return {**kept, **extra}


def _with_many_descriptors(argv: tuple[str, ...]) -> tuple[str, ...]:
    """``argv`` under a shell that raises the soft limit of open files first and then becomes the program.

    (The alternative, ``preexec_fn``, can deadlock in a process with threads.)
    """
    return ("/bin/sh", "-c", f'ulimit -S -n {descriptor_limit()} 2>/dev/null; exec "$@"', "sh", *argv)


def descriptor_limit() -> int:
    """How many files a program of the local stack may open: the hard limit, within reason."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
