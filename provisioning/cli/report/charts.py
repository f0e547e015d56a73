"""Charts as inline SVG, coloured by the page's style sheet. Numbers only: no text of devices gets in here."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from provisioning.cli.report.figures import Bucket, nice
from provisioning.cli.terminal import duration

WIDTH: Final = 720
HEIGHT: Final = 200
LEFT: Final = 52
BOTTOM: Final = 26
TOP: Final = 26
RIGHT: Final = 12
TICKS: Final = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)


def bars(
    buckets: Sequence[Bucket],
    *,
    title: str,
    label: Callable[[float], str],
    marks: Mapping[str, float] | None = None,
    per: float = 1.0,
    unit: str = "",
) -> str:
    """Return bars over the buckets, those that missed on top; ``marks`` are lines at values, by name."""
    if not buckets:
        return ""
    most = max((one.count + one.missed) / per for one in buckets)
    top = nice(most / 4, TICKS) * 4
    start, end = buckets[0].start, buckets[-1].end
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        return LEFT + (value - start) / (end - start) * inner_width

    def y(value: float) -> float:
        return TOP + inner_height * (1 - value / top)

    parts = [_begin(title, HEIGHT)]
    for step in range(5):
        value = top * step / 4
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.4g}</text>'
        )
    gap = 1 if len(buckets) < 100 else 0
    for one in buckets:
        left, width = x(one.start), max(x(one.end) - x(one.start) - gap, 0.8)
        good, both = one.count / per, (one.count + one.missed) / per
        parts.append(
            f"<g><title>{label(one.start)} – {label(one.end)}: {one.count:,}"
            f"{f', {one.missed:,} not provisioned' if one.missed else ''}</title>"
        )
        if one.count:
            parts.append(_rect("ok", left, y(good), width, y(0) - y(good)))
        if one.missed:
            parts.append(_rect("bad", left, y(both), width, y(good) - y(both)))
        parts.append("</g>")
    for position in range(5):
        value = start + (end - start) * position / 4
        anchor = ("start", "middle", "middle", "middle", "end")[position]
        parts.append(
            f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">'
            f"{label(value)}</text>"
        )
    parts += _marks(marks or {}, x, end)
    if unit:
        parts.append(f'<text class="tick" x="{LEFT - 44}" y="11">{unit}</text>')
    return "".join([*parts, "</svg>"])


def _marks(marks: Mapping[str, float], x: Callable[[float], float], end: float) -> list[str]:
    parts = []
    free_from = 0.0
    for name, value in marks.items():
        if value > end:
            continue
        at = x(value)
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 4}" y2="{HEIGHT - BOTTOM}"/>'
        )
        text = f"{name} {duration(value)}"
        width = 6.4 * len(text)
        if at >= free_from and at + width < WIDTH:
            parts.append(f'<text class="mark-text" x="{at + 3:.1f}" y="{TOP - 6}">{text}</text>')
            free_from = at + width + 6
        elif at - width >= free_from:
            parts.append(
                f'<text class="mark-text" x="{at - 3:.1f}" y="{TOP - 6}" text-anchor="end">{text}</text>'
            )
            free_from = at
    return parts


def stack(amounts: Sequence[tuple[str, str, float]], *, title: str, height: int = 18) -> str:
    """Return one bar of parts, each with its style's class, its name and its amount."""
    total = sum(amount for _, _, amount in amounts)
    parts = [_begin(title, height)]
    if not total:
        parts.append(_rect("todo", 0, 0, WIDTH, height))
    at = 0.0
    for style, name, amount in amounts:
        width = WIDTH * amount / total if total else 0.0
        if width:
            parts.append(
                f"<g><title>{name}: {amount:,.4g} ({amount / total:.1%})</title>"
                f"{_rect(style, at, 0, max(width, 1.5), height)}</g>"
            )
        at += width
    return "".join([*parts, "</svg>"])


def clock_label(seconds: float) -> str:
    """Return a moment as the time of day in UTC."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%H:%M:%S}"


def day_label(seconds: float) -> str:
    """Return a moment as day and time in UTC, for what took days."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%m-%d %H:%M}"


def _begin(title: str, height: int) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" preserveAspectRatio="none" '
        f'class="{"chart" if height == HEIGHT else "bar"}"><title>{title}</title>'
    )


def _rect(style: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{style}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"/>'
