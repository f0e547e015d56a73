"""The results as Markdown, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.contestants import MUSTER, PEERS, Contestant
from benchmarks.figures import Figure, Results
from benchmarks.suite import DISK, MEMORY, STARTUP
from benchmarks.workloads import CHAIN, EVENTS, LATENCY, RAISE, SEED, TIMERS, WORKLOADS, Workload

_HEAD = ("what", "size", "median (lowest to highest)", "more", "aim")

_More = Callable[[Results, Figure], str]


def as_markdown(results: Results) -> str:
    """Muster's own figures, then those beside its peers, then who is left out and why."""
    rows = [_alone_row(results, shown, figure) for shown in _SHOWN for figure in results.of(shown.run)]
    parts = [table(_HEAD, rows)]
    if results.beside:
        parts += [beside_table(results), states_of(results)]
    for what, reason in results.left_out.items():
        parts.append(f"Left out: {what}: {reason.splitlines()[-1]}")
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is words, the others are numbers first of all."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Muster alone


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """How a run's figures are shown: the value that counts, what more there is, the aims by size."""

    run: str
    title: str
    value: str
    unit: str
    digits: int
    more: _More
    aims: Mapping[int, str]


def _alone_row(results: Results, shown: _Shown, figure: Figure) -> list[str]:
    values = figure.all(shown.value)
    low, middle, high = (f"{v:,.{shown.digits}f}" for v in (min(values), median(values), max(values)))
    span = f" ({low} to {high})" if len(values) > 1 else ""
    return [
        shown.title,
        f"{figure.size:,}",
        f"{middle}{shown.unit}{span}",
        shown.more(results, figure),
        shown.aims.get(figure.size, ""),
    ]


def _more_nothing(_: Results, __: Figure) -> str:
    return ""


def _more_seed(results: Results, figure: Figure) -> str:
    smallest = results.of(SEED.name)[0]
    if figure.size == smallest.size:
        return ""
    return f"a device costs {smallest.ratio(figure, 'per_s'):.2f}× what it does at {smallest.size:,}"


def _more_timers(_: Results, figure: Figure) -> str:
    return f"{figure.median('most_at_once'):,.0f} at once; {figure.median('late_p99_ms'):.0f} ms late at p99"


def _more_latency(_: Results, figure: Figure) -> str:
    commits = figure.median("commits_each")
    return f"{_tail(figure)}; {commits:.3g} commit{'' if commits == 1 else 's'} each"


def _more_disk(_: Results, figure: Figure) -> str:
    return _tail(figure)


def _tail(figure: Figure) -> str:
    return f"p95 {figure.median('p95_ms'):.2f}, p99 {figure.median('p99_ms'):.2f} ms"


def _more_startup(_: Results, figure: Figure) -> str:
    return (
        f"the engine has started after {figure.median('started_s'):.2f} s; then an event to a waiting one "
        f"takes {figure.median('event_ms'):.0f} ms"
    )


def _more_memory(_: Results, figure: Figure) -> str:
    event = "evicted" if figure.median("replayed") else "idle"
    return (
        f"at most {figure.median('peak_mb'):,.0f} MB on the way; {figure.median('live'):,.0f} are live; "
        f"an event to an {event} one takes {figure.median('event_ms'):.0f} ms"
    )


def _of_workload(workload: Workload, more: _More, aims: Mapping[int, str]) -> _Shown:
    return _Shown(
        run=workload.name,
        title=workload.title,
        value=workload.value,
        unit=workload.unit,
        digits=0 if workload.is_rate else 2,
        more=more,
        aims=aims,
    )


_SHOWN = (
    _of_workload(SEED, _more_seed, {10_000: "≥ 5,000/s", 100_000: "≤ 1.3×"}),
    _of_workload(CHAIN, _more_nothing, {}),
    _of_workload(TIMERS, _more_timers, {}),
    _of_workload(EVENTS, _more_nothing, {}),
    _of_workload(LATENCY, _more_latency, {500: "≤ 10 ms"}),
    _of_workload(RAISE, _more_latency, {500: "one commit"}),
    _Shown(
        run=DISK,
        title="(no engine: one durable commit of one row)",
        value="p50_ms",
        unit=" ms",
        digits=2,
        more=_more_disk,
        aims={},
    ),
    _Shown(
        run=STARTUP,
        title="start on unfinished instances, until a new orchestration is done",
        value="ready_s",
        unit=" s",
        digits=2,
        more=_more_startup,
        aims={100_000: "≤ 3 s"},
    ),
    _Shown(
        run=MEMORY,
        title="memory of instances that wait for an event",
        value="rss_mb",
        unit=" MB",
        digits=0,
        more=_more_memory,
        aims={100_000: "≤ 300 MB", 1_000_000: "bounded"},
    ),
)


# Beside its peers


def beside_table(results: Results) -> str:
    """A workload a row, a contestant a column."""
    peers = _compared_peers(results)
    rows = []
    for workload in WORKLOADS:
        mine = results.compared(workload, MUSTER.name)
        if mine is None:
            continue
        row = [workload.title, f"{mine.size:,}", _number(workload, mine)]
        rows.append(row + [_peer_cell(workload, mine, results.compared(workload, p.name)) for p in peers])
    return table(["beside its peers", "size", MUSTER.title, *(p.title for p in peers)], rows)


def _compared_peers(results: Results) -> list[Contestant]:
    names = {figure.contestant for figure in results.beside}
    return [peer for peer in PEERS if peer.name in names]


def _number(workload: Workload, figure: Figure) -> str:
    value = figure.median(workload.value)
    return f"{value:,.0f}/s" if workload.is_rate else f"{value:,.2f} ms"


def _peer_cell(workload: Workload, mine: Figure, theirs: Figure | None) -> str:
    """The peer's figure, and Muster's as so many times as good."""
    if theirs is None:
        return "–"
    ratio = mine.ratio(theirs, workload.value)
    factor = ratio if workload.is_rate else 1 / ratio
    return f"{_number(workload, theirs)} (Muster {factor:,.{0 if factor >= 10 else 1}f}×)"


def states_of(results: Results) -> str:
    """What each keeps on disk."""
    lines = [f"- {c.title}: {c.state}" for c in [MUSTER, *_compared_peers(results)]]
    head = "In brackets, how many times as good Muster's figure is. How each keeps its state:"
    return "\n".join([head, "", *lines])
