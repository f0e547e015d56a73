"""The report as one HTML page: no script, nothing fetched; whatever devices say is text, and masked."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.masking import masked
from provisioning import __version__
from provisioning.cli.errors import printable
from provisioning.cli.report import charts
from provisioning.cli.report.figures import MAX_EXAMPLES, PERCENTS, STEPS, Figures
from provisioning.cli.report.subject import Subject
from provisioning.cli.rollout.logs import detail_of
from provisioning.cli.terminal import clock, data_size, duration, parse_timestamp, state_word
from provisioning.states import FINAL, WORKING, DeviceState

BUCKETS: Final = 60
LATENCY_BUCKETS: Final = 60
MAX_LOG: Final = 300
MAX_MODELS: Final = 10
DAY_S: Final = 86_400
_STYLE: Final = Path(__file__).with_name("page.css")
_BAR: Final = (
    ("ok", "provisioned"),
    ("bad", "not provisioned"),
    ("cancel", "cancelled"),
    ("flight", "in flight"),
    ("todo", "to start"),
)
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_COMMAND: Final = re.compile(r"`([^`]+)`")
_GOOD: Final = frozenset({"completed"})
_WRONG: Final = frozenset({"failed", "cancelled", "terminated"})


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page says."""

    subject: Subject
    figures: Figures
    made_at: str
    command: str


def safe(text: object) -> str:
    """Return a text for HTML: escaped, masked, control characters made visible."""
    return html.escape(masked(printable(str(text))), quote=True)


def _with_commands(text: str) -> str:
    """A text for HTML, in which the commands between backquotes are set as code."""
    return _COMMAND.sub(r"<code>\1</code>", safe(text))


def moment(timestamp: str | None) -> str:
    """Return a time in UTC, which the reader may be far from."""
    parsed = parse_timestamp(timestamp)
    return "–" if parsed is None else f"{parsed:%Y-%m-%d %H:%M:%S} UTC"


