"""The page of devices: those in flight, then those that failed, as far as they are fetched; it scrolls."""

from __future__ import annotations

from collections.abc import Sequence

from provisioning.cli.live import marks
from provisioning.cli.live.looks import Look, Member
from provisioning.cli.live.paint import NARROW, WIDE, Line, fitted, gauge, line, table, wrapped


def page(look: Look, width: int, rows: int, top: int) -> tuple[list[Line], int]:
    """Return the page from the device number ``top`` on, and that number as far as there are devices."""
    members = look.members
    everyone = [*members.in_flight, *members.missed]
    total = members.in_flight_total + members.missed_total
    head = line(
        (f"{members.in_flight_total:,} in flight", "cyan"),
        ", ",
        (f"{members.missed_total:,} not ok", "red" if members.missed_total else "dim"),
    )
    if not everyone:
        empty = "no device is in flight, and none has failed"
        return [fitted(head, width), Line(), *wrapped(empty, width, most=2, style="dim")][:rows], 0
    room = max(rows - 3, 1)
    top = max(0, min(top, len(everyone) - room))
    shown = everyone[top : top + room]
    if len(everyone) > len(shown):
        head.append(f"  {top + 1:,}–{top + len(shown):,} of {len(everyone):,}", style="dim")
    if total > len(everyone):
        head.append(f"  (of {total:,} the first)", style="dim")
    return [fitted(head, width), Line(), *_table(shown, width)][:rows], top


def _table(members: Sequence[Member], width: int) -> list[Line]:
    narrow, wide = width < NARROW, width >= WIDE
    columns = ["device", "state", "done"]
    limits = {0: 12 if narrow else 28}
    waves = any(one.wave for one in members) and not narrow
    if waves:
        columns.insert(1, "wave")
    if not narrow:
        columns += ["try", "online"]
    if wide:
        columns += ["model", "firmware"]
        limits |= {len(columns) - 2: 20, len(columns) - 1: 20}
    columns.append("error")
    rows = [_row(one, width, waves=waves) for one in members]
    numbers = [columns.index(name) for name in ("wave", "try", "done") if name in columns and not wide]
    return table(columns, rows, width, right=numbers, limits=limits)


def _row(one: Member, width: int, *, waves: bool) -> list[Line]:
    narrow, wide = width < NARROW, width >= WIDE
    cells = [line(one.device_id)]
    if waves:
        cells.append(line(str(one.wave or "")))
    cells.append(line((marks.word_of(one.state, short=narrow), marks.style_of(one.state))))
    done = line("" if one.progress is None else f"{one.progress:.0%}")
    if wide and one.progress is not None:
        done = gauge(one.progress, 12)
        done.append(f" {one.progress:4.0%}")
    cells.append(done)
    if not narrow:
        cells.append(line(str(one.attempt or "")))
        cells.append(line("" if one.online is None else "yes" if one.online else ("no", "yellow")))
    if wide:
        cells += [line(one.model), line(one.firmware_version)]
    cells.append(line((one.error or (f"waits for {one.held_by}" if one.held_by else ""), "red")))
    return cells
