"""The page of a rollout or run: how far it is, its waves, a map of devices, what failed, what to do next."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from provisioning.cli.documents import Rollout, Run, Wave
from provisioning.cli.live import marks
from provisioning.cli.live.looks import Look, Member
from provisioning.cli.live.paint import (
    GAP,
    NARROW,
    WIDE,
    Line,
    Section,
    beside,
    fitted,
    fixed,
    gauge,
    joined,
    line,
    stacked,
    table,
    wrapped,
)
from provisioning.cli.progress import ended_devices as run_ended
from provisioning.cli.progress import expected_time_s, failure_line, rate
from provisioning.cli.release.words import release_of
from provisioning.cli.rollout.showing import success
from provisioning.cli.rollout.words import (
    STATE_STYLES,
    ended_devices,
    expected_end,
    further_steps,
    headline,
    state_line,
    wave_of,
)
from provisioning.cli.terminal import clock, duration, state_word, time_of_day

MAX_WAVES: Final = 8
MAX_MAP_ROWS: Final = 12
MAX_SAMPLE_ROWS: Final = 4
MAX_IN_FLIGHT: Final = 20
MAX_FAILURES: Final = 10
MAX_LATEST: Final = 5


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What rollouts and runs have in common, ready to be drawn."""

    title: str
    state: str
    state_line: str
    devices: int
    ended: int
    counts: Mapping[str, int]
    devices_per_s: float | None
    elapsed_s: float | None
    end: str | None
    release: str | None
    waves: Sequence[Wave] = ()
    wave: int = 0
    reasons: Sequence[str] = ()
    steps: Sequence[str] = ()


def facts_of(look: Look, now: datetime.datetime) -> Facts | None:
    """Return the facts of a look; None where no rollout or run is followed."""
    if look.rollout is not None:
        return _of_rollout(look.rollout, now, look.recent_per_s)
    return None if look.run is None else _of_run(look.run, now)


def _of_rollout(rollout: Rollout, now: datetime.datetime, recent_per_s: float | None) -> Facts:
    if recent_per_s and rollout.get("eta_s") is not None:
        left = rollout["devices"] - ended_devices(rollout["counts"])
        rollout = {**rollout, "devices_per_s": recent_per_s, "eta_s": left / recent_per_s}
    return Facts(
        title=headline(rollout),
        state=rollout["state"],
        state_line=state_line(rollout),
        devices=rollout["devices"],
        ended=ended_devices(rollout["counts"]),
        counts=rollout["counts"],
        devices_per_s=rollout.get("devices_per_s"),
        elapsed_s=rollout.get("elapsed_s"),
        end=expected_end(rollout, now),
        release=release_of(rollout.get("release")),
        waves=rollout["waves"],
        wave=rollout.get("wave", 0),
        reasons=[
            f"{one['count']:,} {state_word(one['state'])}: {one['reason']} ({one.get('example') or '-'})"
            for one in rollout.get("reasons") or []
        ],
        steps=further_steps(rollout),
    )


def _of_run(run: Run, now: datetime.datetime) -> Facts:
    expected_s = expected_time_s(run) if run["status"] == "running" else None
    left_s = None if expected_s is None else max(expected_s - (run.get("elapsed_s") or 0.0), 0.0)
    end = None
    if left_s is not None:
        at = (now + datetime.timedelta(seconds=left_s)).astimezone()
        end = f"{at:%H:%M:%S}, in {clock(left_s)}"
    return Facts(
        title=run["run_id"],
        state=run["status"],
        state_line=state_word(run["status"]),
        devices=run["devices"],
        ended=run_ended(run),
        counts=run.get("counts", {}),
        devices_per_s=run.get("devices_per_s"),
        elapsed_s=run.get("elapsed_s"),
        end=end,
        release=None,
        steps=() if run["status"] == "running" else ("`muster devices --state failed` lists what failed",),
    )


def header(facts: Facts, width: int) -> list[Line]:
    """Return the lines on top: state, figures, the bar and what its parts mean."""
    narrow = width < NARROW
    lines = wrapped(facts.state_line, width, most=2, style=STATE_STYLES.get(facts.state, "cyan"))
    share = facts.ended / facts.devices if facts.devices else 0.0
    per_s = rate(facts.devices_per_s)
    figures = [
        line((f"{facts.ended:,}/{facts.devices:,} ended", "bold")),
        line(per_s.replace(" devices/s", "/s") if narrow else per_s),
        line((clock(facts.elapsed_s), "cyan")),
    ]
    if len(facts.waves) > 1:
        figures.insert(0, line(("wave ", "dim"), wave_of(facts.wave, len(facts.waves))))
    if facts.end is not None:
        figures.append(line((f"end at {facts.end}", "cyan")))
    if facts.release and width >= WIDE:
        figures.append(line(("release ", "dim"), facts.release))
    lines += joined(figures, width)
    percent = f" {share:4.0%}"
    made = marks.bar(facts.counts, width - len(percent))
    made.append(percent, style="bold")
    return [*lines, made, *joined(marks.bar_legend(facts.counts), width)]


