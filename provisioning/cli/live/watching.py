"""The loop of the full screen: what was fetched and what was pressed, until the end."""

from __future__ import annotations

import argparse
import datetime
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.text import Text

from provisioning.cli.errors import InterruptedBySignalError
from provisioning.cli.followed import PAGES, Followed, Page
from provisioning.cli.interruption import Interruption
from provisioning.cli.live import devices_page, fleet_page, progress_page
from provisioning.cli.live.looks import Look, Looker
from provisioning.cli.live.paint import NARROW, WIDE, Line, fitted, line, padded
from provisioning.cli.live.poller import Poller
from provisioning.cli.live.screen import Screen
from provisioning.cli.terminal import Terminal

REDRAW_S: Final = 1.0
"""The clock in the picture goes on, and a terminal whose resize was not told is noticed."""
FINAL_ROWS: Final = 40
TABS: Final[dict[Page, tuple[str, str]]] = {
    "progress": ("r", "rollout"),
    "devices": ("d", "devices"),
    "fleet": ("f", "fleet"),
}


@dataclass(frozen=True, kw_only=True)
class End:
    """How the watching ended: the last look, and whether what was followed has ended (or the user has)."""

    look: Look | None
    ended: bool


class Picture:
    """What is on the screen: one of the pages, between a head and a foot."""

    def __init__(self, followed: Followed, page: Page, *, colours: bool, keys: bool) -> None:
        self.page: Page = page
        self.top = 0
        self._followed = followed
        self._colours = colours
        self._keys = keys

    def press(self, key: str, rows: int) -> bool:
        """Take a key; False where it ends the watching."""
        pages = self.pages
        at = pages.index(self.page)
        if key in ("q", "Q"):
            return False
        if key in ("tab", "right", "back tab", "left"):
            self._turn(pages[(at + (1 if key in ("tab", "right") else -1)) % len(pages)])
        for page in pages:
            if key.lower() == TABS[page][0]:
                self._turn(page)
        moves = {"up": -1, "down": 1, "page up": -(rows - 6), "page down": rows - 6}
        if key in moves:
            self.top = max(0, self.top + moves[key])
        elif key in ("home", "end"):
            self.top = 0 if key == "home" else 10**9
        return True

    def _turn(self, page: Page) -> None:
        if page != self.page:
            self.page, self.top = page, 0

    @property
    def pages(self) -> Sequence[Page]:
        return PAGES if self._followed.has_progress else PAGES[1:]

    def lines(
        self, look: Look | None, note: str, size: tuple[int, int], now: datetime.datetime
    ) -> list[Line]:
        """Return all lines of the screen; none is wider than it."""
        width, rows = size
        room = rows - 3 if rows >= 8 else rows
        if look is None:
            body = [line(("looking …", "dim"))]
        elif self.page == "progress":
            body = progress_page.page(look, width, room, now, colours=self._colours)
        elif self.page == "devices":
            body, self.top = devices_page.page(look, width, room, self.top)
        else:
            body = fleet_page.page(look, width, room)
        if rows < 8:
            return [fitted(one, width) for one in body[:rows]]
        body += [Text()] * (room - len(body))
        return [
            self._head(look, width),
            Text(),
            *(fitted(one, width) for one in body),
            self._foot(note, width),
        ]

    def _head(self, look: Look | None, width: int) -> Line:
        title = self._followed.id or "all devices"
        if look is not None and look.rollout is not None and look.rollout.get("name"):
            title = f"{title}  {look.rollout['name']}"
        tabs = line()
        for page in self.pages:
            word = TABS[page][1]
            if page == "progress" and self._followed.kind == "run":
                word = "run"
            shown = word[:1].upper() if width < NARROW and page != self.page else word
            tabs.append(f" {shown} ", style="reverse" if page == self.page else "dim")
        right = tabs.cell_len
        if look is not None and look.fleets and width >= WIDE:
            connected = sum(fleet.get("connected", 0) for fleet in look.fleets)
            devices = sum(fleet["devices"] for fleet in look.fleets)
            title += f"    {connected:,}/{devices:,} connected"
        head = padded(line((title, "bold")), max(width - right - 1, 0))
        head.append(" ")
        head.append_text(tabs)
        return fitted(head, width)

    def _foot(self, note: str, width: int) -> Line:
        if note:
            return fitted(line((note, "bold yellow")), width)
        if not self._keys:
            return line(("Ctrl-C ends the watching", "dim"))
        keys = "q quit  tab page" if width < NARROW else "q quit   tab next page   "
        if width >= NARROW:
            keys += "   ".join(f"{TABS[page][0]} {TABS[page][1]}" for page in self.pages)
        if self.page == "devices":
            keys += "  ↑↓" if width < NARROW else "   ↑ ↓ scroll"
        return fitted(line((keys, "dim")), width)


