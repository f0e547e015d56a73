"""What a run came to: outcomes against expectations, rates, percentiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from provisioning.cli.documents import Device, Json, Percentiles, Run
from provisioning.cli.progress import rate
from provisioning.cli.terminal import STATE_STYLES, Terminal, clock, duration, state_word
from provisioning.states import DeviceState

MAX_DIFFERENCES_SHOWN = 10
NEVER_REGISTERED = "never registered"
# In the order in which a device goes through them.
STEPS = ("packaging", "notifying", "downloading", "activating")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A device that did not end as its plan says."""

    device_id: str
    expected: str
    actual: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished run; ``expected`` is None where nobody said how the devices should end."""

    run: Run
    actual: Mapping[str, int]
    expected: Mapping[str, int] | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def as_expected(self) -> bool:
        """Whether the run ended and each device is where it should be (where nobody said: provisioned)."""
        if self.run["status"] != "completed" or self.differences:
            return False
        return self.expected is not None or set(self.actual) <= {DeviceState.PROVISIONED}

    def to_json(self) -> Json:
        return {
            "as_expected": self.as_expected,
            "outcomes": dict(self.actual),
            "expected": None if self.expected is None else dict(self.expected),
            "differences": [
                {"device_id": d.device_id, "expected": d.expected, "actual": d.actual, "reason": d.reason}
                for d in self.differences
            ],
            "run": self.run,
        }


def compare(run: Run, devices: Iterable[Device], expected: Mapping[str, str]) -> Summary:
    """Return the summary of ``run`` with each device's state set against ``expected`` (by device id).

    Devices that nobody expected are somebody's own that joined; they count and cannot differ.
    """
    actual: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for device in devices:
        actual[device["device_id"]] = device["state"]
        reasons[device["device_id"]] = device.get("error") or ""
    differences = tuple(
        Difference(
            device_id=device_id,
            expected=outcome,
            actual=actual.get(device_id, NEVER_REGISTERED),
            reason=reasons.get(device_id, ""),
        )
        for device_id, outcome in expected.items()
        if actual.get(device_id) != outcome
    )
    return Summary(
        run=run,
        actual=_in_order(Counter(actual.values())),
        expected=_in_order(Counter(expected.values())),
        differences=differences,
    )


def plain_summary(run: Run) -> Summary:
    """Return the summary of a run for which nobody said how it should end."""
    return Summary(run=run, actual=_in_order({s: n for s, n in run.get("counts", {}).items() if n}))


def show_summary(summary: Summary, terminal: Terminal) -> None:
    """Write the summary: outcomes, differences, rate, percentiles."""
    run = summary.run
    provisioned = summary.actual.get(DeviceState.PROVISIONED, 0)
    terminal.line(
        f"{provisioned:,} of {run['devices']:,} provisioned in {clock(run.get('elapsed_s'))}"
        f", {rate(run.get('devices_per_s'))}{_verdict(summary)}",
        style="bold green" if summary.as_expected else "bold red",
    )
    if run["status"] != "completed":
        terminal.line(f"the run {run['run_id']} is {run['status']}", style="red")
    terminal.line()
    _show_outcomes(summary, terminal)
    _show_differences(summary, terminal)
    _show_percentiles(run, terminal)


def _verdict(summary: Summary) -> str:
    if summary.expected is None:
        return ""
    if summary.differences:
        wrong = len(summary.differences)
        return f"; {wrong:,} device{'s' if wrong != 1 else ''} did not end as expected"
    return "; every device ended as expected"


def _show_outcomes(summary: Summary, terminal: Terminal) -> None:
    expected = summary.expected
    states = [s for s in [*DeviceState, NEVER_REGISTERED] if s in summary.actual or s in (expected or {})]
    rows = [
        [state_word(s), f"{summary.actual.get(s, 0):,}"]
        + ([] if expected is None else [f"{expected.get(s, 0):,}"])
        for s in states
    ]
    columns = ["outcome", "devices"] + ([] if expected is None else ["expected"])
    styles = {0: {state_word(state): style for state, style in STATE_STYLES.items()}}
    terminal.table(columns, rows, right=(1, 2), styles=styles, indent=2)


def _show_differences(summary: Summary, terminal: Terminal) -> None:
    if not summary.differences:
        return
    terminal.line()
    terminal.table(
        ["device", "expected", "actual", "error"],
        [
            [d.device_id, state_word(d.expected), state_word(d.actual), d.reason]
            for d in summary.differences[:MAX_DIFFERENCES_SHOWN]
        ],
        indent=2,
    )
    if (more := len(summary.differences) - MAX_DIFFERENCES_SHOWN) > 0:
        terminal.line(f"  … and {more:,} more", style="dim")


def _show_percentiles(run: Run, terminal: Terminal) -> None:
    percentiles = run.get("percentiles")
    if not percentiles:
        return
    steps = percentiles.get("steps") or {}
    in_order = sorted(steps, key=lambda step: STEPS.index(step) if step in STEPS else len(STEPS))
    measured = {step: steps[step] for step in in_order}
    measured["whole device"] = percentiles.get("device") or {}
    rows = [[name, *_figures(values)] for name, values in measured.items() if any(values.values())]
    if rows:
        terminal.line()
        terminal.table(["step", "p50", "p95", "p99"], rows, right=(1, 2, 3), indent=2)


def _figures(values: Percentiles) -> list[str]:
    return [duration(values.get("p50_s")), duration(values.get("p95_s")), duration(values.get("p99_s"))]


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    order = [*DeviceState, *counts]
    return {str(state): counts[state] for state in dict.fromkeys(order) if state in counts}
