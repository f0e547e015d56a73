"""What a demo says before and after its run: lines that stay, and on a terminal a status that does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from provisioning.cli.documents import Run
from provisioning.cli.errors import one_line
from provisioning.cli.progress import PLAIN_INTERVAL_S, RunView, run_view
from provisioning.cli.terminal import Terminal
from provisioning.cli.views import SilentView

if TYPE_CHECKING:
    from rich.status import Status


class Notice(Protocol):
    """Tells a person how far a demo is."""

    def __enter__(self) -> Notice: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def line(self, text: str, *, style: str | None = None) -> None:
        """Write a line."""

    def part(self, name: str, text: str) -> None:
        """Write that a part has come up."""

    def status(self, text: str) -> None:
        """Say what is being waited for; an empty text ends it."""

    def run_view(self) -> RunView:
        """Return the view for the run itself."""


def notice(terminal: Terminal | None) -> Notice:
    """Return the notice that suits ``terminal``; None is for programs, which want the summary only."""
    if terminal is None:
        return SilentNotice()
    return LiveNotice(terminal) if terminal.interactive else PlainNotice(terminal)


class SilentNotice:
    """Says nothing."""

    def __enter__(self) -> SilentNotice:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def line(self, text: str, *, style: str | None = None) -> None:
        return None

    def part(self, name: str, text: str) -> None:
        return None

    def status(self, text: str) -> None:
        return None

    def run_view(self) -> RunView:
        return SilentView[Run]()


class PlainNotice(SilentNotice):
    """Plain lines; of a status that changes quickly, one every few seconds."""

    def __init__(self, terminal: Terminal, now: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._now = now
        self._next_s = 0.0

    def line(self, text: str, *, style: str | None = None) -> None:
        self._terminal.line(text)

    def part(self, name: str, text: str) -> None:
        self._terminal.line(_part(name, text))

    def status(self, text: str) -> None:
        if text and self._now() >= self._next_s:
            self._next_s = self._now() + PLAIN_INTERVAL_S
            self._terminal.line(f"  {one_line(text)}")

    def run_view(self) -> RunView:
        return run_view(self._terminal)


class LiveNotice(PlainNotice):
    """Lines, and below them a spinner with the status."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal)
        self._spinner: Status | None = None

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.status("")

    def line(self, text: str, *, style: str | None = None) -> None:
        self._terminal.line(text, style=style)

    def part(self, name: str, text: str) -> None:
        from rich.text import Text

        self._terminal.console.print(Text.assemble(("✓ ", "green"), _part(name, text)), soft_wrap=True)

    def status(self, text: str) -> None:
        if not text:
            if self._spinner is not None:
                self._spinner.stop()
                self._spinner = None
            return
        from rich.text import Text

        shown = Text(one_line(text), style="dim", no_wrap=True, overflow="ellipsis")
        if self._spinner is None:
            self._spinner = self._terminal.console.status(shown)
            self._spinner.start()
        else:
            self._spinner.update(shown)


def _part(name: str, text: str) -> str:
    return f"{name:<13} {text}"