def watch(
    args: argparse.Namespace,
    terminal: Terminal,
    followed: Followed,
    page: Page,
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
) -> End:
    """Show what is followed on the full screen until it ends or the user does; then print the last picture.

    Raises InterruptedBySignalError for Ctrl-C and the like, and what the service says.
    """
    console = terminal.console
    colours = console.color_system is not None and not console.no_color
    screen = Screen(terminal.stream)
    shown = _Shown(followed, page, colours=colours)

    def keep() -> None:
        for one in shown.final(screen.size[0], now()):
            print(ansi(one, console), file=terminal.stream)

    try:
        with Interruption() as interruption, screen:
            ended = shown.follow(args, screen, console, interruption, now)
    except InterruptedBySignalError as error:
        if error.signum != signal.SIGINT:
            raise
        keep()
        if not followed.has_progress:
            return End(look=shown.look, ended=False)
        raise InterruptedBySignalError(
            f"interrupted; {followed.id} goes on, and `muster watch {followed.id}` shows it again",
            signum=error.signum,
        ) from error
    keep()
    if followed.has_progress and not ended:
        terminal.line(f"{followed.id} goes on; `muster watch {followed.id}` shows it again")
    return End(look=shown.look, ended=ended)


class _Shown:
    """What is on the screen, and what is known of it."""

    def __init__(self, followed: Followed, page: Page, *, colours: bool) -> None:
        self.look: Look | None = None
        self._followed = followed
        self._page: Page = page
        self._colours = colours

    def follow(
        self,
        args: argparse.Namespace,
        screen: Screen,
        console: Console,
        interruption: Interruption,
        now: Callable[[], datetime.datetime],
    ) -> bool:
        """Draw until it ends (True) or the user has seen enough (False)."""
        keyboard = screen.keyboard
        picture = Picture(self._followed, self._page, colours=self._colours, keys=keyboard is not None)
        with Poller(args, Looker(self._followed), self._page) as poller:
            while True:
                self.look, note = poller.latest()
                size = screen.size
                lines = picture.lines(self.look, note, size, now())
                screen.draw([ansi(padded(one, size[0]), console) for one in lines])
                if self.look is not None and self.look.ended:
                    return True
                ready = interruption.wait(REDRAW_S, [poller] if keyboard is None else [poller, keyboard])
                if keyboard is None or keyboard not in ready:
                    continue
                if not all(picture.press(key, size[1]) for key in keyboard.read()):
                    return False
                if picture.page != poller.page:
                    poller.page = picture.page
                    poller.hurry()

    def final(self, width: int, now: datetime.datetime) -> list[Line]:
        """Return what stays on the terminal."""
        if self.look is None:
            return []
        if self._followed.has_progress:
            return progress_page.final(self.look, width, now, colours=self._colours)
        return fleet_page.page(self.look, width, FINAL_ROWS) if self.look.fleet is not None else []


def ansi(text: Line, console: Console) -> str:
    """Return a line with the escape codes that the terminal understands."""
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()
