"""The `muster up` that a demo starts for itself: a child in its own session, told over pipes.

Its own session keeps a Ctrl-C in the terminal from reaching it; the demo stops it in order. Its stdin is
a pipe of which the demo holds the other end: when the demo dies by ``kill -9`` the pipe closes, and the
child stops everything and then itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from broker.masking import masked
from provisioning.cli.errors import StackError
from provisioning.cli.fleet_records import open_private
from provisioning.cli.interruption import Interruption

LOG = "service.log"
STOP_TIMEOUT_S = 75.0
POLL_INTERVAL_S = 0.25
MAX_READ_BYTES = 64 * 1024
MAX_LOG_TAIL_BYTES = 8 * 1024

Event = Mapping[str, str]


class StackChild:
    """A service with its stack as a child process; ``on_event`` gets its events other than the last ones."""

    def __init__(
        self, state_dir: Path, interruption: Interruption, on_event: Callable[[Event], None]
    ) -> None:
        self._state_dir = state_dir
        self._interruption = interruption
        self._on_event = on_event
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._error: str | None = None
        self._url: str | None = None

    @property
    def log_path(self) -> Path:
        """The file with the service's output."""
        return self._state_dir / LOG

    def start(self, *, any_port: bool) -> None:
        """Start it; ``any_port`` leaves the well-known ports to others."""
        ports = ["--broker-port=0", "--blob-port=0"] if any_port else []
        with open_private(self.log_path, "a") as log:
            self._child = subprocess.Popen(
                # -P: a directory of the user's that is called "provisioning" must not be taken for ours.
                [
                    *(sys.executable, "-P", "-m", "provisioning.cli", "up", "--owned", "--json", "--port=0"),
                    f"--state-dir={self._state_dir}",
                    *ports,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> str:
        """Wait until the service answers and return its URL; StackError where it ends before that."""
        while self._url is None:
            self.wait(POLL_INTERVAL_S)
        return self._url

    def wait(self, timeout_s: float) -> None:
        """Wait, with an eye on the child: StackError if it ends, InterruptedBySignalError on a signal."""
        child = self._running_child()
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._interruption.wait(left_s, [child.stdout]) and not self._read(child):  # type: ignore[list-item]
                child.wait()
                raise StackError(self._why_it_ended(child.returncode))

    def stop(self) -> bool:
        """Stop the child and all that it started; return whether it went in order.

        A stop signal during it, or STOP_TIMEOUT_S, ends everything at once instead.
        """
        child = self._child
        if child is None:
            return True
        signals = self._interruption.count
        deadline = time.monotonic() + STOP_TIMEOUT_S
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        open_pipe = True
        while child.poll() is None:
            if self._interruption.count > signals or time.monotonic() > deadline:
                self._kill(child)
                return False
            readers = [child.stdout] if open_pipe else []
            if self._interruption.wait_quietly(POLL_INTERVAL_S, readers):  # type: ignore[arg-type]
                open_pipe = self._read(child)
        # Killed by someone else it has left what it started. One that ended by itself has not, and what the
        # records name then may be another's: it ended because this state was taken.
        if child.returncode < 0:
            self._kill(child)
        return True

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        import psutil

        from provisioning.cli.processes import family, kill_everything

        relatives: list[psutil.Process] = []
        if child.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                relatives = family(psutil.Process(child.pid))
        kill_everything(self._state_dir, relatives)
        child.wait()

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise StackError("the service was not started")
        return self._child

    def _read(self, child: subprocess.Popen[bytes]) -> bool:
        """Take what the child has said; False at the end of its output."""
        assert child.stdout is not None
        data = os.read(child.stdout.fileno(), MAX_READ_BYTES)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                self._handle(json.loads(line))
        return bool(data)

    def _handle(self, event: Event) -> None:
        match event.get("event"):
            case "ready":
                self._url = event["url"]
            case "error":
                self._error = event["message"]
            case _:
                self._on_event(event)

    def _why_it_ended(self, returncode: int) -> str:
        if self._error is not None:
            return self._error
        how = f"was ended by signal {-returncode}" if returncode < 0 else f"ended with status {returncode}"
        return f"the service {how}: {self._last_words() or 'it said nothing'} (see {self.log_path})"

    def _last_words(self) -> str:
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
            return masked(lines[-1]) if lines else ""
        return ""
