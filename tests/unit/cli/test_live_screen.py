"""`muster watch` on a terminal of its own: what it leaves behind, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioning.cli.live.screen import ENTER, LEAVE, keys_of
from tests.unit.cli.fake_service import FakeService

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _as_a_shell_does() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may ignore it


class OnTerminal:
    """A `muster` command with a pseudo-terminal as its controlling one."""

    def __init__(self, *argv: str, size: tuple[int, int] = (80, 24), **environment: str) -> None:
        self._main, terminal = pty.openpty()
        self.resize(*size)
        self.modes = termios.tcgetattr(terminal)
        self.terminal = terminal
        self.written = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "provisioning.cli", *argv],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_as_a_shell_does,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def until(self, there: Callable[[str], Any]) -> str:
        """Read until what was written fulfils it; fails the test where the command ends before."""
        while not there(self.written):
            ready, _, _ = select.select([self._main], [], [], 0.05)
            if ready:
                self.written += os.read(self._main, 65536).decode("utf-8", "replace")
            elif self.process.poll() is not None:
                raise AssertionError(f"ended ({self.process.returncode}): {self.written}")
        return self.written

    def end(self) -> int:
        """Read to the end and return the exit code."""
        while self.process.poll() is None or select.select([self._main], [], [], 0)[0]:
            if select.select([self._main], [], [], 0.05)[0]:
                self.written += os.read(self._main, 65536).decode("utf-8", "replace")
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.terminal)
        with contextlib.suppress(OSError):
            os.close(self._main)

    @property
    def left(self) -> str:
        """What is on the normal screen after the end, without escape codes."""
        return ESCAPES.sub("", self.written.rpartition(LEAVE)[2])


@pytest.fixture
def rollout(service: FakeService) -> FakeService:
    """A service with a rollout that stands at a gate after its first wave."""
    service.rollouts.device_ids = [f"d{number}" for number in range(4)]
    plan = {"name": "spring", "waves": [{"percent": 50.0, "gate": "approval"}, {"percent": 100.0}]}
    service.rollouts.route("POST", [], {"plan": plan, "actor": "ada"})
    return service


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., OnTerminal]]:
    started: list[OnTerminal] = []

    def start(*argv: str, **more: Any) -> OnTerminal:
        started.append(OnTerminal(*argv, **more))
        return started[-1]

    yield start
    for one in started:
        one.close()


def approved(text: str) -> bool:
    return "awaiting approval" in text


def quit_it(command: OnTerminal, service: FakeService) -> None:
    command.press("q")


def interrupt_it(command: OnTerminal, service: FakeService) -> None:
    command.press("\x03")


def terminate_it(command: OnTerminal, service: FakeService) -> None:
    command.process.send_signal(signal.SIGTERM)


def break_it(command: OnTerminal, service: FakeService) -> None:
    service.rollouts.known.clear()


def finish_it(command: OnTerminal, service: FakeService) -> None:
    service.rollouts.known["rollout-1"].act({"action": "approve", "actor": "ada"})


@pytest.mark.parametrize(
    ("ending", "exit_code", "said"),
    [
        (quit_it, 0, "rollout-1 goes on; `muster watch rollout-1` shows it again"),
        (interrupt_it, 130, "interrupted; rollout-1 goes on, and `muster watch rollout-1` shows it again"),
        (terminate_it, 143, "stopped by SIGTERM"),
        (break_it, 1, "There is no rollout 'rollout-1'"),
        (finish_it, 0, "4 of 4 provisioned"),
    ],
)
def test_the_terminal_is_as_it_was_whatever_ends_the_watching(
    rollout: FakeService,
    on_terminal: Callable[..., OnTerminal],
    ending: Callable[[OnTerminal, FakeService], None],
    exit_code: int,
    said: str,
) -> None:
    command = on_terminal("watch")
    command.until(approved)
    assert not termios.tcgetattr(command.terminal)[3] & termios.ECHO, "keys are not echoed while it runs"
    ending(command, rollout)
    assert command.end() == exit_code
    assert command.written.count(ENTER) == command.written.count(LEAVE) == 1
    assert command.written.index(ENTER) < command.written.index(LEAVE)
    assert termios.tcgetattr(command.terminal) == command.modes
    assert said in " ".join(command.left.split())


def test_the_last_picture_stays_on_the_normal_screen(
    rollout: FakeService, on_terminal: Callable[..., OnTerminal]
) -> None:
    command = on_terminal("watch", "rollout-1")
    command.until(approved)
    finish_it(command, rollout)
    assert command.end() == 0
    assert "rollout-1  spring" in command.left
    assert "4/4 ended" in command.left
    assert "100%" in command.left
    assert "■■■■" in command.left


def test_a_stopped_command_gives_the_terminal_back_until_it_goes_on(
    rollout: FakeService, on_terminal: Callable[..., OnTerminal]
) -> None:
    command = on_terminal("watch")
    command.until(approved)
    command.process.send_signal(signal.SIGTSTP)
    command.until(lambda text: LEAVE in text)
    assert os.waitid(os.P_PID, command.process.pid, os.WSTOPPED) is not None
    assert termios.tcgetattr(command.terminal) == command.modes
    command.process.send_signal(signal.SIGCONT)
    command.until(lambda text: text.count(ENTER) == 2 and approved(text.rpartition(ENTER)[2]))
    command.press("q")
    assert command.end() == 0
    assert termios.tcgetattr(command.terminal) == command.modes


def test_another_size_is_drawn_at_once(rollout: FakeService, on_terminal: Callable[..., OnTerminal]) -> None:
    command = on_terminal("watch", size=(80, 24))
    command.until(approved)
    assert "q quit   tab next page" in command.written
    command.written = ""
    command.resize(40, 20)
    command.until(lambda text: "q quit  tab page" in text)
    command.press("q")
    command.end()


def test_keys_lead_to_devices_and_the_fleet(
    rollout: FakeService, on_terminal: Callable[..., OnTerminal]
) -> None:
    rollout._launch({"spec": {"seed": 1, "groups": [{"name": "g", "prefix": "x", "first": 1, "count": 2}]}})
    command = on_terminal("watch")
    command.until(approved)
    command.press("d")
    command.until(lambda text: "no device is in flight" in text)
    command.press("f")
    command.until(lambda text: "msgs in" in text)
    command.press("\t")
    command.written = ""
    command.until(approved)
    command.press("q")
    assert command.end() == 0


def test_an_error_at_the_start_leaves_the_screen_alone(
    rollout: FakeService, on_terminal: Callable[..., OnTerminal]
) -> None:
    command = on_terminal("watch", "fleet-x", "--devices")
    assert command.end() == 1
    assert ENTER not in command.written, "an error before there is anything to show"


def test_no_color_draws_letters_and_no_colours(
    rollout: FakeService, on_terminal: Callable[..., OnTerminal]
) -> None:
    rollout.rollouts.outcomes = {"d1": "failed"}
    command = on_terminal("watch", NO_COLOR="1")
    command.until(approved)
    command.until(lambda text: "■F··" in ESCAPES.sub("", text))
    command.press("q")
    command.end()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", command.written)


def test_a_dumb_terminal_gets_lines(rollout: FakeService, on_terminal: Callable[..., OnTerminal]) -> None:
    command = on_terminal("watch", TERM="dumb")
    command.until(approved)
    finish_it(command, rollout)
    assert command.end() == 0
    assert "\x1b" not in command.written


def test_keys_are_told_from_what_terminals_send() -> None:
    assert keys_of("q\x1b[A\x1bOB\t\x1b[Z\x1b[6~d") == [
        "q",
        "up",
        "down",
        "tab",
        "back tab",
        "page down",
        "d",
    ]
    assert keys_of("\x1b[1;5Cx") == ["x"], "what is not known is skipped whole"
    assert keys_of("\x1b") == []


def test_only_changed_lines_are_written(tmp_path: Path) -> None:
    from provisioning.cli.live.screen import BEGIN_UPDATE, END_UPDATE, Screen

    with (tmp_path / "tty").open("w+") as stream:
        screen = Screen(stream, keyboard=stream)
        screen.draw(["a", "b", "c"])
        written = stream.tell()
        screen.draw(["a", "b", "c"])
        assert stream.tell() == written
        screen.draw(["a", "x"])
        stream.seek(written)
        assert stream.read() == f"{BEGIN_UPDATE}\x1b[2;1Hx\x1b[0m\x1b[3;1H\x1b[2K{END_UPDATE}"