def waves(facts: Facts, width: int) -> list[Line]:
    """Return the waves around the current one, each with its bar."""
    if len(facts.waves) < 2:
        return []
    narrow = width < NARROW
    first = max(0, min(facts.wave - MAX_WAVES // 2, len(facts.waves) - MAX_WAVES))
    shown = facts.waves[first : first + MAX_WAVES]
    rows = []
    for wave in shown:
        style = "bold" if wave["number"] == facts.wave else ""
        ok = "" if wave.get("success_percent") is None else success(wave)
        rows.append(
            [
                line((f"{'w' if narrow else 'wave '}{wave['number']}", style)),
                line((f"{ended_devices(wave['counts']):,}/{wave['devices']:,}", style)),
                line((state_word(wave["state"])[: 8 if narrow else 20], STATE_STYLES.get(wave["state"], ""))),
                line(ok if narrow or not ok else f"{ok} ok"),
            ]
        )
    widths = [max(row[index].cell_len for row in rows) for index in range(4)]
    room = width - sum(widths) - 2 * 4
    lines = []
    for wave, (name, ended, state, ok_cell) in zip(shown, rows, strict=True):
        made = name.copy()
        made.append(" " * (widths[0] - name.cell_len + 2))
        made.append_text(marks.bar(wave["counts"], max(room, 4)))
        made.append(" " * (2 + widths[1] - ended.cell_len))
        made.append_text(ended)
        made.append("  ")
        made.append_text(state)
        made.append(" " * (2 + widths[2] - state.cell_len + widths[3] - ok_cell.cell_len))
        made.append_text(ok_cell)
        made.rstrip()
        lines.append(fitted(made, width))
    if (more := len(facts.waves) - len(shown)) > 0:
        lines.append(line((f"… and {more:,} more waves", "dim")))
    return lines


def device_map(facts: Facts, look: Look, width: int, *, colours: bool) -> Section | None:
    """Return the map of devices: each one where they are few, else in proportion."""
    if not facts.devices:
        return None
    narrow = width < NARROW
    legend = joined(marks.cell_legend(facts.counts, colours=colours, short=narrow), width)
    states = look.members.states
    rows = MAX_SAMPLE_ROWS
    if states is not None:
        rows = min(MAX_MAP_ROWS, max(-(-len(states) // width), 1))

    def draw(given: int) -> list[Line]:
        room = given - len(legend) - 1
        if room < 1:
            return [*legend][:given]
        if states is not None and len(states) <= width * room * (2 if colours else 1):
            head = "each device, by id"
            lines = marks.cells(states, width, room, colours=colours)
        else:
            amount = min(width * min(room, MAX_SAMPLE_ROWS), facts.devices)
            each = facts.devices / amount
            head = f"{marks.CELL} stands for {each:,.{0 if each >= 10 else 1}f} devices"
            lines = marks.cells(marks.sampled(facts.counts, amount), width, room, colours=colours)
        return [line((head, "dim")), *lines, *legend]

    return Section(draw=draw, least=2 + len(legend), most=rows + 1 + len(legend), rank=5)


def in_flight(look: Look, width: int, most: int) -> list[Line]:
    """Return the devices in flight with their steps, those that are furthest first."""
    members = look.members
    if not members.in_flight_total:
        return []
    order = list(marks.COLOURS)
    shown = sorted(members.in_flight, key=lambda one: (order.index(one.state), -(one.progress or 0.0)))[:most]
    lines = [line((f"in flight  {members.in_flight_total:,}", "bold"))]
    lines += member_rows(shown, width)
    if (more := members.in_flight_total - len(shown)) > 0:
        lines.append(line((f"… and {more:,} more", "dim")))
    return lines


def member_rows(members: Sequence[Member], width: int) -> list[Line]:
    """Return devices with their steps, how far they are, and whatever went wrong before."""
    narrow = width < NARROW
    rows = []
    for one in members:
        progress = line("") if one.progress is None else line(f"{one.progress:.0%}")
        cells = [
            line(one.device_id),
            line((marks.word_of(one.state, short=narrow), marks.style_of(one.state))),
            progress,
        ]
        if not narrow:
            cells.insert(2, gauge(one.progress or 0.0, 10) if one.progress is not None else line(""))
            cells.append(line((f"attempt {one.attempt}", "dim") if (one.attempt or 0) > 1 else ""))
            cells.append(line((one.error or "", "red")))
        rows.append(cells)
    names = ["" for _ in rows[0]] if rows else []
    limits = {0: 14 if narrow else 24}
    return table(names, rows, width, right=(2,) if narrow else (3,), limits=limits)[1:]


def failures(facts: Facts, width: int) -> list[Line]:
    """Return why devices failed, each reason with how many of them."""
    lines: list[Line] = []
    if facts.reasons:
        lines.append(line(("why devices failed", "bold")))
        lines += [fitted(line((reason, "red")), width) for reason in facts.reasons[:MAX_FAILURES]]
        if (more := len(facts.reasons) - MAX_FAILURES) > 0:
            lines.append(line((f"… and {more} more reasons", "dim")))
    return lines


def latest(look: Look, width: int) -> list[Line]:
    """Return the devices that failed last."""
    lines = [line(("latest failures", "bold"))] if look.failures else []
    for failure in look.failures[:MAX_LATEST]:
        at = "" if width < NARROW else f"{time_of_day(failure.get('at'))}  "
        lines.append(fitted(line((f"{at}{failure_line(failure)}", "red")), width))
    return lines


def times(look: Look, width: int) -> list[Line]:
    """Return the percentiles of a run, in one line."""
    measured = None if look.run is None else look.run.get("percentiles")
    values = (measured or {}).get("device") or {}
    if not values.get("p50_s"):
        return []
    told = "  ".join(f"{name} {duration(values.get(f'{name}_s'))}" for name in ("p50", "p95", "p99"))  # type: ignore[arg-type]  # one of the keys
    return [fitted(line(("a device takes  ", "dim"), told), width)]


def steps(facts: Facts, width: int) -> list[Line]:
    """Return what the operator can do next."""
    most = 3 if width < NARROW else 2
    return [
        text for step in facts.steps for text in wrapped(f"next: {step}", width, most=most, style="yellow")
    ]


def page(look: Look, width: int, rows: int, now: datetime.datetime, *, colours: bool) -> list[Line]:
    """Return the whole page, in at most ``rows`` lines of at most ``width``."""
    facts = facts_of(look, now)
    if facts is None:
        return [line(("nothing is under way", "dim")), line("start it with `muster rollout create`")][:rows]
    top = header(facts, width)
    if width < WIDE:
        return stacked(
            [
                fixed(top, rank=0, least=len(top)),
                fixed(steps(facts, width), rank=1, apart=False),
                fixed(waves(facts, width), rank=2, least=min(len(facts.waves), 3)),
                *_optional(device_map(facts, look, width, colours=colours)),
                fixed(in_flight(look, width, MAX_IN_FLIGHT), rank=4, least=4),
                fixed(failures(facts, width), rank=3, least=2),
                fixed(latest(look, width), rank=7, least=2),
                fixed(times(look, width), rank=6, apart=False),
            ],
            rows,
        )
    left_width = (width - GAP) * 11 // 20
    right_width = width - GAP - left_width
    below = rows - len(top) - 1
    left = stacked(
        [
            fixed(steps(facts, left_width), rank=0, apart=False),
            fixed(waves(facts, left_width), rank=1, least=3),
            *_optional(device_map(facts, look, left_width, colours=colours)),
            fixed(failures(facts, left_width), rank=2, least=2),
            fixed(latest(look, left_width), rank=7, least=2),
            fixed(times(look, left_width), rank=6),
        ],
        below,
    )
    right = stacked([fixed(in_flight(look, right_width, max(below - 2, 1)), rank=0)], below)
    return [*top, Line(), *beside(left, right, left_width)][:rows]


def final(look: Look, width: int, now: datetime.datetime, *, colours: bool) -> list[Line]:
    """Return what stays on the terminal after the end, above the summary."""
    facts = facts_of(look, now)
    if facts is None:
        return []
    lines = [fitted(line((facts.title, "bold")), width), *header(facts, width)]
    drawn = device_map(facts, look, width, colours=colours)
    return lines if drawn is None else [*lines, Line(), *drawn.draw(drawn.most)]


def _optional(section: Section | None) -> list[Section]:
    return [] if section is None else [section]
