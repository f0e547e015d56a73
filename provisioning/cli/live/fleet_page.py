"""The page of fleets: which there are, and the numbers of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from provisioning.cli.documents import Fleet
from provisioning.cli.fleet.listing import STATE_STYLES, state_of
from provisioning.cli.fleet.numbers import age_s, latency_line
from provisioning.cli.live.looks import Look
from provisioning.cli.live.paint import (
    NARROW,
    WIDE,
    Line,
    fitted,
    fixed,
    gauge,
    joined,
    line,
    stacked,
    table,
    wrapped,
)
from provisioning.cli.terminal import clock, counted, data_size

MAX_FLEETS: Final = 6
BLOCK_ROWS: Final = 23
MAX_GROUPS: Final = 40
GAUGES: Final = ("devices", "running", "connected", "downloading", "offline")


def page(look: Look, width: int, rows: int) -> list[Line]:
    """Return the page, in at most ``rows`` lines of at most ``width``."""
    if look.fleet is None:
        empty = "there is no fleet; start one with `muster fleet launch --count 200`"
        return wrapped(empty, width, most=3, style="dim")[:rows]
    others = [fleet for fleet in look.fleets if fleet["fleet_id"] != look.fleet["fleet_id"]]
    remarks: list[Line] = []
    if look.fleet.get("restarts"):
        died = f"{counted(look.fleet['restarts'], 'process', 'processes')} died and started again"
        remarks += wrapped(died, width, most=2, style="yellow")
    if error := look.fleet.get("error"):
        remarks += wrapped(error, width, most=3, style="red")
    return stacked(
        [
            fixed(_header(look.fleet, width), rank=0, least=3),
            fixed(remarks, rank=1, apart=False),
            fixed(numbers(look.fleet, look.rates, width), rank=2),
            fixed(_groups(look.fleet, width), rank=3),
            fixed(_others(others, width), rank=4),
        ],
        rows,
    )


def block(fleet: Fleet, rates: Mapping[str, float], width: int, *, note: str = "") -> list[Line]:
    """Return a fleet as lines that stand below others: its numbers, without other fleets."""
    lines = page(Look(fleet=fleet, rates=rates), width, BLOCK_ROWS)
    return [*lines, fitted(line((note, "yellow")), width)] if note else lines


def _header(fleet: Fleet, width: int) -> list[Line]:
    s, devices = fleet["statistics"], fleet["devices"]
    state = state_of(fleet)
    figures = joined(
        [
            line((fleet["fleet_id"], "bold")),
            line((state, STATE_STYLES[state])),
            line((f"{s['connected']:,}/{devices:,} connected", "bold")),
            line((clock(age_s(fleet)), "cyan")),
            line((counted(fleet.get("processes", 1), "process", "processes"), "dim")),
        ],
        width,
    )
    return [*figures, gauge(s["connected"] / devices if devices else 0.0, width)]


def numbers(fleet: Fleet, rates: Mapping[str, float], width: int) -> list[Line]:
    """Return what the fleet counts, each with its rate: on one line, or on two where there is little room."""
    s: Mapping[str, Any] = fleet["statistics"]
    narrow = width < NARROW
    named = [
        (
            "connects",
            f"{s['connects_per_s']:,.1f}/s",
            f"{s['connects']:,} made, {s['reconnects']:,} again, {s['connect_failures']:,} failed",
        ),
        ("msgs in", *_flow(s, rates, "messages_in", "bytes_in")),
        ("msgs out", *_flow(s, rates, "messages_out", "bytes_out")),
        (
            "downloads",
            f"{rates.get('downloads_completed', 0.0):,.1f}/s",
            f"{s['downloads_completed']:,} done, {s['downloading']:,} under way, {s['hash_failures']:,} bad",
        ),
    ]
    ack = s["latencies"]["ack"]
    if ack["count"]:
        named.append(("ack", "", " ".join(latency_line(ack).split())))
    lines: list[Line] = []
    for name, per_s, more in named:
        head = line((f"{name:<10}", "dim"), (f"{per_s:>9}", "cyan"))
        if narrow:
            lines += [fitted(head, width), fitted(line(f"  {more}"), width)]
        else:
            head.append(f"   {more}")
            lines.append(fitted(head, width))
    return lines


def _groups(fleet: Fleet, width: int) -> list[Line]:
    groups = list(fleet["statistics"].get("groups", {}).items())
    if len(groups) < 2:
        return []
    gauges = ("devices", "connected") if width < NARROW else GAUGES
    rows = [
        [line(name), *(line((f"{values.get(one, 0):,}", "" if values.get(one) else "dim")) for one in gauges)]
        for name, values in groups[:MAX_GROUPS]
    ]
    limits = {0: 14 if width < NARROW else 30 if width < WIDE else 60}
    lines = table(["group", *gauges], rows, width, right=range(1, len(gauges) + 1), limits=limits)
    if (more := len(groups) - MAX_GROUPS) > 0:
        lines.append(line((f"… and {more:,} more", "dim")))
    return lines


def _others(fleets: Sequence[Fleet], width: int) -> list[Line]:
    if not fleets:
        return []
    lines = [line(("other fleets", "bold"))]
    for fleet in fleets[:MAX_FLEETS]:
        connected = f"{fleet.get('connected', 0):,}/{fleet['devices']:,} connected"
        lines.append(fitted(line(f"{fleet['fleet_id']}  {connected}"), width))
    if (more := len(fleets) - MAX_FLEETS) > 0:
        lines.append(line((f"… and {more:,} more", "dim")))
    return lines


def _flow(
    statistics: Mapping[str, Any], rates: Mapping[str, float], messages: str, size: str
) -> tuple[str, str]:
    per_s = f"{rates.get(messages, 0.0):,.1f}/s"
    return per_s, (
        f"{statistics[messages]:,}, {data_size(statistics[size])}, {data_size(rates.get(size, 0.0))}/s"
    )
