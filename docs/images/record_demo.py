"""Make docs/images/demo.svg: the terminal of a real `muster demo`, 80 columns wide.

    .venv/bin/python docs/images/record_demo.py

The live picture is drawn over itself; the image holds one frame of it, the one nearest to two thirds of
the way, and then everything that the demo leaves on the terminal.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from provisioning.cli.demo import perform
from provisioning.cli.documents import Run
from provisioning.cli.notice import LiveNotice
from provisioning.cli.parser import build_parser
from provisioning.cli.progress import RunView, ended_devices, picture
from provisioning.cli.terminal import Terminal
from provisioning.cli.views import SilentView

IMAGE = Path(__file__).absolute().with_name("demo.svg")
COMMAND = "muster demo"
WIDTH = 80
SHOWN_FRACTION = 2 / 3


class OneFrame(SilentView[Run]):
    """Shows a single frame of a run, once the run has ended."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._frame: Run | None = None

    def update(self, run: Run, /) -> None:
        def distance(other: Run) -> float:
            return abs(ended_devices(other) / other["devices"] - SHOWN_FRACTION)

        if self._frame is None or distance(run) < distance(self._frame):
            self._frame = run
        if run["status"] != "running":
            self._terminal.console.print(picture(self._frame))


class RecordedNotice(LiveNotice):
    """What a demo says, without what does not stay."""

    def status(self, text: str) -> None:
        return None

    def run_view(self) -> RunView:
        return OneFrame(self._terminal)


def main() -> int:
    """Run the demo with the arguments of this script, and write the image if it succeeds."""
    console = Console(
        file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, highlight=False, markup=False
    )
    console.print(f"$ {COMMAND}", style="bold")
    terminal = Terminal(console=console)
    os.environ.pop("MUSTER_STATE", None)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        args = build_parser().parse_args(["demo", *sys.argv[1:]])
        code = perform(args, terminal, RecordedNotice(terminal))
    if code == 0:
        svg = console.export_svg(title=COMMAND, theme=MONOKAI)
        # The reader's own fonts will do; an image should fetch nothing.
        IMAGE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))
    return code


if __name__ == "__main__":
    sys.exit(main())
