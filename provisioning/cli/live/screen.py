"""The terminal as a full screen: entered, drawn line by line, and left as it was whatever happens.

Only lines that have changed are written, in one synchronized update, so nothing flickers. Keys are read as
they are pressed, and not echoed. A stop (Ctrl-Z) gives the terminal back until the program goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final, Self, TextIO

ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
LEAVE: Final = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
BEGIN_UPDATE: Final = "\x1b[?2026h"
END_UPDATE: Final = "\x1b[?2026l"
DEFAULT_SIZE: Final = (80, 24)
MAX_KEY_BYTES: Final = 1024

# What terminals send for keys; either form of the arrows, as the terminal's mode is not ours to know.
_SEQUENCES: Final = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[C": "right",
    "\x1bOC": "right",
    "\x1b[D": "left",
    "\x1bOD": "left",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1b[1~": "home",
    "\x1bOH": "home",
    "\x1b[F": "end",
    "\x1b[4~": "end",
    "\x1bOF": "end",
    "\x1b[Z": "back tab",
}
# For terminals whose encoding lacks what is drawn.
_PLAIN: Final = str.maketrans("█▓─▒░■×·…▀▄│▏–’", "#x-=.#x.~##||-'")


def keys_of(typed: str) -> list[str]:
    """Return the names of the keys in what was read; unknown sequences are skipped whole."""
    keys: list[str] = []
    at = 0
    while at < len(typed):
        if typed[at] != "\x1b":
            keys.append({"\t": "tab", "j": "down", "k": "up", " ": "page down"}.get(typed[at], typed[at]))
            at += 1
            continue
        end = at + 1
        if typed[end : end + 1] in ("[", "O"):
            end += 1
            while end < len(typed) and not typed[end].isalpha() and typed[end] != "~":
                end += 1
            end += 1
        if name := _SEQUENCES.get(typed[at:end]):
            keys.append(name)
        at = end
    return keys


class Screen:
    """The alternate screen of ``stream``, within ``with``; its keys, if ``keyboard`` is a terminal."""

    def __init__(self, stream: TextIO, keyboard: TextIO | None = None) -> None:
        self._stream = stream
        given = sys.stdin if keyboard is None else keyboard
        self._keyboard = given.fileno() if given is not None and _is_terminal(given) else None
        self._modes: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._lines: list[str] = []
        self._size = (0, 0)

    def __enter__(self) -> Self:
        try:
            self._take()
            for signum, handler in ((signal.SIGTSTP, self._stopped), (signal.SIGWINCH, _noted)):
                self._handlers[signum] = signal.signal(signum, handler)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows, as they are now."""
        with contextlib.suppress(OSError, ValueError):
            size = os.get_terminal_size(self._stream.fileno())
            if size.columns > 0 and size.lines > 0:
                return (size.columns, size.lines)
        return DEFAULT_SIZE

    @property
    def keyboard(self) -> Keyboard | None:
        """What can be waited for and read; None where keys come from elsewhere than a terminal."""
        return None if self._keyboard is None else Keyboard(self._keyboard)

    def draw(self, lines: Sequence[str]) -> None:
        """Show ``lines``, each exactly as wide as the screen, from the top; only what differs is written."""
        size = self.size
        parts: list[str] = []
        if size != self._size:
            self._size, self._lines = size, []
            parts.append("\x1b[0m\x1b[2J")
        shown = list(lines[: size[1]])
        for row in range(max(len(shown), len(self._lines))):
            now = shown[row] if row < len(shown) else None
            before = self._lines[row] if row < len(self._lines) else None
            if now != before:
                # Nothing is erased behind a line that is drawn: in the last column that would take its end.
                parts.append(
                    f"\x1b[{row + 1};1H{now}\x1b[0m" if now is not None else f"\x1b[{row + 1};1H\x1b[2K"
                )
        self._lines = shown
        if parts:
            self._write("".join([BEGIN_UPDATE, *parts, END_UPDATE]))

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
        self._stream.write(text)
        self._stream.flush()

    def _take(self) -> None:
        if self._keyboard is not None:
            self._modes = termios.tcgetattr(self._keyboard)
            modes = termios.tcgetattr(self._keyboard)
            # Signals stay on: Ctrl-C and Ctrl-Z are what they are everywhere. Ctrl-\ would restore nothing.
            modes[3] &= ~(termios.ECHO | termios.ICANON)
            modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
            modes[6][termios.VQUIT] = os.fpathconf(self._keyboard, "PC_VDISABLE").to_bytes(1, "big")
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, modes)
        self._lines, self._size = [], (0, 0)
        self._write(ENTER)

    def _give_back(self) -> None:
        # The terminal may be gone (SIGHUP): then there is nothing to restore.
        with contextlib.suppress(OSError, ValueError):
            self._write(END_UPDATE + LEAVE)
        if self._modes is not None and self._keyboard is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSAFLUSH, self._modes)

    def _restore(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}
        self._give_back()

    def _stopped(self, signum: int, frame: FrameType | None) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()


class Keyboard:
    """The keys that were pressed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[str]:
        """Return the keys that wait; ``["q"]`` where the terminal is gone."""
        try:
            typed = os.read(self._fd, MAX_KEY_BYTES)
        except OSError:
            return ["q"]
        return keys_of(typed.decode("utf-8", "replace")) if typed else ["q"]


def _is_terminal(stream: TextIO) -> bool:
    try:
        return os.isatty(stream.fileno())
    except (OSError, ValueError):
        return False


def _noted(signum: int, frame: FrameType | None) -> None:
    """Nothing: that the handler ran wakes whoever waits."""
