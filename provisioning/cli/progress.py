"""Following a run: a live picture on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from provisioning.cli.documents import Failure, Run
from provisioning.cli.errors import one_line
from provisioning.cli.terminal import STATE_STYLES, Terminal, clock, state_word
from provisioning.cli.views import LinesView, LiveView, View
from provisioning.states import FINAL, WORKING, DeviceState

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

POLL_INTERVAL_S = 0.25
# Counting a large run costs the service time that its devices need.
LARGE_RUN_DEVICES = 1_000
LARGE_RUN_POLL_INTERVAL_S = 1.0
# Before so many devices have ended their rate foretells nothing; the stages that all have reached do.
MEANINGFUL_ENDED_FRACTION = 0.05
MEANINGFUL_STAGE_FRACTION = 0.02
PLAIN_INTERVAL_S = 2.0
MAX_FAILURES_SHOWN = 5
# The last column is the goal; the other final states are shown once there are any.
STAGES = (*WORKING, DeviceState.PROVISIONED)


RunView: TypeAlias = "View[Run]"


def plain_run_view(terminal: Terminal) -> RunView:
    """Return the view that writes lines."""
    return PlainView(terminal)


def run_view(terminal: Terminal) -> RunView:
    """Return the view that suits ``terminal``, below whatever was written before it."""
    if not terminal.interactive:
        return PlainView(terminal)
    return LiveView[Run](terminal, lambda run, note: picture(run, note=note))


def follow_run(fetch: Callable[[], Run], view: RunView, wait: Callable[[float], object] = time.sleep) -> Run:
    """Show a run until it has ended and return its last state; ``wait`` may raise to end it early."""
    with view:
        while True:
            run = fetch()
            view.update(run)
            if run["status"] != "running":
                return run
            large = run["devices"] > LARGE_RUN_DEVICES
            wait(LARGE_RUN_POLL_INTERVAL_S if large else POLL_INTERVAL_S)


def ended_devices(run: Run) -> int:
    """Return how many devices of the run have reached a final state."""
    return sum(count for state, count in run.get("counts", {}).items() if state in FINAL)


def timing(run: Run) -> str:
    """Return the elapsed and the expected time, as ``0:03 of about 0:05``, or the first alone."""
    expected_s = expected_time_s(run) if run["status"] == "running" else None
    elapsed = clock(run.get("elapsed_s"))
    return elapsed if expected_s is None else f"{elapsed} of about {clock(expected_s)}"


def expected_time_s(run: Run) -> float | None:
    """Return how long the whole run will have taken, or None while there is nothing to tell it from.

    The service reckons with the rate of devices that have ended. Large runs go through the stages abreast,
    and hardly a device ends before most do: until then each stage counts as an equal part of the way.
    """
    elapsed_s, eta_s, devices = run.get("elapsed_s"), run.get("eta_s"), run["devices"]
    if not elapsed_s or not devices:
        return None
    if eta_s is not None and ended_devices(run) >= MEANINGFUL_ENDED_FRACTION * devices:
        return elapsed_s + eta_s
    parts = {str(state): index / len(WORKING) for index, state in enumerate(WORKING)}
    counts = run.get("counts", {})
    done = sum(count * parts.get(state, 1.0) for state, count in counts.items()) / devices
    return elapsed_s / done if done >= MEANINGFUL_STAGE_FRACTION else None


def rate(devices_per_s: float | None) -> str:
    """Return a rate for people; a dash before there is one."""
    return "- devices/s" if devices_per_s is None else f"{devices_per_s:,.1f} devices/s"


def failure_line(failure: Failure) -> str:
    """Return one failed device and why."""
    reason = failure.get("reason")
    return one_line(
        f"{failure['device_id']} {state_word(failure['state'])}" + (f": {reason}" if reason else "")
    )


class PlainView(LinesView[Run]):
    """One line every PLAIN_INTERVAL_S seconds, and one for each new failure."""

    def __init__(self, terminal: Terminal, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(terminal, now)
        self._seen_failures: set[tuple[str, str | None]] = set()

    def update(self, run: Run, /) -> None:
        if run["status"] == "running" and self._now() < self._next_s:
            return
        self._next_s = self._now() + PLAIN_INTERVAL_S
        counts = run.get("counts", {})
        states = "  ".join(f"{state_word(s)} {counts[s]:,}" for s in DeviceState if counts.get(s))
        self._terminal.line(
            f"{timing(run)}  {ended_devices(run):,}/{run['devices']:,} done"
            f"  {rate(run.get('devices_per_s'))}  {states}"
        )
        for failure in reversed(run.get("failures", [])):
            key = (failure["device_id"], failure.get("at"))
            if key not in self._seen_failures:
                self._seen_failures.add(key)
                self._terminal.line(f"  {failure_line(failure)}")


def picture(run: Run, *, note: str = "") -> Group:
    """Return a run as something that rich can draw, at most 80 columns wide."""
    from rich.console import Group, RenderableType
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    counts = run.get("counts", {})
    done, total = ended_devices(run), run["devices"]

    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=max(total, 1), completed=done, width=28, complete_style="cyan"),
        Text(f"{done:,}/{total:,}", style="bold"),
        Text(rate(run.get("devices_per_s"))),
        Text(timing(run), style="cyan"),
    )

    stages = Table.grid(padding=(0, 2))
    for _ in STAGES:
        stages.add_column(justify="right")
    stages.add_row(*[Text(state_word(state), style="dim") for state in STAGES])
    stages.add_row(*[_figure(counts.get(state, 0), STATE_STYLES.get(state, "cyan")) for state in STAGES])

    parts: list[RenderableType] = [bar, stages]
    misses = [
        f"{state_word(state)} {counts[state]:,}"
        for state in DeviceState
        if state in FINAL and state != DeviceState.PROVISIONED and counts.get(state)
    ]
    if misses:
        parts.append(Text("  ".join(misses), style="red"))
    parts += [
        Text("  " + failure_line(failure), style="red", no_wrap=True, overflow="ellipsis")
        for failure in run.get("failures", [])[:MAX_FAILURES_SHOWN]
    ]
    if note:
        parts.append(Text(note, style="yellow"))
    return Group(*parts)


def _figure(count: int, style: str) -> Text:
    from rich.text import Text

    return Text(f"{count:,}", style=style if count else "dim")
