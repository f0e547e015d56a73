"""Showing something as it goes: a picture that is drawn over itself on a terminal, lines anywhere else.

What is shown (a run, a fleet, a rollout) is fetched again and again; while the service is away it is waited
for, as what it runs survives it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from provisioning.cli.arguments import client_of
from provisioning.cli.client import ServiceClient
from provisioning.cli.errors import ServiceNotRunningError
from provisioning.cli.terminal import Terminal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

AWAY_TIMEOUT_S = 60.0
LOOK_AGAIN_S = 1.0

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class View(Protocol[T_contra]):
    """Shows something as it goes, within a ``with`` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def update(self, shown: T_contra, /) -> None:
        """Show it now, or later if it is too soon."""

    def note(self, text: str) -> None:
        """Show a remark, such as that the service is away; an empty one takes it back."""


class SilentView(Generic[T]):
    """Shows nothing: for programs that want the end only, and to build on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def update(self, shown: T, /) -> None:
        return None

    def note(self, text: str) -> None:
        return None


class LinesView(SilentView[T]):
    """Base of views that write lines: remarks are written once each, until taken back."""

    def __init__(self, terminal: Terminal, now: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._now = now
        self._next_s = 0.0
        self._note = ""

    def note(self, text: str) -> None:
        if text and text != self._note:
            self._terminal.line(text)
        self._note = text


class LiveView(Generic[T]):
    """A picture that is drawn over itself; ``draw`` makes it of what is shown and a remark."""

    def __init__(self, terminal: Terminal, draw: Callable[[T, str], RenderableType]) -> None:
        self._terminal = terminal
        self._draw_picture = draw
        self._live: Live | None = None
        self._note = ""
        self._shown: list[T] = []

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(console=self._terminal.console, auto_refresh=False)
        self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, shown: T, /) -> None:
        self._shown = [shown]
        self._draw()

    def note(self, text: str) -> None:
        if text != self._note:
            self._note = text
            self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            for shown in self._shown:
                self._live.update(self._draw_picture(shown, self._note), refresh=True)


class Fetcher(Generic[T]):
    """Gets what is shown; while the service is away it waits for it, on whatever port it comes back."""

    def __init__(
        self,
        args: argparse.Namespace,
        get: Callable[[ServiceClient], T],
        view: View[Any],
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._args = args
        self._get = get
        self._view = view
        self._wait = wait
        self._client = client_of(args)

    def __call__(self) -> T:
        """What it is now; raises ServiceNotRunningError when the service stays away."""
        deadline = time.monotonic() + AWAY_TIMEOUT_S
        while True:
            try:
                found = self._get(self._client)
            except ServiceNotRunningError:
                if time.monotonic() >= deadline:
                    raise
                self._view.note(f"the service is away; looking for it again for {AWAY_TIMEOUT_S:g} s")
                self._wait(LOOK_AGAIN_S)
                self._look_elsewhere()
            else:
                self._view.note("")
                return found

    def _look_elsewhere(self) -> None:
        try:
            self._client = client_of(self._args)
        except ServiceNotRunningError:
            return