def page(report: Report) -> str:
    """Return the whole page."""
    subject, figures = report.subject, report.figures
    title = subject.name or subject.id
    sections = [
        _head(report),
        _tiles(subject, figures),
        _states(figures),
        _waves(figures) if subject.kind == "rollout" else "",
        _throughput(subject, figures),
        _latencies(figures),
        _steps(figures),
        _failures(figures),
        _slowest(figures),
        _spread(figures),
        _plan(subject),
        _log(subject),
        _foot(report),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is to be fetched or run, whatever might have got into the page.
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{safe(title)} – Muster report</title>\n"
        f"<style>\n{_STYLE.read_text('utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    subject = report.subject
    style = "good" if subject.state in _GOOD else "wrong" if subject.state in _WRONG else "open"
    badge = f'<span class="badge {style}">{safe(state_word(subject.state))}</span>'
    lines = [
        f"<h1>{safe(subject.name or subject.id)} {badge}</h1>",
        f'<p class="soft"><span class="id">{safe(subject.id)}</span>, a {subject.kind}'
        + (f", retry of {safe(subject.retry_of)}" if subject.retry_of else "")
        + "</p>",
    ]
    if subject.state_line != state_word(subject.state):
        lines.append(f"<p>{_with_commands(subject.state_line)}</p>")
    if not subject.ended:
        lines.append(
            f'<p class="notice">This {subject.kind} is under way: the figures are those of'
            f" {moment(report.made_at)}, and go on to change.</p>"
        )
    return "\n".join(lines)


def _tiles(subject: Subject, figures: Figures) -> str:
    devices, elapsed_s = figures.devices, subject.elapsed_s
    median = figures.percentiles().get(50)
    missed = figures.ended - figures.provisioned
    tiles = [
        (f"{devices:,}", "devices"),
        (f"{figures.provisioned:,}", f"provisioned, {_percent(figures.provisioned, devices)}"),
        (f"{missed:,}", f"ended otherwise, {_percent(missed, devices)}"),
        (clock(elapsed_s), "from start to end" if subject.ended else "since the start"),
        (f"{figures.ended / elapsed_s:,.1f}/s" if elapsed_s else "–", "devices that ended"),
        (duration(median), "median time of a device"),
    ]
    if not subject.ended:
        tiles.insert(3, (f"{figures.in_flight:,}", "in flight"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
        + "</div>"
    )


def _amounts(counts: Mapping[str, int]) -> list[int]:
    provisioned, cancelled = (
        counts.get(state, 0) for state in (DeviceState.PROVISIONED, DeviceState.CANCELLED)
    )
    ended = sum(counts.get(state, 0) for state in FINAL)
    working = sum(counts.get(state, 0) for state in WORKING)
    todo = sum(counts.values()) - ended - working
    return [provisioned, ended - provisioned - cancelled, cancelled, working, todo]


def _bar(counts: Mapping[str, int], title: str) -> str:
    amounts = _amounts(counts)
    return charts.stack(
        [(style, name, amount) for (style, name), amount in zip(_BAR, amounts, strict=True)], title=title
    )


def _states(figures: Figures) -> str:
    legend = _legend(
        [
            (style, f"{name} <b>{amount:,}</b>")
            for (style, name), amount in zip(_BAR, _amounts(figures.counts), strict=True)
            if amount
        ]
    )
    in_order = ["pending", *DeviceState]
    states = ", ".join(
        f"{safe(state_word(state))} {figures.counts[state]:,}" for state in in_order if figures.counts[state]
    )
    return (
        f'{_bar(figures.counts, "Devices by state")}{legend}<p class="soft">By state: {states or "none"}.</p>'
    )


def _waves(figures: Figures) -> str:
    rows = []
    for number, counts in sorted(figures.waves.items()):
        good, bad, cancelled, flight, todo = _amounts(counts)
        ended = good + bad
        rows.append(
            [
                _n(number),
                f'<td class="bar-cell">{_bar(counts, f"Wave {number}")}</td>',
                *(_n(f"{one:,}") for one in (sum(counts.values()), good, bad, cancelled, flight, todo)),
                _n(_percent(good, ended) if ended else "–"),
            ]
        )
    heads = ["wave", "", "devices", "provisioned", "not ok", "cancelled", "in flight", "to start", "success"]
    return _section("Waves", _table(heads, rows, numbers=(0, 2, 3, 4, 5, 6, 7, 8)))


def _throughput(subject: Subject, figures: Figures) -> str:
    started = parse_timestamp(subject.started_at)
    buckets = figures.throughput(BUCKETS, None if started is None else started.timestamp())
    if not buckets:
        return ""
    width = buckets[0].end - buckets[0].start
    long = buckets[-1].end - buckets[0].start > DAY_S
    chart = charts.bars(
        buckets,
        title="Devices that ended per second, over time",
        label=charts.day_label if long else charts.clock_label,
        per=width,
        unit="devices/s",
    )
    best = max(one.count + one.missed for one in buckets) / width
    total = sum(one.count + one.missed for one in buckets)
    caption = (
        f"{total:,} devices that ended, by the second of their end (UTC), in steps of {width:g} s;"
        f" at most {best:,.1f}/s."
    )
    legend = _legend([("ok", "provisioned"), ("bad", "ended otherwise")])
    return _section("Throughput", _figure(chart, caption) + legend)


def _latencies(figures: Figures) -> str:
    buckets = figures.latencies(LATENCY_BUCKETS)
    if not buckets:
        return ""
    marks = {f"p{percent}": value for percent, value in figures.percentiles().items()}
    chart = charts.bars(buckets, title="How long devices took", label=duration, marks=marks, unit="devices")
    slowest = figures.slowest_provisioned
    beyond = (
        f" The last bar has all above {duration(buckets[-1].start)}."
        if slowest > buckets[-2].end * 1.5
        else ""
    )
    caption = (
        f"Time from start to end of {figures.measured:,} devices that were provisioned:"
        f" {', '.join(f'{name} {duration(value)}' for name, value in marks.items())},"
        f" the slowest {duration(slowest)}.{beyond}"
    )
    return _section("How long a device takes", _figure(chart, caption))


def _steps(figures: Figures) -> str:
    means = figures.mean_steps()
    if not means:
        return ""
    rest = max(figures.mean_device_s - sum(means.values()), 0.0)
    parts = [(f"step{number}", step, means.get(step, 0.0)) for number, step in enumerate(STEPS, start=1)]
    parts.append(("rest", "between the steps", rest))
    total = sum(amount for _, _, amount in parts) or 1.0
    legend = _legend([(style, f"{name} <b>{amount / total:.0%}</b>") for style, name, amount in parts])
    rows = []
    for name, values, mean in [
        *((step, figures.percentiles(step), means.get(step)) for step in STEPS),
        ("whole device", figures.percentiles(), figures.mean_device_s),
    ]:
        rows.append(
            [f"<td>{name}</td>", _n(duration(mean)), *(_n(duration(values.get(one))) for one in PERCENTS)]
        )
    table = _table(["step", "mean", *(f"p{one}" for one in PERCENTS)], rows, numbers=range(1, 5))
    chart = charts.stack(parts, title="Share of each step")
    return _section("Where the time goes", f"{chart}{legend}{table}")


def _failures(figures: Figures) -> str:
    groups = figures.groups()
    if not groups:
        return _section(
            "Failures", "<p>None: no device ended otherwise than provisioned.</p>" if figures.ended else ""
        )
    rows = [
        [
            _n(f"{one.count:,}"),
            f'<td class="w">{safe(state_word(one.state))}</td>',
            f'<td class="long">{safe(one.reason)}</td>',
            f'<td class="id">{safe(", ".join(one.examples))}{" …" if one.count > MAX_EXAMPLES else ""}</td>',
        ]
        for one in groups
    ]
    total = sum(one.count for one in groups)
    return _section(
        "Failures",
        f"<p>{total:,} of {figures.devices:,} devices ended otherwise than provisioned, by reason:</p>"
        + _table(["devices", "ended", "reason", "such as"], rows, numbers=(0,)),
    )


def _slowest(figures: Figures) -> str:
    rows = [
        [
            f'<td class="id w">{safe(one.device_id)}</td>',
            f'<td class="w">{safe(state_word(one.state))}</td>',
            _n(one.attempts),
            _n(duration(one.device_s)),
            *(_n(duration(one.steps_s.get(step))) for step in STEPS),
        ]
        for one in figures.slowest()
    ]
    heads = ["device", "ended", "attempts", "took", *STEPS]
    return _section("Slowest devices", _table(heads, rows, numbers=range(2, 8))) if rows else ""


def _spread(figures: Figures) -> str:
    attempts = [[_n(number), _n(f"{count:,}")] for number, count in sorted(figures.attempts.items())]
    models = [
        [f"<td>{safe(model or '–')}</td>", _n(f"{count:,}")]
        for model, count in figures.models.most_common(MAX_MODELS)
    ]
    blocks = []
    if attempts:
        blocks.append(
            "<div><h2>Attempts</h2>"
            + _table(["attempts", "devices that ended"], attempts, numbers=(0, 1))
            + "</div>"
        )
    if models:
        blocks.append("<div><h2>Models</h2>" + _table(["model", "devices"], models, numbers=(1,)) + "</div>")
    return f'<div class="two">{"".join(blocks)}</div>' if blocks else ""


def _plan(subject: Subject) -> str:
    facts = list(subject.plan)
    for name, timestamp in (
        ("created", subject.created_at),
        ("started", subject.started_at),
        ("ended", subject.ended_at),
    ):
        if timestamp:
            facts.append((name, moment(timestamp)))
    if (release := subject.release) is not None:
        facts = [fact for fact in facts if fact[0] != "release"]
        firmware = release["firmware"]
        models = ", ".join(release["models"]) or "all models"
        facts[:0] = [
            ("release", f"{release['name']}, version {release['version']}, for {models}"),
            ("firmware", f"{data_size(firmware['size_bytes'])}, SHA-256 {firmware['sha256']}"),
        ]
        if release.get("notes"):
            facts.insert(2, ("notes", release["notes"]))
    elif subject.release_name is not None and not subject.plan:
        facts.insert(0, ("release", subject.release_name))
    listed = "".join(f"<dt>{safe(name)}</dt><dd>{safe(told)}</dd>" for name, told in facts)
    return _section("Plan" if subject.plan else "Facts", f"<dl>{listed}</dl>")


def _log(subject: Subject) -> str:
    if not subject.log:
        return ""
    left_out = len(subject.log) - MAX_LOG
    rows = [
        [
            f'<td class="w">{moment(entry["at"])}</td>',
            f"<td>{safe(entry['actor'])}</td>",
            f'<td class="w">{safe(state_word(entry["what"]))}</td>',
            f'<td class="long">{_with_commands(detail_of(entry))}</td>',
        ]
        for entry in subject.log[-MAX_LOG:]
    ]
    more = f'<p class="soft">The latest {MAX_LOG} of {len(subject.log):,}.</p>' if left_out > 0 else ""
    return _section("Log", more + _table(["time", "who", "what", "detail"], rows))


def _foot(report: Report) -> str:
    return (
        f"<footer>Made by Muster {safe(__version__)} on {moment(report.made_at)} with"
        f" <code>{safe(report.command)}</code>. Times are UTC.</footer>"
    )


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def _legend(parts: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        '<li><svg viewBox="0 0 1 1" aria-hidden="true">'
        f'<rect class="{style}" width="1" height="1"/></svg>{told}</li>'
        for style, told in parts
    )
    return f'<ul class="legend">{items}</ul>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    head = "".join(
        f'<th class="n">{name}</th>' if index in numbers else f"<th>{name}</th>"
        for index, name in enumerate(heads)
    )
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _n(value: object) -> str:
    return f'<td class="n">{value}</td>'


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
